//! Disks that fail, fill up, lose their cache or a piece of a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::ledger::Ledger;
use testkit::redis::RedisServer;
use testkit::volatile_disk::VolatileDisk;
use testkit::wait;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{BEGIN, LASTS, MESSAGES, Outcome, SETTLED, load_on, on_redis, under_load};
use crate::load::wait_for_balance;
use crate::world::World;

/// A server that fails ends by itself within this.
const ENDS: Duration = Duration::from_secs(30);

/// Runs a program to its end.
async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let ended = Command::new(program).args(arguments).kill_on_drop(true).output();
    let output = timeout(ENDS, ended).await.with_context(|| format!("{program} hangs"))??;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {told}{failed}");
    Ok(told)
}

/// From one moment on each fdatasync of Redis fails (EIO). It ends; the disk is changed; it starts again.
pub async fn redis_fsync_fails() -> Result<Outcome> {
    on_redis(async |_, cluster, load| {
        let pid = cluster.redis.child().context("Redis runs")?.pid().to_string();
        let inject = "inject=fsync,fdatasync:error=EIO";
        let mut strace = Command::new("strace");
        strace.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            inject,
            "-p",
            &pid,
        ]);
        let mut strace = strace.kill_on_drop(true).spawn().context("starting strace")?;
        // Redis refuses to go on without its log, and strace ends with it.
        timeout(ENDS, strace.wait()).await.context("Redis goes on, whose disk fails")??;
        let redis = cluster.redis.child().context("Redis ran")?;
        redis.wait_for_log("persist AOF", ENDS).await?;
        // Answers that Redis gave before are on their way to clients for a moment.
        sleep(Duration::from_millis(500)).await;
        let before = load.accepted();
        sleep(LASTS).await;
        let since = load.accepted() - before;
        ensure!(since == 0, "{since} messages were answered 250 by a queue whose disk fails");
        cluster.redis.kill9().await?;
        cluster.redis.restart().await
    })
    .await
}

/// A file system in memory, of so many mebibytes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    async fn mount(mebibytes: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-small-").tempdir()?;
        let (size, path) = (format!("size={mebibytes}m"), folder.path().display().to_string());
        run("mount", &["-t", "tmpfs", "-o", &size, "packetboat-chaos", &path]).await?;
        Ok(Self(folder))
    }

    /// Takes all the room there is.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.path().join("ballast");
        let mut file = std::fs::File::create(&path)?;
        for length in [65536, 512, 1] {
            // An error is what is waited for: the disk is full; it has at most as many pieces as octets.
            while file.write_all(&vec![0; length]).is_ok() {}
        }
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server on it may be ending still.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// The disk of Redis is full; it ends. Room is made; it starts again.
pub async fn redis_disk_full() -> Result<Outcome> {
    let disk = SmallDisk::mount(64).await?;
    let folder = tempfile::Builder::new().prefix("redis-").tempdir_in(disk.0.path())?;
    let redis = RedisServer::start_in(folder, ["redis-server"], &[]).await?;
    under_load(
        redis,
        |_| {},
        async |_, cluster, _| {
            let ballast = disk.fill()?;
            cluster.redis.wait_for_end(ENDS).await.context("Redis goes on, whose disk is full")?;
            sleep(LASTS).await;
            std::fs::remove_file(ballast)?;
            cluster.redis.restart().await
        },
    )
    .await
}

/// Redis may use no more memory, for a while.
pub async fn redis_out_of_memory() -> Result<Outcome> {
    on_redis(async |_, cluster, _| {
        cluster.redis.set("maxmemory", "1").await?;
        sleep(LASTS).await;
        cluster.redis.set("maxmemory", "0").await
    })
    .await
}

