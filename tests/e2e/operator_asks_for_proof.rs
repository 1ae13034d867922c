//! Where ownership is to be proven, nothing is made for a domain until its DNS holds what the status asks for.

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate};

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}
  deletionPolicy: Delete
  dmarc: {policy: reject}";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_before_and_nothing_taken() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    let theirs = format!("update add _dmarc.{DOMAIN} 60 TXT \"v=DMARC1; p=none\"");
    estate.bind.by_hand(&theirs).await?;
    let yaml =
        estate.mail_domain(KEYS).replace("verification: {", "verification: {requireOwnershipTXT: true, ");
    estate.api.apply(&yaml).await?;
    estate.wait_for("OwnershipVerified", "False", "ChallengeMissing").await?;
    estate.wait_for("Stalled", "True", "ChallengeMissing").await?;
    ensure!(estate.key_secrets().await?.is_empty(), "a key was made");

    // Whoever has not proven it cannot withdraw records of others, either.
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    let dmarc = estate.bind.answer(estate.bind.primary(), "TXT", &format!("_dmarc.{DOMAIN}")).await?;
    ensure!(dmarc.contains("p=none"), "{dmarc}");

    estate.api.apply(&yaml).await?;
    estate.wait_for("OwnershipVerified", "False", "ChallengeMissing").await?;
    let domain = estate.read().await?;
    let line = domain["status"]["records"][0]["zoneLines"][0].as_str().context("a line to paste")?.to_owned();
    estate.bind.by_hand(&format!("update add {}", line.replace(" IN ", " "))).await?;
    let ready = estate.wait_for("Ready", "True", "Ready").await;
    ensure!(ready.is_ok(), "{ready:?}: {}", process.log());
    estate.wait_for("OwnershipVerified", "True", "OwnershipProven").await?;
    let told = estate.read().await?["status"]["ownershipProvenAt"].clone();
    ensure!(told.is_string(), "when it was proven is not told: {told}");
    Ok(())
}
