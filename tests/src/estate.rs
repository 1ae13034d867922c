//! A cluster's API, two authoritative name servers, and an operator between them.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::bind::{Bind, KEY_NAME, SECRET};
use testkit::dns::DnsServer;
use testkit::kubernetes::ApiServer;
use testkit::process::{Packetboat, Role, Settings, Site};
use testkit::wait;

use crate::witness::{Times, Witness};

const CRDS: [&str; 3] = [
    include_str!("../../k8s/crds/maildomains.yaml"),
    include_str!("../../k8s/crds/dnsproviders.yaml"),
    include_str!("../../k8s/crds/clusterdnsproviders.yaml"),
];

/// The domain that is declared.
pub const DOMAIN: &str = "example.test";
/// A record of somebody else in its zone.
const THEIRS: &str = "@ IN TXT \"google-site-verification=theirs\"";
/// How long a step of a key's life may take beyond its settings, on a slow machine.
pub const STEP: Duration = Duration::from_secs(60);
/// The secondary follows the primary within this.
const AGREED: Duration = Duration::from_secs(10);

/// All that an operator works with.
pub struct Estate {
    /// The Kubernetes API.
    pub api: ApiServer,
    /// The name servers of [`DOMAIN`].
    pub bind: Bind,
    /// Configurations of processes.
    pub site: Site,
    /// The resolver that processes ask.
    pub dns: DnsServer,
}

impl Estate {
    /// Starts the API with the CRD, the namespace `mail` with the TSIG key, and the name servers.
    pub async fn new() -> Result<Self> {
        Self::over(Bind::start(DOMAIN, 1, THEIRS).await?, "", str::to_owned).await
    }

    /// The same with a zone that is signed; above it nothing is known of that.
    pub async fn signed() -> Result<Self> {
        Self::over(Bind::start_signed(DOMAIN, 1, THEIRS).await?, "", str::to_owned).await
    }

    /// With a secondary that lags by so many seconds.
    pub async fn lagging(seconds: u32) -> Result<Self> {
        Self::lagging_with(seconds, "", "", str::to_owned).await
    }

    /// The same with what [`Estate::with`] takes.
    pub async fn lagging_with(
        seconds: u32,
        names: &str,
        zone: &str,
        adjust: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let bind = Bind::lagging(DOMAIN, 1, &format!("{THEIRS}\n{zone}"), seconds).await?;
        Self::over(bind, names, adjust).await
    }

    /// The same with further lines in the DNS that processes ask and in the zone, and with the CRDs as `adjust`
    /// leaves them.
    pub async fn with(names: &str, zone: &str, adjust: impl Fn(&str) -> String) -> Result<Self> {
        let bind = Bind::start(DOMAIN, 1, &format!("{THEIRS}\n{zone}")).await?;
        Self::over(bind, names, adjust).await
    }

    async fn over(bind: Bind, names: &str, adjust: impl Fn(&str) -> String) -> Result<Self> {
        let dns = DnsServer::start(&format!("ns1.example.test. 300 IN A 127.0.0.1\n{names}")).await?;
        let site = Site::new(dns.address())?;
        let api = ApiServer::start().await?;
        for crd in CRDS {
            api.define(&adjust(crd)).await?;
        }
        api.kubectl(&["create", "namespace", "mail"], None).await?;
        let secret = format!("--from-literal=secret={SECRET}");
        api.kubectl(&["-n", "mail", "create", "secret", "generic", "tsig", &secret], None).await?;
        Ok(Self { api, bind, site, dns })
    }

    /// Starts an operator.
    pub async fn operator(&self) -> Result<(Settings, Packetboat)> {
        self.operator_with("").await
    }

    /// An operator with further top-level YAML lines.
    pub async fn operator_with(&self, more: &str) -> Result<(Settings, Packetboat)> {
        let mut settings = self.site.settings(Role::Operator)?;
        settings.kubeconfig = Some(self.api.kubeconfig()?);
        settings.extra = format!("operator: {{lease_duration: 5s}}\n{more}");
        let process = self.site.start(&settings).await?;
        Ok((settings, process))
    }

