//! Measures the queue alone, without SMTP: `cargo run --release -p queue --example measure -- WHAT`.
//!
//! - `embedded` or `redis`: messages accepted and settled a second.
//! - `limit`: the same over one Redis by shards and by processes, beside what redis-benchmark gets from the
//!   same server with equal payloads.
//! - `depth embedded|redis [MOST]`: what accept, lease and settle cost, and what an entry weighs, as the queue
//!   fills up.

mod depth;
mod limit;
mod load;

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use queue::Queue;
use queue::embedded::EmbeddedQueue;
use queue::redis::{Config, RedisQueue};

/// Sessions at once, messages of each, and their size in octets.
pub(crate) const SESSIONS: usize = 20;
const EACH: usize = 2000;
pub(crate) const OCTETS: usize = 4096;

/// A queue in a Redis server.
pub(crate) async fn in_redis(url: String, shards: u32) -> Result<Arc<dyn Queue>> {
    let config = Config { url: Some(url), shards, ..Config::default() };
    Ok(Arc::new(RedisQueue::connect(&config).await?))
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["limit"] => return limit::run().await,
        ["process", url, shards, each] => return limit::process(url, shards.parse()?, each.parse()?).await,
        ["depth", backend] => return depth::run(backend, 2_000_000).await,
        ["depth", backend, most] => return depth::run(backend, most.parse()?).await,
        _ => {}
    }
    let folder = tempfile::tempdir()?;
    let server = testkit::redis::RedisServer::start().await?;
    let backend = *arguments.first().context("say what: embedded, redis, limit or depth")?;
    let queue: Arc<dyn Queue> = match backend {
        "embedded" => Arc::new(EmbeddedQueue::open(folder.path())?),
        "redis" => in_redis(server.url(), 4).await?,
        other => bail!("{other:?} is none of embedded, redis, limit and depth"),
    };
    for round in 1..=5 {
        let rate = load::accept_and_settle(&queue, SESSIONS, EACH, OCTETS).await?;
        println!("{backend}, round {round}: {rate:.0} messages accepted and settled a second");
    }
    Ok(())
}
