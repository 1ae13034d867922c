//! Records are published by the API of Route 53, as moto speaks it.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use domains::types::MailDomainSpec;
use operator::record::{Record, desired};
use operator::route53::{Access, Route53, Route53Error};
use operator::update::Change;
use secrecy::SecretString;
use serde_json::json;
use testkit::route53::{KEY_ID, Route53Server, SECRET};

const ZONE: &str = "example.test";

fn records(policy: &str) -> Vec<Record> {
    let spec: MailDomainSpec = serde_json::from_value(json!({
        "domain": ZONE,
        "mx": [{"host": "mx.example.test", "preference": 10}, {"host": "mx2.example.test", "preference": 20}],
        "spf": {"mechanisms": ["mx"], "all": "-all"},
        "dmarc": {"policy": policy, "rua": [format!("mailto:{}@example.test", "d".repeat(300))]},
    }))
    .unwrap();
    desired(&spec, &[])
}

fn publisher(server: &Route53Server, key_id: &str, owner: &str) -> Route53 {
    let access = Access {
        key_id: key_id.to_owned(),
        secret: SecretString::from(SECRET),
        session: None,
        region: None,
        zone_id: None,
        endpoint: Some(server.endpoint()),
    };
    Route53::new(access, owner.to_owned())
}

fn changes(records: &[Record], remove: bool) -> Vec<Change<'_>> {
    records.iter().map(|record| Change { record, remove }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_change_and_go() -> Result<()> {
    let server = Route53Server::start(ZONE).await?;
    let theirs = ["\"theirs\"", "\"v=spf1 -all\"", "\"two \" \"parts\""];
    server.write("TXT", ZONE, &theirs).await?;
    let ours = publisher(&server, KEY_ID, "one");
    let first = records("none");
    ensure!(ours.apply(ZONE, ZONE, &changes(&first, false)).await?);
    ensure!(!ours.apply(ZONE, ZONE, &changes(&first, false)).await?, "written without need");
    let apex = server.values("TXT", ZONE).await?;
    ensure!(apex == ["\"theirs\"", "\"two \" \"parts\"", "\"v=spf1 mx -all\""], "{apex:?}");
    ensure!(server.values("MX", ZONE).await? == ["10 mx.example.test.", "20 mx2.example.test."]);
    let later = records("reject");
    ensure!(ours.apply(ZONE, ZONE, &changes(&later, false)).await?);
    let dmarc = server.values("TXT", "_dmarc.example.test").await?;
    ensure!(dmarc.len() == 1 && dmarc[0].starts_with("\"v=DMARC1; p=reject"), "{dmarc:?}");
    ensure!(dmarc[0].contains("\" \"") && dmarc[0].split('"').all(|part| part.len() <= 255), "{dmarc:?}");

    let other = publisher(&server, KEY_ID, "two").apply(ZONE, ZONE, &changes(&first, false)).await;
    ensure!(matches!(other, Err(Route53Error::Owned(_))), "{other:?}");
    ensure!(ours.apply(ZONE, ZONE, &changes(&later, true)).await?);
    let apex = server.values("TXT", ZONE).await?;
    ensure!(apex == ["\"theirs\"", "\"two \" \"parts\""], "{apex:?}");
    ensure!(server.values("MX", ZONE).await?.is_empty());
    ensure!(server.values("TXT", "_packetboat.example.test").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_borne_or_told() -> Result<()> {
    let server = Route53Server::start(ZONE).await?;
    let first = records("none");
    let wrong = publisher(&server, "AKIANOTTHERE", "one").apply(ZONE, ZONE, &changes(&first, false)).await;
    ensure!(matches!(wrong, Err(Route53Error::Credentials(_))), "{wrong:?}");
    ensure!(!format!("{wrong:?}").contains(SECRET), "{wrong:?}");
    let ours = publisher(&server, KEY_ID, "one");
    let elsewhere = ours.apply("other.test", "other.test", &changes(&first, false)).await;
    ensure!(matches!(elsewhere, Err(Route53Error::NoZone(_))), "{elsewhere:?}");
    let outside: Vec<Record> =
        first.iter().map(|record| Record { name: "elsewhere.net".to_owned(), ..record.clone() }).collect();
    let refused = ours.apply(ZONE, ZONE, &changes(&outside, false)).await;
    ensure!(
        matches!(&refused, Err(Route53Error::Refused(why)) if why.contains("not permitted")),
        "{refused:?}"
    );
    server.fail_next(&[503, 503, 503]);
    let before = server.requests();
    let busy = ours.apply(ZONE, ZONE, &changes(&first, false)).await;
    ensure!(matches!(busy, Err(Route53Error::Busy(_))), "{busy:?}");
    ensure!(server.requests() == before + 3, "it hammers");
    // Route 53 tells of too many requests by 400 and a code.
    server.fail_next(&[400, 500]);
    ensure!(ours.apply(ZONE, ZONE, &changes(&first, false)).await?, "a passing fault was not borne");
    let nobody = Access {
        key_id: KEY_ID.to_owned(),
        secret: SecretString::from(SECRET),
        session: None,
        region: None,
        zone_id: None,
        endpoint: Some("http://127.0.0.1:9".to_owned()),
    };
    let away = Route53::new(nobody, "one".to_owned()).apply(ZONE, ZONE, &changes(&first, false)).await;
    ensure!(matches!(away, Err(Route53Error::Unreachable(_))), "{away:?}");
    Ok(())
}
