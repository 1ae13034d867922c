//! Something else insists on another record: the operator puts it back some times, then stops and tells.

use anyhow::{Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use testkit::wait;

const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}
  dmarc: {policy: reject}";

#[tokio::test(flavor = "multi_thread")]
async fn another_writer_wins_and_is_told_of() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let dmarc = format!("_dmarc.{DOMAIN}");
    let says = async |policy: &str| {
        let answer = estate.bind.answer(estate.bind.primary(), "TXT", &dmarc).await;
        answer.is_ok_and(|answer| answer.contains(policy))
    };
    let against = format!("update delete {dmarc} TXT\nupdate add {dmarc} 60 TXT \"v=DMARC1; p=none\"");
    let stopped = ("True".to_owned(), "Contested".to_owned());
    let fought = async || {
        if says("p=reject").await && estate.bind.by_hand(&against).await.is_err() {
            return false;
        }
        estate.condition("Stalled").await.is_ok_and(|found| found == stopped)
    };
    let fought = wait::until_true("the operator to stop", STEP * 2, fought).await;
    ensure!(fought.is_ok(), "{fought:?}: {}", process.log());
    estate.wait_for("DNSPublished", "False", "Contested").await?;
    ensure!(says("p=none").await, "it was written again");
    estate.wait_for("Ready", "True", "Ready").await?;

    // Another wish is another matter.
    estate.api.apply(&estate.mail_domain(&KEYS.replace("reject", "quarantine"))).await?;
    estate.wait_for("DNSPublished", "True", "Published").await?;
    estate.wait_for("Stalled", "False", "Progressing").await?;
    ensure!(says("p=quarantine").await, "the new wish is not published");
    Ok(())
}
