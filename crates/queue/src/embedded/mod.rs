//! The embedded backend: one process, one folder on a local disk.
//!
//! All changes go through one committer thread, which gathers what has come meanwhile, writes it as
//! one atomic batch, syncs the disk once, and then answers everybody: group commit. Leases live in
//! memory: they end with the process that gave them.

mod clock;
mod committer;
mod lanes;
mod limits;
mod operators;
mod outbox;
mod schedule;
mod store;
#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use message::QueueId;
use tokio::sync::{Notify, mpsc, oneshot};

use self::clock::{Steady, wall};
use self::committer::{Change, Committer};
use self::outbox::Outbox;
use self::schedule::Schedule;
use self::store::{Store, unavailable};
use crate::{
    Accepted, AuditPage, Depth, Entry, EntryState, Events, Lease, LeaseRequest, Leased, Ledger, ListFilter,
    MessageRecord, NewMessage, Page, Policy, Queue, QueueError, Scope, Settlement, Suspension, Target,
    Timestamp, Verb, VerbRecord, invariants,
};

/// Changes that wait for the committer at most; more wait in their callers.
const CHANGES_IN_FLIGHT: usize = 1024;

/// What is held in memory.
#[derive(Debug, Default)]
struct State {
    schedule: Schedule,
    /// When each message of the last hour was accepted.
    seen: HashMap<QueueId, Timestamp>,
    /// Parts written ahead of an accept, and when the last of them came.
    staged: HashMap<QueueId, (u32, Timestamp)>,
    /// How many parts the content of a message has, where it has any.
    parts: HashMap<QueueId, u32>,
    /// The account, but for what is queued.
    ledger: Ledger,
    /// Who reads what happens.
    outbox: Outbox,
    /// A write has failed: what is in memory can no longer be trusted to be on disk.
    failed: bool,
}

/// Where a queue takes the time from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl State {
    /// What does not hold of memory between two batches.
    fn broken(&self) -> Option<invariants::Broken> {
        let ledger = Ledger { queued: self.schedule.len(), ..self.ledger };
        invariants::account(&ledger).and_then(|()| self.schedule.in_place()).err()
    }
}

struct Shared {
    clock: Clock,
    store: Store,
    state: Mutex<State>,
    changed: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// A queue in a folder of this machine.
pub struct EmbeddedQueue {
    shared: Arc<Shared>,
    changes: mpsc::Sender<Change>,
    folder: PathBuf,
}

impl EmbeddedQueue {
    /// Opens the queue in `folder`, making it when there is none. What another process had leased
    /// is due again. Blocks while it reads.
    ///
    /// # Errors
    /// When the folder cannot be used, another process has it open, or it holds something unreadable.
    pub fn open(folder: &Path) -> Result<Self, QueueError> {
        Self::open_at(folder, wall())
    }

    /// The same when the machine's clock says `wall`.
    fn open_at(folder: &Path, wall: Timestamp) -> Result<Self, QueueError> {
        Self::open_with(folder, |last| {
            let steady = Steady::resume(last, wall);
            Arc::new(move || steady.now())
        })
    }

    /// The same by another clock.
    ///
    /// # Errors
    /// As [`EmbeddedQueue::open`].
    pub fn open_by(folder: &Path, clock: Clock) -> Result<Self, QueueError> {
        Self::open_with(folder, |_| clock)
    }

    /// The same by a clock that goes on from when the queue was last written to, where there is mail in it.
    fn open_with(folder: &Path, clock: impl FnOnce(Option<Timestamp>) -> Clock) -> Result<Self, QueueError> {
        let store = Store::open(folder)?;
        let mut state = State::default();
        let mut entries = 0_u64;
        store.each_entry(None, |entry| {
            let lane = (&entry.tenant, &entry.next_hop);
            state.schedule.insert(entry.id, lane, entry.due, entry.epoch, entry.held.as_deref());
            entries += 1;
            true
        })?;
        store.each_seen(|id, at| {
            state.seen.insert(id, at);
        })?;
        store.each_message(|record| {
            if record.parts > 0 {
                state.parts.insert(record.id, record.parts);
            }
        })?;
        // A folder from before there was an account begins one with what is in it.
        state.ledger = store.ledger()?.unwrap_or(Ledger { accepted: entries, ..Ledger::default() });
        for suspension in store.suspensions()? {
            state.schedule.limits.suspended.insert(suspension.scope.clone(), suspension);
        }
        state.outbox = Outbox::open(&store)?;
        let orphans = store.sweep_orphans(|id| state.schedule.contains(id))?;
        tracing::info!(folder = %folder.display(), entries, orphans, "embedded queue opened");
        // With nothing in it there is nothing that a wrong clock could harm.
        let clock = clock(if entries > 0 { store.clock()? } else { None });
        let shared = Arc::new(Shared { clock, store, state: Mutex::new(state), changed: Notify::new() });
        let (changes, received) = mpsc::channel(CHANGES_IN_FLIGHT);
        let committer = Committer::new(Arc::clone(&shared), received);
        std::thread::Builder::new()
            .name("queue-committer".to_owned())
            .spawn(move || committer.run())
            .map_err(|cause| unavailable("starting the queue's committer thread", cause))?;
        Ok(Self { shared, changes, folder: folder.to_owned() })
    }

