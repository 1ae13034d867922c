//! Who is due, and who is leased: the part of the queue that is held in memory. Pure: time is given.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use message::QueueId;

use crate::{Depth, EntryId, EntryState, Lease, LeaseRequest, NextHop, Timestamp};

/// What is known of an entry without reading the disk.
#[derive(Debug)]
pub(super) struct Slot {
    hop: Arc<str>,
    /// When it is due; while it is leased, when the lease ends.
    pub(super) due: Timestamp,
    pub(super) epoch: u64,
    /// Who holds it.
    pub(super) worker: Option<Arc<str>>,
    /// Its settlement is being written: the lease can neither end nor be given again.
    settling: bool,
}

impl Slot {
    pub(super) fn state(&self) -> EntryState {
        if self.worker.is_some() { EntryState::Leased } else { EntryState::Queued }
    }
}

/// All entries, by when they are due and where they go.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    slots: HashMap<EntryId, Slot>,
    /// Entries waiting for each next hop.
    waiting: HashMap<Arc<str>, BTreeSet<(Timestamp, EntryId)>>,
    /// Each next hop with waiting entries, by the earliest of them.
    heads: BTreeSet<(Timestamp, Arc<str>)>,
    /// Leases, by their end.
    leases: BTreeSet<(Timestamp, EntryId)>,
    /// Entries of each message.
    messages: HashMap<QueueId, Vec<u32>>,
    queued: u64,
}

impl Schedule {
    /// Adds an entry that waits; `epoch` is that of its last lease.
    pub(super) fn insert(&mut self, id: EntryId, hop: &NextHop, due: Timestamp, epoch: u64) {
        let known = self.waiting.get_key_value(hop.0.as_str()).map(|(hop, _)| Arc::clone(hop));
        let hop = known.unwrap_or_else(|| hop.0.as_str().into());
        self.messages.entry(id.message).or_default().push(id.number);
        self.slots.insert(id, Slot { hop: Arc::clone(&hop), due, epoch, worker: None, settling: false });
        self.wait(&hop, due, id);
    }

    pub(super) fn contains(&self, message: QueueId) -> bool {
        self.messages.contains_key(&message)
    }

    pub(super) fn entries(&self, message: QueueId) -> impl Iterator<Item = EntryId> {
        let numbers = self.messages.get(&message).map(Vec::as_slice).unwrap_or_default();
        numbers.iter().map(move |number| EntryId { message, number: *number })
    }

    pub(super) fn slot(&self, id: EntryId) -> Option<&Slot> {
        self.slots.get(&id)
    }

    fn wait(&mut self, hop: &Arc<str>, due: Timestamp, id: EntryId) {
        let set = self.waiting.entry(Arc::clone(hop)).or_default();
        let before = set.first().map(|(due, _)| *due);
        set.insert((due, id));
        self.queued += 1;
        if before.is_none_or(|before| due < before) {
            if let Some(before) = before {
                self.heads.remove(&(before, Arc::clone(hop)));
            }
            self.heads.insert((due, Arc::clone(hop)));
        }
    }

    fn unwait(&mut self, hop: &Arc<str>, due: Timestamp, id: EntryId) {
        let Some(set) = self.waiting.get_mut(hop) else { return };
        let before = set.first().map(|(due, _)| *due);
        if !set.remove(&(due, id)) {
            return;
        }
        self.queued -= 1;
        let after = set.first().map(|(due, _)| *due);
        if before != after {
            if let Some(before) = before {
                self.heads.remove(&(before, Arc::clone(hop)));
            }
            match after {
                Some(after) => {
                    self.heads.insert((after, Arc::clone(hop)));
                }
                None => {
                    self.waiting.remove(hop);
                }
            }
        }
    }

    /// Leases what has been due longest; returns ended leases to the queue first.
    pub(super) fn lease(&mut self, request: &LeaseRequest, now: Timestamp) -> Vec<Lease> {
        self.return_ended(now);
        let except: HashSet<&str> = request.except.iter().map(|hop| hop.0.as_str()).collect();
        let worker: Arc<str> = request.worker.as_str().into();
        let mut leased = Vec::new();
        while leased.len() < request.max {
            let open = self.heads.iter().take_while(|(due, _)| *due <= now);
            let Some(hop) = open.map(|(_, hop)| hop).find(|hop| !except.contains(&***hop)).cloned() else {
                break;
            };
            let Some((_, id)) = self.waiting.get(&hop).and_then(|set| set.first().copied()) else { break };
            leased.extend(self.lease_one(id, &worker, now.after(request.duration)));
        }
        leased
    }

