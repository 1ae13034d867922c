//! Group commit: every change to the queue, in batches of whatever has come meanwhile.
//!
//! A change goes through three steps: it is prepared (checked against memory, its writes added to
//! the batch), the batch is committed and synced, and it is finished (memory follows the disk, the
//! caller is answered). Of two changes to one message, the second waits for the next batch.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use message::QueueId;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::outbox::Outbox;
use super::store::{Changes, unavailable};
use crate::{
    Accepted, Closing, Entry, EntryId, Lease, LeaseRequest, Leased, Ledger, MessageRecord, NewMessage,
    QueueError, Scope, Settlement, Suspension, Target, Timestamp, Verb, VerbRecord,
};

/// Most changes in a batch.
const BATCH: usize = 512;
/// A batch is committed when it holds so many octets of content.
const BATCH_OCTETS: usize = 8 * 1024 * 1024;
/// How long an accepted id is remembered, and a staged part kept without its accept.
const REMEMBER: Duration = Duration::from_secs(3600);
/// How often what is too old is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// With the first batch after this, the queue's time is written down.
const CLOCK_EVERY: Duration = Duration::from_secs(1);

type Answer<T> = oneshot::Sender<Result<T, QueueError>>;

pub(super) enum Change {
    Stage {
        id: QueueId,
        number: u32,
        octets: Bytes,
        answer: Answer<()>,
    },
    Accept {
        message: Box<NewMessage>,
        lease: Option<LeaseRequest>,
        answer: Answer<Accepted>,
    },
    Settle {
        settlement: Box<Settlement>,
        answer: Answer<()>,
    },
    Doubt {
        lease: Lease,
        peer: String,
        answer: Answer<()>,
    },
    Operate {
        target: Target,
        verb: Verb,
        by: String,
        answer: Answer<u64>,
    },
    Record {
        verb: Box<VerbRecord>,
        answer: Answer<()>,
    },
    /// Without a reason, it is resumed.
    Suspend {
        scope: Scope,
        by: String,
        why: Option<String>,
        answer: Answer<bool>,
    },
    /// See [`super::outbox::Outbox::read_by`].
    Reader {
        reader: String,
        passed: Option<Option<u64>>,
        answer: Answer<()>,
    },
}

impl Change {
    fn message(&self) -> Option<QueueId> {
        match self {
            Self::Stage { id, .. } => Some(*id),
            Self::Operate { target, .. } => Some(target.message()),
            Self::Accept { message, .. } => Some(message.record.id),
            Self::Settle { settlement, .. } => Some(settlement.lease.entry.message),
            Self::Doubt { lease, .. } => Some(lease.entry.message),
            Self::Record { .. } | Self::Suspend { .. } | Self::Reader { .. } => None,
        }
    }

    fn octets(&self) -> usize {
        match self {
            Self::Stage { octets, .. } => octets.len(),
            Self::Accept { message, .. } => usize::try_from(message.inline.len()).unwrap_or(usize::MAX),
            _ => 0,
        }
    }
}

/// A message whose writes are in the batch.
pub(super) struct Written {
    pub(super) record: MessageRecord,
    pub(super) inline: message::Content,
    pub(super) entries: Vec<Entry>,
}

/// A change whose writes are in the batch.
enum Prepared {
    Stage { id: QueueId, number: u32, answer: Answer<()> },
    Accept { written: Written, lease: Option<LeaseRequest>, answer: Answer<Accepted> },
    Settle { lease: Lease, retry_at: Result<Timestamp, Closing>, bounce: Option<Written>, answer: Answer<()> },
    Doubt { answer: Answer<()> },
    Operate { entries: Vec<EntryId>, verb: Verb, answer: Answer<u64> },
    Suspend { scope: Scope, suspension: Option<Suspension>, answer: Answer<bool> },
    Written { answer: Answer<()> },
}

/// What a batch writes once, whatever is in it.
#[derive(Clone)]
pub(super) struct Books {
    pub(super) ledger: Ledger,
    pub(super) outbox: Outbox,
}

