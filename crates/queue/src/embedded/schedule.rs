//! Who is due, and who is leased: the part of the queue that is held in memory. Pure: time is given.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use message::QueueId;

use crate::{Depth, EntryId, EntryState, Lease, LeaseRequest, MAX_LOST_LEASES, NextHop, Timestamp};

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
    /// Why it is held, or will be when its lease ends.
    pub(super) held: Option<Arc<str>>,
    /// Leases in a row that ended without a word.
    lost: u32,
}

impl Slot {
    pub(super) fn state(&self) -> EntryState {
        match (&self.worker, &self.held) {
            (Some(_), _) => EntryState::Leased,
            (None, Some(_)) => EntryState::Held,
            (None, None) => EntryState::Queued,
        }
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
    held: u64,
}

impl Schedule {
    /// Adds an entry that waits, or is held; `epoch` is that of its last lease.
    pub(super) fn insert(
        &mut self,
        id: EntryId,
        hop: &NextHop,
        due: Timestamp,
        epoch: u64,
        held: Option<&str>,
    ) {
        let known = self.waiting.get_key_value(hop.0.as_str()).map(|(hop, _)| Arc::clone(hop));
        let hop = known.unwrap_or_else(|| hop.0.as_str().into());
        self.messages.entry(id.message).or_default().push(id.number);
        let held = held.map(Arc::from);
        let slot = Slot { hop: Arc::clone(&hop), due, epoch, worker: None, settling: false, held, lost: 0 };
        self.slots.insert(id, slot);
        self.rest(id);
    }

    /// Puts an entry that nobody has in its place: among those that wait, or aside.
    fn rest(&mut self, id: EntryId) {
        let Some(slot) = self.slots.get(&id) else { return };
        let (hop, due, held) = (Arc::clone(&slot.hop), slot.due, slot.held.is_some());
        if held { self.held += 1 } else { self.wait(&hop, due, id) }
    }

    /// Takes an entry that nobody has out of its place.
    fn unrest(&mut self, id: EntryId) {
        let Some(slot) = self.slots.get(&id) else { return };
        let (hop, due, held) = (Arc::clone(&slot.hop), slot.due, slot.held.is_some());
        if held { self.held -= 1 } else { self.unwait(&hop, due, id) }
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
                slot.lost += 1;
                if slot.lost >= MAX_LOST_LEASES {
                    let why = format!("{} leases in a row ended without a word", slot.lost);
                    slot.held.get_or_insert_with(|| why.into());
                }
                self.rest(id);
            }
        }
    }

    fn held(&mut self, lease: &Lease) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&lease.entry)?;
        (slot.worker.is_some() && slot.epoch == lease.epoch && !slot.settling).then_some(slot)
    }

    /// Whether a lease is the entry's present one, and has not ended.
    pub(super) fn holds(&mut self, lease: &Lease, now: Timestamp) -> bool {
        self.held(lease).is_some_and(|slot| slot.due > now)
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
        self.leases.remove(&(end, lease.entry));
        self.rest(lease.entry);
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
            slot.lost = 0;
            self.rest(id);
        }
    }

    /// Forgets an entry, whatever it is doing.
    pub(super) fn remove(&mut self, id: EntryId) {
        let Some(slot) = self.slots.get(&id) else { return };
        if slot.worker.is_some() {
            self.leases.remove(&(slot.due, id));
        } else {
            self.unrest(id);
        }
        self.slots.remove(&id);
        if let Some(numbers) = self.messages.get_mut(&id.message) {
            numbers.retain(|number| *number != id.number);
            if numbers.is_empty() {
                self.messages.remove(&id.message);
            }
        }
    }

    /// Makes an entry that nobody has due now, held or not; one that is leased is not held when it ends.
    pub(super) fn make_due(&mut self, id: EntryId, now: Timestamp) {
        let leased = self.slots.get(&id).is_none_or(|slot| slot.worker.is_some());
        if !leased {
            self.unrest(id);
        }
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.held = None;
        slot.lost = 0;
        if !leased {
            slot.due = now;
            self.rest(id);
        }
    }

    /// Puts an entry aside; one that is leased is when its lease ends.
    pub(super) fn hold(&mut self, id: EntryId, why: &str) {
        let leased = self.slots.get(&id).is_none_or(|slot| slot.worker.is_some());
        if !leased {
            self.unrest(id);
        }
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.held = Some(why.into());
        if !leased {
            self.rest(id);
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    /// When there is next something to lease.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let waiting = self.heads.first().map(|(due, _)| *due);
        let ending = self.leases.first().map(|(end, _)| *end);
        waiting.into_iter().chain(ending).min()
    }

    pub(super) fn depth(&self, now: Timestamp) -> Depth {
        let oldest_due = self.heads.first().map_or(Duration::ZERO, |(due, _)| now.since(*due));
        let leased = self.len() - self.queued - self.held;
        Depth { queued: self.queued, leased, held: self.held, oldest_due }
    }
}
