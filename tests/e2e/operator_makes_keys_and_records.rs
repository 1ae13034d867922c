//! A MailDomain is declared: keys are made, their records published and seen at every name server, and only
//! then they sign; then they are rotated, revoked, and taken back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use testkit::wait;

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256, ed25519-sha256], rotation: {interval: 1h, minPropagation: 2s, retireAfter: 3s, revokeFor: 3s}}
  deletionPolicy: Delete
  mx: [{host: mx.example.test, preference: 10}]
  spf: {mechanisms: [mx], all: -all}
  dmarc: {policy: reject, rua: [\"mailto:d@example.test\"]}
  mtaSts: {mode: testing, maxAge: 86400}
  tlsRpt: {rua: [\"mailto:t@example.test\"]}";

async fn annotate(estate: &Estate, annotation: &str) -> Result<()> {
    let annotate = ["-n", "mail", "annotate", "--overwrite", "mdom", "example", annotation];
    estate.api.kubectl(&annotate, None).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_declaration_to_deletion() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    let yaml = estate
        .mail_domain(KEYS)
        .replace("    rfc2136:", "    records: {mx: Manage, spf: Manage}\n    rfc2136:");
    estate.api.apply(&yaml).await?;
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", process.log());
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    let first = estate.active().await?;
    ensure!(first.len() == 2, "one key of each algorithm signs: {first:?}");
    for selector in &first {
        let record = estate.record("TXT", &format!("{selector}._domainkey.{DOMAIN}")).await?;
        ensure!(record.starts_with("\"v=DKIM1; k="), "{record}");
    }
    let apex = estate.record("TXT", DOMAIN).await?;
    ensure!(apex.contains("google-site-verification=theirs"), "what belongs to others is gone: {apex}");
    ensure!(apex.contains("\"v=spf1 mx -all\""), "{apex}");
    ensure!(estate.record("MX", DOMAIN).await? == "10 mx.example.test.\n");
    ensure!(estate.record("TXT", &format!("_dmarc.{DOMAIN}")).await?.contains("p=reject"));
    let table = estate.api.kubectl(&["get", "mdom", "-A"], None).await?;
    ensure!(table.contains("example.test") && table.contains("True") && table.contains("RFC2136"), "{table}");

    // A record changed by hand is put back.
    estate
        .bind
        .by_hand(&format!(
            "update delete _dmarc.{DOMAIN} TXT\nupdate add _dmarc.{DOMAIN} 60 TXT \"v=DMARC1; p=none\""
        ))
        .await?;
    let repaired = async || {
        let record = estate.record("TXT", &format!("_dmarc.{DOMAIN}")).await;
        record.is_ok_and(|record| record.contains("p=reject"))
    };
    wait::until_true("the drift to be repaired", STEP, repaired).await?;

    // Rotation: at no moment nothing signs.
    annotate(&estate, "mail.packetboat.dev/rotate-now=once").await?;
    let rotated = async || {
        let active = estate.active().await.unwrap_or_default();
        assert!(!active.is_empty(), "nothing signs");
        active.len() == 2 && active.iter().all(|selector| !first.contains(selector))
    };
    wait::until_true("the rotation", STEP, rotated).await?;
    let revoked = async || {
        let record = estate.record("TXT", &format!("{}._domainkey.{DOMAIN}", first[0])).await;
        record.is_ok_and(|record| record.is_empty())
    };
    wait::until_true("the old record to go", STEP, revoked).await?;
    ensure!(estate.key_secrets().await?.len() == 2, "old private keys are left");

    // An emergency: the key is revoked as soon as another signs.
    let bad = estate.active().await?.first().cloned().context("a key")?;
    annotate(&estate, &format!("mail.packetboat.dev/revoke={bad}")).await?;
    let replaced = async || {
        let active = estate.active().await.unwrap_or_default();
        !active.contains(&bad) && active.len() == 2
    };
    wait::until_true("the revoked key to cease", STEP, replaced).await?;
    annotate(&estate, "mail.packetboat.dev/revoke-").await?;

    // Deleted, it takes everything of its own back.
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    let apex = estate.bind.answer(estate.bind.primary(), "TXT", DOMAIN).await?;
    ensure!(apex.contains("google-site-verification=theirs") && !apex.contains("spf1"), "{apex}");
    let dmarc = estate.bind.answer(estate.bind.primary(), "TXT", &format!("_dmarc.{DOMAIN}")).await?;
    ensure!(dmarc.is_empty(), "{dmarc}");
    ensure!(estate.key_secrets().await?.is_empty());
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    ensure!(!process.log().contains("PRIVATE KEY"), "a private key is in the log");
    let events = estate.api.kubectl(&["-n", "mail", "get", "events"], None).await?;
    ensure!(events.contains("KeyGenerated") && events.contains("KeyStage"), "{events}");
    tokio::time::timeout(Duration::from_secs(1), async {}).await?;
    Ok(())
}
