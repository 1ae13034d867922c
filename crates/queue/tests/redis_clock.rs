//! A server whose clock is set: waiting mail comes at its time, leases end, tokens come, and nothing expires early.

mod common;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use queue::redis::{Config, RedisQueue};
use queue::{Allowance, Closing, LeaseRequest, Leased, Next, NextHop, Policy, Queue, Settlement};
use testkit::redis::RedisServer;
use testkit::wait;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const LONG: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(15);
/// How far the clock is set, either way.
const HOURS: u64 = 10;

struct World {
    /// What the server's clock is read from.
    clock: PathBuf,
    queue: RedisQueue,
    _server: RedisServer,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Result<Self> {
        ensure!(Path::new(FAKETIME).exists(), "{FAKETIME} is not there (package faketime)");
        let folder = tempfile::tempdir()?;
        let clock = folder.path().join("clock");
        std::fs::write(&clock, "+0")?;
        let mut program: Vec<OsString> = vec!["env".into()];
        for (name, value) in [
            ("LD_PRELOAD", FAKETIME),
            ("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ] {
            program.push(format!("{name}={value}").into());
        }
        // Debian's Redis does not start with an allocator of its own under such a clock; Valkey does.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/valkey-server");
        let found = tokio::process::Command::new(script).output().await?;
        ensure!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        program.push(String::from_utf8(found.stdout)?.trim().into());
        let server = RedisServer::start_as(program, &[]).await?;
        let config = Config { url: Some(server.url()), shards: 2, ..Config::default() };
        let queue = RedisQueue::connect(&config).await?;
        Ok(Self { clock, queue, _server: server, _folder: folder })
    }

    fn set(&self, hours: &str) -> Result<()> {
        Ok(std::fs::write(&self.clock, hours)?)
    }

    async fn lease(&self, duration: Duration) -> Result<Vec<Leased>> {
        let request = LeaseRequest {
            worker: "test".to_owned(),
            max: 1,
            duration,
            except: Vec::new(),
            except_pools: Vec::new(),
        };
        Ok(self.queue.lease(request).await?)
    }

    /// Leases one entry as soon as there is one.
    async fn lease_one(&self, what: &str) -> Result<Leased> {
        wait::until(what, PATIENCE, async || self.lease(LONG).await.ok()?.pop()).await
    }

    async fn retry(&self, leased: &Leased, after: Duration) -> Result<()> {
        let next = Next::Retry { after, error: "busy".to_owned() };
        let recipients = leased.entry.recipients.clone();
        Ok(self.queue.settle(Settlement { lease: leased.lease, recipients, next, bounce: None }).await?)
    }

    /// Accepts a message, and leaves it to be tried again after `wait`.
    async fn deferred(&self, wait: Duration) -> Result<()> {
        self.queue.accept(common::message("mx:a"), None).await?;
        self.retry(&self.lease_one("a message").await?, wait).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_holds_nothing_up() -> Result<()> {
    let world = World::new().await?;
    world.deferred(Duration::from_secs(3)).await?;
    let slow = Allowance { weight: 1, per_minute: Some(120) };
    let policy = Policy { next_hops: [(NextHop("mx:b".to_owned()), slow)].into(), ..Policy::default() };
    world.queue.set_policy(&policy).await?;
    world.set(&format!("-{HOURS}h"))?;
    let waited = world.lease_one("what waits to come at its time").await?;
    world.retry(&waited, LONG).await?;

    // A lease given under the new clock ends at its time, too, when that is set back again.
    world.queue.accept(common::message("mx:a"), None).await?;
    let short =
        wait::until("a lease", PATIENCE, async || world.lease(Duration::from_secs(2)).await.ok()?.pop());
    let short = short.await?;
    world.set(&format!("-{}h", 2 * HOURS))?;
    let again = world.lease_one("the lease to end").await?;
    ensure!(again.entry.id == short.entry.id && again.lease.epoch == short.lease.epoch + 1);
    let recipients = again.entry.recipients.clone();
    let next = Next::Done(Closing::Delivered);
    world.queue.settle(Settlement { lease: again.lease, recipients, next, bounce: None }).await?;

    // Tokens come as they would.
    for _ in 0..16 {
        world.queue.accept(common::message("mx:b"), None).await?;
    }
    let mut left = 16;
    while left > 0 {
        if left == 8 {
            world.set(&format!("-{}h", 3 * HOURS))?;
        }
        world.lease_one("a token").await?;
        left -= 1;
    }
    ensure!(world.queue.ledger().await?.unaccounted() == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_leaps_ahead_expires_nothing() -> Result<()> {
    let world = World::new().await?;
    world.deferred(Duration::from_secs(1800)).await?;
    world.queue.accept(common::message("mx:a"), None).await?;
    let leased = world.lease_one("a message").await?;
    world.set(&format!("+{HOURS}h"))?;
    ensure!(world.lease(LONG).await?.is_empty(), "what waits for half an hour came at once");
    world.queue.renew(&leased.lease, LONG).await.context("the lease has ended")?;
    // The hour that it may wait at most has passed, by the server's clock.
    world.retry(&leased, Duration::from_secs(1)).await?;
    let again = world.lease_one("it to be tried again").await?;
    let left = again.entry.expires.since(again.now);
    ensure!(left > Duration::from_secs(3400), "of an hour {left:?} are left");
    ensure!(again.message.accepted_at < again.now, "it is told when it was accepted");
    // Once the clock is right again, the queue's is as good as right.
    world.set("+0")?;
    world.retry(&again, Duration::from_secs(1)).await?;
    let last = world.lease_one("it to be tried again").await?;
    let left = last.entry.expires.since(last.now);
    ensure!(left > Duration::from_secs(3400) && left <= Duration::from_secs(3600), "{left:?} are left");
    Ok(())
}
