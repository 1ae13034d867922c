//! What the queue costs as it fills up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use queue::embedded::EmbeddedQueue;
use queue::{Next, Queue, Settlement};
use testkit::redis::RedisServer;

use crate::in_redis;
use crate::load::{delivered, message, request};

/// Small contents: it is the number of entries that is measured.
const OCTETS: usize = 200;
/// Sessions that fill the queue.
const FILLERS: usize = 200;
/// Operations of one measurement.
const SAMPLES: usize = 500;
/// Destinations.
const HOPS: usize = 500;

fn next_hop(at: usize) -> String {
    format!("mx:d{}.example", at % HOPS)
}

async fn fill(queue: &Arc<dyn Queue>, from: usize, to: usize) -> Result<f64> {
    let started = Instant::now();
    let filler = |queue: Arc<dyn Queue>, own: usize| async move {
        for at in (from + own..to).step_by(FILLERS) {
            queue.accept(message(OCTETS, &next_hop(at))?, None).await?;
        }
        anyhow::Ok(())
    };
    let tasks: Vec<_> = (0..FILLERS).map(|own| tokio::spawn(filler(Arc::clone(queue), own))).collect();
    for task in tasks {
        task.await??;
    }
    Ok((to - from) as f64 / started.elapsed().as_secs_f64())
}

/// Microseconds of one operation, one after the other: accept, lease, settle. Medians.
async fn costs(queue: &Arc<dyn Queue>) -> Result<[f64; 3]> {
    let (mut accept, mut lease, mut settle) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..SAMPLES {
        let message = message(OCTETS, &next_hop(at * 7))?;
        let started = Instant::now();
        queue.accept(message, None).await?;
        accept.push(started.elapsed());
        let started = Instant::now();
        let leased = queue.lease(request(1)).await?;
        lease.push(started.elapsed());
        for leased in leased {
            let started = Instant::now();
            // Half of them are tried again later.
            let settlement = match at % 2 {
                0 => delivered(&leased),
                _ => Settlement {
                    next: Next::Retry { after: Duration::from_secs(3600), error: "busy".to_owned() },
                    ..delivered(&leased)
                },
            };
            queue.settle(settlement).await?;
            settle.push(started.elapsed());
        }
    }
    Ok([accept, lease, settle].map(|mut samples| {
        samples.sort_unstable();
        samples.get(samples.len() / 2).map_or(0.0, |median| median.as_secs_f64() * 1e6)
    }))
}

/// Octets that the queue has in memory: those of the Redis server, or of this process.
async fn memory(server: Option<&RedisServer>) -> Result<u64> {
    let Some(server) = server else {
        let status = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = status.split(' ').nth(1).unwrap_or_default().parse()?;
        return Ok(pages * 4096);
    };
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    Ok(used.unwrap_or_default().trim().parse()?)
}

pub(crate) async fn run(backend: &str, most: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = RedisServer::start().await?;
    let (queue, server): (Arc<dyn Queue>, _) = match backend {
        "redis" => (in_redis(server.url(), 4).await?, Some(&server)),
        "embedded" => (Arc::new(EmbeddedQueue::open(folder.path())?), None),
        other => bail!("{other:?} is neither embedded nor redis"),
    };
    // What each destination costs once is no part of an entry's weight.
    fill(&queue, 0, HOPS).await?;
    let (mut filled, base) = (HOPS, memory(server).await?);
    println!("entries   filled/s   accept µs   lease µs   settle µs   octets an entry");
    for depth in [1000, 10_000, 100_000, 500_000, 1_000_000, 2_000_000] {
        if depth > most {
            break;
        }
        let rate = fill(&queue, filled, depth).await?;
        filled = depth;
        // Each measurement leaves some entries behind.
        let entries = queue.ledger().await?.queued.saturating_sub(HOPS as u64);
        let weight = memory(server).await?.saturating_sub(base) / entries.max(1);
        let [accept, lease, settle] = costs(&queue).await?;
        println!("{depth:>7}   {rate:>8.0}   {accept:>9.0}   {lease:>8.0}   {settle:>9.0}   {weight:>6}");
    }
    Ok(())
}
