//! Records are published as DNSEndpoint objects; the test is external-dns, and takes them to the name server.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{Estate, STEP};
use serde_json::Value;
use testkit::wait;

const CRD: &str = include_str!("external_dns.yaml");

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 2s, revokeFor: 2s}}
  dmarc: {policy: reject}
  mx: [{host: mx.example.test, preference: 10}]";

/// The endpoints of all objects, by the objects' names.
async fn endpoints(estate: &Estate) -> Result<BTreeMap<String, Value>> {
    let text = estate.api.kubectl(&["-n", "mail", "get", "dnsendpoints", "-o", "json"], None).await?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let name = |item: &Value| item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(items.iter().map(|item| (name(item), item["spec"]["endpoints"][0].clone())).collect())
}

/// What external-dns does: every record set of the objects as they say, those of objects that went away.
async fn sync(estate: &Estate, before: &BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>> {
    let now = endpoints(estate).await?;
    let set = |one: &Value| {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        (text("dnsName"), text("recordType"))
    };
    let mut commands = String::new();
    for (name, kind) in before.values().chain(now.values()).map(set) {
        commands.push_str(&format!("update delete {name} {kind}\n"));
    }
    for endpoint in now.values() {
        let (name, kind) = set(endpoint);
        for target in endpoint["targets"].as_array().context("targets")? {
            let target = target.as_str().context("a target")?;
            commands.push_str(&format!("update add {name} {} {kind} {target}\n", endpoint["recordTTL"]));
        }
    }
    estate.bind.by_hand(commands.trim_end()).await?;
    Ok(now)
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_come_change_and_go() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    let dns = "mode: ExternalDNS, ttl: 60, records: {mx: Manage}, \
        externalDNS: {labels: {tier: mail}, annotations: {example.test/a: b}}";
    estate.api.apply(&estate.mail_domain_by(dns, KEYS)).await?;
    estate.wait_for("Accepted", "False", "ExternalDNSNotInstalled").await?;
    estate.api.apply(CRD).await?;

    // The objects come, and it is told that nobody does anything about them.
    let not_observed = estate.wait_for("DNSPublished", "False", "NotObserved").await;
    ensure!(not_observed.is_ok(), "{not_observed:?}: {}", process.log());
    let all = endpoints(&estate).await?;
    ensure!(all["example-mx"]["targets"][0] == "10 mx.example.test", "{all:?}");
    ensure!(all["example-dmarc"]["targets"][0] == "\"v=DMARC1; p=reject\"", "{all:?}");
    ensure!(all["example-dmarc"]["recordTTL"] == 60, "{all:?}");
    let object = ["-n", "mail", "get", "dnsendpoint", "example-mx", "-o", "json"];
    let object: Value = serde_json::from_str(&estate.api.kubectl(&object, None).await?)?;
    ensure!(object["metadata"]["labels"]["tier"] == "mail", "{object}");
    ensure!(object["metadata"]["annotations"]["example.test/a"] == "b", "{object}");
    ensure!(object["metadata"]["ownerReferences"][0]["kind"] == "MailDomain", "{object}");

    let mut known = sync(&estate, &BTreeMap::new()).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.wait_for("DNSPublished", "True", "Published").await?;
    let first = estate.active().await?.concat();

    // What others change or delete of the objects is put back, and nothing is written without need.
    estate.api.kubectl(&["-n", "mail", "delete", "dnsendpoint", "example-dmarc"], None).await?;
    let back = async || endpoints(&estate).await.is_ok_and(|all| all.contains_key("example-dmarc"));
    wait::until_true("the object to come back", STEP, back).await?;
    let patch = ["-n", "mail", "patch", "dnsendpoint", "example-mx", "--type=merge", "-p"];
    let wrong = "{\"spec\":{\"endpoints\":[{\"dnsName\":\"x.test\",\"recordType\":\"MX\"}]}}";
    estate.api.kubectl(&[&patch[..], &[wrong]].concat(), None).await?;
    let back = async || {
        endpoints(&estate).await.is_ok_and(|all| all["example-mx"]["targets"][0] == "10 mx.example.test")
    };
    wait::until_true("the object to be put right", STEP, back).await?;

    // A rotation: an object of the new key, then none of the old.
    estate
        .api
        .kubectl(&["-n", "mail", "annotate", "mdom", "example", "mail.packetboat.dev/rotate-now=once"], None)
        .await?;
    let rotated = async || {
        let Ok(now) = sync(&estate, &known).await else { return false };
        known = now;
        let active = estate.active().await.unwrap_or_default();
        active.len() == 1
            && active[0] != first
            && known.contains_key(&format!("example-dkim-{}", active[0]))
            && !known.contains_key(&format!("example-dkim-{first}"))
    };
    wait::until_true("the rotation", STEP, rotated).await?;
    deleted_by_each_policy(&estate).await?;
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    Ok(())
}

/// Left where they are by Retain, without an owner; taken over by the next; withdrawn by Delete.
async fn deleted_by_each_policy(estate: &Estate) -> Result<()> {
    let before = endpoints(estate).await?;
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    ensure!(endpoints(estate).await? == before, "Retain has changed the objects");
    let owners = ["-n", "mail", "get", "dnsendpoints", "-o", "jsonpath={.items[*].metadata.ownerReferences}"];
    ensure!(estate.api.kubectl(&owners, None).await?.trim().is_empty(), "they would be collected");
    let dns = "mode: ExternalDNS, ttl: 60, records: {mx: Manage}";
    let yaml = estate.mail_domain_by(dns, &format!("{KEYS}\n  deletionPolicy: Delete"));
    estate.api.apply(&yaml).await?;
    estate.wait_for("DNSPublished", "True", "Published").await?;
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    ensure!(endpoints(estate).await?.is_empty(), "Delete has left objects");
    Ok(())
}
