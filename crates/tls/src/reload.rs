//! Something that is made from files, and made again when they change.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::TlsError;

/// Device, inode, length and modification time (seconds and nanoseconds) of a file, through symbolic
/// links: it changes both when a file is rewritten and when a mounted Secret is swapped.
type Fingerprint = Option<(u64, u64, u64, i64, i64)>;

/// Makes a `T` from files.
type Build<T> = dyn Fn() -> Result<T, TlsError> + Send + Sync;

/// The `T` of some files. Files that cannot be used are logged, and the last good `T` stays.
pub(crate) struct Reloading<T> {
    files: Arc<[PathBuf]>,
    build: Arc<Build<T>>,
    current: ArcSwap<T>,
    interval: Duration,
    seen: Mutex<Seen>,
}

/// The state of the files when they were last looked at.
struct Seen {
    fingerprints: Vec<Fingerprint>,
    at: Instant,
}

impl<T: Send + Sync + 'static> Reloading<T> {
    /// Makes it for the first time. Blocks on file reads: call it at start.
    pub(crate) fn load(
        files: Vec<PathBuf>,
        interval: Duration,
        build: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Taken before the files are read: a change meanwhile is then seen as one.
        let fingerprints = look(&files);
        let current = ArcSwap::from_pointee(build()?);
        let seen = Mutex::new(Seen { fingerprints, at: Instant::now() });
        Ok(Self { files: files.into(), build: Arc::new(build), current, interval, seen })
    }

    /// What the files say, looked at again when the last look is longer ago than the interval.
    pub(crate) async fn fresh(&self) -> Arc<T> {
        self.reload_if_changed().await;
        self.current.load_full()
    }

    async fn reload_if_changed(&self) {
        // Whoever finds the lock taken goes on with what there is.
        let Ok(mut seen) = self.seen.try_lock() else { return };
        if seen.at.elapsed() < self.interval {
            return;
        }
        seen.at = Instant::now();
        let (files, build) = (Arc::clone(&self.files), Arc::clone(&self.build));
        let before = seen.fingerprints.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let now = look(&files);
            (now != before).then(|| (now, build()))
        });
        let Ok(Some((fingerprints, built))) = looked.await else { return };
        seen.fingerprints = fingerprints;
        let files: Vec<String> = self.files.iter().map(|path| path.display().to_string()).collect();
        let files = files.join(", ");
        match built {
            Ok(built) => {
                self.current.store(Arc::new(built));
                tracing::info!(files, "certificate reloaded");
            }
            Err(error) => tracing::error!(
                files,
                error = &error as &dyn std::error::Error,
                "changed certificate cannot be used, the one before stays"
            ),
        }
    }
}

fn look(files: &[PathBuf]) -> Vec<Fingerprint> {
    let of = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    };
    files.iter().map(|path| of(path)).collect()
}