    /// Leases one waiting entry, due or not.
    pub(super) fn lease_one(&mut self, id: EntryId, worker: &Arc<str>, until: Timestamp) -> Option<Lease> {
        let slot = self.slots.get_mut(&id)?;
        let (hop, due) = (Arc::clone(&slot.hop), slot.due);
        slot.epoch += 1;
        slot.worker = Some(Arc::clone(worker));
        slot.due = until;
        let epoch = slot.epoch;
        self.unwait(&hop, due, id);
        self.leases.insert((until, id));
        Some(Lease { entry: id, epoch })
    }

    fn return_ended(&mut self, now: Timestamp) {
        while let Some((end, id)) = self.leases.first().copied().filter(|(end, _)| *end <= now) {
            self.leases.remove(&(end, id));
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.worker = None;
                slot.due = end;
                let hop = Arc::clone(&slot.hop);
                self.wait(&hop, end, id);
            }
        }
    }

    fn held(&mut self, lease: &Lease) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&lease.entry)?;
        (slot.worker.is_some() && slot.epoch == lease.epoch && !slot.settling).then_some(slot)
    }

    /// Moves a lease's end. False when it is stale.
    pub(super) fn renew(&mut self, lease: &Lease, now: Timestamp, duration: Duration) -> bool {
        let end = now.after(duration);
        let Some(slot) = self.held(lease) else { return false };
        let before = std::mem::replace(&mut slot.due, end);
        self.leases.remove(&(before, lease.entry));
        self.leases.insert((end, lease.entry));
        true
    }

    /// Gives a lease back: due now. False when it is stale.
    pub(super) fn hand_back(&mut self, lease: &Lease, now: Timestamp) -> bool {
        let Some(slot) = self.held(lease) else { return false };
        slot.worker = None;
        let end = std::mem::replace(&mut slot.due, now);
        let hop = Arc::clone(&slot.hop);
        self.leases.remove(&(end, lease.entry));
        self.wait(&hop, now, lease.entry);
        true
    }

    /// Holds a lease still while its settlement is written. False when it is stale.
    pub(super) fn begin_settling(&mut self, lease: &Lease, now: Timestamp) -> bool {
        let Some(slot) = self.held(lease) else { return false };
        if slot.due <= now {
            return false;
        }
        slot.settling = true;
        let end = slot.due;
        self.leases.remove(&(end, lease.entry));
        true
    }

    /// The settlement is written: the entry waits again.
    pub(super) fn settled_for_retry(&mut self, id: EntryId, due: Timestamp) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.worker = None;
            slot.settling = false;
            slot.due = due;
            let hop = Arc::clone(&slot.hop);
            self.wait(&hop, due, id);
        }
    }

    /// Forgets an entry, whatever it is doing.
    pub(super) fn remove(&mut self, id: EntryId) {
        let Some(slot) = self.slots.remove(&id) else { return };
        if slot.worker.is_some() {
            self.leases.remove(&(slot.due, id));
        } else {
            self.unwait(&slot.hop, slot.due, id);
        }
        if let Some(numbers) = self.messages.get_mut(&id.message) {
            numbers.retain(|number| *number != id.number);
            if numbers.is_empty() {
                self.messages.remove(&id.message);
            }
        }
    }

    /// Makes a waiting entry due now. False when it is leased or unknown.
    pub(super) fn make_due(&mut self, id: EntryId, now: Timestamp) -> bool {
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.worker.is_none()) else { return false };
        let before = std::mem::replace(&mut slot.due, now);
        let hop = Arc::clone(&slot.hop);
        self.unwait(&hop, before, id);
        self.wait(&hop, now, id);
        true
    }

    /// When there is next something to lease.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let waiting = self.heads.first().map(|(due, _)| *due);
        let ending = self.leases.first().map(|(end, _)| *end);
        waiting.into_iter().chain(ending).min()
    }

    pub(super) fn depth(&self, now: Timestamp) -> Depth {
        let oldest_due = self.heads.first().map_or(Duration::ZERO, |(due, _)| now.since(*due));
        Depth { queued: self.queued, leased: self.slots.len() as u64 - self.queued, oldest_due }
    }
}
