//! A load for benchmarks: `smtp-source` of Postfix sends, `smtp-sink` takes, a mail system stands between them.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::process::Settings;
use testkit::wait;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::world::{FRIEND, HOSTED, World, at};

/// Octets of a message.
pub const SIZE: usize = 4096;
/// Parallel sessions of `smtp-source`.
pub const SESSIONS: usize = 20;
/// Messages before the first measured round, so that processes and caches are warm.
pub const WARM_UP: usize = 300;
/// How long one round may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A number from the environment.
pub fn number(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().with_context(|| format!("{name}={text} is not a number"))
        }
        _ => Ok(default),
    }
}

/// Messages a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Until `smtp-source` is done.
    pub accept: f64,
    /// Until `smtp-sink` has every message.
    pub end_to_end: f64,
}

/// One load: starts the sink, sends, and takes the time of both ends.
pub async fn round(messages: usize, server: SocketAddr, sink: SocketAddr) -> Result<Rates> {
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

/// What both ends of a benchmark need: a connection that was made while a sink ended is answered by nobody, and is
/// to cost a moment and not the minutes that RFC 5321 §4.5.3.2 grants a server.
pub fn with_short_greeting(settings: &mut Settings) {
    settings.outbound_more.push_str(", timeouts: {greeting: 1s}");
}

/// The world with the hosted domain routed to the sink.
pub async fn world(sink: SocketAddr) -> Result<World> {
    let world = World::new().await?;
    world.host(
        "recipients: {mode: List, addresses: [alice]}",
        &format!("{{smtp: {{address: \"{sink}\"}}}}"),
    )?;
    Ok(world)
}
