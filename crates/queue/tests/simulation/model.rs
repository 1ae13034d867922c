//! The queue as plainly as it can be written down: what each entry is doing, and what has been counted.

use std::collections::{BTreeMap, BTreeSet};

use message::QueueId;
use queue::{
    Allowance, Closing, EntryId, EntryState, EventKind, Lease, Leased, Ledger, MAX_LOST_LEASES, Policy,
    Scope, Target, Verb,
};

use crate::workload::{Message, Outcome};

/// An entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Known {
    pub(crate) hop: String,
    pub(crate) tenant: String,
    /// When it is due; while it is leased, when the lease ends.
    pub(crate) due: u64,
    pub(crate) expires: u64,
    pub(crate) epoch: u64,
    pub(crate) attempts: u32,
    pub(crate) leased: bool,
    pub(crate) held: bool,
    pub(crate) doomed: bool,
    pub(crate) doubt: Option<String>,
    /// The first of its recipients was delivered.
    pub(crate) halfway: bool,
    /// Leases in a row that ended without a word.
    pub(crate) lost: u32,
    /// What a backend of one process has on disk: when it is due, its epoch, and whether it is held.
    disk: (u64, u64, bool),
}

impl Known {
    /// What it is doing.
    pub(crate) fn state(&self) -> EntryState {
        match (self.leased, self.held) {
            (true, _) => EntryState::Leased,
            (false, true) => EntryState::Held,
            (false, false) => EntryState::Queued,
        }
    }

    fn is_suspended(&self, suspended: &BTreeSet<Scope>) -> bool {
        let (hop, tenant) = (Scope::NextHop(self.hop.clone()), Scope::Tenant(self.tenant.clone()));
        suspended.contains(&hop) || suspended.contains(&tenant)
    }
}

/// The most tokens that a scope can have.
#[derive(Debug, Clone, PartialEq)]
struct Bucket {
    level: f64,
    at: u64,
    per_ms: f64,
    burst: f64,
}

/// The whole queue.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    /// By the store's clock.
    pub(crate) now: u64,
    /// Leases and staged parts outlive the process that gave or wrote them.
    keeps_leases: bool,
    pub(crate) entries: BTreeMap<EntryId, Known>,
    /// Every message ever accepted, and when.
    pub(crate) seen: BTreeMap<QueueId, u64>,
    pub(crate) staged: BTreeSet<QueueId>,
    pub(crate) ledger: Ledger,
    pub(crate) suspended: BTreeSet<Scope>,
    buckets: BTreeMap<Scope, Bucket>,
    /// What has to be in the outbox, but for `held`: a lane or a lease may tell it later.
    pub(crate) events: Vec<(EntryId, EventKind)>,
    /// Nothing is or was suspended or bounded: what is due is leased.
    unhindered: bool,
    /// The latest that the store's time was, before it was set back: until it is as late again, turns may wait.
    pub(crate) latest: u64,
}

impl Model {
    pub(crate) fn new(now: u64, keeps_leases: bool, unhindered: bool) -> Self {
        Self {
            now,
            keeps_leases,
            entries: BTreeMap::new(),
            seen: BTreeMap::new(),
            staged: BTreeSet::new(),
            ledger: Ledger::default(),
            suspended: BTreeSet::new(),
            buckets: BTreeMap::new(),
            events: Vec::new(),
            unhindered,
            latest: now,
        }
    }

    pub(crate) fn is_open(&self, message: QueueId) -> bool {
        self.entries_of(message).next().is_some()
    }

    fn entries_of(&self, message: QueueId) -> impl Iterator<Item = EntryId> {
        let first = EntryId { message, number: 0 };
        self.entries.range(first..).map(|(id, _)| *id).take_while(move |id| id.message == message)
    }

