//! What waits: in lanes, one for what a tenant has for a next hop. Tenants take turns, by weight, and so do
//! the lanes of each. A turn comes when the first entry is due, or after all that were not served since.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::limits::Limits;
use crate::{EntryId, Scope, Timestamp};

/// Tenants looked at in one round, when some have more than their share.
const LOOKS: usize = 256;
/// A lane among the mail of nobody whose source pool is passed over is not looked at again for so long.
const PASSED_FOR: Duration = Duration::from_millis(250);

/// When something is next looked at; the number tells apart what was served in one millisecond.
type Turn = (Timestamp, u64);

#[derive(Debug, Default)]
struct Lane {
    entries: BTreeSet<(Timestamp, EntryId)>,
    /// Not before this, whatever is due.
    served: Turn,
    turn: Turn,
}

#[derive(Debug, Default)]
struct Tenant {
    lanes: HashMap<Arc<str>, Lane>,
    turns: BTreeSet<(Turn, Arc<str>)>,
    served: Turn,
    turn: Turn,
}

/// Where an entry waits.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) tenant: Arc<str>,
    pub(super) hop: Arc<str>,
}

/// What is passed over, by the names of next hops and of source pools.
pub(super) struct Except<'a> {
    pub(super) hops: HashSet<&'a str>,
    pub(super) pools: HashSet<&'a str>,
}

impl Except<'_> {
    fn has_pool(&self, scope: Option<&Scope>) -> bool {
        matches!(scope, Some(Scope::Pool(name)) if self.pools.contains(name.as_str()))
    }
}

/// All that waits.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    tenants: HashMap<Arc<str>, Tenant>,
    turns: BTreeSet<(Turn, Arc<str>)>,
    /// Each lane, by when its first entry is due.
    heads: BTreeSet<(Timestamp, Arc<str>, Arc<str>)>,
    /// Counts services.
    services: u64,
    len: u64,
}

