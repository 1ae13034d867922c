//! Shards that fail, or say nothing, leave the others to go on.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use queue::redis::{Config, RedisQueue};
use queue::{Closing, EntryId, LeaseRequest, Leased, Next, Queue, Settlement};
use redis::aio::MultiplexedConnection;
use testkit::redis::RedisServer;
use testkit::redis_groups::RedisCluster;
use testkit::wait;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(30);
const SHARDS: u32 = 8;

fn request(max: usize, duration: Duration) -> LeaseRequest {
    LeaseRequest { worker: "test".to_owned(), max, duration, except: Vec::new(), except_pools: Vec::new() }
}

async fn open(url: &str) -> Result<MultiplexedConnection> {
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection().await?)
}

async fn ask<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> Result<T> {
    let mut command = redis::cmd(words[0]);
    Ok(command.arg(&words[1..]).query_async(&mut open(url).await?).await?)
}

async fn accept(queue: &RedisQueue, messages: usize) -> Result<()> {
    for number in 0..messages {
        queue.accept(common::message(&format!("mx:{}", number % 5)), None).await?;
    }
    Ok(())
}

async fn deliver(queue: &RedisQueue, leased: Vec<Leased>) -> Result<()> {
    for one in leased {
        let next = Next::Done(Closing::Delivered);
        let recipients = one.entry.recipients;
        queue.settle(Settlement { lease: one.lease, recipients, next, bounce: None }).await?;
    }
    Ok(())
}

