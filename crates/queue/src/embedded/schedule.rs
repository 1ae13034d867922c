//! Who is due, and who is leased: the part of the queue that is held in memory. Pure: time is given.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use message::QueueId;

use super::lanes::{Except, Lanes, Place};
use super::limits::Limits;
use crate::invariants::Broken;
use crate::{
    Depth, EntryId, EntryState, Lease, LeaseRequest, MAX_LOST_LEASES, NextHop, Scope, Tenant, Timestamp,
};

/// What is known of an entry without reading the disk.
#[derive(Debug)]
pub(super) struct Slot {
    place: Place,
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
    lanes: Lanes,
    pub(super) limits: Limits,
    /// Leases, by their end.
    leases: BTreeSet<(Timestamp, EntryId)>,
    /// Entries of each message.
    messages: HashMap<QueueId, Vec<u32>>,
    held: u64,
}

impl Schedule {
    /// Adds an entry that waits, or is held; `epoch` is that of its last lease.
    pub(super) fn insert(
        &mut self,
        id: EntryId,
        (tenant, hop): (&Tenant, &NextHop),
        due: Timestamp,
        epoch: u64,
        held: Option<&str>,
    ) {
        let place = self.lanes.place(&tenant.0, &hop.0);
        self.messages.entry(id.message).or_default().push(id.number);
        let held = held.map(Arc::from);
        let slot = Slot { place, due, epoch, worker: None, settling: false, held, lost: 0 };
        self.slots.insert(id, slot);
        self.rest(id);
    }

    /// Puts an entry that nobody has in its place: among those that wait, or aside.
    fn rest(&mut self, id: EntryId) {
        let Some(slot) = self.slots.get(&id) else { return };
        if slot.held.is_some() { self.held += 1 } else { self.lanes.insert(&slot.place, slot.due, id) }
    }

    /// Takes an entry that nobody has out of its place.
    fn unrest(&mut self, id: EntryId) {
        let Some(slot) = self.slots.get(&id) else { return };
        if slot.held.is_some() { self.held -= 1 } else { self.lanes.remove(&slot.place, slot.due, id) }
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

    /// Leases what is due, tenants and next hops in turn; returns ended leases to the queue first.
    pub(super) fn lease(&mut self, request: &LeaseRequest, now: Timestamp) -> Vec<Lease> {
        self.return_ended(now);
        let except = Except {
            hops: request.except.iter().map(|hop| hop.0.as_str()).collect(),
            pools: request.except_pools.iter().map(|pool| pool.0.as_str()).collect(),
        };
        let worker: Arc<str> = request.worker.as_str().into();
        let claimed = self.lanes.claim(request.max, now, &except, &mut self.limits);
        let until = now.after(request.duration);
        claimed.into_iter().filter_map(|(_, id)| self.give(id, &worker, until)).collect()
    }

    /// Leases one waiting entry, due or not, unless it is suspended or beyond its rate.
    pub(super) fn lease_one(
        &mut self,
        id: EntryId,
        worker: &Arc<str>,
        now: Timestamp,
        until: Timestamp,
    ) -> Option<Lease> {
        let slot = self.slots.get(&id)?;
        let Place { tenant, hop } = &slot.place;
        let scopes = [Scope::Tenant(tenant.to_string()), Scope::NextHop(hop.to_string())];
        let scopes: Vec<Scope> = scopes.into_iter().chain(self.limits.pool_of(tenant, hop)).collect();
        if self.limits.tokens_of_all(&scopes, now).is_err() {
            return None;
        }
        scopes.iter().for_each(|scope| self.limits.spend(scope, 1));
        self.lanes.remove(&slot.place, slot.due, id);
        self.give(id, worker, until)
    }

    /// Leases an entry that has been taken out of its lane.
    fn give(&mut self, id: EntryId, worker: &Arc<str>, until: Timestamp) -> Option<Lease> {
        let slot = self.slots.get_mut(&id)?;
        slot.epoch += 1;
        slot.worker = Some(Arc::clone(worker));
        slot.due = until;
        self.leases.insert((until, id));
        Some(Lease { entry: id, epoch: slot.epoch })
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

    /// The entry of a lease that is its present one, and has not ended.
    fn held(&mut self, lease: &Lease, now: Timestamp) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(&lease.entry)?;
        let present = slot.worker.is_some() && slot.epoch == lease.epoch && !slot.settling;
        (present && slot.due > now).then_some(slot)
    }

    /// Whether a lease is the entry's present one, and has not ended.
    pub(super) fn holds(&mut self, lease: &Lease, now: Timestamp) -> bool {
        self.held(lease, now).is_some()
    }

    /// Moves a lease's end. False when it is stale.
    pub(super) fn renew(&mut self, lease: &Lease, now: Timestamp, duration: Duration) -> bool {
        let end = now.after(duration);
        let Some(slot) = self.held(lease, now) else { return false };
        let before = std::mem::replace(&mut slot.due, end);
        self.leases.remove(&(before, lease.entry));
        self.leases.insert((end, lease.entry));
        true
    }

    /// Gives a lease back: due now. False when it is stale.
    pub(super) fn hand_back(&mut self, lease: &Lease, now: Timestamp) -> bool {
        let Some(slot) = self.held(lease, now) else { return false };
        slot.worker = None;
        let end = std::mem::replace(&mut slot.due, now);
        self.leases.remove(&(end, lease.entry));
        self.rest(lease.entry);
        true
    }

    /// Holds a lease still while its settlement is written. False when it is stale.
    pub(super) fn begin_settling(&mut self, lease: &Lease, now: Timestamp) -> bool {
        let Some(slot) = self.held(lease, now) else { return false };
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

    /// Makes an entry that waits due now.
    pub(super) fn retry(&mut self, id: EntryId, now: Timestamp) {
        let waits = self.slots.get(&id).is_some_and(|slot| slot.state() == EntryState::Queued);
        if waits {
            self.unrest(id);
            self.slots.entry(id).and_modify(|slot| slot.due = now);
            self.rest(id);
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

    /// Whether each entry is in one place: it waits in its lane, or is leased, or held (invariant 8).
    pub(super) fn in_place(&self) -> Result<(), Broken> {
        let (waiting, leased) = (self.lanes.len(), self.leases.len() as u64);
        if waiting + leased + self.held == self.len() {
            return Ok(());
        }
        let found =
            format!("of {} entries {waiting} wait, {leased} are leased, {} held", self.len(), self.held);
        Err(Broken { number: 8, found })
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    /// When there is next something to lease.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let ending = self.leases.first().map(|(end, _)| *end);
        self.lanes.next_turn().into_iter().chain(ending).min()
    }

    pub(super) fn depth(&self, now: Timestamp) -> Depth {
        let oldest_due = self.lanes.first_due().map_or(Duration::ZERO, |due| now.since(due));
        let queued = self.lanes.len();
        Depth { queued, leased: self.len() - queued - self.held, held: self.held, oldest_due }
    }
}