    /// A message is handed in: true when it is fresh, `None` when its part is not there.
    pub(crate) fn accept(&mut self, message: &Message) -> Option<bool> {
        if self.seen.contains_key(&message.id) {
            return Some(false);
        }
        if message.long && !self.staged.remove(&message.id) {
            return None;
        }
        self.seen.insert(message.id, self.now);
        for (number, (tenant, hop)) in (0..).zip(&message.places) {
            let id = EntryId { message: message.id, number };
            let known = Known {
                hop: (*hop).to_owned(),
                tenant: (*tenant).to_owned(),
                due: self.now,
                expires: self.now + message.max_age,
                epoch: 0,
                attempts: 0,
                leased: false,
                held: false,
                doomed: false,
                doubt: None,
                halfway: false,
                lost: 0,
                disk: (self.now, 0, false),
            };
            self.entries.insert(id, known);
            self.events.push((id, EventKind::Accepted));
            self.ledger.accepted += 1;
        }
        Some(true)
    }

    /// The backend has leased these: with a lease of at most `max`, or with an accept.
    pub(crate) fn leased(
        &mut self,
        given: &[Leased],
        duration: u64,
        except: &[String],
    ) -> Result<(), String> {
        for leased in given {
            let (id, now) = (leased.lease.entry, self.now);
            if leased.now.0 != now {
                return Err(format!("it is {now}, and {id} was leased at {}", leased.now.0));
            }
            let Some(known) = self.entries.get_mut(&id) else { return Err(format!("{id} is not there")) };
            if known.state() != EntryState::Queued || known.due > now || except.contains(&known.hop) {
                return Err(format!("at {now} {id} was leased, and it is {known:?}"));
            }
            if known.is_suspended(&self.suspended) {
                return Err(format!("{id} was leased, and is suspended"));
            }
            known.epoch += 1;
            if leased.lease.epoch != known.epoch {
                return Err(format!("{id} has epoch {}, not {}", leased.lease.epoch, known.epoch));
            }
            (known.leased, known.due) = (true, now + duration);
            let scopes = [Scope::NextHop(known.hop.clone()), Scope::Tenant(known.tenant.clone())];
            for scope in scopes {
                self.spend(scope)?;
            }
        }
        Ok(())
    }

    fn spend(&mut self, scope: Scope) -> Result<(), String> {
        let Some(bucket) = self.buckets.get_mut(&scope) else { return Ok(()) };
        let since = self.now.saturating_sub(bucket.at) as f64;
        bucket.level = (bucket.level + since * bucket.per_ms).min(bucket.burst) - 1.0;
        bucket.at = self.now;
        if bucket.level < -0.01 { Err(format!("{scope} is beyond its rate: {bucket:?}")) } else { Ok(()) }
    }

    /// Leases whose end has come: each lease returns them first.
    pub(crate) fn end_leases(&mut self) {
        for known in self.entries.values_mut().filter(|known| known.leased && known.due <= self.now) {
            known.leased = false;
            known.lost += 1;
            known.held |= known.lost >= MAX_LOST_LEASES;
        }
    }

    /// How many a lease gives at least.
    pub(crate) fn due(&self, except: &[String]) -> usize {
        let due = |known: &&Known| {
            known.state() == EntryState::Queued && known.due <= self.now && !except.contains(&known.hop)
        };
        if self.unhindered && self.now >= self.latest { self.entries.values().filter(due).count() } else { 0 }
    }