    async fn change<T>(
        &self,
        change: impl FnOnce(oneshot::Sender<Result<T, QueueError>>) -> Change,
    ) -> Result<T, QueueError> {
        let (answer, answered) = oneshot::channel();
        let gone = |cause: &'static str| {
            unavailable(format!("changing the queue in {}", self.folder.display()), cause)
        };
        self.changes.send(change(answer)).await.map_err(|_| gone("the committer has stopped"))?;
        answered.await.map_err(|_| gone("the committer has stopped"))?
    }

    /// Reads from disk, off the threads that must not block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let shared = Arc::clone(&self.shared);
        let reading = tokio::task::spawn_blocking(move || read(&shared));
        reading.await.map_err(|cause| unavailable("reading the queue", cause))?
    }
}

/// The entry as it stands now: what the disk does not hold is filled in from memory.
fn present(state: &State, mut entry: Entry) -> Option<Entry> {
    let slot = state.schedule.slot(entry.id)?;
    entry.state = slot.state();
    entry.due = slot.due;
    entry.epoch = slot.epoch;
    entry.worker = slot.worker.as_ref().map(ToString::to_string);
    entry.held = slot.held.as_ref().map(ToString::to_string);
    Some(entry)
}

fn read_leased(shared: &Shared, leases: Vec<Lease>, now: Timestamp) -> Result<Vec<Leased>, QueueError> {
    let mut leased = Vec::with_capacity(leases.len());
    for lease in leases {
        let id = lease.entry;
        let read = shared.store.entry(id).and_then(|entry| Ok((entry, shared.store.message(id.message)?)));
        match read {
            Ok((Some(entry), Some(message))) => {
                let Some(entry) = present(&shared.state(), entry) else { continue };
                leased.push(Leased { lease, entry, message: Arc::new(message), inline: None, now });
            }
            Ok(_) => tracing::debug!(entry = %id, "entry removed while it was leased"),
            // Its lease ends, and it is tried again; the others go on.
            Err(error) => tracing::error!(entry = %id, %error, "queue entry cannot be read"),
        }
    }
    Ok(leased)
}

#[async_trait]
impl Queue for EmbeddedQueue {
    async fn stage(&self, id: QueueId, number: u32, octets: Bytes) -> Result<(), QueueError> {
        self.change(|answer| Change::Stage { id, number, octets, answer }).await
    }

