//! Records are published through a DNSProvider of the namespace, or a ClusterDNSProvider as far as it lets.

use anyhow::{Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate};
use testkit::bind::KEY_NAME;

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}
  deletionPolicy: Delete";

fn way(estate: &Estate) -> String {
    let primary = estate.bind.primary();
    format!(
        "rfc2136: {{server: \"{primary}\", tsig: {{keyName: {KEY_NAME}, algorithm: hmac-sha256, secretRef: {{name: tsig}}}}}}"
    )
}

fn provider(estate: &Estate, kind: &str, more: &str) -> String {
    let place = if kind == "DNSProvider" { ", namespace: mail" } else { "" };
    format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: ns1{place}}}\nspec: {{{}{more}}}\n",
        way(estate)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_namespace_and_of_the_cluster() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    let refer = |kind: &str| format!("mode: Provider, providerRef: {{kind: {kind}, name: ns1}}");

    // Of the namespace: told when it is not there, used as soon as it is.
    estate.api.apply(&estate.mail_domain_by(&refer("DNSProvider"), KEYS)).await?;
    estate.wait_for("Accepted", "False", "ProviderNotFound").await?;
    estate.api.apply(&provider(&estate, "DNSProvider", "")).await?;
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", process.log());
    let selector = estate.active().await?.concat();
    ensure!(estate.record("TXT", &format!("{selector}._domainkey.{DOMAIN}")).await?.contains("v=DKIM1"));

    // Of the cluster: it says whose and what it is for.
    let guard = |domain: &str, namespace: &str| {
        format!(", secretNamespace: mail, domains: [{domain}], namespaces: [{namespace}]")
    };
    let cluster = async |domain: &str, namespace: &str| {
        let yaml = provider(&estate, "ClusterDNSProvider", &guard(domain, namespace));
        estate.api.apply(&yaml).await.map(drop)
    };
    estate.api.apply(&estate.mail_domain_by(&refer("ClusterDNSProvider"), KEYS)).await?;
    estate.wait_for("Accepted", "False", "ProviderNotFound").await?;
    cluster(DOMAIN, "others").await?;
    estate.wait_for("Accepted", "False", "ProviderNotAllowed").await?;
    cluster("other.test", "mail").await?;
    estate.wait_for("Accepted", "False", "ProviderNotAllowed").await?;
    cluster("test", "\"*\"").await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    ensure!(estate.active().await?.concat() == selector, "the way changed, and with it the key");
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    let owner = estate.bind.answer(estate.bind.primary(), "TXT", &format!("_packetboat.{DOMAIN}")).await?;
    ensure!(owner.is_empty(), "something is left: {owner}");
    ensure!(!process.log().contains(testkit::bind::SECRET), "a secret is in the log");
    Ok(())
}
