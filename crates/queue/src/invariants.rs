//! What holds of every queue, as code over what a backend shows. The numbers are those of the list in
//! `docs/queue.md`.
//!
//! The conformance suite and the simulation look through [`Witness`]; the embedded backend asserts the plain
//! functions in builds with debug assertions.

use std::collections::HashMap;
use std::fmt;

use crate::{Depth, Entry, EntryId, EntryState, Leased, Ledger, ListFilter, Queue, QueueError, Timestamp};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Its number.
    pub number: u8,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {} does not hold: {}", self.number, self.found)
    }
}

fn require(holds: bool, number: u8, found: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { number, found: found() }) }
}

/// The account balances (7).
///
/// # Errors
/// What does not balance.
pub fn account(ledger: &Ledger) -> Result<(), Broken> {
    require(ledger.unaccounted() == 0, 7, || {
        format!("{} are unaccounted for in {ledger:?}", ledger.unaccounted())
    })
}

/// What an entry says of itself fits (1, 8).
///
/// # Errors
/// What does not fit.
pub fn entry(entry: &Entry) -> Result<(), Broken> {
    let id = entry.id;
    require(!entry.recipients.is_empty(), 8, || format!("{id} is for nobody"))?;
    let attempts = u64::from(entry.attempts);
    require(attempts <= entry.epoch, 1, || {
        format!("{id} was tried {attempts} times, and leased {} times", entry.epoch)
    })?;
    match entry.state {
        EntryState::Queued => require(entry.held.is_none() && entry.worker.is_none(), 8, || {
            format!("{id} waits, and is held or leased: {entry:?}")
        }),
        EntryState::Held => require(entry.held.is_some() && entry.worker.is_none(), 8, || {
            format!("{id} is held, and without a reason or leased: {entry:?}")
        }),
        EntryState::Leased => require(entry.worker.is_some() && entry.epoch > 0, 1, || {
            format!("{id} is leased, and to nobody: {entry:?}")
        }),
    }
}

/// An entry has become what may become of it (1, 8): what was said at accept stays, counts never go back, and a
/// recipient that is final stays final.
///
/// # Errors
/// What may not become.
pub fn succession(before: &Entry, after: &Entry) -> Result<(), Broken> {
    let id = before.id;
    let same = before.next_hop == after.next_hop
        && before.tenant == after.tenant
        && before.expires == after.expires
        && before.recipients.len() == after.recipients.len();
    require(same, 8, || format!("{id} is another: {before:?}, {after:?}"))?;
    require(after.epoch >= before.epoch && after.attempts >= before.attempts, 1, || {
        format!("{id} went back: {before:?}, {after:?}")
    })?;
    let kept = before.recipients.iter().zip(&after.recipients).all(|(before, after)| {
        before.address == after.address && (before.standing.is_open() || before.standing == after.standing)
    });
    require(kept, 8, || format!("{id} takes back what was final: {before:?}, {after:?}"))
}

/// The counts of a queue that nobody changes agree with its entries (7, 8).
///
/// # Errors
/// What does not agree.
pub fn counts(ledger: &Ledger, depth: &Depth, entries: &[Entry]) -> Result<(), Broken> {
    account(ledger)?;
    let there = entries.len() as u64;
    require(ledger.queued == there, 7, || format!("{there} entries are there, {ledger:?}"))?;
    let count = |state| entries.iter().filter(|entry| entry.state == state).count() as u64;
    let found = (count(EntryState::Queued), count(EntryState::Leased), count(EntryState::Held));
    let told = (depth.queued, depth.leased, depth.held);
    require(found == told, 8, || format!("{found:?} wait, are leased and held, and it counts {told:?}"))
}

/// Somebody who follows a queue from outside, and looks at all of it while nobody changes it.
#[derive(Debug, Clone, Default)]
pub struct Witness {
    entries: HashMap<EntryId, Entry>,
    /// The last lease of each entry: its epoch and its end.
    leases: HashMap<EntryId, (u64, Timestamp)>,
}

impl Witness {
    /// A lease was given (1): its epoch is above all before, and the one before has ended by the store's clock
    /// or was given up.
    ///
    /// # Errors
    /// When two hold the entry, or may say that they do.
    pub fn leased(&mut self, leased: &Leased) -> Result<(), Broken> {
        let (id, epoch) = (leased.lease.entry, leased.lease.epoch);
        entry(&leased.entry)?;
        if let Some((before, end)) = self.leases.insert(id, (epoch, leased.entry.due)) {
            require(epoch > before, 1, || format!("{id} was leased with epoch {epoch} after {before}"))?;
            require(end <= leased.now, 1, || {
                format!("{id} was leased at {:?}, before its lease had ended at {end:?}", leased.now)
            })?;
        }
        Ok(())
    }

    /// A lease's end was moved.
    pub fn renewed(&mut self, id: EntryId, end: Timestamp) {
        self.leases.entry(id).and_modify(|lease| lease.1 = end);
    }

    /// The holder of a lease gave it up, or the entry is gone.
    pub fn given_up(&mut self, id: EntryId) {
        self.leases.entry(id).and_modify(|lease| lease.1 = Timestamp(0));
    }

    /// The backend's process has ended, and all leases with it: epochs that nobody holds may be given again.
    pub fn restarted(&mut self) {
        self.leases.clear();
        self.entries.clear();
    }

    /// Looks at the whole queue; gives its entries.
    ///
    /// # Errors
    /// The first invariant that does not hold, or that it cannot be looked at.
    pub async fn look(&mut self, queue: &dyn Queue) -> Result<Vec<Entry>, Broken> {
        let unseen =
            |error: QueueError| Broken { number: 0, found: format!("the queue cannot be seen: {error:?}") };
        let mut entries = Vec::new();
        let mut filter = ListFilter { limit: 1000, ..ListFilter::default() };
        loop {
            let page = queue.list(filter.clone()).await.map_err(unseen)?;
            entries.extend(page.entries.into_iter().map(|(entry, _)| entry));
            filter.cursor = page.next;
            if filter.cursor.is_none() {
                break;
            }
        }
        let (ledger, depth) = (queue.ledger().await.map_err(unseen)?, queue.depth().await.map_err(unseen)?);
        counts(&ledger, &depth, &entries)?;
        for now in &entries {
            entry(now)?;
            if let Some(before) = self.entries.get(&now.id) {
                succession(before, now)?;
            }
        }
        audit(queue).await?;
        self.entries = entries.iter().map(|entry| (entry.id, entry.clone())).collect();
        Ok(entries)
    }
}

/// The queue finds nothing odd in itself (3, 8).
async fn audit(queue: &dyn Queue) -> Result<(), Broken> {
    let mut cursor = None;
    loop {
        let page = queue.audit(cursor.as_deref()).await;
        let page = page.map_err(|error| Broken { number: 8, found: format!("no audit: {error:?}") })?;
        require(page.odd.is_empty(), 8, || format!("{:?}", page.odd))?;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(());
        }
    }
}
