//! What this process has put into packs and not seen settled: so a pack goes as soon as its last message is
//! closed here. What other processes close is left to the sweep.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use message::QueueId;
use tokio::time::Instant;

use super::format::{pack_name, part_name};

/// Messages that are followed at most.
const FOLLOWED: usize = 100_000;
/// Where there are too many, those older than this are left to the sweep.
const FOLLOWED_FOR: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct OpenPacks(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    packs: HashMap<QueueId, usize>,
    messages: HashMap<QueueId, Followed>,
}

struct Followed {
    pack: QueueId,
    entries: u64,
    parts: u32,
    since: Instant,
}

impl OpenPacks {
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A pack with so many messages was written.
    pub(super) fn written(&self, pack: QueueId, messages: usize) {
        self.with(|inner| {
            if inner.messages.len() >= FOLLOWED {
                inner.messages.retain(|_, followed| followed.since.elapsed() < FOLLOWED_FOR);
                let packs: std::collections::HashSet<_> =
                    inner.messages.values().map(|followed| followed.pack).collect();
                inner.packs.retain(|pack, _| packs.contains(pack));
            }
            if inner.messages.len() < FOLLOWED {
                inner.packs.insert(pack, messages);
            }
        });
    }

    /// A message of a pack is in the queue.
    pub(super) fn enqueued(&self, id: QueueId, pack: QueueId, entries: usize, parts: u32) {
        self.with(|inner| {
            if inner.packs.contains_key(&pack) {
                let entries = entries as u64;
                inner.messages.insert(id, Followed { pack, entries, parts, since: Instant::now() });
            }
        });
    }

    /// A copy in a pack counts for nothing. Gives the names of what can go.
    pub(super) fn void(&self, pack: QueueId) -> Vec<String> {
        self.with(|inner| inner.less_one(pack))
    }

    /// So many entries of a message are closed. Gives the names of what can go.
    pub(super) fn closed(&self, id: QueueId, entries: u64) -> Vec<String> {
        self.with(|inner| {
            let Some(followed) = inner.messages.get_mut(&id) else { return Vec::new() };
            followed.entries = followed.entries.saturating_sub(entries);
            if followed.entries > 0 {
                return Vec::new();
            }
            let (pack, parts) = (followed.pack, followed.parts);
            inner.messages.remove(&id);
            let mut names: Vec<String> = (0..parts).map(|number| part_name(id, number)).collect();
            names.extend(inner.less_one(pack));
            names
        })
    }
}

impl Inner {
    fn less_one(&mut self, pack: QueueId) -> Vec<String> {
        let Some(left) = self.packs.get_mut(&pack) else { return Vec::new() };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Vec::new();
        }
        self.packs.remove(&pack);
        vec![pack_name(pack)]
    }
}
