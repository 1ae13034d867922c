//! The keyspaces on disk, and their keys.

use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch as WriteBatch, PersistMode};
use message::QueueId;

use crate::{
    Entry, EntryId, Event, Ledger, MessageRecord, QueueError, Suspension, Timestamp, VerbRecord, invariants,
};

/// The key of the account.
const LEDGER: &str = "ledger";

/// The key of the time.
const CLOCK: &str = "clock";

/// The key of the readers of the outbox.
const READERS: &str = "readers";

/// What the key of a suspension begins with.
const SUSPENDED: &str = "suspended/";

/// So many verbs are kept.
const VERBS_KEPT: usize = 10_000;

/// Memory for blocks read from disk, in octets.
const CACHE: u64 = 64 * 1024 * 1024;

#[derive(Clone)]
pub(super) struct Store {
    database: Database,
    /// Message id ⇒ record, as JSON.
    messages: Keyspace,
    /// Entry key ⇒ entry, as JSON; `state`, `worker` and leases are not written: they end with the process.
    entries: Keyspace,
    /// Message id and number ⇒ octets. Number 0 is the inline part, n + 1 is part n.
    content: Keyspace,
    /// Message id ⇒ when it was accepted: what makes accept idempotent.
    seen: Keyspace,
    /// `clock` ⇒ the queue's time, milliseconds, big endian; `ledger` ⇒ the account, `readers` ⇒ how far the readers of the outbox have come, `suspended/SCOPE` ⇒ a
    /// suspension, all as JSON.
    account: Keyspace,
    /// Number ⇒ event, as JSON.
    events: Keyspace,
    /// Time and number ⇒ what an operator asked for, as JSON.
    verbs: Keyspace,
}

/// Changes that become durable together.
pub(super) struct Changes(WriteBatch);

