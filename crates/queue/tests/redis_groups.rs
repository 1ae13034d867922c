//! The Redis backend over a Cluster of six and over three Sentinels: it conforms, and goes on when a primary
//! dies under load.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use message::QueueId;
use queue::conformance::{self, Subject};
use queue::redis::{Config, RedisQueue, SentinelConfig};
use queue::{Closing, LeaseRequest, Next, Queue, Settlement};
use testkit::redis_groups::{RedisCluster, RedisSentinels};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);

fn quick() -> Config {
    let seconds = Duration::from_secs;
    Config { shards: 8, connect_timeout: seconds(2), response_timeout: seconds(2), ..Config::default() }
}

fn in_cluster(cluster: &RedisCluster) -> Config {
    Config { cluster: cluster.urls(), ..quick() }
}

fn by_sentinels(group: &RedisSentinels) -> Config {
    let sentinel =
        SentinelConfig { urls: group.urls(), master: RedisSentinels::MASTER.to_owned(), primary: None };
    Config { sentinel: Some(sentinel), ..quick() }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::unwrap_used)]
async fn the_backend_conforms_over_a_cluster() {
    let cluster = RedisCluster::start().await.unwrap();
    conformance::run(|| async {
        for url in cluster.urls() {
            let client = redis::Client::open(url).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            // A replica refuses.
            let _ = redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await;
        }
        Arc::new(RedisQueue::connect(&in_cluster(&cluster)).await.unwrap()) as Subject
    })
    .await;
}

/// Accepts until told to stop; gives what was answered for.
async fn accept_all(
    queue: Arc<RedisQueue>,
    wanted: usize,
    accepted: Arc<AtomicUsize>,
) -> Result<HashSet<QueueId>> {
    let mut ids = HashSet::new();
    let deadline = Instant::now() + PATIENCE;
    while ids.len() < wanted {
        ensure!(Instant::now() < deadline, "only {} of {wanted} were accepted in time", ids.len());
        let message = common::message("mx:a");
        let id = message.record.id;
        match queue.accept(message, None).await {
            Ok(_) => {
                ids.insert(id);
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
    Ok(ids)
}

/// Leases and settles everything there is.
async fn drain(queue: &RedisQueue) -> Result<HashSet<QueueId>> {
    let mut ids = HashSet::new();
    let deadline = Instant::now() + PATIENCE;
    let mut empty = 0;
    while empty < 5 && Instant::now() < deadline {
        let request = LeaseRequest {
            worker: "test".to_owned(),
            max: 100,
            duration: Duration::from_secs(60),
            except: Vec::new(),
            except_pools: Vec::new(),
        };
        let leased = queue.lease(request).await?;
        empty = if leased.is_empty() { empty + 1 } else { 0 };
        for leased in leased {
            let recipients = leased.entry.recipients.clone();
            let next = Next::Done(Closing::Delivered);
            queue.settle(Settlement { lease: leased.lease, recipients, next, bounce: None }).await?;
            ids.insert(leased.message.id);
        }
    }
    Ok(ids)
}

/// Kills a primary in the middle of 600 messages, and counts what is left of what was answered for. Replication
/// is asynchronous, so what was answered in the last moments may be lost; it must not be more than that.
async fn survives(queue: Arc<RedisQueue>, kill: impl Future<Output = Result<()>>, name: &str) -> Result<()> {
    const WANTED: usize = 600;
    let accepted = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let load = tokio::spawn(accept_all(Arc::clone(&queue), WANTED, Arc::clone(&accepted)));
    while accepted.load(Ordering::Relaxed) < WANTED / 3 {
        sleep(Duration::from_millis(5)).await;
        ensure!(started.elapsed() < PATIENCE, "no load");
    }
    kill.await?;
    let ids = load.await?.context("accepting through a failover")?;
    let found = drain(&queue).await?;
    let lost = ids.difference(&found).count();
    println!(
        "chaos: failover-{name} level=redis accepted={} lost={lost} stall={:.1}s",
        ids.len(),
        started.elapsed().as_secs_f64()
    );
    ensure!(lost <= 3, "{lost} of {} are lost: more than the last moments", ids.len());
    ensure!(queue.ledger().await?.unaccounted() == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_goes_on_when_a_primary_dies() -> Result<()> {
    let mut cluster = RedisCluster::start().await?;
    let queue = Arc::new(RedisQueue::connect(&in_cluster(&cluster)).await?);
    survives(queue, cluster.kill_a_primary(), "cluster").await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_cluster_are_waited_for() -> Result<()> {
    let cluster = RedisCluster::start().await?;
    let one_each = RedisQueue::connect(&Config { replicas: 1, ..in_cluster(&cluster) }).await?;
    for _ in 0..50 {
        one_each.accept(common::message("mx:a"), None).await?;
    }
    let two_each = RedisQueue::connect(&Config { replicas: 2, ..in_cluster(&cluster) }).await?;
    let told = two_each.accept(common::message("mx:a"), None).await.err().context("there is one alone")?;
    ensure!(format!("{told:?}").contains("1 of 2 replicas"), "{told:?}");
    ensure!(one_each.depth().await?.queued == 50, "what was refused was withdrawn");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_next_primary() -> Result<()> {
    let mut group = RedisSentinels::start().await?;
    let queue = Arc::new(RedisQueue::connect(&by_sentinels(&group)).await?);
    survives(queue, group.kill_the_primary(), "sentinel").await
}
