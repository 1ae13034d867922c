//! The two backends as they run: with a clock, a process and a disk that can be taken away.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use queue::embedded::EmbeddedQueue;
use queue::redis::{Config, RedisQueue};
use queue::{Queue, Timestamp};
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use testkit::redis::RedisServer;
use testkit::wait;

const PATIENCE: Duration = Duration::from_secs(20);
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// A queue, and what it stands on.
#[async_trait(?Send)]
pub(crate) trait World {
    /// The queue.
    fn queue(&self) -> &dyn Queue;
    /// Leases and staged parts outlive the process of the queue.
    fn keeps_leases(&self) -> bool;
    /// By how much the store's time is set back at most when its clock is. Milliseconds; none where it follows the clock
    /// as it stands.
    fn set_back_by(&self) -> Option<u64>;

    /// Sets the store's clock: milliseconds since 1970.
    async fn set_clock(&mut self, now: u64) -> Result<()>;
    /// Ends the process with the queue, and begins another.
    async fn restart(&mut self) -> Result<()>;
    /// What is on the disk now is there for good.
    fn mark(&mut self) -> Result<()>;
    /// The power goes and comes back; this part of what was written since the mark is on the disk.
    async fn cut_power(&mut self, part: f64) -> Result<()>;
    /// What an empty queue leaves in the store, and should not.
    async fn leftovers(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// A folder in memory, where the system has one: a sync costs nothing there, and the runs are many.
fn folder() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    Ok(tempfile::Builder::new().prefix("packetboat-sim-").tempdir_in(root)?)
}

/// The length that a file has after a cut that leaves this part of what came since `from`.
fn cut(from: u64, to: u64, part: f64) -> u64 {
    from + ((to.saturating_sub(from)) as f64 * part) as u64
}

/// The embedded queue.
pub(crate) struct Embedded {
    folder: TempDir,
    clock: Arc<AtomicU64>,
    queue: Option<EmbeddedQueue>,
    marked: u64,
}

impl Embedded {
    /// An empty one.
    pub(crate) async fn new(now: u64) -> Result<Self> {
        let (folder, clock) = (folder()?, Arc::new(AtomicU64::new(now)));
        let mut world = Self { folder, clock, queue: None, marked: 0 };
        world.open().await?;
        Ok(world)
    }

    async fn open(&mut self) -> Result<()> {
        let clock = Arc::clone(&self.clock);
        let clock: queue::embedded::Clock = Arc::new(move || Timestamp(clock.load(Ordering::Relaxed)));
        let mut last = None;
        // What the queue before had open is let go a moment after it is dropped.
        for _ in 0..20_000 {
            match EmbeddedQueue::open_by(self.folder.path(), Arc::clone(&clock)) {
                Ok(queue) => {
                    self.queue = Some(queue);
                    return Ok(());
                }
                Err(error) if format!("{error}").contains("another process") => last = Some(error),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Err(last.context("no tries")?.into())
    }

    /// The journal: changes are added to it, and the room behind them is zeros.
    fn journal(&self) -> Result<PathBuf> {
        let files = std::fs::read_dir(self.folder.path())?.filter_map(|file| Some(file.ok()?.path()));
        files
            .filter(|path| path.extension().is_some_and(|kind| kind == "jnl"))
            .max()
            .context("there is no journal")
    }

    /// Where the journal ends, looking from where it ended before.
    fn end(&self) -> Result<u64> {
        let (file, mut end) = (File::open(self.journal()?)?, self.marked);
        let mut buffer = [0; 64 * 1024];
        let mut at = end;
        loop {
            let length = file.read_at(&mut buffer, at)?;
            match buffer[..length].iter().rposition(|octet| *octet != 0) {
                Some(last) => end = at + last as u64 + 1,
                None => return Ok(end),
            }
            at += length as u64;
        }
    }
}

#[async_trait(?Send)]
impl World for Embedded {
    fn queue(&self) -> &dyn Queue {
        #[allow(clippy::expect_used)]
        self.queue.as_ref().expect("it is open")
    }

    fn keeps_leases(&self) -> bool {
        false
    }

    /// The clock that is set here is the one that nobody can set: what it makes of the machine's is tested beside it.
    fn set_back_by(&self) -> Option<u64> {
        None
    }

    async fn set_clock(&mut self, now: u64) -> Result<()> {
        self.clock.store(now, Ordering::Relaxed);
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        self.queue = None;
        self.open().await
    }

    fn mark(&mut self) -> Result<()> {
        self.marked = self.end()?;
        Ok(())
    }

    /// The disk is copied as it is, but for the end of the journal; what ran on it is left to itself.
    async fn cut_power(&mut self, part: f64) -> Result<()> {
        let (journal, end) = (self.journal()?, self.end()?);
        let after = folder()?;
        let kept = cut(self.marked, end, part);
        copy(self.folder.path(), after.path(), &journal, kept)?;
        self.queue = None;
        self.folder = after;
        self.open().await
    }
}

/// Copies a folder, and of one file its first octets alone.
fn copy(from: &Path, to: &Path, short: &Path, length: u64) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let source = entry?.path();
        let target = to.join(source.file_name().context("a file has a name")?);
        if source.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&source, &target, short, length)?;
        } else if source == short {
            let mut octets = vec![0; usize::try_from(length)?];
            File::open(&source)?.read_exact_at(&mut octets, 0)?;
            std::fs::write(target, octets)?;
        } else {
            std::fs::copy(source, target)?;
        }
    }
    Ok(())
}

