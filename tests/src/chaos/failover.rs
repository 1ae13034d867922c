//! A primary of several Redis servers dies, and another takes over: behind Sentinels and in a Cluster, with and
//! without waiting for replicas.
//!
//! On one machine a replica is microseconds behind, and nothing is ever lost. So the primary is cut off from its
//! replicas first, goes on for a moment, and dies: what it answered for in that moment it alone had.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::ledger::Ledger;
use testkit::process::{Role, Settings};
use testkit::redis_groups::{RedisCluster, RedisSentinels};
use testkit::wait;
use tokio::time::{sleep, timeout};

use super::{BEGIN, Outcome, load_on};
use crate::cluster::Row;
use crate::load::{Running, collect};
use crate::world::World;

/// For so long the primary is alone: less than what its replicas, or the Sentinels, take for its death.
const APART: Duration = Duration::from_millis(600);
/// Another has taken over, and all mail is out of the queue, within this.
const OVER: Duration = Duration::from_secs(180);
const WANTED: usize = 600;

/// Which servers, and how one of them is lost.
enum Group {
    Sentinels(RedisSentinels),
    Cluster(RedisCluster),
}

impl Group {
    /// `queue.redis`, as the settings have it.
    fn keys(&self, replicas: u32) -> String {
        let listed = |urls: Vec<String>| {
            let quoted: Vec<String> = urls.iter().map(|url| format!("\"{url}\"")).collect();
            quoted.join(", ")
        };
        let at = match self {
            Self::Sentinels(group) => {
                format!("sentinel: {{urls: [{}], master: {}}}", listed(group.urls()), RedisSentinels::MASTER)
            }
            Self::Cluster(cluster) => format!("cluster: [{}]", listed(cluster.urls())),
        };
        format!(", {at}, replicas: {replicas}, connect_timeout: 1s, response_timeout: 2s")
    }

    async fn kill_apart(&mut self, meanwhile: impl Future<Output = Result<()>>) -> Result<()> {
        match self {
            Self::Sentinels(group) => group.kill_the_primary_apart(meanwhile).await,
            Self::Cluster(cluster) => cluster.kill_a_primary_apart(meanwhile).await,
        }
    }
}

/// The primary behind three Sentinels dies.
pub async fn sentinel(replicas: u32) -> Result<Outcome> {
    under_load(Group::Sentinels(RedisSentinels::start().await?), replicas).await
}

/// One primary of a Cluster of six dies.
pub async fn cluster(replicas: u32) -> Result<Outcome> {
    under_load(Group::Cluster(RedisCluster::start().await?), replicas).await
}

/// Nothing is delivered before the primary is dead: what waits is what can be lost.
async fn under_load(mut group: Group, replicas: u32) -> Result<Outcome> {
    let world = World::new().await?;
    let keys = group.keys(replicas);
    let adjust = |settings: &mut Settings| {
        settings.redis = Some(String::new());
        settings.redis_more.clone_from(&keys);
        if settings.role == Role::Delivery {
            // Renewals and settlements are of no interest here.
            settings.environment.push(("PACKETBOAT_DELIVERY__DISPATCH__LEASE".to_owned(), "5s".to_owned()));
        }
    };
    world.host("recipients: {mode: AcceptAll}", "{smtp: {address: \"127.0.0.1:1\"}}")?;
    let rows = [Row::over(&world, "a", &adjust).await?, Row::over(&world, "b", &adjust).await?];
    let ledger = Arc::new(Ledger::new());
    let mut load = load_on(&[rows[0].edge.0.mx, rows[1].edge.0.mx]);
    load.messages = WANTED;
    let load = load.start(&ledger);
    load.wait_until_accepted(BEGIN).await?;
    let stall = load.longest_stall(WANTED);
    let mut alone = 0;
    let apart = async {
        alone = accepted_while(&load, APART).await;
        Ok(())
    };
    group.kill_apart(apart).await?;
    let answers = load.finish().await?;
    let stall = stall.await?;
    world.host("recipients: {mode: AcceptAll}", "{maildir: {path: mail}}")?;
    let empty = async || {
        let Ok((_, account)) = rows[0].delivery.1.get("/api/v1/queue/account").await else { return false };
        account.contains("\"queued\":0")
    };
    timeout(OVER, wait::until_true("an empty queue", OVER, empty)).await??;
    let balance = collect(&ledger, &world.mailbox("alice"), &world.mailbox("dave"))?;
    ensure!(balance.unknown.is_empty(), "{balance}");
    let note = format!("{alone} answered for while the primary was alone; {answers}");
    Ok(Outcome { note, ..(balance, stall).into() })
}

/// How many messages were answered `250` in this time.
async fn accepted_while(load: &Running, time: Duration) -> usize {
    let before = load.accepted();
    sleep(time).await;
    load.accepted() - before
}
