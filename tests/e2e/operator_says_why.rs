//! Whatever keeps a domain from being well, its conditions say so by a reason of the closed list: specs that cannot
//! be worked with, records that are missing, wrong or there twice, keys that are waited for or drift.

use anyhow::{Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate};
use testkit::bind::{KEY_NAME, Serving};

const QUICK: &str = "rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}";

/// Mode `Manual`, with further keys of the spec.
fn by_hand(estate: &Estate, more: &str) -> String {
    estate.mail_domain_by("mode: Manual", more)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_is_given() -> Result<()> {
    let mut estate = Estate::new().await?;
    let (_, process) = estate.operator().await?;

    // Another has the domain, and goes.
    estate.api.kubectl(&["create", "namespace", "another"], None).await?;
    estate.api.apply(&by_hand(&estate, "").replace("namespace: mail", "namespace: another")).await?;
    estate.api.apply(&by_hand(&estate, "")).await?;
    estate.wait_for("DomainClaimed", "False", "Conflict").await?;
    estate.wait_for("Stalled", "True", "Conflict").await?;
    estate.api.kubectl(&["-n", "another", "delete", "mdom", "example", "--timeout=18s"], None).await?;

    // Nothing is asked for, and nothing is wrong.
    estate.wait_for("Accepted", "True", "Accepted").await?;
    estate.wait_for("DomainClaimed", "True", "Claimed").await?;
    estate.wait_for("DKIMReady", "True", "NotWanted").await?;
    estate.wait_for("DNSPublished", "True", "NotManaged").await?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    estate.wait_for("Reconciling", "False", "Done").await?;
    estate.wait_for("Stalled", "False", "Progressing").await?;

    // Keys are asked for, and none may be made.
    estate.api.apply(&by_hand(&estate, "\x20 dkim: {rotation: {enabled: false}}")).await?;
    estate.wait_for("DKIMReady", "False", "NoActiveKey").await?;
    estate.wait_for("Ready", "False", "NoActiveKey").await?;

    manual_keys(&estate).await?;
    spf_twice(&estate).await?;
    not_published(&estate).await?;
    bad_server(&estate).await?;
    ownership_unknown(&mut estate).await?;
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    Ok(())
}

/// A key whose record a person publishes, and takes away again.
async fn manual_keys(estate: &Estate) -> Result<()> {
    let keys = format!("\x20 dkim: {{algorithms: [rsa-sha256], {QUICK}}}");
    estate.api.apply(&by_hand(estate, &keys)).await?;
    estate.wait_for("DKIMReady", "False", "WaitingForPropagation").await?;
    estate.wait_for("DNSVerified", "False", "DNSActionRequired").await?;
    estate.wait_for("Stalled", "True", "DNSActionRequired").await?;
    let domain = estate.read().await?;
    let line = domain["status"]["records"][0]["zoneLines"][0].as_str().unwrap_or_default().to_owned();
    estate.bind.by_hand(&format!("update add {}", line.replace(" IN ", " "))).await?;
    estate.wait_for("DKIMReady", "True", "KeyActive").await?;
    let selector = estate.active().await?.concat();
    estate.bind.by_hand(&format!("update delete {selector}._domainkey.{DOMAIN} TXT")).await?;
    estate.wait_for("DKIMReady", "False", "ActiveKeyDrifted").await?;
    ensure!(estate.active().await?.concat() == selector, "without another key it goes on");
    let events = estate.mail(&["get", "events", "-o", "yaml"]).await?;
    ensure!(events.contains("RecordDrifted"), "{events}");
    estate.bind.by_hand(&format!("update add {}", line.replace(" IN ", " "))).await?;
    estate.wait_for("DKIMReady", "True", "KeyActive").await
}

/// Two SPF records, which nobody may have.
async fn spf_twice(estate: &Estate) -> Result<()> {
    estate.api.apply(&by_hand(estate, "\x20 spf: {mechanisms: [mx], all: -all}")).await?;
    for text in ["v=spf1 mx -all", "v=spf1 a ~all"] {
        estate.bind.by_hand(&format!("update add {DOMAIN} 60 TXT \"{text}\"")).await?;
    }
    estate.wait_for("DNSVerified", "False", "RecordConflict").await?;
    estate.bind.by_hand(&format!("update delete {DOMAIN} TXT \"v=spf1 a ~all\"")).await?;
    estate.wait_for("DNSVerified", "True", "Verified").await?;
    estate.bind.by_hand(&format!("update delete {DOMAIN} TXT \"v=spf1 mx -all\"")).await
}

/// A primary that takes no updates: what is missing and what is wrong is told, and waited for.
async fn not_published(estate: &Estate) -> Result<()> {
    let wrong = "--from-literal=secret=d3JvbmcgYnV0IGxvbmcgZW5vdWdoIQ==";
    estate.mail(&["create", "secret", "generic", "wrong", wrong]).await?;
    let yaml = estate.mail_domain("\x20 dmarc: {policy: reject}").replace("{name: tsig}", "{name: wrong}");
    estate.api.apply(&yaml).await?;
    estate.wait_for("DNSPublished", "False", "PublishFailed").await?;
    estate.wait_for("DNSVerified", "False", "Missing").await?;
    estate.wait_for("Reconciling", "True", "Progressing").await?;
    estate.bind.by_hand(&format!("update add _dmarc.{DOMAIN} 60 TXT \"v=DMARC1; p=none\"")).await?;
    estate.wait_for("DNSVerified", "False", "Drifted").await?;
    estate.api.apply(&estate.mail_domain("\x20 dmarc: {policy: reject}")).await?;
    estate.wait_for("DNSPublished", "True", "Published").await?;
    estate.wait_for("DNSVerified", "True", "Verified").await
}

/// A name server that has no address.
async fn bad_server(estate: &Estate) -> Result<()> {
    let tsig = format!("tsig: {{keyName: {KEY_NAME}, algorithm: hmac-sha256, secretRef: {{name: tsig}}}}");
    let dns = format!("mode: RFC2136, rfc2136: {{server: \"nowhere.test:53\", {tsig}}}");
    estate.api.apply(&estate.mail_domain_by(&dns, "")).await?;
    estate.wait_for("Accepted", "False", "InvalidSpec").await?;
    estate.wait_for("Stalled", "True", "InvalidSpec").await
}

/// Proof is asked for, and a name server does not answer.
async fn ownership_unknown(estate: &mut Estate) -> Result<()> {
    estate.bind.secondary_serves(Serving::Failing).await?;
    let asks = by_hand(estate, "").replace("verification: {", "verification: {requireOwnershipTXT: true, ");
    estate.api.apply(&asks).await?;
    estate.wait_for("OwnershipVerified", "Unknown", "LookupFailed").await
}