/// The Redis queue: a real server, whose clock is a file.
pub(crate) struct Redis {
    server: RedisServer,
    clock: PathBuf,
    _clock_folder: TempDir,
    now: u64,
    queue: Option<RedisQueue>,
    /// For what is asked behind the queue's back.
    connection: MultiplexedConnection,
    marked: u64,
}

async fn connection(server: &RedisServer) -> Result<MultiplexedConnection> {
    Ok(redis::Client::open(server.url())?.get_multiplexed_async_connection().await?)
}

/// Waits of a run are no longer, in milliseconds; and workers look at a queue so often at least.
const LONGEST_WAIT: u64 = 600_000;
const BETWEEN_LOOKS: u64 = 20_000;

/// The log grows no longer than this over many runs.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;

impl Redis {
    /// A server without anything in it.
    pub(crate) async fn start(now: u64) -> Result<Self> {
        ensure!(Path::new(FAKETIME).exists(), "{FAKETIME} is not there (package faketime)");
        let clock_folder = folder()?;
        let clock = clock_folder.path().join("clock");
        set_clock(&clock, now)?;
        let words = [
            "env".to_owned(),
            // Redis's own allocator asks for the time before that can be told: it is passed over.
            format!("LD_PRELOAD={FAKETIME} {LIBC}"),
            format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
            "FAKETIME_FMT=%s".to_owned(),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            "redis-server".to_owned(),
        ];
        let server = RedisServer::start_in(folder()?, words, &["--auto-aof-rewrite-percentage", "0"]).await?;
        let connection = connection(&server).await?;
        Ok(Self { server, clock, _clock_folder: clock_folder, now, queue: None, connection, marked: 0 })
    }

    /// An empty queue on it.
    pub(crate) async fn empty(&mut self, now: u64) -> Result<()> {
        self.queue = None;
        self.set_clock(now).await?;
        if self.log_length()? > LOG_LIMIT {
            self.server.stop().await?;
            self.server.lose_data()?;
            self.server.restart().await?;
            self.connection = connection(&self.server).await?;
        } else {
            self.command(&["FLUSHALL"]).await?;
        }
        self.connect().await
    }

    async fn connect(&mut self) -> Result<()> {
        let config = Config { url: Some(self.server.url()), shards: 1, ..Config::default() };
        self.queue = Some(RedisQueue::connect(&config).await?);
        Ok(())
    }

    async fn command(&self, words: &[&str]) -> Result<redis::Value> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        Ok(command.query_async(&mut self.connection.clone()).await?)
    }

    fn log(&self) -> Result<PathBuf> {
        let files = std::fs::read_dir(self.server.folder().join("appendonlydir"))?;
        let logs = files.filter_map(|file| Some(file.ok()?.path()));
        logs.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().context("there is no log")
    }

    fn log_length(&self) -> Result<u64> {
        Ok(std::fs::metadata(self.log()?)?.len())
    }
}

/// Writes what the clock of the server says. The half millisecond keeps rounding away from the whole ones.
fn set_clock(file: &Path, now: u64) -> Result<()> {
    let text = format!("{}.{:03}500\n", now / 1000, now % 1000);
    let file = File::options().write(true).create(true).truncate(false).open(file)?;
    Ok(file.write_all_at(text.as_bytes(), 0)?)
}

#[async_trait(?Send)]
impl World for Redis {
    fn queue(&self) -> &dyn Queue {
        #[allow(clippy::expect_used)]
        self.queue.as_ref().expect("it is connected")
    }

    fn keeps_leases(&self) -> bool {
        true
    }

    /// The scripts write down the clock once a second.
    fn set_back_by(&self) -> Option<u64> {
        Some(1000)
    }

    /// A wait passes as it does where workers look at the queue now and then; what is longer is a leap.
    async fn set_clock(&mut self, now: u64) -> Result<()> {
        if now.saturating_sub(self.now) <= LONGEST_WAIT {
            while now > self.now + BETWEEN_LOOKS {
                self.now += BETWEEN_LOOKS;
                set_clock(&self.clock, self.now)?;
                if let Some(queue) = &self.queue {
                    queue.depth().await?;
                }
            }
        }
        self.now = now;
        set_clock(&self.clock, now)
    }

    async fn restart(&mut self) -> Result<()> {
        self.queue = None;
        self.connect().await
    }

    fn mark(&mut self) -> Result<()> {
        self.marked = self.log_length()?;
        Ok(())
    }

    async fn cut_power(&mut self, part: f64) -> Result<()> {
        let (log, end) = (self.log()?, self.log_length()?);
        self.queue = None;
        self.server.kill9().await?;
        File::options().write(true).open(log)?.set_len(cut(self.marked, end, part))?;
        self.server.restart().await?;
        self.connection = connection(&self.server).await?;
        wait::until("the queue to be reached again", PATIENCE, async || self.connect().await.ok()).await
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        let keys: Vec<String> = redis::from_redis_value(self.command(&["KEYS", "*"]).await?)?;
        let kinds = ["e", "m", "due", "hops", "first", "tenants", "leased", "held", "all"];
        let kind = |key: &String| key.split(':').nth(2).is_some_and(|kind| kinds.contains(&kind));
        Ok(keys.into_iter().filter(kind).collect())
    }
}