/// The power of the machine with Redis goes: what its disk was not told to sync is gone.
pub async fn redis_power_loss() -> Result<Outcome> {
    let disk = VolatileDisk::mount()?;
    let folder = tempfile::Builder::new().prefix("redis-").tempdir_in(disk.path())?;
    let redis = RedisServer::start_in(folder, ["redis-server"], &[]).await?;
    under_load(
        redis,
        |_| {},
        async |_, cluster, load| {
            for cut in 1..=4 {
                cluster.redis.kill9().await?;
                disk.cut_power();
                cluster.redis.restart().await?;
                load.wait_until_accepted((BEGIN + cut * 100).min(MESSAGES)).await?;
            }
            Ok(())
        },
    )
    .await
}

/// The same without `appendfsync always`, and a queue that was told to put up with it: what that setting costs.
pub async fn redis_power_loss_everysec() -> Result<Outcome> {
    let disk = VolatileDisk::mount()?;
    let folder = tempfile::Builder::new().prefix("redis-").tempdir_in(disk.path())?;
    let redis = RedisServer::start_in(folder, ["redis-server"], &["--appendfsync", "everysec"]).await?;
    let lax = ("PACKETBOAT_QUEUE__REDIS__REQUIRE_DURABLE".to_owned(), "false".to_owned());
    let world = World::new().await?;
    let adjust = |settings: &mut testkit::process::Settings| {
        if settings.role == testkit::process::Role::Delivery {
            settings.environment.push(lax.clone());
            // Nothing is delivered before the cut: what waits is what can be lost.
            settings.outbound_port = 1;
        }
    };
    let mut cluster = crate::cluster::Cluster::over(&world, redis, adjust).await?;
    world.host("recipients: {mode: AcceptAll}", "{smtp: {address: \"127.0.0.1:1\"}}")?;
    let ledger = Arc::new(Ledger::new());
    let targets = [cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx];
    let mut load = load_on(&targets);
    load.messages = BEGIN;
    let load = load.start(&ledger);
    load.finish().await?;
    cluster.redis.kill9().await?;
    disk.cut_power();
    cluster.redis.restart().await?;
    world.host("recipients: {mode: AcceptAll}", "{maildir: {path: mail}}")?;
    let settled = Duration::from_secs(30);
    let arrived = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), settled).await;
    let balance = arrived.or_else(|_| anyhow::Ok(ledger.balance()))?;
    Ok((balance, Duration::ZERO).into())
}

/// For the embedded queue: one process with everything; the power goes four times.
pub async fn embedded_power_loss() -> Result<Outcome> {
    let disk = VolatileDisk::mount()?;
    embedded(disk.path().join("data").display().to_string(), |_| disk.cut_power()).await
}

/// kill -9 four times for one process with everything.
pub async fn embedded_kill9() -> Result<Outcome> {
    embedded("data-all".to_owned(), |_| 0).await
}

/// For the embedded queue: its disk is full. Nothing is answered `250` until there is room and the process was
/// restarted.
pub async fn embedded_disk_full() -> Result<Outcome> {
    let (world, disk) = (World::new().await?, SmallDisk::mount(256).await?);
    let data = disk.0.path().join("data").display().to_string();
    let (settings, mut process) = world.start_all(|settings| settings.data_dir = data).await?;
    let ledger = Arc::new(Ledger::new());
    let load = load_on(&[settings.mx]).start(&ledger);
    load.wait_until_accepted(BEGIN).await?;
    let stall = load.longest_stall(MESSAGES);
    let ballast = disk.fill()?;
    let unready = async || process.get("/readyz").await.is_ok_and(|(status, _)| status != 200);
    wait::until_true("the process to be unready", ENDS, unready).await?;
    let before = load.accepted();
    sleep(LASTS).await;
    let since = load.accepted() - before;
    ensure!(since == 0, "{since} messages were answered 250 by a queue whose disk is full");
    std::fs::remove_file(ballast)?;
    process.kill9().await?;
    let process = world.site.start(&settings).await?;
    let answers = load.finish().await?;
    let stall = stall.await?;
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), SETTLED).await?;
    ensure!(process.metric("mail_unaccounted_messages").await? == 0.0, "the account does not balance");
    Ok(Outcome { note: answers.to_string(), ..(balance, stall).into() })
}

