//! Who may run now: the limits on attempts at once, over all next hops, to each, and by each source pool that has one.
//!
//! An entry in this worker's hands either runs or waits for a turn of its next hop, or of its source pool. How many run to
//! one next hop follows what it does: the limit halves when an attempt got nothing through, and
//! doubles, up to the setting, when one did. So a dead next hop with a deep queue holds one slot,
//! not all of them. One that still cannot be reached then is left alone for a while: what is due for
//! it meanwhile shares the failure, instead of waiting its turn for a time-out each.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use message::Failure;
use queue::{Leased, NextHop, Pool, Scope};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Span;

/// An entry that is leased for the first time within this is still in the trace of its message.
const SAME_TRACE: Duration = Duration::from_secs(60);
/// So many idle next hops are remembered with what was learnt of them.
const REMEMBERED: usize = 4096;

/// An entry in hand.
pub(crate) struct InHand {
    pub(crate) leased: Leased,
    /// Open for as long as the lease is held.
    pub(crate) span: Span,
    /// Since when.
    pub(crate) since: Instant,
    /// Why its next hop is left alone at present.
    pub(crate) unreachable: Option<Failure>,
    /// The source pool that it leaves by, where that has a limit.
    pub(crate) pool: Option<String>,
    /// Its next hop's limit by the settings.
    most: usize,
}

/// This worker's limit in a source pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolLimit {
    pub(crate) name: String,
    /// Attempts at once.
    pub(crate) most: usize,
}

/// What an attempt has shown of its next hop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Answer {
    /// It served or refused at least one recipient.
    Given,
    /// It deferred everything.
    Later,
    /// It could not be reached, for this reason.
    Unreachable(Failure),
    /// Nothing: the attempt was not made, or broken off.
    #[default]
    Unknown,
}

/// What became of an entry that was leased.
pub(crate) enum Admission {
    /// It has a slot: run it, then call [`Slots::release_next_hop`] and [`Slots::finish`].
    Run(InHand),
    /// It waits; a running attempt of its next hop will come for it.
    Waits,
    /// There is no place for it: hand it back.
    Refused(Leased),
}

/// The limits, and what is in hand.
pub(crate) struct Slots {
    concurrency: usize,
    /// How long an unreachable next hop is left alone.
    rest: Duration,
    state: Mutex<State>,
    /// Told when a slot, or a next hop that was passed over, becomes free.
    freed: Notify,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: usize,
    closed: bool,
    hops: HashMap<NextHop, Hop>,
    /// Those that have a limit.
    pools: HashMap<String, PoolState>,
}

/// What waits here has a running attempt of its pool that will come for it.
#[derive(Default)]
struct PoolState {
    running: usize,
    most: usize,
    waiting: VecDeque<InHand>,
    passed_over: bool,
}

impl PoolState {
    fn is_full(&self) -> bool {
        self.running >= self.most && self.waiting.len() >= self.most.div_ceil(2)
    }
}

struct Hop {
    running: usize,
    waiting: VecDeque<InHand>,
    limit: usize,
    most: usize,
    passed_over: bool,
    unreachable: Option<(Instant, Failure)>,
}

impl Hop {
    fn new(most: usize) -> Self {
        let (waiting, limit) = (VecDeque::new(), most);
        Self { running: 0, waiting, limit, most, passed_over: false, unreachable: None }
    }

    fn learn(&mut self, answer: Answer, rest: Duration) {
        match answer {
            Answer::Given => {
                self.limit = (self.limit * 2).min(self.most);
                self.unreachable = None;
            }
            Answer::Unreachable(failure) if self.limit == 1 => {
                self.unreachable = Some((Instant::now() + rest, failure));
            }
            Answer::Later | Answer::Unreachable(_) => self.limit = (self.limit / 2).max(1).min(self.most),
            Answer::Unknown => {}
        }
    }

    /// Why this next hop is left alone, if it still is.
    fn unreachable(&self) -> Option<Failure> {
        let (until, failure) = self.unreachable.as_ref()?;
        (Instant::now() < *until).then(|| failure.clone())
    }

