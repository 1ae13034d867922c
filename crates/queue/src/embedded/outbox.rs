//! The outbox on disk: events by number, and how far each reader has come.

use std::collections::BTreeMap;

use super::Shared;
use super::store::{Changes, Store};
use crate::outbox::{OUTBOX_LIMIT, OUTBOX_READERS};
use crate::{Event, EventKind, Events, QueueError, Timestamp};

/// What is known of the outbox without reading the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Outbox {
    /// How far each reader has come.
    readers: BTreeMap<String, u64>,
    /// The first event that is kept, and the one after the last.
    first: u64,
    next: u64,
}

impl Outbox {
    pub(super) fn open(store: &Store) -> Result<Self, QueueError> {
        let readers = store.readers()?;
        let (first, next) = store.event_range()?;
        let next = next.max(readers.values().map(|passed| passed + 1).max().unwrap_or(1));
        Ok(Self { readers, first: if first == 0 { next } else { first }, next })
    }

    pub(super) fn knows(&self, reader: &str) -> bool {
        self.readers.contains_key(reader)
    }

    /// Adds an event to the batch, if anybody reads it.
    pub(super) fn emit(
        &mut self,
        store: &Store,
        changes: &mut Changes,
        (at, kind): (Timestamp, EventKind),
        entry: impl ToString,
        detail: &str,
    ) -> Result<(), QueueError> {
        if self.readers.is_empty() {
            return Ok(());
        }
        let event = Event { at, kind, entry: entry.to_string(), detail: detail.to_owned() };
        store.put_event(changes, self.next, &event)?;
        self.next += 1;
        if self.next - self.first > OUTBOX_LIMIT as u64 {
            store.remove_event(changes, self.first);
            self.first += 1;
        }
        Ok(())
    }

    /// Makes a reader known (`Some(None)`), moves it on (`Some(Some(event))`) or forgets it (`None`), and drops
    /// what all readers have passed.
    pub(super) fn read_by(
        &mut self,
        store: &Store,
        changes: &mut Changes,
        reader: &str,
        passed: Option<Option<u64>>,
    ) -> Result<(), QueueError> {
        match passed {
            None => drop(self.readers.remove(reader)),
            Some(None) if self.readers.len() >= OUTBOX_READERS && !self.knows(reader) => {
                return Err(QueueError::TooManyReaders(OUTBOX_READERS));
            }
            Some(None) => {
                let last = self.next.saturating_sub(1);
                self.readers.entry(reader.to_owned()).or_insert(last);
            }
            Some(Some(event)) => {
                if let Some(passed) = self.readers.get_mut(reader) {
                    *passed = event.min(self.next.saturating_sub(1));
                }
            }
        }
        store.put_readers(changes, &self.readers)?;
        let kept = self.readers.values().min().map_or(self.next, |passed| passed + 1);
        while self.first < kept {
            store.remove_event(changes, self.first);
            self.first += 1;
        }
        Ok(())
    }
}

/// The events behind what a reader has passed.
pub(super) fn read(shared: &Shared, reader: &str, limit: usize) -> Result<Events, QueueError> {
    let (passed, first) = {
        let state = shared.state();
        (state.outbox.readers.get(reader).copied().unwrap_or_default(), state.outbox.first)
    };
    let rows = shared.store.events(passed + 1, limit.clamp(1, 10_000))?;
    let cursor = rows.last().map_or(passed, |(number, _)| *number).to_string();
    let events = rows.into_iter().map(|(_, event)| event).collect();
    Ok(Events { events, cursor, lost: passed + 1 < first })
}