    /// When the first entry that waits or is leased comes to be due.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.entries.values().filter(|known| known.state() != EntryState::Held).map(|known| known.due).min()
    }

    fn holder(&mut self, lease: Lease) -> Option<&mut Known> {
        let now = self.now;
        let known = self.entries.get_mut(&lease.entry)?;
        (known.leased && known.epoch == lease.epoch && known.due > now).then_some(known)
    }

    pub(crate) fn renew(&mut self, lease: Lease, duration: u64) -> bool {
        let end = self.now + duration;
        self.holder(lease).map(|known| known.due = end).is_some()
    }

    pub(crate) fn doubt(&mut self, lease: Lease, peer: &str) -> bool {
        let Some(known) = self.holder(lease) else { return false };
        known.doubt = Some(peer.to_owned());
        known.disk.1 = lease.epoch;
        self.events.push((lease.entry, EventKind::InDoubt));
        true
    }

    pub(crate) fn hand_back(&mut self, lease: Lease) -> bool {
        let now = self.now;
        self.holder(lease).map(|known| (known.leased, known.due) = (false, now)).is_some()
    }

    pub(crate) fn settle(&mut self, lease: Lease, outcome: &Outcome) -> bool {
        let now = self.now;
        let Some(known) = self.holder(lease) else { return false };
        match outcome {
            Outcome::Retry { after, halfway } => {
                (known.leased, known.due, known.lost, known.doubt) = (false, now + after, 0, None);
                known.attempts += 1;
                known.halfway |= *halfway;
                (known.disk.0, known.disk.1) = (known.due, lease.epoch);
                self.events.push((lease.entry, EventKind::Deferred));
            }
            Outcome::Done { closing, bounce } => {
                let event = match closing {
                    Closing::Delivered => EventKind::Delivered,
                    Closing::Bounced => EventKind::Bounced,
                    Closing::Expired => EventKind::Expired,
                };
                self.ledger.close(*closing);
                self.entries.remove(&lease.entry);
                self.events.push((lease.entry, event));
                if let Some(bounce) = bounce {
                    self.accept(bounce);
                }
            }
        }
        true
    }

    /// How many entries a verb concerns.
    pub(crate) fn operate(&mut self, target: Target, verb: &Verb) -> u64 {
        let ids: Vec<EntryId> = self.entries_of(target.message()).filter(|id| target.is(*id)).collect();
        let (now, mut count) = (self.now, 0);
        for id in ids {
            let Some(known) = self.entries.get_mut(&id) else { continue };
            let event = match verb {
                Verb::RetryNow if known.state() == EntryState::Queued => {
                    known.due = now;
                    EventKind::Retried
                }
                Verb::Release if known.held => {
                    known.release(now);
                    EventKind::Released
                }
                Verb::RetryNow | Verb::Release => continue,
                Verb::Hold { .. } => {
                    (known.held, known.disk.2) = (true, true);
                    EventKind::Held
                }
                Verb::Bounce { .. } => {
                    known.release(now);
                    known.doomed = true;
                    EventKind::Doomed
                }
                Verb::Remove => EventKind::Removed,
            };
            known.disk.0 = now;
            count += 1;
            if event != EventKind::Held {
                self.events.push((id, event));
            }
            if event == EventKind::Removed {
                self.entries.remove(&id);
                self.ledger.removed += 1;
            }
        }
        count
    }

    pub(crate) fn suspend(&mut self, scope: &Scope) {
        self.unhindered = false;
        self.suspended.insert(scope.clone());
    }

    pub(crate) fn resume(&mut self, scope: &Scope) -> bool {
        self.suspended.remove(scope)
    }

    pub(crate) fn set_policy(&mut self, policy: &Policy) {
        self.unhindered &= policy.tenants.is_empty() && policy.next_hops.is_empty();
        let tenants = policy.tenants.iter().map(|(name, one)| (Scope::Tenant(name.0.clone()), one));
        let hops = policy.next_hops.iter().map(|(name, one)| (Scope::NextHop(name.0.clone()), one));
        let at = self.now;
        let bucket = |allowance: &Allowance| {
            let per_ms = f64::from(allowance.per_minute?) / 60_000.0;
            let burst = (per_ms * 5000.0).max(1.0);
            Some(Bucket { level: burst, at, per_ms, burst })
        };
        self.buckets = tenants.chain(hops).filter_map(|(scope, one)| Some((scope, bucket(one)?))).collect();
    }

    /// The process with the queue has ended and begun again.
    pub(crate) fn restart(&mut self) {
        if self.keeps_leases {
            return;
        }
        for known in self.entries.values_mut() {
            (known.due, known.epoch, known.held) = known.disk;
            (known.leased, known.lost) = (false, 0);
        }
        self.staged.clear();
        self.buckets.clear();
    }
}

impl Known {
    fn release(&mut self, now: u64) {
        (self.held, self.lost, self.disk.2) = (false, 0, false);
        if !self.leased {
            self.due = now;
        }
    }
}
