//! An estate with all that an MTA-STS policy needs: a private authority, mail exchangers with STARTTLS, and the
//! server of policies. A policy's times are seconds, where they are days.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::Value;
use testkit::authority::AuthorityFolder;
use testkit::net;
use testkit::process::{Packetboat, Role, Settings};

use crate::estate::{DOMAIN, Estate};

/// Every mail exchanger and the policy host are this machine.
const NAMES: &str = "\
mta-sts.example.test. 1 IN A 127.0.0.1
mx.example.test. 1 IN A 127.0.0.1
mx2.example.test. 1 IN A 127.0.0.1
mx3.example.test. 1 IN A 127.0.0.1
";
/// BIND takes no MX record to a host of the zone that has no address.
const ZONE: &str = "mx2 IN A 127.0.0.1\nmx3 IN A 127.0.0.1\nold IN A 127.0.0.1\n";
/// The hosts whose name is in the certificate of the mail exchangers; `mx3` is none of them.
const EXCHANGERS: [&str; 2] = ["mx.example.test", "mx2.example.test"];
/// What the server of policies may do, and no more.
const READER: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: mail}
rules: [{apiGroups: [mail.packetboat.dev], resources: [maildomains], verbs: [get, list, watch]}]
";

/// A CRD that allows short times.
fn scaled(crd: &str) -> String {
    crd.replace("minimum: 86400", "minimum: 1").replace("minimum: 10\n", "minimum: 1\n")
}

/// The estate and what stands in it.
pub struct PolicyEstate {
    /// API, name servers, and configurations.
    pub estate: Estate,
    /// Vouches for mail exchangers and the policy host.
    pub authority: AuthorityFolder,
    /// Where policies are served.
    pub web: SocketAddr,
    exchangers: SocketAddr,
    _exchangers: Packetboat,
}

impl PolicyEstate {
    /// Starts all but the operator and the server of policies.
    pub async fn new() -> Result<Self> {
        Self::over(Estate::with(NAMES, ZONE, scaled).await?).await
    }

    /// The same with a secondary that lags by so many seconds.
    pub async fn lagging(seconds: u32) -> Result<Self> {
        Self::over(Estate::lagging_with(seconds, NAMES, ZONE, scaled).await?).await
    }

    async fn over(estate: Estate) -> Result<Self> {
        let authority = AuthorityFolder::new(estate.site.path())?;
        authority.issue("mx", &EXCHANGERS)?;
        authority.issue("other", &["other.example.test"])?;
        authority.issue("policies", &[&format!("mta-sts.{DOMAIN}")])?;
        estate.api.apply(READER).await?;
        for arguments in [
            ["create", "serviceaccount", "reader"].as_slice(),
            &["create", "rolebinding", "reader", "--role=reader", "--serviceaccount=mail:reader"],
        ] {
            estate.api.kubectl(&[&["-n", "mail"], arguments].concat(), None).await?;
        }
        let mut settings = estate.site.settings(Role::All)?;
        settings.extra = "tls: {certificate: mx.pem, key: mx.key, reload_interval: 0s}\n".to_owned();
        let process = estate.site.start(&settings).await?;
        let web = net::free_address()?;
        Ok(Self { estate, authority, web, exchangers: settings.mx, _exchangers: process })
    }

    /// Starts an operator that looks at policies through the private authority.
    pub async fn operator(&self) -> Result<Packetboat> {
        let mut settings = self.estate.site.settings(Role::Operator)?;
        settings.kubeconfig = Some(self.estate.api.kubeconfig()?);
        settings.extra = format!(
            "operator:\n  lease_duration: 5s\n  mta_sts:\n    settle: 1s\n    fetch: {{authorities: authority.pem, \
             https_port: {}, smtp_port: {}, allow_loopback: true}}\n",
            self.web.port(),
            self.exchangers.port()
        );
        self.estate.site.start(&settings).await
    }

    /// Settings of a server of policies; several certificates, of which a client is shown the right one.
    pub async fn server_settings(&self) -> Result<Settings> {
        let mut settings = self.estate.site.settings(Role::MtaSts)?;
        settings.kubeconfig = Some(self.estate.api.kubeconfig_of("mail", "reader").await?);
        settings.namespaces = vec!["mail".to_owned()];
        settings.extra = format!(
            "mta_sts:\n  listen: \"{}\"\n  certificates: [{{certificate: other.pem, key: other.key}}, \
             {{certificate: policies.pem, key: policies.key}}]\n",
            self.web
        );
        Ok(settings)
    }

    /// Starts a server of policies.
    pub async fn server(&self) -> Result<Packetboat> {
        self.estate.site.start(&self.server_settings().await?).await
    }

    /// The YAML of a MailDomain with this policy, these hosts, and this way to treat MX records.
    #[must_use]
    pub fn mail_domain(&self, policy: &str, mx: &str, treatment: &str) -> String {
        let mx = mx.split(' ').map(|host| format!("{{host: {host}, preference: 10}}"));
        let mx: Vec<String> = mx.collect();
        let records = format!("    ttl: 2\n    records: {{mx: {treatment}}}\n    rfc2136:");
        let more = format!("  mtaSts: {policy}\n  mx: [{}]", mx.join(", "));
        self.estate.mail_domain(&more).replace("    rfc2136:", &records)
    }

    /// What the operator remembers; nothing when there is no such object.
    pub async fn memory(&self) -> Result<String> {
        let form = "jsonpath={.items[*].data}";
        let arguments = ["-n", "mail", "get", "configmaps", "-l", "mail.packetboat.dev/mta-sts", "-o", form];
        self.estate.api.kubectl(&arguments, None).await
    }

    /// Changes the spec by a JSON merge patch.
    pub async fn patch(&self, spec: Value) -> Result<()> {
        let patch = serde_json::json!({"spec": spec}).to_string();
        let arguments = ["-n", "mail", "patch", "mdom", "example", "--type=merge", "-p", &patch];
        self.estate.api.kubectl(&arguments, None).await.map(drop)
    }
}