/// How many entries lie in the sorted set of each shard of a server; those without any have no row.
async fn counts(url: &str, name: &str) -> Result<BTreeMap<u32, usize>> {
    let mut counts = BTreeMap::new();
    for shard in 0..SHARDS {
        // A server of a Cluster refuses the shards of others.
        let key = format!("{{q:{shard}}}:{name}");
        if let Ok(count @ 1..) = ask::<usize>(url, &["ZCARD", &key]).await {
            counts.insert(shard, count);
        }
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_healthy_shards_lease_is_handed_over_though_one_fails() -> Result<()> {
    const BROKEN: u32 = 1;
    let server = RedisServer::start().await?;
    let config = Config { url: Some(server.url()), shards: SHARDS, ..Config::default() };
    let queue = RedisQueue::connect(&config).await?;
    accept(&queue, 120).await?;
    let mut all = counts(&server.url(), "all").await?;
    let apart = all.remove(&BROKEN).context("the shard that is to fail has no mail")?;
    let healthy: usize = all.values().sum();
    // Something else stands where its leases are to be written.
    let key = format!("{{q:{BROKEN}}}:leased");
    ask::<()>(&server.url(), &["SET", &key, "no set"]).await?;

    let long = Duration::from_secs(60);
    let mut held = Vec::new();
    while held.len() < healthy {
        let leased = queue.lease(request(16, long)).await.context("one shard failed")?;
        ensure!(!leased.is_empty(), "{} of {healthy} could be leased", held.len());
        held.extend(leased);
        let written: usize = counts(&server.url(), "leased").await?.values().sum();
        ensure!(written == held.len(), "{written} are leased, and {} in hand", held.len());
    }
    ensure!(queue.lease(request(16, long)).await?.is_empty(), "nothing is left but what is away");
    ensure!(held.iter().map(|one| one.lease.entry).collect::<HashSet<EntryId>>().len() == healthy);
    deliver(&queue, held).await?;

    ask::<()>(&server.url(), &["DEL", &key]).await?;
    let mut later = Vec::new();
    wait::until_true("the shard to be leased from again", PATIENCE, async || {
        later.extend(queue.lease(request(16, long)).await.unwrap_or_default());
        later.len() == apart
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_shards_fail_that_is_told_and_all_are_asked_again() -> Result<()> {
    let mut server = RedisServer::start().await?;
    let seconds = Duration::from_secs(1);
    let config = Config {
        url: Some(server.url()),
        shards: SHARDS,
        connect_timeout: seconds,
        response_timeout: seconds,
        ..Config::default()
    };
    let queue = RedisQueue::connect(&config).await?;
    accept(&queue, 10).await?;
    server.kill9().await?;
    for _ in 0..3 {
        ensure!(queue.lease(request(10, PATIENCE)).await.is_err(), "nothing is not the same as no answer");
    }
    server.restart().await?;
    let mut leased = Vec::new();
    wait::until_true("the queue to be leased from again", PATIENCE, async || {
        leased.extend(queue.lease(request(10, PATIENCE)).await.unwrap_or_default());
        leased.len() == 10
    })
    .await
}

/// A Cluster that goes on without a part of its slots, and no replica takes over.
async fn without_failover() -> Result<(RedisCluster, RedisQueue)> {
    let cluster = RedisCluster::start().await?;
    for url in cluster.urls() {
        ask::<()>(&url, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await?;
        ask::<()>(&url, &["CONFIG", "SET", "cluster-replica-no-failover", "yes"]).await?;
    }
    let config = Config {
        cluster: cluster.urls(),
        shards: SHARDS,
        connect_timeout: Duration::from_secs(1),
        response_timeout: Duration::from_secs(1),
        ..Config::default()
    };
    let queue = RedisQueue::connect(&config).await?;
    Ok((cluster, queue))
}

/// The primaries that answer, and how many entries each has in its shards.
async fn primaries(cluster: &RedisCluster) -> Result<Vec<(String, usize)>> {
    let mut primaries = Vec::new();
    for url in cluster.urls() {
        if ask::<String>(&url, &["INFO", "replication"]).await?.contains("role:master") {
            let entries = counts(&url, "all").await?.values().sum();
            primaries.push((url, entries));
        }
    }
    Ok(primaries)
}

/// That no entry's lease has ended without a word more often than this.
async fn lost_at_most(urls: &[String], most: u32) -> Result<()> {
    for url in urls {
        for key in ask::<Vec<String>>(url, &["KEYS", "{q:*}:e:*"]).await? {
            let lost: Option<u32> = ask(url, &["HGET", &key, "lost"]).await?;
            ensure!(lost.unwrap_or(0) <= most, "{key} was lost {lost:?} times");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_leased_from_without_a_primary_that_is_dead() -> Result<()> {
    let (mut cluster, queue) = without_failover().await?;
    accept(&queue, 120).await?;
    cluster.kill_a_primary().await?;
    let left = primaries(&cluster).await?;
    let healthy: usize = left.iter().map(|(_, entries)| entries).sum();
    ensure!((1..120).contains(&healthy), "{healthy} entries are left");
    let urls: Vec<String> = left.into_iter().map(|(url, _)| url).collect();

    let mut held = BTreeSet::new();
    wait::until_true("all that is not away to be leased", PATIENCE, async || {
        let leased = queue.lease(request(16, Duration::from_secs(60))).await.unwrap_or_default();
        held.extend(leased.iter().map(|one| one.lease.entry.to_string()));
        held.len() == healthy
    })
    .await?;
    let mut written = 0;
    for url in &urls {
        written += counts(url, "leased").await?.values().sum::<usize>();
    }
    ensure!(written == healthy, "{written} are leased, and {healthy} in hand");
    lost_at_most(&urls, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_says_nothing_holds_up_one_lease_and_no_more() -> Result<()> {
    let (cluster, queue) = without_failover().await?;
    accept(&queue, 120).await?;
    let all = primaries(&cluster).await?;
    let (silent, apart) = all.first().context("there are primaries")?;
    ensure!(*apart > 0, "the one that is to be silent has no mail");
    ask::<()>(silent, &["CLIENT", "PAUSE", "60000", "WRITE"]).await?;
    // Short: what is asked of the silent one is leased once it speaks again, for nobody.
    let short = Duration::from_secs(3);
    let (mut delivered, mut begin) = (0, None);
    while delivered < 120 - apart {
        let leased = queue.lease(request(8, short)).await?;
        // The first of them has found out.
        let begin = begin.get_or_insert_with(Instant::now);
        ensure!(begin.elapsed() < PATIENCE && !leased.is_empty(), "{delivered} were leased");
        delivered += leased.len();
        deliver(&queue, leased).await?;
    }
    let took = begin.context("nothing was leased")?.elapsed();
    ensure!(took < Duration::from_secs(2), "leases were held up, and took {took:?}");
    ask::<()>(silent, &["CLIENT", "UNPAUSE"]).await?;
    wait::until_true("the rest to be delivered", PATIENCE, async || {
        let leased = queue.lease(request(8, short)).await.unwrap_or_default();
        delivered += leased.len();
        lost_at_most(std::slice::from_ref(silent), 1).await.is_ok()
            && deliver(&queue, leased).await.is_ok()
            && delivered == 120
    })
    .await
}
