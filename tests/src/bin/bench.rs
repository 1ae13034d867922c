//! `make bench`: the same load through Postfix and through Packetboat, on the same machine in one run.
//!
//! `smtp-source` sends messages over 20 sessions, `smtp-sink` takes them; between them stands each mail
//! system in turn, with fsync before `250`. Two figures come out: how fast messages are accepted (until
//! `smtp-source` is done) and how fast they are through (until `smtp-sink` has them all). Packetboat
//! does SPF, DKIM, DMARC and ARC on each message, since that is how it is run; Postfix does not.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::source::{Rates, SESSIONS, SIZE, WARM_UP, number, round, with_short_greeting, world};
use testkit::net;
use testkit::postfix::{Postfix, Settings};
use testkit::redis::RedisServer;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmark could not go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let plan = Plan { messages: number("MESSAGES", 5000)?, rounds: number("ROUNDS", 3)? };
    ensure!(plan.messages > 0 && plan.rounds > 0, "MESSAGES and ROUNDS have to be at least 1");
    println!(
        "{} messages of {SIZE} octets over {SESSIONS} sessions, {} rounds each, the median counts",
        plan.messages, plan.rounds
    );
    let postfix = postfix(&plan).await.context("Postfix")?;
    let embedded = embedded(&plan).await.context("packetboat all")?;
    let redis = redis(&plan).await.context("packetboat over Redis")?;

    println!("\n{:<38}{:>14}{:>14}{:>8}", "", "accepted", "end to end", "ratio");
    let row = |name: &str, rates: &Rates| {
        let ratio = rates.end_to_end / postfix.end_to_end;
        println!("{name:<38}{:>12.0}/s{:>12.0}/s{ratio:>8.1}", rates.accept, rates.end_to_end);
    };
    row("Postfix", &postfix);
    row("packetboat all, embedded queue", &embedded);
    row("packetboat, three processes over Redis", &redis);
    println!();
    for (setting, rates) in [("embedded", embedded), ("redis", redis)] {
        println!(
            "bench: {setting} accept={:.0}/s end-to-end={:.0}/s postfix={:.0}/s ratio={:.1}",
            rates.accept,
            rates.end_to_end,
            postfix.end_to_end,
            rates.end_to_end / postfix.end_to_end
        );
    }
    Ok(())
}

/// How much to measure.
struct Plan {
    messages: usize,
    rounds: usize,
}

impl Plan {
    /// Sends the load through the mail system at `server`, which passes it on to `sink`.
    async fn measure(&self, name: &str, server: SocketAddr, sink: SocketAddr) -> Result<Rates> {
        round(WARM_UP, server, sink).await.context("warming up")?;
        let mut rounds = Vec::new();
        for number in 1..=self.rounds {
            let rates = round(self.messages, server, sink).await?;
            println!(
                "{name}, round {number}: accepted {:.0}/s, end to end {:.0}/s",
                rates.accept, rates.end_to_end
            );
            rounds.push(rates);
        }
        rounds.sort_by(|a, b| a.end_to_end.total_cmp(&b.end_to_end));
        Ok(rounds[rounds.len() / 2])
    }
}

/// Postfix with its brakes off: as many processes and connections as the load can use, no rate limits,
/// no pause when mail comes in faster than it goes out, no TLS, no address rewriting by look-ups.
async fn postfix(plan: &Plan) -> Result<Rates> {
    let sink = net::free_address()?;
    let settings = Settings::sender("mx.packetboat.test", sink)
        .with("default_process_limit", "200")
        .with("smtpd_client_connection_count_limit", "0")
        .with("smtpd_client_connection_rate_limit", "0")
        .with("smtpd_client_message_rate_limit", "0")
        .with("smtpd_tls_security_level", "none")
        .with("smtp_tls_security_level", "none")
        .with("initial_destination_concurrency", "20")
        .with("default_destination_concurrency_limit", "50")
        .with("smtp_destination_concurrency_limit", "50")
        .with("smtp_connection_cache_on_demand", "yes")
        .with("in_flow_delay", "0")
        .with("disable_dns_lookups", "yes")
        .with("virtual_alias_maps", "");
    let postfix = Postfix::start(&settings).await?;
    plan.measure("Postfix", postfix.address(), sink).await
}

async fn embedded(plan: &Plan) -> Result<Rates> {
    let sink = net::free_address()?;
    let world = world(sink).await?;
    let (settings, _process) = world.start_all(with_short_greeting).await?;
    plan.measure("packetboat all", settings.mx, sink).await
}

async fn redis(plan: &Plan) -> Result<Rates> {
    let sink = net::free_address()?;
    let world = world(sink).await?;
    let redis = RedisServer::start().await?;
    let row = Row::start(&world, &redis, "a", &with_short_greeting).await?;
    plan.measure("packetboat over Redis", row.edge.0.mx, sink).await
}
