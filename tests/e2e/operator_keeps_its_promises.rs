//! What goes wrong around the operator: wrong keys, servers that are away, two operators, Secrets deleted,
//! status erased, domains claimed twice. What signs goes on, and the status says what is so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use testkit::wait;

const KEYS: &str = "\x20 dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 2s, revokeFor: 2s}}";

async fn patch(estate: &Estate, patch: &str) -> Result<()> {
    let patch = ["-n", "mail", "patch", "mdom", "example", "--type=merge", "-p", patch];
    estate.api.kubectl(&patch, None).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_and_nothing_is_lost() -> Result<()> {
    let mut estate = Estate::new().await?;
    let (_, mut first) = estate.operator().await?;

    // Without its credentials nothing is published, and it says so.
    estate.api.kubectl(&["-n", "mail", "delete", "secret", "tsig"], None).await?;
    estate.api.apply(&estate.mail_domain(KEYS)).await?;
    estate.wait_for("Accepted", "False", "CredentialsMissing").await?;
    estate.wait_for("Stalled", "True", "CredentialsMissing").await?;
    let wrong = [
        "-n",
        "mail",
        "create",
        "secret",
        "generic",
        "tsig",
        "--from-literal=secret=d3JvbmcgYnV0IGxvbmcgZW5vdWdoIQ==",
    ];
    estate.api.kubectl(&wrong, None).await?;
    estate.wait_for("DNSPublished", "False", "PublishFailed").await?;
    ensure!(estate.active().await?.is_empty(), "it signs with a key that was never published");
    let right = format!("{{\"stringData\":{{\"secret\":\"{}\"}}}}", testkit::bind::SECRET);
    estate
        .api
        .kubectl(&["-n", "mail", "patch", "secret", "tsig", "--type=merge", "-p", &right], None)
        .await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let signing = estate.active().await?;

    // A second operator waits; when the first dies, it goes on, and makes no second key.
    let (_, second) = estate.operator().await?;
    first.kill9().await?;
    estate
        .api
        .kubectl(
            &[
                "-n",
                "mail",
                "patch",
                "mdom",
                "example",
                "--subresource=status",
                "--type=merge",
                "-p",
                "{\"status\":null}",
            ],
            None,
        )
        .await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    ensure!(estate.active().await? == signing, "an erased status brought new keys");
    ensure!(second.metric("packetboat_operator_leads").await? == 1.0);

    // A name server that is away makes things unknown, and nothing follows from it.
    estate.bind.stop_secondary().await?;
    estate.wait_for("DNSVerified", "Unknown", "LookupFailed").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(estate.active().await? == signing, "silence changed what signs");
    estate.bind.start_secondary().await?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;

    // A key whose Secret was deleted cannot sign: another is made.
    let secret = estate.key_secrets().await?.first().cloned().context("a Secret")?;
    estate.api.kubectl(&["-n", "mail", "delete", &secret], None).await?;
    let replaced = async || {
        let active = estate.active().await.unwrap_or_default();
        active.len() == 1 && active != signing
    };
    wait::until_true("another key to sign", STEP, replaced).await?;

    // Suspended, it is left alone, and says so.
    patch(&estate, "{\"spec\":{\"suspend\":true}}").await?;
    estate.wait_for("Stalled", "True", "Suspended").await?;
    let before = estate.active().await?;
    estate
        .api
        .kubectl(&["-n", "mail", "annotate", "mdom", "example", "mail.packetboat.dev/rotate-now=x"], None)
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(estate.active().await? == before, "a suspended domain was worked on");
    patch(&estate, "{\"spec\":{\"suspend\":false}}").await?;

    // Another claim to the same domain loses, without being told to whom.
    estate.api.kubectl(&["create", "namespace", "other"], None).await?;
    let claim = format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: mine, namespace: other}}\nspec: {{domain: {DOMAIN}}}\n"
    );
    estate.api.apply(&claim).await?;
    let refused = async || {
        let text = estate.api.kubectl(&["-n", "other", "get", "mdom", "mine", "-o", "json"], None).await;
        text.is_ok_and(|text| text.contains("\"Conflict\"") && !text.contains("mail/example"))
    };
    wait::until_true("the second claim to be refused", STEP, refused).await?;
    a_refused_claim_takes_nothing_along(&estate).await?;

    // Deleted with the policy Retain, its keys stay.
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "example", "--timeout=60s"], None).await?;
    ensure!(!estate.key_secrets().await?.is_empty(), "the keys went with their domain");

    // Whoever waited for the domain has it now, long before its next look is due.
    let holds = async || {
        let text = estate.api.kubectl(&["-n", "other", "get", "mdom", "mine", "-o", "json"], None).await;
        text.is_ok_and(|text| text.contains("\"Claimed\""))
    };
    wait::until_true("the second claim to be taken up", STEP, holds).await?;
    ensure!(!second.log().contains("panicked"), "{}", second.log());
    Ok(())
}

/// A claim in the same namespace that lost is deleted with the policy Delete: the holder's keys stay.
async fn a_refused_claim_takes_nothing_along(estate: &Estate) -> Result<()> {
    // No key is on its way that would take over by itself.
    estate.wait_for("Reconciling", "False", "Done").await?;
    let signing = estate.active().await?;
    let rival = estate.mail_domain(KEYS).replace("name: example,", "name: rival,");
    estate.api.apply(&format!("{rival}  deletionPolicy: Delete\n")).await?;
    let refused = async || {
        let text = estate.api.kubectl(&["-n", "mail", "get", "mdom", "rival", "-o", "json"], None).await;
        text.is_ok_and(|text| text.contains("\"Conflict\""))
    };
    wait::until_true("the rival to be refused", STEP, refused).await?;
    estate.api.kubectl(&["-n", "mail", "delete", "mdom", "rival", "--timeout=60s"], None).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    ensure!(estate.active().await? == signing, "the holder's keys went with the rival");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_it_tells_what_to_publish() -> Result<()> {
    let estate = Estate::new().await?;
    let (_, _process) = estate.operator().await?;
    let (primary, secondary) = (estate.bind.primary(), estate.bind.secondary());
    let yaml = format!(
        "apiVersion: mail.packetboat.dev/v1alpha1\nkind: MailDomain\nmetadata: {{name: example, namespace: mail}}\nspec:\n  domain: {DOMAIN}\n  dns: {{verification: {{servers: [\"{primary}\", \"{secondary}\"], interval: 2s}}}}\n{KEYS}\n"
    );
    estate.api.apply(&yaml).await?;
    estate.wait_for("Stalled", "True", "DNSActionRequired").await?;
    let domain = estate.read().await?;
    let line = domain["status"]["records"][0]["zoneLines"][0].as_str().context("a line to paste")?.to_owned();
    estate.bind.by_hand(&format!("update add {}", line.replace(" IN ", " "))).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.wait_for("DNSVerified", "True", "Verified").await
}
