//! `make bench-tracing`: what it costs to trace every message, in one run.
//!
//! Of each setting two stand side by side, one that exports no telemetry and one that traces all and sends the spans
//! to an OTLP receiver, which takes them without looking at them. The same load goes through the one and the other in
//! turn, and the two rounds of a pair are compared; the median of the pairs counts, so that a machine that becomes
//! slower or faster meanwhile hits both.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::source::{SESSIONS, SIZE, WARM_UP, number, round, with_short_greeting, world};
use testkit::net;
use testkit::otlp::Drain;
use testkit::process::Settings;
use testkit::redis::RedisServer;

/// What tracing may cost.
const LIMIT: f64 = 0.10;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the benchmark could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool> {
    let (messages, pairs) = (number("MESSAGES", 10_000)?, number("PAIRS", 9)?);
    ensure!(messages > 0 && pairs > 0, "MESSAGES and PAIRS have to be at least 1");
    println!(
        "{messages} messages of {SIZE} octets over {SESSIONS} sessions, {pairs} pairs, the median counts"
    );
    let drain = Drain::start().await?;
    let all = all(&drain, messages, pairs).await.context("packetboat all")?;
    let three = three(&drain, messages, pairs).await.context("packetboat over Redis")?;
    println!();
    for (setting, pair) in [("all", &all), ("redis", &three)] {
        println!(
            "bench-tracing: {setting} plain={:.0}/s traced={:.0}/s cost={:.1} %",
            pair.plain,
            pair.traced,
            pair.cost() * 100.0
        );
    }
    println!("bench-tracing: {} octets of spans were exported", drain.taken());
    ensure!(drain.taken() > 0, "nothing was exported");
    Ok(all.cost() < LIMIT && three.cost() < LIMIT)
}

/// Messages a second, end to end, of two rounds next to each other.
#[derive(Clone, Copy)]
struct Pair {
    plain: f64,
    traced: f64,
}

impl Pair {
    /// The share of the throughput that tracing takes.
    fn cost(&self) -> f64 {
        1.0 - self.traced / self.plain
    }
}

/// The settings of what is traced.
fn traced(drain: &Drain) -> impl Fn(&mut Settings) {
    let line = format!("telemetry: {{otlp: \"{}\", sample_ratio: 1.0}}\n", drain.url());
    move |settings| {
        with_short_greeting(settings);
        settings.extra.push_str(&line);
    }
}

async fn all(drain: &Drain, messages: usize, pairs: usize) -> Result<Pair> {
    let sinks = [net::free_address()?, net::free_address()?];
    let (plain, other) = (world(sinks[0]).await?, world(sinks[1]).await?);
    let (plain, _one) = plain.start_all(with_short_greeting).await?;
    let (other, _two) = other.start_all(traced(drain)).await?;
    compare("all", [(plain.mx, sinks[0]), (other.mx, sinks[1])], messages, pairs).await
}

async fn three(drain: &Drain, messages: usize, pairs: usize) -> Result<Pair> {
    let sinks = [net::free_address()?, net::free_address()?];
    let worlds = [world(sinks[0]).await?, world(sinks[1]).await?];
    let servers = [RedisServer::start().await?, RedisServer::start().await?];
    let plain = Row::start(&worlds[0], &servers[0], "a", &with_short_greeting).await?;
    let other = Row::start(&worlds[1], &servers[1], "a", &traced(drain)).await?;
    compare("redis", [(plain.edge.0.mx, sinks[0]), (other.edge.0.mx, sinks[1])], messages, pairs).await
}

/// Rounds of the two in turn; which one begins changes from pair to pair.
async fn compare(
    setting: &str,
    two: [(SocketAddr, SocketAddr); 2],
    messages: usize,
    pairs: usize,
) -> Result<Pair> {
    for (server, sink) in two {
        round(WARM_UP, server, sink).await.context("warming up")?;
    }
    let mut found = Vec::new();
    for number in 0..pairs {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            let which = (number + turn) % 2;
            let (server, sink) = two[which];
            rates[which] = round(messages, server, sink).await?.end_to_end;
        }
        let pair = Pair { plain: rates[0], traced: rates[1] };
        println!(
            "{setting}, pair {}: plain {:.0}/s, traced {:.0}/s, cost {:.1} %",
            number + 1,
            pair.plain,
            pair.traced,
            pair.cost() * 100.0
        );
        found.push(pair);
    }
    found.sort_by(|a, b| a.cost().total_cmp(&b.cost()));
    Ok(found[found.len() / 2])
}