pub(super) fn unavailable(
    doing: impl Into<String>,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> QueueError {
    QueueError::Unavailable { doing: doing.into(), cause: cause.into() }
}

fn entry_key(id: EntryId) -> Vec<u8> {
    numbered(id.message, id.number)
}

fn numbered(id: QueueId, number: u32) -> Vec<u8> {
    [id.as_str().as_bytes(), &number.to_be_bytes()].concat()
}

fn message_of(key: &[u8]) -> Option<QueueId> {
    std::str::from_utf8(key.get(..26)?).ok()?.parse().ok()
}

fn decode<T: serde::de::DeserializeOwned>(what: &str, octets: &[u8]) -> Result<T, QueueError> {
    serde_json::from_slice(octets)
        .map_err(|cause| QueueError::Corrupt { what: what.to_owned(), cause: cause.into() })
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, QueueError> {
    serde_json::to_vec(value).map_err(|cause| unavailable("writing a queue record", cause))
}

impl Store {
    pub(super) fn open(folder: &Path) -> Result<Self, QueueError> {
        let failed = |cause: fjall::Error| {
            let hint = match &cause {
                fjall::Error::Locked => " (another process has it open: only one may)",
                _ => "",
            };
            unavailable(format!("opening the queue in {}{hint}", folder.display()), cause)
        };
        std::fs::create_dir_all(folder)
            .map_err(|cause| unavailable(format!("making the folder {}", folder.display()), cause))?;
        let database = Database::builder(folder).cache_size(CACHE).open().map_err(failed)?;
        let keyspace = |name| database.keyspace(name, KeyspaceCreateOptions::default).map_err(failed);
        Ok(Self {
            messages: keyspace("messages")?,
            entries: keyspace("entries")?,
            content: keyspace("content")?,
            seen: keyspace("seen")?,
            account: keyspace("account")?,
            events: keyspace("events")?,
            verbs: keyspace("verbs")?,
            database,
        })
    }

    pub(super) fn changes(&self) -> Changes {
        Changes(self.database.batch().durability(Some(PersistMode::SyncAll)))
    }

    pub(super) fn put_message(
        &self,
        changes: &mut Changes,
        record: &MessageRecord,
    ) -> Result<(), QueueError> {
        let key = record.id.as_str();
        changes.0.insert(&self.messages, key, encode(record)?);
        changes.0.insert(&self.seen, key, record.accepted_at.0.to_be_bytes());
        Ok(())
    }

    pub(super) fn put_entry(&self, changes: &mut Changes, entry: &Entry) -> Result<(), QueueError> {
        changes.0.insert(&self.entries, entry_key(entry.id), encode(entry)?);
        Ok(())
    }

    /// Writes what has become of an entry.
    pub(super) fn change_entry(
        &self,
        changes: &mut Changes,
        before: &Entry,
        after: &Entry,
    ) -> Result<(), QueueError> {
        debug_assert_eq!(invariants::succession(before, after), Ok(()));
        self.put_entry(changes, after)
    }

    pub(super) fn put_ledger(&self, changes: &mut Changes, ledger: &Ledger) -> Result<(), QueueError> {
        changes.0.insert(&self.account, LEDGER, encode(ledger)?);
        Ok(())
    }

    pub(super) fn ledger(&self) -> Result<Option<Ledger>, QueueError> {
        let found = self.account.get(LEDGER).map_err(|cause| unavailable("reading the queue", cause))?;
        found.map(|octets| decode("the account of the queue", &octets)).transpose()
    }

    pub(super) fn put_clock(&self, changes: &mut Changes, now: Timestamp) {
        changes.0.insert(&self.account, CLOCK, now.0.to_be_bytes());
    }

    /// The queue's time as it was last written down.
    pub(super) fn clock(&self) -> Result<Option<Timestamp>, QueueError> {
        let found = self.account.get(CLOCK).map_err(|cause| unavailable("reading the queue", cause))?;
        Ok(found
            .and_then(|octets| <[u8; 8]>::try_from(&*octets).ok())
            .map(|octets| Timestamp(u64::from_be_bytes(octets))))
    }

    pub(super) fn put_content(&self, changes: &mut Changes, id: QueueId, number: u32, octets: Bytes) {
        changes.0.insert(&self.content, numbered(id, number), octets);
    }

    pub(super) fn remove_entry(&self, changes: &mut Changes, id: EntryId) {
        changes.0.remove(&self.entries, entry_key(id));
    }

    /// Removes a message's record and its content of `parts` parts.
    pub(super) fn remove_message(&self, changes: &mut Changes, id: QueueId, parts: u32) {
        changes.0.remove(&self.messages, id.as_str());
        self.remove_content(changes, id, parts);
    }

    pub(super) fn remove_content(&self, changes: &mut Changes, id: QueueId, parts: u32) {
        for number in 0..=parts {
            changes.0.remove(&self.content, numbered(id, number));
        }
    }

    pub(super) fn forget_seen(&self, changes: &mut Changes, id: QueueId) {
        changes.0.remove(&self.seen, id.as_str());
    }

    /// Makes the changes durable: all of them, or none.
    pub(super) fn commit(&self, changes: Changes) -> Result<(), QueueError> {
        changes.0.commit().map_err(|cause| unavailable("writing to the queue on disk", cause))
    }

    pub(super) fn message(&self, id: QueueId) -> Result<Option<MessageRecord>, QueueError> {
        let found =
            self.messages.get(id.as_str()).map_err(|cause| unavailable("reading the queue", cause))?;
        found.map(|octets| decode(&format!("the record of message {id}"), &octets)).transpose()
    }

    pub(super) fn entry(&self, id: EntryId) -> Result<Option<Entry>, QueueError> {
        let found =
            self.entries.get(entry_key(id)).map_err(|cause| unavailable("reading the queue", cause))?;
        found.map(|octets| decode(&format!("queue entry {id}"), &octets)).transpose()
    }

    pub(super) fn content(&self, id: QueueId, number: u32) -> Result<Bytes, QueueError> {
        let found = self
            .content
            .get(numbered(id, number))
            .map_err(|cause| unavailable("reading the queue", cause))?;
        found.map(Bytes::from).ok_or(QueueError::Gone(id))
    }

    /// Calls `each` for the entries behind `after`, in the order of their keys, until it says false.
    pub(super) fn each_entry(
        &self,
        after: Option<EntryId>,
        mut each: impl FnMut(Entry) -> bool,
    ) -> Result<(), QueueError> {
        let start = after.map(|id| [entry_key(id), vec![0]].concat()).unwrap_or_default();
        for guard in self.entries.range(start..) {
            let (key, value) = guard.into_inner().map_err(|cause| unavailable("reading the queue", cause))?;
            let what = message_of(&key)
                .map_or_else(|| "a queue entry".to_owned(), |id| format!("an entry of message {id}"));
            if !each(decode(&what, &value)?) {
                break;
            }
        }
        Ok(())
    }

    /// All messages.
    pub(super) fn each_message(&self, mut each: impl FnMut(MessageRecord)) -> Result<(), QueueError> {
        for guard in self.messages.iter() {
            let (key, value) = guard.into_inner().map_err(|cause| unavailable("reading the queue", cause))?;
            let what =
                message_of(&key).map_or_else(|| "a record".to_owned(), |id| format!("the record of {id}"));
            each(decode(&what, &value)?);
        }
        Ok(())
    }

    /// Who was accepted when.
    pub(super) fn each_seen(&self, mut each: impl FnMut(QueueId, Timestamp)) -> Result<(), QueueError> {
        for guard in self.seen.iter() {
            let (key, value) = guard.into_inner().map_err(|cause| unavailable("reading the queue", cause))?;
            if let (Some(id), Ok(at)) = (message_of(&key), <[u8; 8]>::try_from(&*value)) {
                each(id, Timestamp(u64::from_be_bytes(at)));
            }
        }
        Ok(())
    }

    /// Removes content that no message owns: staged before a crash, and never accepted.
    pub(super) fn sweep_orphans(&self, owned: impl Fn(QueueId) -> bool) -> Result<usize, QueueError> {
        let mut changes = self.changes();
        let mut swept = 0;
        for guard in self.content.iter() {
            let key = guard.key().map_err(|cause| unavailable("reading the queue", cause))?;
            if !message_of(&key).is_some_and(&owned) {
                changes.0.remove(&self.content, key);
                swept += 1;
            }
        }
        self.commit(changes)?;
        Ok(swept)
    }

    pub(super) fn put_event(
        &self,
        changes: &mut Changes,
        number: u64,
        event: &Event,
    ) -> Result<(), QueueError> {
        changes.0.insert(&self.events, number.to_be_bytes(), encode(event)?);
        Ok(())
    }

    pub(super) fn remove_event(&self, changes: &mut Changes, number: u64) {
        changes.0.remove(&self.events, number.to_be_bytes());
    }

    /// The number of the first event, and the one after the last; zeros when there is none.
    pub(super) fn event_range(&self) -> Result<(u64, u64), QueueError> {
        let number = |guard: Option<fjall::Guard>| -> Result<Option<u64>, QueueError> {
            let Some(guard) = guard else { return Ok(None) };
            let key = guard.key().map_err(|cause| unavailable("reading the queue", cause))?;
            Ok(<[u8; 8]>::try_from(&*key).ok().map(u64::from_be_bytes))
        };
        let (first, last) = (number(self.events.iter().next())?, number(self.events.iter().next_back())?);
        Ok((first.unwrap_or(0), last.map_or(0, |last| last + 1)))
    }

    /// At most `limit` events from number `from` on.
    pub(super) fn events(&self, from: u64, limit: usize) -> Result<Vec<(u64, Event)>, QueueError> {
        let mut events = Vec::new();
        for guard in self.events.range(from.to_be_bytes()..).take(limit) {
            let (key, value) = guard.into_inner().map_err(|cause| unavailable("reading the queue", cause))?;
            let number = <[u8; 8]>::try_from(&*key).map(u64::from_be_bytes).unwrap_or_default();
            events.push((number, decode("an event", &value)?));
        }
        Ok(events)
    }

    pub(super) fn put_readers(
        &self,
        changes: &mut Changes,
        readers: &std::collections::BTreeMap<String, u64>,
    ) -> Result<(), QueueError> {
        changes.0.insert(&self.account, READERS, encode(readers)?);
        Ok(())
    }

    pub(super) fn readers(&self) -> Result<std::collections::BTreeMap<String, u64>, QueueError> {
        let found = self.account.get(READERS).map_err(|cause| unavailable("reading the queue", cause))?;
        found.map_or_else(|| Ok(Default::default()), |octets| decode("the readers of the outbox", &octets))
    }

    pub(super) fn put_suspension(
        &self,
        changes: &mut Changes,
        suspension: &Suspension,
    ) -> Result<(), QueueError> {
        let key = format!("{SUSPENDED}{}", suspension.scope.key());
        changes.0.insert(&self.account, key, encode(suspension)?);
        Ok(())
    }

    pub(super) fn remove_suspension(&self, changes: &mut Changes, scope: &crate::Scope) {
        changes.0.remove(&self.account, format!("{SUSPENDED}{}", scope.key()));
    }

    pub(super) fn suspensions(&self) -> Result<Vec<Suspension>, QueueError> {
        let mut suspensions = Vec::new();
        for guard in self.account.prefix(SUSPENDED) {
            let (_, value) = guard.into_inner().map_err(|cause| unavailable("reading the queue", cause))?;
            suspensions.push(decode("a suspension", &value)?);
        }
        Ok(suspensions)
    }

    /// Writes down what an operator asked for; the oldest goes when there are too many.
    pub(super) fn put_verb(&self, changes: &mut Changes, verb: &VerbRecord) -> Result<(), QueueError> {
        let number = u32::from(rand::random::<u16>());
        let key = [verb.at.0.to_be_bytes().as_slice(), &number.to_be_bytes()].concat();
        changes.0.insert(&self.verbs, key, encode(verb)?);
        if self.verbs.approximate_len() > VERBS_KEPT
            && let Some(oldest) = self.verbs.iter().next()
        {
            let key = oldest.key().map_err(|cause| unavailable("reading the queue", cause))?;
            changes.0.remove(&self.verbs, key);
        }
        Ok(())
    }

    /// What operators asked for, the latest first.
    pub(super) fn verbs(&self, limit: usize) -> Result<Vec<VerbRecord>, QueueError> {
        let mut verbs = Vec::new();
        for guard in self.verbs.iter().rev().take(limit) {
            let (_, value) = guard.into_inner().map_err(|cause| unavailable("reading the queue", cause))?;
            verbs.push(decode("what an operator asked for", &value)?);
        }
        Ok(verbs)
    }
}
