//! Faults under load, each with the books balanced by the client's log of its `250`s and the log of the place
//! where mail arrives.

pub mod disk;
pub mod failover;
pub mod network;
pub mod peers;
pub mod processes;
pub mod upgrade;
pub mod vanish;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::ledger::{Balance, Ledger};
use testkit::process::Settings;
use testkit::redis::RedisServer;

use crate::cluster::Cluster;
use crate::load::{Load, Running, wait_for_balance};
use crate::world::{HOSTED, PLAIN, World, at};

/// Messages sent under a fault.
pub const MESSAGES: usize = 1000;
/// The fault comes when so many messages are accepted.
pub const BEGIN: usize = 200;
/// How long a fault lasts that does not end by itself.
pub const LASTS: Duration = Duration::from_secs(5);
/// No client waits for longer than this.
pub const NO_HANG: Duration = Duration::from_secs(60);
/// Everything has arrived within this: leases have to end first.
pub const SETTLED: Duration = Duration::from_secs(180);

/// What became of the messages.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Answered `250`.
    pub accepted: usize,
    /// Of those, neither arrived nor bounced.
    pub lost: usize,
    /// Copies beyond the first.
    pub duplicated: usize,
    /// The longest time in which no message was accepted.
    pub stall: Duration,
    /// Attempts at delivery that the services counted, since each began; 0 where one is down.
    pub attempts: usize,
    /// What else is to be told.
    pub note: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, lost, duplicated, stall, note, .. } = self;
        let stall = stall.as_secs_f64();
        write!(f, "accepted={accepted} lost={lost} duplicated={duplicated} stall={stall:.1}s")?;
        if note.is_empty() { Ok(()) } else { write!(f, " ({note})") }
    }
}

impl From<(Balance, Duration)> for Outcome {
    fn from((balance, stall): (Balance, Duration)) -> Self {
        Self {
            accepted: balance.accepted,
            lost: balance.missing.len(),
            duplicated: balance.duplicates,
            stall,
            attempts: 0,
            note: String::new(),
        }
    }
}

/// Two of each service over one Redis.
pub async fn on_redis(
    inflict: impl AsyncFnOnce(&World, &mut Cluster, &Running) -> Result<()>,
) -> Result<Outcome> {
    under_load(RedisServer::start().await?, |_| {}, inflict).await
}

/// The same over a server of its own, with settings adjusted for each service.
pub async fn under_load(
    redis: RedisServer,
    adjust: impl Fn(&mut Settings),
    inflict: impl AsyncFnOnce(&World, &mut Cluster, &Running) -> Result<()>,
) -> Result<Outcome> {
    let world = World::new().await?;
    let mut cluster = Cluster::over(&world, redis, adjust).await?;
    let targets = [cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx];
    let ledger = Arc::new(Ledger::new());
    let load = load_on(&targets).start(&ledger);
    load.wait_until_accepted(BEGIN).await?;
    let stall = load.longest_stall(MESSAGES);
    inflict(&world, &mut cluster, &load).await.context("inflicting the fault")?;
    let answers = load.finish().await?;
    let stall = stall.await?;
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), SETTLED).await?;
    // Clients are never left to hang, and never told more than "later".
    ensure!(answers.slowest < NO_HANG, "an answer took {:?}", answers.slowest);
    let later = |code: &&String| ["421", "451", "452"].contains(&&code[..3]);
    let others: Vec<&String> = answers.deferred.keys().filter(|code| !later(code)).collect();
    ensure!(others.is_empty(), "answered besides 421, 451 and 452: {others:?}");
    // Those that are down at the end tell nothing.
    let attempts = cluster.sum_of("packetboat_delivery_attempts_total").await.unwrap_or_default() as usize;
    Ok(Outcome { note: answers.to_string(), attempts, ..(balance, stall).into() })
}

/// [`MESSAGES`] to Alice.
pub fn load_on(targets: &[std::net::SocketAddr]) -> Load {
    Load { messages: MESSAGES, ..Load::of_500(targets, &at("dave", PLAIN), &at("alice", HOSTED)) }
}
