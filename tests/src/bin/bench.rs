//! `make bench`: the same load through Postfix and through Packetboat, on the same machine in one run.
//!
//! `smtp-source` sends messages over 20 sessions, `smtp-sink` takes them; between them stands each mail
//! system in turn, with fsync before `250`. Two figures come out: how fast messages are accepted (until
//! `smtp-source` is done) and how fast they are through (until `smtp-sink` has them all). Packetboat
//! does SPF, DKIM, DMARC and ARC on each message, since that is how it is run; Postfix does not.

use std::net::SocketAddr;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{FRIEND, HOSTED, World, at};
use testkit::postfix::{Postfix, Settings};
use testkit::redis::RedisServer;
use testkit::{net, wait};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// Octets of a message.
const SIZE: usize = 4096;
/// Parallel sessions of `smtp-source`.
const SESSIONS: usize = 20;
/// Messages before the first measured round, so that processes and caches are warm.
const WARM_UP: usize = 300;
/// How long one round may take.
const PATIENCE: Duration = Duration::from_secs(600);

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

/// A number from the environment.
fn number(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().with_context(|| format!("{name}={text} is not a number"))
        }
        _ => Ok(default),
    }
}

/// How much to measure.
struct Plan {
    messages: usize,
    rounds: usize,
}

/// Messages a second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    accept: f64,
    end_to_end: f64,
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

/// One load: starts the sink, sends, and takes the time of both ends.
async fn round(messages: usize, server: SocketAddr, sink: SocketAddr) -> Result<Rates> {
    let mut receiving = start_sink(messages, sink).await?;
    let begin = Instant::now();
    let source = Command::new("/usr/sbin/smtp-source")
        .args(["-s", &SESSIONS.to_string(), "-l", &SIZE.to_string(), "-m", &messages.to_string()])
        .args(["-f", &at("dave", FRIEND), "-t", &at("alice", HOSTED), "-M", "mail.friend.test"])
        .arg(server.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let source = timeout(PATIENCE, source).await.context("smtp-source took too long")?;
    let source = source.context("starting smtp-source (package postfix)")?;
    let accepted = begin.elapsed();
    ensure!(source.status.success(), "smtp-source: {}", String::from_utf8_lossy(&source.stderr));
    let left = PATIENCE.saturating_sub(accepted);
    let status = timeout(left, receiving.wait()).await.context("the sink did not get all messages")??;
    let arrived = begin.elapsed();
    ensure!(status.success(), "smtp-sink ended with {status}");
    let rate = |elapsed: Duration| messages as f64 / elapsed.as_secs_f64();
    Ok(Rates { accept: rate(accepted), end_to_end: rate(arrived) })
}

/// A sink that ends by itself once it has got all messages.
async fn start_sink(messages: usize, address: SocketAddr) -> Result<Child> {
    let mut child = Command::new("/usr/sbin/smtp-sink")
        // It insists on a user to become when root starts it.
        .args(["-u", "nobody", "-M", &messages.to_string(), &address.to_string(), "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("starting smtp-sink (package postfix)")?;
    wait::until_true("smtp-sink to listen", Duration::from_secs(10), async || {
        matches!(child.try_wait(), Ok(Some(_))) || TcpStream::connect(address).await.is_ok()
    })
    .await?;
    ensure!(child.try_wait()?.is_none(), "smtp-sink ended at once");
    Ok(child)
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

/// The world with the hosted domain routed to the sink.
async fn world(sink: SocketAddr) -> Result<World> {
    let world = World::new().await?;
    world.host(
        "recipients: {mode: List, addresses: [alice]}",
        &format!("{{smtp: {{address: \"{sink}\"}}}}"),
    )?;
    Ok(world)
}

async fn embedded(plan: &Plan) -> Result<Rates> {
    let sink = net::free_address()?;
    let world = world(sink).await?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    plan.measure("packetboat all", settings.mx, sink).await
}

async fn redis(plan: &Plan) -> Result<Rates> {
    let sink = net::free_address()?;
    let world = world(sink).await?;
    let redis = RedisServer::start().await?;
    let row = Row::start(&world, &redis, "a", &|_| {}).await?;
    plan.measure("packetboat over Redis", row.edge.0.mx, sink).await
}