    async fn accept(&self, message: NewMessage, lease: Option<LeaseRequest>) -> Result<Accepted, QueueError> {
        self.change(|answer| Change::Accept { message: Box::new(message), lease, answer }).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        let now = self.shared.now();
        let leases = self.shared.state().schedule.lease(&request, now);
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |shared| read_leased(shared, leases, now)).await
    }

    async fn renew(&self, lease: &Lease, duration: Duration) -> Result<(), QueueError> {
        let renewed = self.shared.state().schedule.renew(lease, self.shared.now(), duration);
        if renewed { Ok(()) } else { Err(QueueError::StaleLease) }
    }

    async fn doubt(&self, lease: &Lease, peer: &str) -> Result<(), QueueError> {
        self.change(|answer| Change::Doubt { lease: *lease, peer: peer.to_owned(), answer }).await
    }

    async fn hand_back(&self, lease: &Lease) -> Result<(), QueueError> {
        if self.shared.state().schedule.hand_back(lease, self.shared.now()) {
            self.shared.changed.notify_waiters();
        }
        Ok(())
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), QueueError> {
        self.change(|answer| Change::Settle { settlement: Box::new(settlement), answer }).await
    }

    async fn inline_content(&self, id: QueueId) -> Result<Bytes, QueueError> {
        self.read(move |shared| shared.store.content(id, 0)).await
    }

    async fn part(&self, id: QueueId, number: u32) -> Result<Bytes, QueueError> {
        self.read(move |shared| shared.store.content(id, number.saturating_add(1))).await
    }

    async fn wait(&self, at_most: Duration) {
        let changed = self.shared.changed.notified();
        tokio::pin!(changed);
        // From here on a change is noticed, even before the first poll.
        changed.as_mut().enable();
        let now = self.shared.now();
        let next_due = self.shared.state().schedule.next_due().map(|due| due.since(now));
        let at_most = next_due.map_or(at_most, |due| due.min(at_most));
        if !at_most.is_zero() {
            let _ = tokio::time::timeout(at_most, changed).await;
        }
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        Ok(self.shared.state().schedule.depth(self.shared.now()))
    }

    async fn list(&self, filter: ListFilter) -> Result<Page, QueueError> {
        self.read(move |shared| operators::read_page(shared, &filter)).await
    }

    async fn show(&self, id: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError> {
        self.read(move |shared| {
            let Some(record) = shared.store.message(id)? else { return Ok(None) };
            let numbers: Vec<_> = shared.state().schedule.entries(id).collect();
            let mut entries = Vec::with_capacity(numbers.len());
            for number in numbers {
                let entry = shared.store.entry(number)?;
                entries.extend(entry.and_then(|entry| present(&shared.state(), entry)));
            }
            Ok(Some((record, entries)))
        })
        .await
    }

    async fn operate(&self, target: Target, verb: &Verb, by: &str) -> Result<u64, QueueError> {
        let (verb, by) = (verb.clone(), by.to_owned());
        self.change(|answer| Change::Operate { target, verb, by, answer }).await
    }

    async fn verbs(&self, limit: usize) -> Result<Vec<VerbRecord>, QueueError> {
        self.read(move |shared| shared.store.verbs(limit)).await
    }

    async fn record(&self, verb: &VerbRecord) -> Result<(), QueueError> {
        let verb = Box::new(verb.clone());
        self.change(|answer| Change::Record { verb, answer }).await
    }

    async fn suspend(&self, scope: &Scope, why: &str, by: &str) -> Result<(), QueueError> {
        let (scope, by, why) = (scope.clone(), by.to_owned(), Some(why.to_owned()));
        self.change(|answer| Change::Suspend { scope, by, why, answer }).await.map(|_| ())
    }

    async fn resume(&self, scope: &Scope, by: &str) -> Result<bool, QueueError> {
        let (scope, by) = (scope.clone(), by.to_owned());
        self.change(|answer| Change::Suspend { scope, by, why: None, answer }).await
    }

    async fn suspensions(&self) -> Result<Vec<Suspension>, QueueError> {
        Ok(self.shared.state().schedule.limits.suspended.values().cloned().collect())
    }

    async fn set_policy(&self, policy: &Policy) -> Result<(), QueueError> {
        self.shared.state().schedule.limits.set_policy(policy);
        Ok(())
    }

    /// There is one process, and so one worker.
    async fn sharers(&self, _: &Scope, _: &str, _: Duration) -> Result<(usize, usize), QueueError> {
        Ok((1, 0))
    }

    async fn events(&self, reader: &str, limit: usize) -> Result<Events, QueueError> {
        let known = self.shared.state().outbox.knows(reader);
        if !known {
            let reader = reader.to_owned();
            self.change(|answer| Change::Reader { reader, passed: Some(None), answer }).await?;
        }
        let reader = reader.to_owned();
        self.read(move |shared| outbox::read(shared, &reader, limit)).await
    }

    async fn passed(&self, reader: &str, cursor: &str) -> Result<(), QueueError> {
        let passed = cursor.parse().map_err(|cause| QueueError::Corrupt {
            what: "an event cursor".to_owned(),
            cause: Box::<dyn std::error::Error + Send + Sync>::from(std::num::ParseIntError::to_string(
                &cause,
            )),
        })?;
        let reader = reader.to_owned();
        self.change(|answer| Change::Reader { reader, passed: Some(Some(passed)), answer }).await
    }

    async fn forget_reader(&self, reader: &str) -> Result<(), QueueError> {
        let reader = reader.to_owned();
        self.change(|answer| Change::Reader { reader, passed: None, answer }).await
    }

    async fn audit(&self, cursor: Option<&str>) -> Result<AuditPage, QueueError> {
        let after = cursor.and_then(|cursor| cursor.parse().ok());
        self.read(move |shared| operators::audit(shared, after)).await
    }

    async fn ledger(&self) -> Result<Ledger, QueueError> {
        let state = self.shared.state();
        Ok(Ledger { queued: state.schedule.len(), ..state.ledger })
    }

    async fn check(&self) -> Result<(), QueueError> {
        if self.shared.state().failed {
            let doing = format!(
                "using the queue in {} after a write had failed; restart the process",
                self.folder.display()
            );
            return Err(unavailable(doing, "an earlier write failed"));
        }
        Ok(())
    }
}

/// Shown in listings: an entry as it is written for the first time.
fn first_entry(message: &NewMessage, number: u32, now: Timestamp) -> Option<Entry> {
    let new = message.entries.get(number as usize)?;
    Some(Entry {
        id: crate::EntryId { message: message.record.id, number },
        next_hop: new.next_hop.clone(),
        tenant: new.tenant.clone(),
        recipients: new.recipients.clone(),
        state: EntryState::Queued,
        epoch: 0,
        attempts: 0,
        due: now,
        expires: now.after(new.max_age),
        last_error: None,
        worker: None,
        held: None,
        doomed: None,
        doubt: None,
    })
}