async fn embedded(data_dir: String, mut cut: impl FnMut(usize) -> u64) -> Result<Outcome> {
    let world = World::new().await?;
    let (settings, mut process) = world.start_all(|settings| settings.data_dir = data_dir).await?;
    let ledger = Arc::new(Ledger::new());
    let load = load_on(&[settings.mx]).start(&ledger);
    load.wait_until_accepted(BEGIN).await?;
    let stall = load.longest_stall(MESSAGES);
    let mut forgotten = 0;
    for round in 1..=4 {
        process.kill9().await?;
        forgotten = cut(round);
        process = world.site.start(&settings).await?;
        load.wait_until_accepted((BEGIN + round * 150).min(MESSAGES)).await?;
    }
    load.finish().await?;
    let stall = stall.await?;
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), SETTLED).await?;
    let note = if forgotten > 0 { format!("{forgotten} octets forgotten") } else { String::new() };
    Ok(Outcome { note, ..(balance, stall).into() })
}

/// The log that Redis appends to.
fn log_of(folder: &Path) -> Result<PathBuf> {
    let mut logs: Vec<PathBuf> = std::fs::read_dir(folder.join("appendonlydir"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .collect();
    logs.sort();
    logs.pop().context("Redis has no log")
}

/// A piece is missing at the end of Redis's log, though it was synced. With `aof-load-truncated no` Redis
/// refuses to start, and says so; a person has its log repaired, and the spool gives back what was in the piece.
pub async fn log_truncated() -> Result<Outcome> {
    let redis = RedisServer::start_as(["redis-server"], &["--aof-load-truncated", "no"]).await?;
    let spool = tempfile::Builder::new().prefix("packetboat-spool-").tempdir()?;
    let url = format!("file://{}", spool.path().display());
    let adjust = |settings: &mut testkit::process::Settings| settings.spool = Some(url.clone());
    under_load(redis, adjust, async |world, cluster, _| {
        cluster.redis.kill9().await?;
        let path = log_of(cluster.redis.folder())?;
        let file = std::fs::File::options().write(true).open(&path)?;
        let length = file.metadata()?.len();
        file.set_len(length.saturating_sub(40_007))?;
        file.sync_all()?;
        let refused = cluster.redis.restart().await.err().context("a gap was taken in silence")?;
        ensure!(format!("{refused:?}").contains("Unexpected end of file"), "{refused:?}");
        let manifest = path.to_string_lossy();
        let repair = format!("yes | redis-check-aof --fix '{manifest}'");
        run("sh", &["-c", &repair]).await?;
        cluster.redis.restart().await?;
        rebuild(world, cluster).await
    })
    .await
}

/// Redis is lost with its disk, and made again from the spool.
pub async fn redis_lost() -> Result<Outcome> {
    let spool = tempfile::Builder::new().prefix("packetboat-spool-").tempdir()?;
    let url = format!("file://{}", spool.path().display());
    let adjust = |settings: &mut testkit::process::Settings| settings.spool = Some(url.clone());
    under_load(RedisServer::start().await?, adjust, async |world, cluster, _| {
        cluster.redis.kill9().await?;
        cluster.redis.lose_data()?;
        cluster.redis.restart().await?;
        rebuild(world, cluster).await
    })
    .await
}

pub(super) async fn rebuild(world: &World, cluster: &crate::cluster::Cluster) -> Result<()> {
    let settings = &cluster.rows[0].delivery.0;
    wait::until("the queue to be rebuilt", ENDS, async || {
        let rebuilt = world.site.run(settings, &["queue", "rebuild", "--merge"]).await.ok()?;
        rebuilt.status.success().then_some(())
    })
    .await
}
