//! Shards are added while messages are accepted and settled.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use message::QueueId;
use queue::redis::{Config, RedisQueue};
use queue::{Closing, LeaseRequest, ListFilter, Next, Queue, Scope, Settlement};
use testkit::redis::RedisServer;
use testkit::wait;
use tokio::task::JoinHandle;

const SHARDS: [u32; 2] = [2, 9];

async fn connect(server: &RedisServer, shards: u32) -> Result<Arc<RedisQueue>> {
    let config = Config { url: Some(server.url()), shards, ..Config::default() };
    Ok(Arc::new(RedisQueue::connect(&config).await?))
}

fn accepting(queue: &Arc<RedisQueue>, stop: &Arc<AtomicBool>) -> JoinHandle<Result<HashSet<QueueId>>> {
    let (queue, stop) = (Arc::clone(queue), Arc::clone(stop));
    tokio::spawn(async move {
        let mut accepted = HashSet::new();
        while !stop.load(Ordering::Relaxed) {
            let message = common::message(&format!("mx:{}.example", accepted.len() % 50));
            queue.accept(message.clone(), None).await?;
            accepted.insert(message.record.id);
        }
        Ok(accepted)
    })
}

/// Leases and settles until it is told to stop and nothing is left.
fn settling(queue: &Arc<RedisQueue>, stop: &Arc<AtomicBool>) -> JoinHandle<Result<Vec<QueueId>>> {
    let (queue, stop) = (Arc::clone(queue), Arc::clone(stop));
    tokio::spawn(async move {
        let mut settled = Vec::new();
        loop {
            let last_round = stop.load(Ordering::Relaxed);
            let request = LeaseRequest {
                worker: "test".to_owned(),
                max: 16,
                duration: Duration::from_secs(60),
                except: Vec::new(),
                except_pools: Vec::new(),
            };
            let leased = queue.lease(request).await?;
            if leased.is_empty() && last_round {
                return Ok(settled);
            }
            for one in leased {
                settled.push(one.lease.entry.message);
                queue
                    .settle(Settlement {
                        lease: one.lease,
                        recipients: one.entry.recipients,
                        next: Next::Done(Closing::Delivered),
                        bounce: None,
                    })
                    .await?;
            }
        }
    })
}

/// In which shards entries lie, by the keys of the server.
async fn shards_with_entries(server: &RedisServer) -> Result<HashSet<u32>> {
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let mut found = HashSet::new();
    for shard in 0..SHARDS[1] {
        let key = format!("{{q:{shard}}}:all");
        if redis::cmd("EXISTS").arg(key).query_async::<bool>(&mut connection).await? {
            found.insert(shard);
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_added_while_mail_flows() -> Result<()> {
    let server = RedisServer::start().await?;
    let (first, second) = (connect(&server, SHARDS[0]).await?, connect(&server, SHARDS[0]).await?);
    // What holds for the queue holds in the new shards: one suspended next hop and one reader of events.
    let scope = Scope::NextHop("mx:7.example".to_owned());
    first.suspend(&scope, "a test", "me").await?;
    first.events("reader", 1).await?;
    let old = common::message("mx:old.example");
    first.accept(old.clone(), None).await?;

    let (stop, stop_settling) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let loads = [accepting(&first, &stop), accepting(&second, &stop)];
    let settlements = settling(&second, &stop_settling);
    let third = connect(&server, SHARDS[1]).await?;
    let all: HashSet<u32> = (0..SHARDS[1]).collect();
    // The suspended next hop's entries stay, so each shard that is in use shows.
    wait::until_true("entries in all shards", Duration::from_secs(60), async || {
        shards_with_entries(&server).await.is_ok_and(|found| found == all)
    })
    .await?;
    stop.store(true, Ordering::Relaxed);
    let mut accepted = HashSet::from([old.record.id]);
    for load in loads {
        accepted.extend(load.await??);
    }
    for queue in [&first, &second, &third] {
        ensure!(queue.resume(&scope, "me").await? || queue.suspensions().await?.is_empty());
    }
    let left = queue_ids(&third).await?;
    stop_settling.store(true, Ordering::Relaxed);
    let settled = settlements.await??;

    let once: HashSet<QueueId> = settled.iter().copied().collect();
    ensure!(once.len() == settled.len(), "{} were leased twice", settled.len() - once.len());
    ensure!(
        once == accepted,
        "accepted {}, settled {}, left before {}",
        accepted.len(),
        once.len(),
        left.len()
    );
    let ledger = first.ledger().await?;
    ensure!(ledger.unaccounted() == 0 && ledger.queued == 0, "{ledger:?}");
    let events = third.events("reader", 10_000).await?;
    ensure!(!events.lost && events.events.len() >= 1000, "{} events", events.events.len());
    let told: HashSet<&str> = events.events.iter().filter_map(|one| one.entry.split('.').next()).collect();
    ensure!(accepted.iter().any(|id| told.contains(id.as_str())));
    Ok(())
}

async fn queue_ids(queue: &RedisQueue) -> Result<HashSet<QueueId>> {
    let mut ids = HashSet::new();
    let mut filter = ListFilter { limit: 1000, ..ListFilter::default() };
    loop {
        let page = queue.list(filter.clone()).await?;
        ids.extend(page.entries.iter().map(|(entry, _)| entry.id.message));
        match page.next {
            Some(next) => filter.cursor = Some(next),
            None => return Ok(ids),
        }
    }
}