    /// The YAML of a MailDomain, published by dynamic update; `more` are further keys of the spec.
    #[must_use]
    pub fn mail_domain(&self, more: &str) -> String {
        let (primary, secondary) = (self.bind.primary(), self.bind.secondary());
        format!(
            "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\n\
             metadata: {{name: example, namespace: mail}}\nspec:\n  domain: {DOMAIN}\n\
             \x20 dns:\n    mode: RFC2136\n    verification: {{servers: [\"{primary}\", \"{secondary}\"], interval: 2s}}\n\
             \x20   rfc2136: {{server: \"{primary}\", tsig: {{keyName: {KEY_NAME}, algorithm: hmac-sha256, secretRef: {{name: tsig}}}}}}\n{more}\n"
        )
    }

    /// The YAML of a MailDomain whose `dns` has these further keys, in flow style.
    #[must_use]
    pub fn mail_domain_by(&self, dns: &str, more: &str) -> String {
        let (primary, secondary) = (self.bind.primary(), self.bind.secondary());
        format!(
            "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\n\
             metadata: {{name: example, namespace: mail}}\nspec:\n  domain: {DOMAIN}\n\
             \x20 dns: {{{dns}, verification: {{servers: [\"{primary}\", \"{secondary}\"], interval: 2s}}}}\n{more}\n"
        )
    }

    /// The MailDomain as the API has it.
    pub async fn read(&self) -> Result<Value> {
        let text = self.api.kubectl(&["-n", "mail", "get", "mdom", "example", "-o", "json"], None).await?;
        serde_json::from_str(&text).context("reading a MailDomain")
    }

    /// The status and reason of a condition.
    pub async fn condition(&self, kind: &str) -> Result<(String, String)> {
        let domain = self.read().await?;
        let conditions = domain["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|one| one["type"] == kind).context("no such condition")?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason")))
    }

    /// Waits for a condition; fails with the whole status.
    pub async fn wait_for(&self, kind: &str, status: &str, reason: &str) -> Result<()> {
        let holds = async || {
            self.condition(kind).await.is_ok_and(|found| found == (status.to_owned(), reason.to_owned()))
        };
        let outcome = wait::until_true(&format!("{kind}={status} {reason}"), STEP, holds).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("{:#}", self.read().await?["status"]))),
        }
    }

    /// A witness of the domain's keys.
    pub async fn witness(&self, times: Times) -> Result<Witness> {
        let servers = vec![self.bind.primary(), self.bind.secondary()];
        Witness::start(self.api.kubeconfig()?, servers, times).await
    }

    /// Runs `kubectl` in the namespace of the MailDomain.
    pub async fn mail(&self, arguments: &[&str]) -> Result<String> {
        self.api.kubectl(&[&["-n", "mail"], arguments].concat(), None).await
    }

    /// Sets an annotation of the MailDomain (`name=value`), or takes it away (`name-`); without its prefix.
    pub async fn annotate(&self, annotation: &str) -> Result<()> {
        let annotation = format!("mail.packetboat.dev/{annotation}");
        self.mail(&["annotate", "--overwrite", "mdom", "example", &annotation]).await.map(drop)
    }

    /// Changes the MailDomain by a merge patch.
    pub async fn patch(&self, patch: &str) -> Result<()> {
        self.mail(&["patch", "mdom", "example", "--type=merge", "-p", patch]).await.map(drop)
    }

    /// The selectors that sign.
    pub async fn active(&self) -> Result<Vec<String>> {
        let domain = self.read().await?;
        let active = domain["status"]["dkim"]["activeSelectors"].as_array().cloned().unwrap_or_default();
        Ok(active.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
    }

    /// The names of the key Secrets.
    pub async fn key_secrets(&self) -> Result<Vec<String>> {
        let label = "mail.packetboat.dev/dkim-selector";
        let text =
            self.api.kubectl(&["-n", "mail", "get", "secrets", "-l", label, "-o", "name"], None).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// What both name servers say, once they agree: the secondary is told of a change a moment later.
    pub async fn record(&self, kind: &str, name: &str) -> Result<String> {
        wait::until(&format!("both name servers to say the same of {kind} {name}"), AGREED, async || {
            let primary = self.bind.answer(self.bind.primary(), kind, name).await.ok()?;
            let secondary = self.bind.answer(self.bind.secondary(), kind, name).await.ok()?;
            let primary = sorted(&primary);
            (primary == sorted(&secondary)).then_some(primary)
        })
        .await
    }
}

/// The order of records in a set means nothing.
fn sorted(records: &str) -> String {
    let mut lines: Vec<&str> = records.lines().collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}