    /// Enough waits here that no more need be leased.
    fn is_full(&self) -> bool {
        self.running >= self.limit && self.waiting.len() >= self.limit.div_ceil(2)
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting.is_empty()
    }
}

impl Slots {
    pub(crate) fn new(concurrency: usize, rest: Duration) -> Self {
        Self { concurrency, rest, state: Mutex::default(), freed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while holding it; and the counts stay usable even then.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many entries may be leased now.
    pub(crate) fn room(&self) -> usize {
        self.room_in(&self.state())
    }

    fn room_in(&self, state: &State) -> usize {
        if state.closed { 0 } else { self.concurrency.saturating_sub(state.running.max(state.waiting)) }
    }

    /// Whether an entry of this next hop would find a place.
    pub(crate) fn has_room_for(&self, hop: &NextHop, pool: Option<&PoolLimit>) -> bool {
        let state = self.state();
        let pool_has_room = |pool: &PoolLimit| match state.pools.get(&pool.name) {
            Some(known) => !known.is_full(),
            None => pool.most > 0,
        };
        !state.closed
            && state.running < self.concurrency
            && state.hops.get(hop).is_none_or(|hop| !hop.is_full())
            && pool.is_none_or(pool_has_room)
    }

    /// The next hops, and the source pools, that need no more entries for now.
    pub(crate) fn full(&self) -> (Vec<NextHop>, Vec<Pool>) {
        let (mut hops, mut pools) = (Vec::new(), Vec::new());
        let mut state = self.state();
        for (name, hop) in &mut state.hops {
            hop.passed_over = hop.is_full();
            if hop.passed_over {
                hops.push(name.clone());
            }
        }
        for (name, pool) in &mut state.pools {
            pool.passed_over = pool.is_full();
            if pool.passed_over {
                pools.push(Pool(name.clone()));
            }
        }
        (hops, pools)
    }

    /// Sets a next hop's limit, which may have changed. Gives what waits there and can run no more.
    #[must_use]
    pub(crate) fn limit(&self, name: &NextHop, most: usize) -> Vec<Leased> {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(hop) = state.hops.get_mut(name) else { return Vec::new() };
        let grown = most > hop.most;
        hop.most = most;
        hop.limit = if grown { most } else { hop.limit.min(most) };
        let mut given_up = Vec::new();
        if most == 0 {
            state.waiting -= hop.waiting.len();
            given_up.extend(hop.waiting.drain(..).map(|in_hand| in_hand.leased));
        }
        given_up
    }

    /// The same for a source pool.
    #[must_use]
    pub(crate) fn limit_pool(&self, name: &str, most: usize) -> Vec<Leased> {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(pool) = state.pools.get_mut(name) else { return Vec::new() };
        pool.most = most;
        if most > 0 {
            return Vec::new();
        }
        let mut given_up: Vec<InHand> = pool.waiting.drain(..).collect();
        for hop in state.hops.values_mut() {
            let (of_pool, others) =
                hop.waiting.drain(..).partition(|in_hand| in_hand.pool.as_deref() == Some(name));
            hop.waiting = others;
            given_up.extend(of_pool);
        }
        state.waiting -= given_up.len();
        given_up.into_iter().map(|in_hand| in_hand.leased).collect()
    }

    /// Forgets what limits a scope of which nothing is in hand; false when something is.
    pub(crate) fn forget_if_idle(&self, scope: &Scope) -> bool {
        let mut state = self.state();
        match scope {
            Scope::NextHop(name) => {
                let name = NextHop(name.clone());
                let idle = state.hops.get(&name).is_none_or(Hop::is_idle)
                    && state
                        .pools
                        .values()
                        .all(|pool| pool.waiting.iter().all(|one| one.next_hop() != &name));
                if idle {
                    state.hops.remove(&name);
                }
                idle
            }
            Scope::Pool(name) => {
                let of_pool = |one: &InHand| one.pool.as_ref() == Some(name);
                let idle =
                    state.pools.get(name).is_none_or(|pool| pool.running == 0 && pool.waiting.is_empty())
                        && !state.hops.values().any(|hop| hop.waiting.iter().any(of_pool));
                if idle {
                    state.pools.remove(name);
                }
                idle
            }
            Scope::Tenant(_) => true,
        }
    }

    /// Finds a place for a leased entry; `most` is its next hop's limit by the settings.
    pub(crate) fn admit(&self, leased: Leased, most: usize, pool: Option<PoolLimit>) -> Admission {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.closed {
            return Admission::Refused(leased);
        }
        if !state.hops.contains_key(&leased.entry.next_hop) {
            state.forget_idle();
        }
        let hop = state.hops.entry(leased.entry.next_hop.clone()).or_insert_with(|| Hop::new(most));
        let pool = pool.map(|limit| {
            let known = state.pools.entry(limit.name.clone()).or_default();
            known.most = limit.most;
            (limit.name, known)
        });
        let mut in_hand = InHand {
            span: lease_span(&leased),
            leased,
            since: Instant::now(),
            unreachable: None,
            pool: pool.as_ref().map(|(name, _)| name.clone()),
            most,
        };
        let mut pool = pool.map(|(_, pool)| pool);
        let pool_is_open = pool.as_ref().is_none_or(|pool| pool.running < pool.most);
        let hop_is_open = hop.running < hop.limit && state.running < self.concurrency;
        if hop_is_open && pool_is_open {
            hop.running += 1;
            state.running += 1;
            if let Some(pool) = &mut pool {
                pool.running += 1;
            }
            in_hand.unreachable = hop.unreachable();
            return Admission::Run(in_hand);
        }
        // One that waits needs a running attempt that will come for it when it ends; by a pool in which this worker
        // has no share nothing waits.
        if pool.as_ref().is_some_and(|pool| pool.most == 0) || state.waiting >= self.concurrency {
            return Admission::Refused(in_hand.leased);
        }
        let waits_for_pool = pool.filter(|pool| hop_is_open && pool.waiting.len() < pool.most);
        if let Some(pool) = waits_for_pool {
            pool.waiting.push_back(in_hand);
        } else if hop.running > 0 && hop.waiting.len() < hop.limit {
            hop.waiting.push_back(in_hand);
        } else {
            return Admission::Refused(in_hand.leased);
        }
        state.waiting += 1;
        Admission::Waits
    }

    /// A next hop, and a source pool, are done with: another attempt may turn to them, while this one is settled.
    /// Gives the entries that waited and have a slot now.
    #[must_use]
    pub(crate) fn release_next_hop(&self, name: &NextHop, pool: Option<&str>, answer: Answer) -> Vec<InHand> {
        self.change(name, pool, |state| {
            if let Some(pool) = pool.and_then(|pool| state.pools.get_mut(pool)) {
                pool.running -= 1;
            }
            let Some(hop) = state.hops.get_mut(name) else { return };
            hop.running -= 1;
            hop.learn(answer, self.rest);
        })
    }

    /// An attempt has ended, and its next hop was released. Gives the entries of this next hop, and of this source
    /// pool, that waited and have a slot now.
    #[must_use]
    pub(crate) fn finish(&self, name: &NextHop, pool: Option<&str>) -> Vec<InHand> {
        self.change(name, pool, |state| state.running -= 1)
    }

    fn change(&self, name: &NextHop, pool: Option<&str>, change: impl FnOnce(&mut State)) -> Vec<InHand> {
        let mut guard = self.state();
        let state = &mut *guard;
        let had_room = self.room_in(state) > 0;
        change(state);
        let mut next = Vec::new();
        let mut opened = false;
        while let Some(in_hand) = state.next_of_hop(name, self.concurrency) {
            next.extend(state.start(in_hand));
        }
        if let Some(hop) = state.hops.get_mut(name) {
            opened = hop.passed_over && !hop.is_full();
            hop.passed_over &= !opened;
        }
        if let Some(pool) = pool {
            while let Some(in_hand) = state.next_of_pool(pool, self.concurrency) {
                next.extend(state.start(in_hand));
            }
            if let Some(pool) = state.pools.get_mut(pool) {
                opened |= pool.passed_over && !pool.is_full();
                pool.passed_over &= pool.is_full();
            }
        }
        let has_room = self.room_in(state) > 0;
        drop(guard);
        if opened || (has_room && !had_room) {
            self.freed.notify_one();
        }
        next
    }

    /// Waits until a slot, or a next hop or source pool that was passed over, has become free.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Admits nothing more, and gives up what waits.
    pub(crate) fn close(&self) -> Vec<Leased> {
        let mut state = self.state();
        state.closed = true;
        state.waiting = 0;
        let State { hops, pools, .. } = &mut *state;
        let of_hops = hops.values_mut().flat_map(|hop| hop.waiting.drain(..));
        let of_pools = pools.values_mut().flat_map(|pool| pool.waiting.drain(..));
        of_hops.chain(of_pools).map(|in_hand| in_hand.leased).collect()
    }
}

/// A first attempt belongs to the trace of the message. A later one is a trace of its own with links to it and
/// to the attempt before: so a trace ends within reasonable time.
fn lease_span(leased: &Leased) -> Span {
    let (entry, message) = (&leased.entry, &leased.message);
    let fresh = entry.attempts == 0 && leased.now < message.accepted_at.after(SAME_TRACE);
    let span = tracing::info_span!(
        parent: None, "lease",
        otel.kind = "consumer",
        messaging.operation.name = "process",
        mail.queue_id = %entry.id.message,
        mail.entry = entry.id.number,
        mail.next_hop = %entry.next_hop,
        mail.attempt = entry.attempts + 1,
        mail.lease.epoch = entry.epoch,
    );
    match &message.traceparent {
        Some(accepting) if fresh => proto::trace::continue_trace(&span, accepting),
        Some(accepting) => proto::trace::link_trace(&span, accepting),
        None => {}
    }
    let before: BTreeSet<&str> =
        entry.recipients.iter().filter_map(|recipient| recipient.attempt.as_deref()).collect();
    for attempt in before {
        proto::trace::link_trace(&span, attempt);
    }
    span
}

impl InHand {
    fn next_hop(&self) -> &NextHop {
        &self.leased.entry.next_hop
    }
}

impl State {
    /// The next that waits for a next hop that is open.
    fn next_of_hop(&mut self, name: &NextHop, concurrency: usize) -> Option<InHand> {
        let hop = self.hops.get_mut(name)?;
        if hop.running >= hop.limit || self.running >= concurrency { None } else { hop.waiting.pop_front() }
    }

    /// The next that waits for a source pool that is open.
    fn next_of_pool(&mut self, name: &str, concurrency: usize) -> Option<InHand> {
        let pool = self.pools.get_mut(name)?;
        if pool.running >= pool.most || self.running >= concurrency { None } else { pool.waiting.pop_front() }
    }

    /// Starts what has waited; or has it wait for the other of the two, which is full and so has a running attempt.
    fn start(&mut self, mut in_hand: InHand) -> Option<InHand> {
        if let Some(pool) = in_hand.pool.as_ref().and_then(|name| self.pools.get_mut(name))
            && pool.running >= pool.most
        {
            pool.waiting.push_back(in_hand);
            return None;
        }
        let most = in_hand.most;
        let hop = self.hops.entry(in_hand.next_hop().clone()).or_insert_with(|| Hop::new(most));
        if hop.running >= hop.limit {
            hop.waiting.push_back(in_hand);
            return None;
        }
        in_hand.unreachable = hop.unreachable();
        hop.running += 1;
        self.running += 1;
        self.waiting -= 1;
        if let Some(pool) = in_hand.pool.as_ref().and_then(|name| self.pools.get_mut(name)) {
            pool.running += 1;
        }
        Some(in_hand)
    }

    fn forget_idle(&mut self) {
        if self.hops.len() >= REMEMBERED {
            self.hops.retain(|_, hop| !hop.is_idle());
        }
    }
}

#[cfg(test)]
mod tests;
