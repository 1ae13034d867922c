//! Name servers that are down, refuse, fail or lag, a zone edited by hand, a clock that is set: what signs goes on,
//! nothing is rotated or deleted therefore, and all of it is told. A witness outside looks on.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use packetboat_tests::witness::{Times, Witness};
use testkit::bind::Serving;
use testkit::process::{Packetboat, Role};
use testkit::wait;
use tokio::time::sleep;

const TIMES: Times = Times { min_propagation: Duration::from_secs(5), retire_after: Duration::from_secs(6) };
const KEYS: &str = "\
\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 5s, retireAfter: 6s, revokeFor: 3s}}
  dmarc: {policy: reject}";
/// Long enough for some rounds in which nothing is to happen.
const ROUNDS: Duration = Duration::from_secs(5);

/// An operator whose clock a file sets: `+0`, or seconds to add.
async fn operator_with_clock(estate: &Estate) -> Result<(Packetboat, PathBuf)> {
    let mut settings = estate.site.settings(Role::Operator)?;
    let clock = estate.site.write("clock", "+0")?;
    settings.kubeconfig = Some(estate.api.kubeconfig()?);
    settings.extra = "operator: {lease_duration: 5s}\n".to_owned();
    let library = std::fs::read_dir("/usr/lib")?
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|path| path.exists());
    let library = library.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    ensure!(!library.is_empty(), "libfaketime is not there (package faketime)");
    let file = clock.to_string_lossy().into_owned();
    let environment = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    settings.environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Ok((estate.site.start(&settings).await?, clock))
}

async fn ready(estate: &Estate) -> Result<(Witness, Vec<String>)> {
    let witness = estate.witness(TIMES).await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let signing = estate.active().await?;
    Ok((witness, signing))
}

/// The DMARC record is as it should be at both.
async fn is_repaired(estate: &Estate) -> bool {
    let record = estate.record("TXT", &format!("_dmarc.{DOMAIN}")).await;
    record.is_ok_and(|text| text.contains("p=reject"))
}

/// For some rounds nothing becomes of the keys.
async fn nothing_moves(estate: &Estate, witness: &Witness, signing: &[String]) -> Result<()> {
    let before = witness.story();
    sleep(ROUNDS).await;
    ensure!(estate.active().await? == signing, "something else signs");
    ensure!(witness.story() == before, "keys were moved: {}", witness.story());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_name_servers() -> Result<()> {
    let mut estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;
    let (witness, signing) = ready(&estate).await?;

    // What a server does not say, with whatever words, is unknown.
    for serving in [Serving::Refusing, Serving::Failing] {
        estate.bind.secondary_serves(serving).await?;
        estate.wait_for("DNSVerified", "Unknown", "LookupFailed").await?;
        nothing_moves(&estate, &witness, &signing).await?;
        ensure!(estate.condition("Ready").await?.0 == "True", "{serving:?}: it is not ready any more");
    }
    // A rotation that is asked for meanwhile waits: the new key does not sign.
    estate.annotate("rotate-now=while-one-fails").await?;
    witness.wait_for("Publishing", STEP, |selector| !signing.contains(&selector.to_owned())).await?;
    nothing_moves(&estate, &witness, &signing).await?;
    estate.bind.secondary_serves(Serving::Well).await?;
    let gone = witness.wait_for("Gone", STEP * 2, |selector| signing.contains(&selector.to_owned())).await;
    ensure!(gone.is_ok(), "{gone:?}: {:#}\n{}", estate.read().await?["status"], process.log());
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    let signing = estate.active().await?;

    // A primary that takes no updates: all goes on as it is, and what is wrong is put right afterwards.
    estate.bind.by_hand(&format!("update delete _dmarc.{DOMAIN} TXT")).await?;
    estate.bind.primary_takes_updates(false).await?;
    estate.bind.secondary_serves(Serving::Well).await?;
    if !is_repaired(&estate).await {
        estate.wait_for("DNSPublished", "False", "PublishFailed").await?;
        nothing_moves(&estate, &witness, &signing).await?;
    }
    estate.bind.primary_takes_updates(true).await?;
    wait::until_true("the record to be put back", STEP * 3, async || is_repaired(&estate).await).await?;

    // Both are down.
    estate.bind.stop_primary().await?;
    estate.bind.stop_secondary().await?;
    estate.wait_for("DNSVerified", "Unknown", "LookupFailed").await?;
    nothing_moves(&estate, &witness, &signing).await?;
    estate.bind.start_primary().await?;
    estate.bind.start_secondary().await?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    witness.judge()?;
    for metric in ["packetboat_operator_drift_total", "packetboat_operator_dns_queries_total"] {
        ensure!(process.metric(metric).await? >= 1.0, "{metric} does not count");
    }
    ensure!(process.metric("packetboat_operator_domains").await? == 1.0);
    ensure!(process.metric("packetboat_operator_keys").await? >= 1.0);
    ensure!(process.metric("packetboat_operator_records").await? >= 2.0);
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_clock() -> Result<()> {
    let estate = Estate::new().await?;
    let (process, _) = operator_with_clock(&estate).await?;
    let (witness, signing) = ready(&estate).await?;
    let set = |offset: &str| estate.site.write("clock", offset).map(drop);

    // Set back while a key is on its way, and put right again: it is shown for no shorter time.
    set("-30")?;
    estate.annotate("rotate-now=set-back").await?;
    witness.wait_for("Propagating", STEP, |selector| !signing.contains(&selector.to_owned())).await?;
    set("+0")?;
    let is_new = |selector: &str| !signing.contains(&selector.to_owned());
    witness.wait_for("Active", STEP, is_new).await?;
    witness.wait_for("Gone", STEP, |selector| !is_new(selector)).await?;
    witness.judge()?;

    // Set back by more than signatures of updates bear: nothing is published, and what signs goes on.
    let signing = estate.active().await?;
    set("-3600")?;
    estate.annotate("rotate-now=set-back-far").await?;
    estate.wait_for("DNSPublished", "False", "PublishFailed").await?;
    sleep(ROUNDS).await;
    ensure!(estate.active().await? == signing, "something else signs");
    set("+0")?;
    let is_new = |selector: &str| !signing.contains(&selector.to_owned());
    witness.wait_for("Active", STEP * 3, is_new).await?;
    witness.wait_for("Gone", STEP, |selector| !is_new(selector)).await?;

    // Put forward by a day: keys are old at once, and their successors are shown for as long as ever.
    let signing = estate.active().await?;
    estate.annotate("rotate-now=put-forward").await?;
    let is_new = |selector: &str| !signing.contains(&selector.to_owned());
    witness.wait_for("Propagating", STEP, is_new).await?;
    set("+200")?;
    witness.wait_for("Active", STEP, is_new).await?;
    witness.wait_for("Gone", STEP, |selector| !is_new(selector)).await?;
    witness.judge()?;
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    Ok(())
}
