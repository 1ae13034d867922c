//! What one Redis server gives the queue, beside what it gives redis-benchmark.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use testkit::redis::RedisServer;
use tokio::process::Command;

use crate::{OCTETS, SESSIONS, in_redis, load};

/// Messages of one measurement.
const MESSAGES: usize = 20_000;
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

pub(crate) async fn run() -> Result<()> {
    let server = RedisServer::start().await?;
    let body = "x".repeat(OCTETS);
    for processes in [1, 2, 4] {
        let clients = SESSIONS * processes;
        // Three times as many writes as keys leave hardly a key unwritten, so that most removals find one, and sync.
        let write = redis_benchmark(&server, clients, 3 * KEYS, &["SET", "k:__rand_int__", &body]).await?;
        let remove = redis_benchmark(&server, clients, REMOVED, &["DEL", "k:__rand_int__"]).await?;
        let in_vain = redis_benchmark(&server, clients, REMOVED, &["DEL", "none:__rand_int__"]).await?;
        // A message is two durable steps: one that writes its octets, and one that ends it.
        let pairs = |remove: f64| 1.0 / (1.0 / write + 1.0 / remove);
        let (limit, easy) = (pairs(remove), pairs(in_vain));
        println!(
            "redis-benchmark, {clients} clients: SET {write:.0}/s, DEL {remove:.0}/s, of keys that are not there \
             {in_vain:.0}/s: {limit:.0} pairs a second, {easy:.0} with these"
        );
        for shards in [1, 4, 16] {
            let rate = together(&server.url(), shards, processes).await?;
            println!(
                "{processes} processes, {shards} shards: {rate:.0} messages a second, {:.0} % of that, {:.0} %",
                100.0 * rate / limit,
                100.0 * rate / easy
            );
        }
    }
    Ok(())
}
