//! Selectors are CNAMEs, published once by a person: from then on keys change in the zone that they lead into, and
//! nobody is needed. At every moment a key signs that all name servers of both zones show.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate};
use serde_json::Value;
use testkit::bind::{Bind, KEY_NAME};
use testkit::wait;

const TARGET: &str = "dkim.test";
/// Three rotations, each after 15 seconds of signing and 10 of propagation.
const ROTATIONS: Duration = Duration::from_secs(240);

fn provider(keys: &Bind) -> String {
    let primary = keys.primary();
    format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: DNSProvider\nmetadata: {{name: keys, namespace: mail}}\n\
         spec: {{rfc2136: {{server: \"{primary}\", tsig: {{keyName: {KEY_NAME}, algorithm: hmac-sha256, \
         secretRef: {{name: tsig}}}}}}}}\n"
    )
}

fn dkim(keys: &Bind) -> String {
    format!(
        "\x20 dkim:\n    algorithms: [rsa-sha256]\n\
         \x20   rotation: {{interval: 15s, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}\n\
         \x20   delegation: {{cname: true, targetZone: {TARGET}, slots: 3, providerRef: {{name: keys}}, \
         servers: [\"{}\", \"{}\"]}}",
        keys.primary(),
        keys.secondary()
    )
}

/// The keys that sign: names of Secrets, and their selectors.
async fn signing(estate: &Estate) -> Result<BTreeMap<String, String>> {
    let label = "mail.packetboat.dev/dkim-selector";
    let listed =
        estate.api.kubectl(&["-n", "mail", "get", "secrets", "-l", label, "-o", "json"], None).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    let active = listed["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|secret| secret["metadata"]["annotations"]["mail.packetboat.dev/stage"] == "Active");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(active.map(|one| (text(&one["metadata"]["name"]), text(&one["metadata"]["labels"][label]))).collect())
}

/// What every server of both zones says of a selector; they must agree.
async fn record(estate: &Estate, keys: &Bind, selector: &str) -> Result<String> {
    let alias = estate.record("CNAME", &format!("{selector}._domainkey.{DOMAIN}")).await?;
    ensure!(alias == format!("{selector}.{DOMAIN}.{TARGET}.\n"), "{selector}: {alias:?}");
    let name = format!("{selector}.{DOMAIN}.{TARGET}");
    let first = keys.answer(keys.primary(), "TXT", &name).await?;
    let second = keys.answer(keys.secondary(), "TXT", &name).await?;
    ensure!(first == second, "{name}: {first:?} at one, {second:?} at the other");
    Ok(first)
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_needs_nobody() -> Result<()> {
    let estate = Estate::new().await?;
    let keys = Bind::start(TARGET, 1, "@ IN TXT \"theirs\"").await?;
    let (_, process) = estate.operator().await?;
    estate.api.apply(&estate.mail_domain_by("mode: Manual, ttl: 10", &dkim(&keys))).await?;
    estate.wait_for("Accepted", "False", "ProviderNotFound").await?;
    estate.api.apply(&provider(&keys)).await?;

    // A person is told what to paste, once, and pastes it.
    estate.wait_for("Stalled", "True", "DNSActionRequired").await?;
    let status = estate.read().await?["status"].clone();
    let aliases: Vec<String> = status["records"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|record| record["type"] == "CNAME")
        .filter_map(|record| record["zoneLines"][0].as_str().map(str::to_owned))
        .collect();
    let line = |slot: u8| format!("s{slot}._domainkey.{DOMAIN}. 10 IN CNAME s{slot}.{DOMAIN}.{TARGET}.");
    ensure!(aliases == [line(1), line(2), line(3)], "{status:#}");
    ensure!(status.to_string().matches(&line(3)).count() == 2, "the condition tells all of them: {status:#}");
    for line in &aliases {
        estate.bind.by_hand(&format!("update add {line}")).await?;
    }
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", process.log());

    // Four keys sign, one after the other, and never none.
    let mut all = BTreeMap::new();
    let mut records = BTreeSet::new();
    let rotated = async || {
        let now = signing(&estate).await.context("listing keys");
        let now = match now {
            Ok(now) if now.is_empty() => return Some(Err(anyhow::anyhow!("nothing signs"))),
            Ok(now) => now,
            Err(error) => return Some(Err(error)),
        };
        for (name, selector) in now {
            match record(&estate, &keys, &selector).await {
                Ok(text) if text.contains("; p=M") => records.insert(text),
                other => return Some(Err(anyhow::anyhow!("{name} signs, and its record is {other:?}"))),
            };
            all.insert(name, selector);
        }
        (all.len() >= 4).then_some(Ok(()))
    };
    wait::until("three rotations", ROTATIONS, rotated).await??;
    ensure!(records.len() == all.len(), "each key has a record of its own: {records:?}");
    let selectors: BTreeSet<&String> = all.values().collect();
    ensure!(selectors.len() < all.len() && selectors.len() <= 3, "slots are used again: {all:?}");
    let left = keys.answer(keys.primary(), "TXT", TARGET).await?;
    ensure!(left == "\"theirs\"\n", "{left}");

    // A CNAME that goes is told.
    let idle =
        ["s1", "s2", "s3"].into_iter().find(|slot| !signing_now(&all, slot)).context("an idle slot")?;
    estate.bind.by_hand(&format!("update delete {idle}._domainkey.{DOMAIN} CNAME")).await?;
    estate.wait_for("DNSVerified", "False", "DNSActionRequired").await?;
    ensure!(!process.log().contains("PRIVATE KEY"), "a private key is in the log");
    Ok(())
}

/// Whether a slot has the newest of the keys.
fn signing_now(all: &BTreeMap<String, String>, slot: &str) -> bool {
    let newest = all.iter().max_by_key(|(name, _)| name.rsplit('-').next().map(str::to_owned));
    newest.is_some_and(|(_, selector)| selector == slot)
}
