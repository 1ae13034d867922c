//! Records are published by Cloudflare's API, as a local server speaks it.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use domains::types::MailDomainSpec;
use operator::cloudflare::{Cloudflare, CloudflareError};
use operator::record::{Record, desired};
use operator::update::Change;
use secrecy::SecretString;
use serde_json::json;
use testkit::cloudflare::{CloudflareServer, TOKEN};

const ZONE: &str = "example.test";

fn records(policy: &str) -> Vec<Record> {
    let spec: MailDomainSpec = serde_json::from_value(json!({
        "domain": ZONE,
        "mx": [{"host": "mx.example.test", "preference": 10}],
        "spf": {"mechanisms": ["mx"], "all": "-all"},
        "dmarc": {"policy": policy, "rua": [format!("mailto:{}@example.test", "d".repeat(300))]},
    }))
    .unwrap();
    desired(&spec, &[])
}

fn publisher(server: &CloudflareServer, token: &str, owner: &str) -> Cloudflare {
    let token = SecretString::from(token.to_owned());
    Cloudflare::new(Some(&server.endpoint()), token, owner.to_owned()).unwrap()
}

fn changes(records: &[Record], remove: bool) -> Vec<Change<'_>> {
    records.iter().map(|record| Change { record, remove }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_change_and_go() -> Result<()> {
    let server = CloudflareServer::start(ZONE).await?;
    // More of others than one page holds.
    for number in 0..5 {
        server.add(json!({"type": "TXT", "name": ZONE, "content": format!("\"theirs {number}\"")}));
    }
    server.add(json!({"type": "TXT", "name": ZONE, "content": "v=spf1 -all"}));
    let ours = publisher(&server, TOKEN, "one");
    let first = records("none");
    ensure!(ours.apply(ZONE, ZONE, &changes(&first, false)).await?);
    ensure!(!ours.apply(ZONE, ZONE, &changes(&first, false)).await?, "written without need");
    let apex = server.contents("TXT", ZONE);
    ensure!(apex.iter().filter(|one| one.contains("spf1")).eq(["\"v=spf1 mx -all\""]), "{apex:?}");
    ensure!(apex.iter().filter(|one| one.contains("theirs")).count() == 5, "{apex:?}");
    ensure!(server.contents("MX", ZONE) == ["mx.example.test"]);
    let later = records("reject");
    ensure!(ours.apply(ZONE, ZONE, &changes(&later, false)).await?);
    let dmarc = server.contents("TXT", "_dmarc.example.test");
    ensure!(dmarc.len() == 1 && dmarc[0].starts_with("\"v=DMARC1; p=reject") && dmarc[0].contains("\" \""));

    let other = publisher(&server, TOKEN, "two").apply(ZONE, ZONE, &changes(&first, false)).await;
    ensure!(matches!(other, Err(CloudflareError::Owned(_))), "{other:?}");
    ensure!(ours.apply(ZONE, ZONE, &changes(&later, true)).await?);
    ensure!(server.contents("TXT", ZONE).len() == 5 && server.contents("MX", ZONE).is_empty());
    ensure!(server.contents("TXT", "_packetboat.example.test").is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_borne_or_told() -> Result<()> {
    let server = CloudflareServer::start(ZONE).await?;
    let first = records("none");
    let wrong = publisher(&server, "another-token", "one").apply(ZONE, ZONE, &changes(&first, false)).await;
    let told = format!("{wrong:?}");
    ensure!(matches!(wrong, Err(CloudflareError::Credentials(_))) && !told.contains("another"), "{told}");
    let ours = publisher(&server, TOKEN, "one");
    let elsewhere = ours.apply("other.test", "other.test", &changes(&first, false)).await;
    ensure!(matches!(elsewhere, Err(CloudflareError::NoZone(_))), "{elsewhere:?}");
    server.fail_next(&[503, 503, 503]);
    let before = server.requests();
    let busy = ours.apply(ZONE, ZONE, &changes(&first, false)).await;
    ensure!(matches!(busy, Err(CloudflareError::Busy(_))), "{busy:?}");
    ensure!(server.requests() == before + 3, "it hammers");
    server.fail_next(&[429, 500]);
    ensure!(ours.apply(ZONE, ZONE, &changes(&first, false)).await?, "a passing fault was not borne");
    Ok(())
}