impl Lanes {
    /// How many entries wait.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// When the entry that has been due longest was, or the first will be.
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.heads.first().map(|(due, ..)| *due)
    }

    /// When something is next to be looked at.
    pub(super) fn next_turn(&self) -> Option<Timestamp> {
        self.turns.first().map(|((at, _), _)| *at)
    }

    /// A place with names that are shared with what waits there.
    pub(super) fn place(&self, tenant: &str, hop: &str) -> Place {
        let known = self.tenants.get_key_value(tenant);
        let hop = known
            .and_then(|(_, tenant)| tenant.lanes.get_key_value(hop))
            .map_or_else(|| hop.into(), |(hop, _)| Arc::clone(hop));
        Place { tenant: known.map_or_else(|| tenant.into(), |(tenant, _)| Arc::clone(tenant)), hop }
    }

    pub(super) fn insert(&mut self, place: &Place, due: Timestamp, id: EntryId) {
        let tenant = self.tenants.entry(Arc::clone(&place.tenant)).or_default();
        let lane = tenant.lanes.entry(Arc::clone(&place.hop)).or_default();
        let before = lane.entries.first().map(|(due, _)| *due);
        if lane.entries.insert((due, id)) {
            self.len += 1;
        }
        self.follow(place, before);
    }

    pub(super) fn remove(&mut self, place: &Place, due: Timestamp, id: EntryId) {
        let Some(tenant) = self.tenants.get_mut(&place.tenant) else { return };
        let Some(lane) = tenant.lanes.get_mut(&place.hop) else { return };
        let before = lane.entries.first().map(|(due, _)| *due);
        if lane.entries.remove(&(due, id)) {
            self.len -= 1;
        }
        self.follow(place, before);
    }

    /// The lane's turn, and its tenant's, follow its first entry, which was due at `before`.
    fn follow(&mut self, place: &Place, before: Option<Timestamp>) {
        let Some(tenant) = self.tenants.get_mut(&place.tenant) else { return };
        let Some(lane) = tenant.lanes.get_mut(&place.hop) else { return };
        let first = lane.entries.first().map(|(due, _)| *due);
        let head = |due| (due, Arc::clone(&place.tenant), Arc::clone(&place.hop));
        if before != first {
            before.map(|due| self.heads.remove(&head(due)));
            first.map(|due| self.heads.insert(head(due)));
        }
        tenant.turns.remove(&(lane.turn, Arc::clone(&place.hop)));
        match first {
            Some(due) => {
                lane.turn = lane.served.max((due, 0));
                tenant.turns.insert((lane.turn, Arc::clone(&place.hop)));
            }
            None => drop(tenant.lanes.remove(&place.hop)),
        }
        self.turns.remove(&(tenant.turn, Arc::clone(&place.tenant)));
        match tenant.turns.first() {
            Some((turn, _)) => {
                tenant.turn = tenant.served.max(*turn);
                self.turns.insert((tenant.turn, Arc::clone(&place.tenant)));
            }
            None => drop(self.tenants.remove(&place.tenant)),
        }
    }

    /// A turn behind all that are due at `at`.
    fn behind(&mut self, at: Timestamp) -> Turn {
        self.services += 1;
        (at, self.services)
    }

    fn serve_lane_later(&mut self, place: &Place, turn: Turn) {
        let Some(tenant) = self.tenants.get_mut(&place.tenant) else { return };
        let Some(lane) = tenant.lanes.get_mut(&place.hop) else { return };
        let first = lane.entries.first().map(|(due, _)| *due);
        lane.served = turn;
        self.follow(place, first);
    }

    fn serve_tenant_later(&mut self, name: &Arc<str>, turn: Turn) {
        let Some(tenant) = self.tenants.get_mut(name) else { return };
        tenant.served = turn;
        self.turns.remove(&(tenant.turn, Arc::clone(name)));
        if let Some((first, _)) = tenant.turns.first() {
            tenant.turn = tenant.served.max(*first);
            self.turns.insert((tenant.turn, Arc::clone(name)));
        }
    }

    /// Takes at most `max` entries that are due, from all tenants in turn.
    pub(super) fn claim(
        &mut self,
        max: usize,
        now: Timestamp,
        except: &Except<'_>,
        limits: &mut Limits,
    ) -> Vec<(Place, EntryId)> {
        let mut taken = Vec::new();
        let began = self.services;
        // The first round is for those not served since their turn came; the others give what is left.
        let mut first_round = true;
        while taken.len() < max {
            let window = if first_round { max - taken.len() } else { LOOKS };
            let due =
                self.turns.iter().take_while(|(turn, _)| turn.0 <= now && (!first_round || turn.1 <= began));
            let round: Vec<Arc<str>> = due.take(window).map(|(_, name)| Arc::clone(name)).collect();
            let mut weights: usize = round.iter().map(|name| limits.weight(name)).sum();
            let before = taken.len();
            for name in &round {
                let (weight, left) = (limits.weight(name), max - taken.len());
                let share = left.min((left * weight / weights.max(1)).max(1));
                weights -= weight;
                if share > 0 {
                    self.serve(name, share, now, except, limits, &mut taken);
                }
            }
            if round.is_empty() || (!first_round && taken.len() == before) {
                if !first_round {
                    break;
                }
                first_round = false;
            }
        }
        taken
    }

    /// Takes at most `share` entries of a tenant, from all its lanes in turn.
    fn serve(
        &mut self,
        name: &Arc<str>,
        share: usize,
        now: Timestamp,
        except: &Except<'_>,
        limits: &mut Limits,
        taken: &mut Vec<(Place, EntryId)>,
    ) {
        let pool = if name.is_empty() { None } else { limits.pool_of(name, "") };
        let scopes: Vec<Scope> = [Scope::Tenant(name.to_string())].into_iter().chain(pool.clone()).collect();
        let tokens = match limits.tokens_of_all(&scopes, now) {
            Ok(tokens) if !except.has_pool(pool.as_ref()) => tokens,
            closed => {
                let later = self.behind(now.after(closed.err().unwrap_or_default()));
                return self.serve_tenant_later(name, later);
            }
        };
        let share = share.min(tokens);
        let Some(tenant) = self.tenants.get(name) else { return };
        let due = tenant.turns.iter().take_while(|((at, _), _)| *at <= now).map(|(_, hop)| hop);
        let hops: Vec<_> = due.filter(|hop| !except.hops.contains(&***hop)).take(share).cloned().collect();
        let before = taken.len();
        for (at, hop) in hops.iter().enumerate() {
            let left = share - (taken.len() - before);
            let place = Place { tenant: Arc::clone(name), hop: Arc::clone(hop) };
            self.serve_lane(&place, left.div_ceil(hops.len() - at), now, except, limits, taken);
        }
        scopes.iter().for_each(|scope| limits.spend(scope, taken.len() - before));
        let later = self.behind(now);
        self.serve_tenant_later(name, later);
    }

    fn serve_lane(
        &mut self,
        place: &Place,
        share: usize,
        now: Timestamp,
        except: &Except<'_>,
        limits: &mut Limits,
        taken: &mut Vec<(Place, EntryId)>,
    ) {
        // That of a tenant has been looked at.
        let pool = if place.tenant.is_empty() { limits.pool_of("", &place.hop) } else { None };
        let scopes: Vec<Scope> =
            [Scope::NextHop(place.hop.to_string())].into_iter().chain(pool.clone()).collect();
        let tokens = match limits.tokens_of_all(&scopes, now) {
            Ok(tokens) if !except.has_pool(pool.as_ref()) => tokens,
            closed => {
                let later = self.behind(now.after(closed.err().unwrap_or(PASSED_FOR)));
                return self.serve_lane_later(place, later);
            }
        };
        let Some(lane) = self.tenants.get(&place.tenant).and_then(|tenant| tenant.lanes.get(&place.hop))
        else {
            return;
        };
        let due = lane.entries.iter().take_while(|(due, _)| *due <= now);
        let entries: Vec<_> = due.take(share.min(tokens)).copied().collect();
        let later = self.behind(now);
        self.serve_lane_later(place, later);
        scopes.iter().for_each(|scope| limits.spend(scope, entries.len()));
        for (due, id) in entries {
            self.remove(place, due, id);
            taken.push((place.clone(), id));
        }
    }
}
