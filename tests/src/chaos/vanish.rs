//! Entries that vanish from Redis underneath, as by a hand or a program that deletes keys.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::ledger::Ledger;
use testkit::process::{Role, Settings};
use testkit::redis::RedisServer;
use testkit::wait;

use super::disk::rebuild;
use super::{Outcome, SETTLED, load_on};
use crate::cluster::Cluster;
use crate::load::wait_for_balance;
use crate::world::World;

/// Messages that wait when some of them vanish.
const WAITING: usize = 300;
const NOTICED: Duration = Duration::from_secs(30);

/// Of messages that wait a third lose their entries, and a third their records. The audit names each, the metric
/// counts them, and a rebuild beside the running services restores them from the spool.
pub async fn entries_vanish() -> Result<Outcome> {
    let (world, spool) =
        (World::new().await?, tempfile::Builder::new().prefix("packetboat-spool-").tempdir()?);
    let url = format!("file://{}", spool.path().display());
    let adjust = |settings: &mut Settings| {
        settings.spool = Some(url.clone());
        if settings.role == Role::Delivery {
            settings.environment.push(("PACKETBOAT_DELIVERY__DISPATCH__AUDIT".to_owned(), "1s".to_owned()));
            settings.environment.push(("PACKETBOAT_DELIVERY__DISPATCH__LEASE".to_owned(), "3s".to_owned()));
        }
    };
    world.host("recipients: {mode: AcceptAll}", "{smtp: {address: \"127.0.0.1:1\"}}")?;
    let cluster = Cluster::over(&world, RedisServer::start().await?, adjust).await?;
    let ledger = Arc::new(Ledger::new());
    let mut load = load_on(&[cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx]);
    load.messages = WAITING;
    load.start(&ledger).finish().await?;

    let keys = cluster.redis.command(&["KEYS", "{q:*}:[em]:*"]).await?;
    let entries: Vec<&str> = keys.lines().filter(|key| key.contains(":e:")).collect();
    ensure!(entries.len() == WAITING, "{} entries wait of {WAITING}", entries.len());
    let mut vanished = BTreeSet::new();
    for (at, entry) in entries.iter().enumerate() {
        let id =
            entry.rsplit(':').next().and_then(|id| id.split('.').next()).context("an entry has an id")?;
        let key = match at % 3 {
            0 => (*entry).to_owned(),
            1 => entry.replacen(":e:", ":m:", 1).replacen(&format!("{id}.0"), id, 1),
            _ => continue,
        };
        ensure!(cluster.redis.command(&["DEL", &key]).await?.trim() == "1", "{key} was not there");
        vanished.insert(id.to_owned());
    }

    let rows = &cluster.rows;
    wait::until_true("the metric to count what vanished", NOTICED, async || {
        let mut odd = 0.0;
        for row in rows {
            odd += row.delivery.1.metric("mail_queue_oddities").await.unwrap_or_default();
        }
        odd >= vanished.len() as f64
    })
    .await?;
    let output = world.site.run(&rows[0].delivery.0, &["queue", "audit"]).await?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success(), "an audit that finds something odd succeeds");
    let unnamed: Vec<&String> = vanished.iter().filter(|id| !told.contains(id.as_str())).collect();
    ensure!(unnamed.is_empty(), "the audit does not name {unnamed:?}:\n{told}");

    rebuild(&world, &cluster).await?;
    world.host("recipients: {mode: AcceptAll}", "{maildir: {path: mail}}")?;
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), SETTLED).await?;
    wait::until_true("an audit that finds nothing odd", NOTICED, async || {
        let audit = world.site.run(&rows[0].delivery.0, &["queue", "audit"]).await;
        audit.is_ok_and(|output| output.status.success())
    })
    .await?;
    let note = format!("{} vanished, all named and restored", vanished.len());
    Ok(Outcome { note, ..(balance, Duration::ZERO).into() })
}
