//! What one Redis server gives the queue, beside what it gives redis-benchmark.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use testkit::redis::RedisServer;
use tokio::process::Command;

use crate::{OCTETS, SESSIONS, in_redis, load};

/// Messages of one measurement.
const MESSAGES: usize = 40_000;
/// Processes that share one server, and shards that the queue has in it.
const PROCESSES: [usize; 3] = [1, 2, 4];
const SHARDS: [u32; 3] = [1, 4, 16];
const ROUNDS: usize = 5;
/// Keys that redis-benchmark writes to and removes, and how many it removes.
const KEYS: usize = 10_000;
const REMOVED: usize = 5_000;

/// One of several processes: prints the messages it got through a second.
pub(crate) async fn process(url: &str, shards: u32, each: usize) -> Result<()> {
    let queue = in_redis(url.to_owned(), shards).await?;
    println!("{}", load::accept_and_settle(&queue, SESSIONS, each, OCTETS).await?);
    Ok(())
}

/// Messages a second with so many processes.
async fn together(url: &str, shards: u32, processes: usize) -> Result<f64> {
    let each = MESSAGES / processes / SESSIONS;
    let this = std::env::current_exe()?;
    let start = || {
        let arguments = ["process", url, &shards.to_string(), &each.to_string()].map(str::to_owned);
        Command::new(&this).args(arguments).stdout(Stdio::piped()).spawn()
    };
    let children: Vec<_> = (0..processes).map(|_| start()).collect::<std::io::Result<_>>()?;
    let mut sum = 0.0;
    for child in children {
        let output = child.wait_with_output().await?;
        ensure!(output.status.success(), "a process failed");
        sum += String::from_utf8(output.stdout)?.trim().parse::<f64>()?;
    }
    Ok(sum)
}

/// Requests a second by redis-benchmark, with as many clients as there are sessions.
async fn redis_benchmark(
    server: &RedisServer,
    clients: usize,
    requests: usize,
    command: &[&str],
) -> Result<f64> {
    let address = server.address();
    let output = Command::new("redis-benchmark")
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()])
        .args(["-n", &requests.to_string(), "-c", &clients.to_string(), "-r", &KEYS.to_string(), "--csv"])
        .args(command)
        .output()
        .await
        .context("redis-benchmark cannot be run")?;
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("it said nothing")?;
    let rate = last.rsplit("\",\"").nth(6).or_else(|| last.split("\",\"").nth(1)).context(text.clone())?;
    rate.trim_matches('"').parse().with_context(|| text.clone())
}

/// What redis-benchmark gets of pairs of writing and removing: where the removals find keys, and where they do not. A
/// message is such a pair: one durable step that writes its octets, and one that ends it.
async fn pairs(server: &RedisServer, clients: usize) -> Result<[f64; 2]> {
    let body = "x".repeat(OCTETS);
    // Three times as many writes as keys leave hardly a key unwritten, so that most removals find one, and sync.
    let write = redis_benchmark(server, clients, 3 * KEYS, &["SET", "k:__rand_int__", &body]).await?;
    let remove = redis_benchmark(server, clients, REMOVED, &["DEL", "k:__rand_int__"]).await?;
    let in_vain = redis_benchmark(server, clients, REMOVED, &["DEL", "none:__rand_int__"]).await?;
    Ok([remove, in_vain].map(|remove| 1.0 / (1.0 / write + 1.0 / remove)))
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

/// Each round measures the peer anew, right before: a share is of what the server gave in the same seconds.
pub(crate) async fn run() -> Result<()> {
    let server = RedisServer::start().await?;
    println!(
        "medians of {ROUNDS} rounds; shares of the pairs whose removals find keys, and of those that find none"
    );
    for processes in PROCESSES {
        let mut limits = Vec::new();
        let mut of_shards = SHARDS.map(|shards| (shards, Vec::new(), Vec::new(), Vec::new()));
        for _ in 0..ROUNDS {
            for (shards, rates, shares, easy_shares) in &mut of_shards {
                let [limit, easy] = pairs(&server, SESSIONS * processes).await?;
                let rate = together(&server.url(), *shards, processes).await?;
                limits.push(limit);
                rates.push(rate);
                shares.push(100.0 * rate / limit);
                easy_shares.push(100.0 * rate / easy);
            }
        }
        println!("{processes} processes: redis-benchmark {:.0} pairs a second", median(&mut limits));
        for (shards, mut rates, mut shares, mut easy_shares) in of_shards {
            println!(
                "  {shards:>2} shards: {:.0} messages a second, {:.0} %, {:.0} %",
                median(&mut rates),
                median(&mut shares),
                median(&mut easy_shares)
            );
        }
    }
    Ok(())
}
