//! `packetboat queue rebuild`: speaks to Redis and the object store itself, for there may be no process to ask.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use queue::spool::{Rebuilt, rebuild};

use crate::roles::connect_index;
use crate::settings::Settings;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Makes the queue again; fails when something in the store could not be used.
pub(super) async fn run(config: Option<&Path>, merge: bool) -> Result<()> {
    let config = config.context("name the configuration file with --config")?;
    let settings = Settings::load(config)?;
    let spool = settings.queue.spool.as_ref();
    let spool =
        spool.context("queue.spool names no object store: there is nothing to make the queue from")?;
    let index = connect_index(&settings).await?;
    let mut told = Instant::now();
    let progress = |so_far: &Rebuilt| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            eprintln!("{} of {} packs, {} messages restored", so_far.read, so_far.packs, so_far.restored);
        }
    };
    let rebuilt = rebuild(&index, spool, merge, progress)
        .await
        .context("the queue is not complete; the command may be repeated with --merge")?;
    println!(
        "packs={} restored={} present={} vanished={} settled={} void={} incomplete={} unreadable={}",
        rebuilt.packs,
        rebuilt.restored,
        rebuilt.present,
        rebuilt.vanished,
        rebuilt.settled,
        rebuilt.void,
        rebuilt.incomplete,
        rebuilt.unreadable
    );
    ensure!(
        rebuilt.incomplete == 0 && rebuilt.unreadable == 0,
        "some of the store cannot be used, the log names it; all else is in the queue"
    );
    Ok(())
}
