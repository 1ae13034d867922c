//! `make chaos`: faults under load, one line each, `FAULT=NAME` for one of them.
//!
//! What the lines mean, and what 250 promises at each level, is in `docs/durability.md`.

use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use packetboat_tests::chaos::processes::Service::{Delivery, Edge, Verifier};
use packetboat_tests::chaos::{Outcome, disk, failover, network, peers, processes, upgrade, vanish};
use tokio::process::Command;
use tokio::time::timeout;

/// A fault takes no longer than this.
const LIMIT: Duration = Duration::from_secs(600);

type Run = Pin<Box<dyn Future<Output = Result<Outcome>>>>;

/// Its name, the level of durability, whether nothing may be lost there, and how it is inflicted.
struct Fault(&'static str, &'static str, bool, fn() -> Run);

macro_rules! fault {
    ($name:literal, $level:literal, $call:expr) => {
        Fault($name, $level, true, || Box::pin($call))
    };
    ($name:literal, $level:literal, may lose, $call:expr) => {
        Fault($name, $level, false, || Box::pin($call))
    };
}

const FAULTS: &[Fault] = &[
    fault!("kill9-edge", "redis", processes::kill9(Edge)),
    fault!("kill9-verifier", "redis", processes::kill9(Verifier)),
    fault!("kill9-delivery", "redis", processes::kill9(Delivery)),
    fault!("kill9-redis", "redis", processes::kill9_redis()),
    fault!("kill9-anything-50-times", "redis", processes::kill9_anything(50)),
    fault!("freeze-verifier", "redis", processes::freeze(Verifier)),
    fault!("freeze-all-verifiers", "redis", processes::freeze_verifiers()),
    fault!("freeze-delivery", "redis", processes::freeze(Delivery)),
    fault!("freeze-redis", "redis", processes::freeze_redis()),
    fault!("redis-fsync-fails", "redis", disk::redis_fsync_fails()),
    fault!("redis-power-loss", "redis", disk::redis_power_loss()),
    fault!("redis-power-loss", "redis-everysec", may lose, disk::redis_power_loss_everysec()),
    fault!("redis-disk-full", "redis", disk::redis_disk_full()),
    fault!("redis-out-of-memory", "redis", disk::redis_out_of_memory()),
    fault!("redis-log-truncated", "redis+spool", disk::log_truncated()),
    fault!("redis-lost", "redis+spool", disk::redis_lost()),
    fault!("redis-entries-vanish", "redis+spool", vanish::entries_vanish()),
    fault!("failover-sentinel", "redis", may lose, failover::sentinel(0)),
    fault!("failover-sentinel", "redis+replicas:1", failover::sentinel(1)),
    fault!("failover-cluster", "redis", may lose, failover::cluster(0)),
    fault!("failover-cluster", "redis+replicas:1", failover::cluster(1)),
    fault!("upgrade-and-rollback", "redis", upgrade::up_and_back(true)),
    fault!("upgrade-and-rollback", "embedded", upgrade::up_and_back(false)),
    fault!("kill9-4-times", "embedded", disk::embedded_kill9()),
    fault!("power-loss-4-times", "embedded", disk::embedded_power_loss()),
    fault!("disk-full", "embedded", disk::embedded_disk_full()),
    fault!("redis-slow-then-black-hole", "redis", network::redis_slow_then_black_hole()),
    fault!("name-servers-fail", "redis", network::name_servers_fail()),
    fault!("name-servers-answer-wrongly", "redis", network::name_servers_answer_wrongly()),
    fault!("one-packet-in-three-lost", "redis", network::packets_lost()),
    fault!("clocks-of-services-jump", "redis", network::clocks_of_services_jump()),
    fault!("clock-of-redis-jumps", "redis", network::clock_of_redis_jumps()),
    fault!("peer-breaks-off-after-the-dot", "redis", peers::peer_breaks_off_after_the_dot()),
    fault!("worker-dies-before-it-can-tell", "redis", peers::worker_dies_before_it_can_tell()),
    fault!("peer-slower-than-a-lease", "redis", peers::peer_slower_than_a_lease()),
    fault!("poison", "redis", peers::poison()),
    fault!("one-peer-crawls", "redis", peers::one_peer_crawls()),
    fault!("bounce-to-nowhere", "redis", peers::bounce_to_nowhere()),
];

/// The fault for which this program runs itself again, in a network of its own.
const OWN_NETWORK: &str = "one-packet-in-three-lost";
const INSIDE: &str = "CHAOS_INSIDE";

#[tokio::main]
async fn main() -> ExitCode {
    let only = std::env::var("FAULT").ok().filter(|text| !text.is_empty());
    let inside = std::env::var_os(INSIDE).is_some();
    let mut failed = 0;
    for Fault(name, level, keeps, run) in FAULTS {
        if only.as_deref().is_some_and(|only| only != *name) {
            continue;
        }
        if *name == OWN_NETWORK && !inside {
            failed += usize::from(!in_own_network().await);
            continue;
        }
        match timeout(LIMIT, run()).await {
            Ok(Ok(outcome)) => {
                println!("chaos: {name} level={level} {outcome}");
                failed += usize::from(*keeps && outcome.lost > 0);
            }
            Ok(Err(error)) => {
                failed += 1;
                println!("chaos: {name} level={level} FAILED {error:#}");
            }
            Err(_) => {
                failed += 1;
                println!("chaos: {name} level={level} FAILED not over within {LIMIT:?}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is dropped there is dropped for nobody else.
async fn in_own_network() -> bool {
    let Ok(program) = std::env::current_exe() else { return false };
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\""]).arg(program);
    command.env("FAULT", OWN_NETWORK).env(INSIDE, "1").kill_on_drop(true);
    matches!(timeout(LIMIT, command.status()).await, Ok(Ok(status)) if status.success())
}