/// A settlement whose writes are in the batch: when the entry is due again, or how it ended.
pub(super) type Settled = (Lease, Result<Timestamp, Closing>, Option<Written>);

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    received: mpsc::Receiver<Change>,
    swept_at: Timestamp,
    /// The queue's time as it was last written down.
    clock_written: Timestamp,
    /// The account and the outbox as they are on disk; `queued` is not kept in the account.
    books: Books,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, received: mpsc::Receiver<Change>) -> Self {
        let books = {
            let state = shared.state();
            Books { ledger: state.ledger, outbox: state.outbox.clone() }
        };
        let swept_at = shared.now();
        Self { shared, received, swept_at, clock_written: swept_at, books }
    }

    /// Runs until every handle on the queue is gone.
    pub(super) fn run(mut self) {
        let mut held_over: Vec<Change> = Vec::new();
        loop {
            let mut batch = std::mem::take(&mut held_over);
            if batch.is_empty() {
                match self.received.blocking_recv() {
                    Some(change) => batch.push(change),
                    None => return,
                }
            }
            let mut octets: usize = batch.iter().map(Change::octets).sum();
            while batch.len() < BATCH && octets < BATCH_OCTETS {
                let Ok(change) = self.received.try_recv() else { break };
                octets += change.octets();
                batch.push(change);
            }
            held_over = self.commit(batch);
        }
    }

    /// Commits a batch; gives back the changes that must wait for the next.
    fn commit(&mut self, batch: Vec<Change>) -> Vec<Change> {
        let now = self.shared.now();
        let mut changes = self.shared.store.changes();
        let mut touched = HashSet::with_capacity(batch.len());
        let mut held_over = Vec::new();
        let mut prepared = Vec::with_capacity(batch.len());
        let mut books = self.books.clone();
        for change in batch {
            if change.message().is_none_or(|message| touched.insert(message)) {
                prepared.extend(self.prepare(change, &mut changes, &mut books, now));
            } else {
                held_over.push(change);
            }
        }
        let swept = self.sweep(&mut changes, now);
        if prepared.is_empty() && !swept {
            return held_over;
        }
        if now.since(self.clock_written) >= CLOCK_EVERY {
            self.shared.store.put_clock(&mut changes, now);
            self.clock_written = now;
        }
        let started = std::time::Instant::now();
        let account = match books.ledger == self.books.ledger {
            true => Ok(()),
            false => self.shared.store.put_ledger(&mut changes, &books.ledger),
        };
        let outcome = account.and_then(|()| self.shared.store.commit(changes));
        metrics::histogram!("packetboat_queue_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("packetboat_queue_commit_changes").record(prepared.len() as f64);
        match outcome {
            Ok(()) => {
                self.shared.state().outbox = books.outbox.clone();
                self.books = books;
                self.finish(prepared, now);
            }
            Err(error) => self.fail(prepared, &error),
        }
        held_over
    }

    fn prepare(
        &self,
        change: Change,
        changes: &mut Changes,
        books: &mut Books,
        now: Timestamp,
    ) -> Option<Prepared> {
        match change {
            Change::Stage { id, number, octets, answer } => {
                self.shared.store.put_content(changes, id, number.saturating_add(1), octets);
                Some(Prepared::Stage { id, number, answer })
            }
            Change::Accept { message, lease, answer } => match self.write(*message, changes, books, now) {
                Ok(Some(written)) => Some(Prepared::Accept { written, lease, answer }),
                Ok(None) => reply(answer, Ok(Accepted { fresh: false, leased: Vec::new() })),
                Err(error) => reply(answer, Err(error)),
            },
            Change::Settle { settlement, answer } => {
                if !self.shared.state().schedule.begin_settling(&settlement.lease, now) {
                    return reply(answer, Err(QueueError::StaleLease));
                }
                let id = settlement.lease.entry;
                match self.write_settlement(*settlement, changes, books, now) {
                    Ok((lease, retry_at, bounce)) => {
                        Some(Prepared::Settle { lease, retry_at, bounce, answer })
                    }
                    Err(error) => {
                        // The attempt's outcome is lost; the entry is tried again.
                        self.shared.state().schedule.settled_for_retry(id, now.after(SWEEP_EVERY));
                        reply(answer, Err(error))
                    }
                }
            }
            Change::Doubt { lease, peer, answer } => {
                match self.write_doubt(&lease, peer, changes, books, now) {
                    Ok(()) => Some(Prepared::Doubt { answer }),
                    Err(error) => reply(answer, Err(error)),
                }
            }
            Change::Operate { target, verb, by, answer } => {
                match self.write_verb(target, &verb, &by, changes, books, now) {
                    Ok(entries) => Some(Prepared::Operate { entries, verb, answer }),
                    Err(error) => reply(answer, Err(error)),
                }
            }
            Change::Record { mut verb, answer } => {
                verb.at = now;
                match self.shared.store.put_verb(changes, &verb) {
                    Ok(()) => Some(Prepared::Written { answer }),
                    Err(error) => reply(answer, Err(error)),
                }
            }
            Change::Suspend { scope, by, why, answer } => {
                match self.write_suspension(&scope, by, why, changes, now) {
                    Ok(suspension) => Some(Prepared::Suspend { scope, suspension, answer }),
                    Err(error) => reply(answer, Err(error)),
                }
            }
            Change::Reader { reader, passed, answer } => {
                match books.outbox.read_by(&self.shared.store, changes, &reader, passed) {
                    Ok(()) => Some(Prepared::Written { answer }),
                    Err(error) => reply(answer, Err(error)),
                }
            }
        }
    }

    fn finish(&self, prepared: Vec<Prepared>, now: Timestamp) {
        let mut wake = false;
        for change in prepared {
            match change {
                Prepared::Stage { id, number, answer } => {
                    let mut state = self.shared.state();
                    let staged = state.staged.entry(id).or_insert((0, now));
                    *staged = (staged.0.max(number + 1), now);
                    drop(state);
                    let _ = answer.send(Ok(()));
                }
                Prepared::Accept { written, lease, answer } => {
                    let entries = written.entries.len();
                    let leased = self.admit(written, lease, now);
                    wake |= leased.len() < entries;
                    let _ = answer.send(Ok(Accepted { fresh: true, leased }));
                }
                Prepared::Settle { lease, retry_at, bounce, answer } => {
                    let id = lease.entry;
                    let mut state = self.shared.state();
                    match retry_at {
                        Ok(due) => state.schedule.settled_for_retry(id, due),
                        Err(closing) => {
                            state.ledger.close(closing);
                            state.schedule.remove(id);
                        }
                    }
                    if !state.schedule.contains(id.message) {
                        state.parts.remove(&id.message);
                    }
                    drop(state);
                    wake |= retry_at.is_ok() || bounce.is_some();
                    if let Some(bounce) = bounce {
                        self.admit(bounce, None, now);
                    }
                    let _ = answer.send(Ok(()));
                }
                Prepared::Doubt { answer } => drop(answer.send(Ok(()))),
                Prepared::Operate { entries, verb, answer } => {
                    self.operated(&entries, &verb, now);
                    wake = true;
                    let _ = answer.send(Ok(entries.len() as u64));
                }
                Prepared::Suspend { scope, suspension, answer } => {
                    let suspended = &mut self.shared.state().schedule.limits.suspended;
                    let before = suspended.remove(&scope).is_some();
                    let changed = suspension.is_some() || before;
                    suspended.extend(suspension.map(|suspension| (scope, suspension)));
                    wake = true;
                    let _ = answer.send(Ok(changed));
                }
                Prepared::Written { answer } => drop(answer.send(Ok(()))),
            }
        }
        debug_assert_eq!(self.shared.state().broken(), None);
        if wake {
            self.shared.changed.notify_waiters();
        }
    }

    /// Memory follows what an operator asked for.
    fn operated(&self, entries: &[EntryId], verb: &Verb, now: Timestamp) {
        let mut state = self.shared.state();
        for entry in entries {
            match verb {
                Verb::Hold { why } => state.schedule.hold(*entry, why),
                Verb::RetryNow => state.schedule.retry(*entry, now),
                Verb::Release | Verb::Bounce { .. } => state.schedule.make_due(*entry, now),
                Verb::Remove => {
                    state.ledger.removed += 1;
                    state.schedule.remove(*entry);
                }
            }
        }
        if let (Verb::Remove, Some(first)) = (verb, entries.first())
            && !state.schedule.contains(first.message)
        {
            state.parts.remove(&first.message);
        }
    }

    /// Takes a durable message into memory, leased where that was asked for.
    fn admit(&self, written: Written, lease: Option<LeaseRequest>, now: Timestamp) -> Vec<Leased> {
        let id = written.record.id;
        let mut state = self.shared.state();
        state.seen.insert(id, now);
        state.staged.remove(&id);
        if written.record.parts > 0 {
            state.parts.insert(id, written.record.parts);
        }
        state.ledger.accepted += written.entries.len() as u64;
        for entry in &written.entries {
            state.schedule.insert(entry.id, (&entry.tenant, &entry.next_hop), now, 0, None);
        }
        let Some(request) = lease.filter(|request| written.entries.len() <= request.max) else {
            return Vec::new();
        };
        let (worker, until) = (Arc::from(request.worker.as_str()), now.after(request.duration));
        let message = Arc::new(written.record);
        let mut leased = Vec::with_capacity(written.entries.len());
        for mut entry in written.entries {
            let Some(lease) = state.schedule.lease_one(entry.id, &worker, now, until) else { continue };
            entry.epoch = lease.epoch;
            entry.state = crate::EntryState::Leased;
            entry.due = until;
            entry.worker = Some(request.worker.clone());
            let inline = Some(written.inline.clone());
            leased.push(Leased { lease, entry, message: Arc::clone(&message), inline, now });
        }
        leased
    }

    /// Nothing was made durable. The disk cannot be trusted any more: everybody is told, from now on.
    fn fail(&self, prepared: Vec<Prepared>, error: &QueueError) {
        tracing::error!(error = error as &dyn std::error::Error, "the queue cannot write to its disk");
        self.shared.state().failed = true;
        let told = || unavailable("writing to the queue on disk", error.to_string());
        for change in prepared {
            match change {
                Prepared::Stage { answer, .. }
                | Prepared::Settle { answer, .. }
                | Prepared::Doubt { answer } => drop(answer.send(Err(told()))),
                Prepared::Accept { answer, .. } => drop(answer.send(Err(told()))),
                Prepared::Suspend { answer, .. } => drop(answer.send(Err(told()))),
                Prepared::Written { answer } => drop(answer.send(Err(told()))),
                Prepared::Operate { answer, .. } => drop(answer.send(Err(told()))),
            }
        }
    }

    /// Adds the removal of what is too old to the batch.
    fn sweep(&mut self, changes: &mut Changes, now: Timestamp) -> bool {
        if now.since(self.swept_at) < SWEEP_EVERY {
            return false;
        }
        self.swept_at = now;
        let mut state = self.shared.state();
        let mut swept = false;
        state.seen.retain(|id, at| {
            let keep = now.since(*at) < REMEMBER;
            if !keep {
                self.shared.store.forget_seen(changes, *id);
                swept = true;
            }
            keep
        });
        state.staged.retain(|id, (parts, at)| {
            let keep = now.since(*at) < REMEMBER;
            if !keep {
                self.shared.store.remove_content(changes, *id, *parts);
                swept = true;
            }
            keep
        });
        swept
    }
}

fn reply<T>(answer: Answer<T>, with: Result<T, QueueError>) -> Option<Prepared> {
    let _ = answer.send(with);
    None
}
