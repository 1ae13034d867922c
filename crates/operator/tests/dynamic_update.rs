//! Records are published at a real BIND, and seen at both its servers.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Result, ensure};
use domains::types::{MailDomainSpec, RecordState};
use operator::observe::{Authorities, Observer};
use operator::record::{Record, desired};
use operator::update::{Change, Rfc2136, UpdateError};
use secrecy::SecretSlice;
use testkit::bind::{Bind, KEY_NAME};
use testkit::wait;

const ZONE: &str = "example.test";
const PATIENCE: Duration = Duration::from_secs(20);

fn spec(policy: &str) -> MailDomainSpec {
    let all = serde_json::json!({
        "domain": ZONE,
        "mx": [{"host": "mx.example.test", "preference": 10}],
        "spf": {"mechanisms": ["mx"], "all": "-all"},
        "dmarc": {"policy": policy},
    });
    serde_json::from_value(all).unwrap()
}

fn publisher(bind: &Bind, secret: Vec<u8>, owner: &str) -> Rfc2136 {
    let secret = SecretSlice::from(secret);
    Rfc2136::new(bind.primary(), KEY_NAME, "hmac-sha256", &secret, owner.to_owned()).unwrap()
}

fn changes(records: &[Record], remove: bool) -> Vec<Change<'_>> {
    records.iter().map(|record| Change { record, remove }).collect()
}

fn observer() -> Observer {
    Observer::new(dns::Resolver::new(dns::DnsConfig::default()).unwrap())
}

fn authorities(bind: &Bind) -> Authorities {
    let servers = vec![bind.primary(), bind.secondary()];
    Authorities { zone: ZONE.to_owned(), servers, negative_ttl: Duration::from_secs(1) }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_change_and_go() -> Result<()> {
    let bind = Bind::start(ZONE, 1, "@ IN TXT \"theirs\"").await?;
    let publisher = publisher(&bind, Bind::secret(), "one");
    let records = desired(&spec("none"), &[]);
    let first = publisher.apply(ZONE, ZONE, &changes(&records, false)).await;
    ensure!(matches!(first, Ok(true)), "{first:?}\n{}", bind.log());
    ensure!(!publisher.apply(ZONE, ZONE, &changes(&records, false)).await?, "updated without need");
    let (observer, authorities) = (observer(), authorities(&bind));
    for record in &records {
        let seen = async || observer.look(&authorities, record).await.state == RecordState::Verified;
        wait::until_true(&format!("{record:?}"), PATIENCE, seen).await?;
    }
    let later = desired(&spec("reject"), &[]);
    ensure!(publisher.apply(ZONE, ZONE, &changes(&later, false)).await?);
    let dmarc = bind.answer(bind.primary(), "TXT", "_dmarc.example.test").await?;
    ensure!(dmarc == "\"v=DMARC1; p=reject\"\n", "{dmarc}");
    let apex = bind.answer(bind.primary(), "TXT", ZONE).await?;
    ensure!(apex.contains("\"theirs\"") && apex.contains("\"v=spf1 mx -all\""), "{apex}");

    let other = self::publisher(&bind, Bind::secret(), "two");
    let refused = other.apply(ZONE, ZONE, &changes(&records, false)).await;
    ensure!(matches!(refused, Err(UpdateError::Owned(_))), "{refused:?}");
    ensure!(publisher.apply(ZONE, ZONE, &changes(&later, true)).await?);
    let apex = bind.answer(bind.primary(), "ANY", ZONE).await?;
    ensure!(apex.contains("\"theirs\"") && !apex.contains("spf1") && !apex.contains("10 mx."), "{apex}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_and_change_nothing() -> Result<()> {
    let mut bind = Bind::start(ZONE, 1, "").await?;
    let records = desired(&spec("none"), &[]);
    let wrong = publisher(&bind, b"another secret of some length".to_vec(), "one");
    let refused = wrong.apply(ZONE, ZONE, &changes(&records, false)).await;
    ensure!(matches!(refused, Err(UpdateError::Refused { .. })), "{refused:?}");
    let fine = publisher(&bind, Bind::secret(), "one");
    let elsewhere = fine.apply("other.test", "other.test", &changes(&records, false)).await;
    ensure!(elsewhere.is_err(), "{elsewhere:?}");

    // A secondary that is away leaves it unknown, and nothing else follows.
    fine.apply(ZONE, ZONE, &changes(&records, false)).await?;
    bind.stop_secondary().await?;
    let seen = observer().look(&authorities(&bind), &records[0]).await;
    ensure!(seen.state == RecordState::Unknown, "{seen:?}");
    bind.stop_primary().await?;
    let away = fine.apply(ZONE, ZONE, &changes(&records, true)).await;
    ensure!(matches!(away, Err(UpdateError::Exchange(_))), "{away:?}");
    Ok(())
}
