//! Reading what arrived in a Maildir.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// A Maildir on disk, possibly not there yet: mail systems make it with the first delivery.
#[derive(Clone, Debug)]
pub struct Maildir {
    path: PathBuf,
}

impl Maildir {
    /// The Maildir at `path` (the folder that holds `new`).
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder `.Junk` inside this one.
    pub fn junk(&self) -> Self {
        Self::at(self.path.join(".Junk"))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All messages in `new`, in the order of their file names.
    pub fn messages(&self) -> Result<Vec<Vec<u8>>> {
        let folder = self.path.join("new");
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&folder).with_context(|| format!("listing {folder:?}"))?;
        let mut files: Vec<PathBuf> =
            entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        files.sort();
        files.iter().map(|file| std::fs::read(file).with_context(|| format!("reading {file:?}"))).collect()
    }

    /// Waits until a message that contains `text` is there, and gives it.
    pub async fn wait_for(&self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("a message with {text:?} in {}", self.path.display());
        wait::until(&what, limit, async || {
            let messages = self.messages().unwrap_or_default();
            messages
                .iter()
                .map(|octets| String::from_utf8_lossy(octets))
                .find(|message| message.contains(text))
                .map(String::from)
        })
        .await
    }

    /// Waits until at least `count` messages are there.
    pub async fn wait_for_count(&self, count: usize, limit: Duration) -> Result<Vec<Vec<u8>>> {
        let what = format!("{count} messages in {}", self.path.display());
        wait::until(&what, limit, async || self.messages().ok().filter(|found| found.len() >= count)).await
    }
}
