//! `make chaos`: breaks things under load, and balances what was answered `250` with what arrived.
//!
//! Each fault meets two edges, two verifiers and two delivery services over one Redis while a client sends a
//! thousand messages and insists on each. The client's log of its `250`s and the mailbox are the books.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use packetboat_tests::cluster::Cluster;
use packetboat_tests::load::{Load, Running, wait_for_balance};
use packetboat_tests::world::{HOSTED, PLAIN, World, at};
use testkit::ledger::Ledger;
use testkit::process::{Packetboat, Settings};
use tokio::time::sleep;

const MESSAGES: usize = 1000;
/// The fault comes when so many messages are accepted.
const BEGIN: usize = 200;
/// How long a fault lasts that does not end by itself.
const LASTS: Duration = Duration::from_secs(5);
/// Everything has arrived within this: leases have to end first.
const SETTLED: Duration = Duration::from_secs(180);

/// What is broken.
#[derive(Clone, Copy)]
enum Fault {
    KillEdge,
    KillVerifier,
    KillDelivery,
    KillRedis,
    KillAnything,
    FreezeVerifier,
    FreezeDelivery,
    FreezeRedis,
    RedisFull,
}

const FAULTS: [(&str, Fault); 9] = [
    ("kill9-edge", Fault::KillEdge),
    ("kill9-verifier", Fault::KillVerifier),
    ("kill9-delivery", Fault::KillDelivery),
    ("kill9-redis", Fault::KillRedis),
    ("kill9-anything-12-times", Fault::KillAnything),
    ("freeze-verifier", Fault::FreezeVerifier),
    ("freeze-delivery", Fault::FreezeDelivery),
    ("freeze-redis", Fault::FreezeRedis),
    ("redis-out-of-memory", Fault::RedisFull),
];

#[tokio::main]
async fn main() -> ExitCode {
    let only = std::env::var("FAULT").ok().filter(|text| !text.is_empty());
    let mut failed = 0;
    for (name, fault) in FAULTS {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        match run(name, fault).await {
            Ok(line) => println!("{line}"),
            Err(error) => {
                failed += 1;
                println!("chaos: {name} level=redis FAILED {error:#}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(name: &str, fault: Fault) -> Result<String> {
    let world = World::new().await?;
    let mut cluster = Cluster::start(&world, |_| {}).await?;
    let targets = [cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx];
    let ledger = Arc::new(Ledger::new());
    let mut load = Load::of_500(&targets, &at("dave", PLAIN), &at("alice", HOSTED));
    load.messages = MESSAGES;
    let load = load.start(&ledger);
    load.wait_until_accepted(BEGIN).await?;
    let stall = load.longest_stall(MESSAGES);
    inflict(&world, &mut cluster, fault, &load).await.context("inflicting the fault")?;
    load.finish().await?;
    let stall = stall.await?.as_secs_f64();
    let alice = world.mailbox("alice");
    let balance = wait_for_balance(&ledger, &alice, &world.mailbox("dave"), SETTLED).await?;
    Ok(format!(
        "chaos: {name} level=redis accepted={} lost={} duplicated={} stall={stall:.1}s",
        balance.accepted,
        balance.missing.len(),
        balance.duplicates
    ))
}

async fn inflict(world: &World, cluster: &mut Cluster, fault: Fault, load: &Running) -> Result<()> {
    let [row, _] = &mut cluster.rows;
    match fault {
        Fault::KillEdge => row.edge.1.kill9().await,
        Fault::KillVerifier => row.verifier.1.kill9().await,
        Fault::KillDelivery => row.delivery.1.kill9().await,
        Fault::KillRedis => {
            cluster.redis.kill9().await?;
            cluster.redis.restart().await
        }
        Fault::KillAnything => {
            for round in 0..12 {
                let row = &mut cluster.rows[round % 2];
                match round % 4 {
                    0 => reborn(world, &mut row.edge).await?,
                    1 => reborn(world, &mut row.verifier).await?,
                    2 => reborn(world, &mut row.delivery).await?,
                    _ => {
                        cluster.redis.kill9().await?;
                        cluster.redis.restart().await?;
                    }
                }
                // The next comes in the middle of the load, as long as there is one.
                let next = (load.accepted() + 60).min(MESSAGES);
                load.wait_until_accepted(next).await?;
            }
            Ok(())
        }
        Fault::FreezeVerifier => frozen(&row.verifier.1).await,
        Fault::FreezeDelivery => frozen(&row.delivery.1).await,
        Fault::FreezeRedis => {
            let redis = cluster.redis.child().context("Redis runs")?;
            redis.freeze()?;
            sleep(LASTS).await;
            redis.thaw()
        }
        Fault::RedisFull => {
            cluster.redis.set("maxmemory", "1").await?;
            sleep(LASTS).await;
            cluster.redis.set("maxmemory", "0").await
        }
    }
}

/// Kills a process and starts it again.
async fn reborn(world: &World, process: &mut (Settings, Packetboat)) -> Result<()> {
    process.1.kill9().await?;
    process.1 = world.site.start(&process.0).await?;
    Ok(())
}

async fn frozen(process: &Packetboat) -> Result<()> {
    process.child().freeze()?;
    sleep(LASTS).await;
    process.child().thaw()
}
