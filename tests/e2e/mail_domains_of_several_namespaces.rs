//! MailDomains of a list of namespaces, with rights in those alone: the operator looks after them, a server takes
//! their mail, a domain belongs to one of them, and what is elsewhere in the cluster is left alone.

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use packetboat_tests::world::{ARRIVAL, at, code_of_rcpt};
use serde_json::Value;
use testkit::process::Role;
use testkit::wait;

/// What the operator may do in each namespace, as `docs/install.md` has it.
const OPERATOR: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: operator, namespace: NAMESPACE}
rules:
  - {apiGroups: [mail.packetboat.dev], resources: [maildomains], verbs: [get, list, watch, patch]}
  - {apiGroups: [mail.packetboat.dev], resources: [maildomains/status], verbs: [patch]}
  - {apiGroups: [mail.packetboat.dev], resources: [dnsproviders], verbs: [get, list, watch]}
  - {apiGroups: [externaldns.k8s.io], resources: [dnsendpoints], verbs: [get, list, watch, create, patch, delete]}
  - {apiGroups: [\"\"], resources: [secrets, configmaps], verbs: [get, list, watch, create, patch, delete]}
  - {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
";
const LEASE: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: lease, namespace: packetboat}
rules:
  - {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create, get, list, watch, patch, update]}
";
/// What a process with all services may.
const SERVER: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: server, namespace: NAMESPACE}
rules:
  - {apiGroups: [mail.packetboat.dev], resources: [maildomains], verbs: [get, list, watch]}
  - {apiGroups: [\"\"], resources: [secrets], verbs: [get, list, watch]}
";
const KEYS: &str = "\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 2s, revokeFor: 2s}}";

fn claim(namespace: &str, domain: &str) -> String {
    format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: claim, namespace: {namespace}}}\n\
         spec:\n  domain: {domain}\n  inbound: {{recipients: {{addresses: [bob]}}, route: {{maildir: {{path: m}}}}}}\n"
    )
}

/// The reason of the condition `DomainClaimed` of the claim in a namespace; nothing while nobody looks after it.
async fn claimed(estate: &Estate, namespace: &str) -> Option<String> {
    let text =
        estate.api.kubectl(&["-n", namespace, "get", "mdom", "claim", "-o", "json"], None).await.ok()?;
    let object: Value = serde_json::from_str(&text).ok()?;
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|one| one["type"] == "DomainClaimed")?;
    found["reason"].as_str().map(str::to_owned)
}

/// A service account in the namespace `packetboat`, with a role in each namespace.
async fn account(estate: &Estate, name: &str, role: &str, namespaces: &[&str]) -> Result<std::path::PathBuf> {
    let api = &estate.api;
    api.kubectl(&["-n", "packetboat", "create", "serviceaccount", name], None).await?;
    let account = format!("--serviceaccount=packetboat:{name}");
    for namespace in namespaces {
        api.apply(&role.replace("NAMESPACE", namespace)).await?;
        let role = format!("--role={name}");
        api.kubectl(&["-n", namespace, "create", "rolebinding", name, &role, &account], None).await?;
    }
    api.kubeconfig_of("packetboat", name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_in_those_namespaces_are_enough() -> Result<()> {
    let estate = Estate::new().await?;
    for namespace in ["packetboat", "second", "third"] {
        estate.api.kubectl(&["create", "namespace", namespace], None).await?;
    }
    let kubeconfig = account(&estate, "operator", OPERATOR, &["mail", "second"]).await?;
    estate.api.apply(LEASE).await?;
    let lease = ["-n", "packetboat", "create", "rolebinding", "lease", "--role=lease"];
    let lease = [&lease[..], &["--serviceaccount=packetboat:operator"]].concat();
    estate.api.kubectl(&lease, None).await?;
    let mut settings = estate.site.settings(Role::Operator)?;
    settings.kubeconfig = Some(kubeconfig);
    settings.namespaces = vec!["mail".to_owned(), "second".to_owned()];
    settings.extra = "operator: {lease_namespace: packetboat, lease_duration: 5s}\n".to_owned();
    let operator = estate.site.start(&settings).await?;

    // Whoever is older has the domain, in whichever namespace; a namespace that is not listed is nobody's.
    estate.api.apply(&claim("third", "third.test")).await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", operator.log());
    ensure!(estate.key_secrets().await?.len() == 1);
    estate.api.apply(&claim("second", DOMAIN)).await?;
    let refused = async || claimed(&estate, "second").await.as_deref() == Some("Conflict");
    wait::until_true("the younger claim to be refused", STEP, refused).await?;

    // A server with rights in the same namespaces takes mail for both, and for the third's domain none.
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    let holds = async || claimed(&estate, "second").await.as_deref() == Some("Claimed");
    wait::until_true("the younger claim to be taken up", STEP, holds).await?;
    let mut settings = estate.site.settings(Role::All)?;
    settings.kubeconfig = Some(account(&estate, "server", SERVER, &["mail", "second"]).await?);
    settings.namespaces = vec!["mail".to_owned(), "second".to_owned()];
    let server = estate.site.start(&settings).await?;
    let rcpt = async |address: &str| code_of_rcpt(settings.mx, address).await;
    ensure!(rcpt(&at("bob", DOMAIN)).await == Some(250), "{}", server.log());
    ensure!(rcpt(&at("bob", "mail.test")).await != Some(250));
    estate.api.apply(&claim("mail", "mail.test")).await?;
    let followed = async || rcpt(&at("bob", "mail.test")).await == Some(250);
    wait::until_true("a domain of the other namespace to be hosted", ARRIVAL, followed).await?;
    ensure!(rcpt(&at("bob", "third.test")).await != Some(250), "a namespace that is not listed is followed");

    let third = estate.api.kubectl(&["-n", "third", "get", "mdom", "claim", "-o", "json"], None).await?;
    let third: Value = serde_json::from_str(&third).context("reading a MailDomain")?;
    ensure!(third["status"].is_null() && third["metadata"]["finalizers"].is_null(), "{third:#}");
    ensure!(!operator.log().contains("panicked"), "{}", operator.log());
    Ok(())
}
