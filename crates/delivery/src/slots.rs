//! Who may run now: the limits on attempts at once, over all next hops and to each.
//!
//! An entry in this worker's hands either runs or waits for a turn of its next hop. How many run to
//! one next hop follows what it does: the limit halves when an attempt got nothing through, and
//! doubles, up to the setting, when one did. So a dead next hop with a deep queue holds one slot,
//! not all of them. One that still cannot be reached then is left alone for a while: what is due for
//! it meanwhile shares the failure, instead of waiting its turn for a time-out each.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use message::Failure;
use queue::{Leased, NextHop};
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
    pub(crate) fn has_room_for(&self, hop: &NextHop) -> bool {
        let state = self.state();
        !state.closed
            && state.running < self.concurrency
            && state.hops.get(hop).is_none_or(|hop| !hop.is_full())
    }

    /// The next hops that need no more entries for now.
    pub(crate) fn full(&self) -> Vec<NextHop> {
        let mut full = Vec::new();
        for (name, hop) in &mut self.state().hops {
            hop.passed_over = hop.is_full();
            if hop.passed_over {
                full.push(name.clone());
            }
        }
        full
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

    /// Whether anything of a next hop is in hand.
    pub(crate) fn is_idle(&self, name: &NextHop) -> bool {
        self.state().hops.get(name).is_none_or(Hop::is_idle)
    }

    /// Finds a place for a leased entry; `most` is its next hop's limit by the settings.
    pub(crate) fn admit(&self, leased: Leased, most: usize) -> Admission {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.closed {
            return Admission::Refused(leased);
        }
        if !state.hops.contains_key(&leased.entry.next_hop) {
            state.forget_idle();
            let hop = Hop {
                running: 0,
                waiting: VecDeque::new(),
                limit: most,
                most,
                passed_over: false,
                unreachable: None,
            };
            state.hops.insert(leased.entry.next_hop.clone(), hop);
        }
        let Some(hop) = state.hops.get_mut(&leased.entry.next_hop) else { return Admission::Refused(leased) };
        let mut in_hand =
            InHand { span: lease_span(&leased), leased, since: Instant::now(), unreachable: None };
        if hop.running < hop.limit && state.running < self.concurrency {
            hop.running += 1;
            state.running += 1;
            in_hand.unreachable = hop.unreachable();
            return Admission::Run(in_hand);
        }
        // One that waits needs a running attempt that will come for it when it ends.
        if hop.running > 0 && hop.waiting.len() < hop.limit && state.waiting < self.concurrency {
            hop.waiting.push_back(in_hand);
            state.waiting += 1;
            return Admission::Waits;
        }
        Admission::Refused(in_hand.leased)
    }

    /// A next hop is done with: another attempt may turn to it, while this one is settled. Gives the
    /// entries that waited and have a slot now.
    #[must_use]
    pub(crate) fn release_next_hop(&self, name: &NextHop, answer: Answer) -> Vec<InHand> {
        self.change(name, |state| {
            let Some(hop) = state.hops.get_mut(name) else { return };
            hop.running -= 1;
            hop.learn(answer, self.rest);
        })
    }

    /// An attempt has ended, and its next hop was released. Gives the entries of this next hop that
    /// waited and have a slot now.
    #[must_use]
    pub(crate) fn finish(&self, name: &NextHop) -> Vec<InHand> {
        self.change(name, |state| state.running -= 1)
    }

    fn change(&self, name: &NextHop, change: impl FnOnce(&mut State)) -> Vec<InHand> {
        let mut guard = self.state();
        let state = &mut *guard;
        let had_room = self.room_in(state) > 0;
        change(state);
        let mut next = Vec::new();
        let mut opened = false;
        if let Some(hop) = state.hops.get_mut(name) {
            while hop.running < hop.limit && state.running < self.concurrency {
                let Some(mut waiting) = hop.waiting.pop_front() else { break };
                waiting.unreachable = hop.unreachable();
                next.push(waiting);
                state.waiting -= 1;
                hop.running += 1;
                state.running += 1;
            }
            opened = hop.passed_over && !hop.is_full();
            hop.passed_over &= !opened;
        }
        let has_room = self.room_in(state) > 0;
        drop(guard);
        if opened || (has_room && !had_room) {
            self.freed.notify_one();
        }
        next
    }

    /// Waits until a slot, or a next hop that was passed over, has become free.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Admits nothing more, and gives up what waits.
    pub(crate) fn close(&self) -> Vec<Leased> {
        let mut state = self.state();
        state.closed = true;
        state.waiting = 0;
        state.hops.values_mut().flat_map(|hop| hop.waiting.drain(..)).map(|in_hand| in_hand.leased).collect()
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

impl State {
    fn forget_idle(&mut self) {
        if self.hops.len() >= REMEMBERED {
            self.hops.retain(|_, hop| !hop.is_idle());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use message::{Envelope, Origin, QueueId};
    use queue::{Entry, EntryId, EntryState, Lease, MessageRecord, Timestamp};

    use super::*;

    fn leased(hop: &str) -> Leased {
        let id = EntryId { message: QueueId::generate(), number: 0 };
        let envelope = Envelope {
            reverse_path: "a@example.com".parse().unwrap(),
            recipients: Vec::new(),
            smtputf8: false,
            eight_bit: false,
            user: None,
            origin: Origin::Mx,
        };
        let entry = Entry {
            id,
            next_hop: NextHop(hop.into()),
            tenant: queue::Tenant::default(),
            recipients: Vec::new(),
            state: EntryState::Leased,
            epoch: 1,
            attempts: 0,
            due: Timestamp(0),
            expires: Timestamp(0),
            last_error: None,
            worker: None,
            held: None,
            doomed: None,
            doubt: None,
        };
        let message = MessageRecord {
            id: id.message,
            envelope,
            size: 0,
            inline_size: 0,
            parts: 0,
            traceparent: None,
            quarantine: false,
            accepted_at: Timestamp(0),
        };
        let lease = Lease { entry: id, epoch: 1 };
        Leased { lease, entry, message: Arc::new(message), inline: None, now: Timestamp(0) }
    }

    fn slots(concurrency: usize) -> Slots {
        Slots::new(concurrency, Duration::from_secs(60))
    }

    fn hop(name: &str) -> NextHop {
        NextHop(name.into())
    }

    #[test]
    fn a_full_next_hop_leaves_room_for_others() {
        let slots = slots(10);
        let admitted = |name| slots.admit(leased(name), 2);
        assert!(matches!((admitted("slow"), admitted("slow")), (Admission::Run(_), Admission::Run(_))));
        assert!(matches!(admitted("slow"), Admission::Waits));
        assert_eq!(slots.full(), [hop("slow")]);
        assert!(!slots.has_room_for(&hop("slow")));
        assert!(matches!(admitted("slow"), Admission::Waits));
        assert!(matches!(admitted("slow"), Admission::Refused(_)));
        assert!(matches!(admitted("quick"), Admission::Run(_)));
        assert_eq!(slots.room(), 7);
    }

    fn end(slots: &Slots, answer: Answer) -> usize {
        slots.release_next_hop(&hop("h"), answer).len() + slots.finish(&hop("h")).len()
    }

    #[test]
    fn the_limit_follows_what_the_next_hop_does() {
        let slots = slots(100);
        for _ in 0..16 {
            slots.admit(leased("h"), 8);
        }
        for _ in 0..4 {
            assert_eq!(end(&slots, Answer::Later), 0, "ever fewer may run");
        }
        assert_eq!(end(&slots, Answer::Given), 0, "two may run, three do");
        assert_eq!(end(&slots, Answer::Unknown), 0, "two may run, two do");
        assert_eq!(end(&slots, Answer::Given), 3, "four may run, one does");
    }

    #[test]
    fn an_attempt_being_settled_holds_no_slot_of_its_next_hop() {
        let slots = slots(3);
        for _ in 0..3 {
            slots.admit(leased("h"), 2);
        }
        assert_eq!(slots.release_next_hop(&hop("h"), Answer::Given).len(), 1);
        assert!(!slots.has_room_for(&hop("other")), "but one of the whole");
        assert_eq!(slots.finish(&hop("h")).len(), 0);
        assert!(slots.has_room_for(&hop("other")));
    }

    #[test]
    fn an_unreachable_next_hop_is_left_alone_once_it_has_one_slot() {
        let slots = slots(10);
        let failure =
            Failure { status: "4.4.1".into(), reply: None, remote_mta: None, text: "no route".into() };
        let unreachable = || match slots.admit(leased("h"), 2) {
            Admission::Run(in_hand) => in_hand.unreachable,
            _ => panic!("no slot"),
        };
        assert_eq!(unreachable(), None);
        assert_eq!(end(&slots, Answer::Unreachable(failure.clone())), 0);
        assert_eq!(unreachable(), None, "two could run: it may have been chance");
        assert_eq!(end(&slots, Answer::Unreachable(failure.clone())), 0);
        assert_eq!(unreachable(), Some(failure));
        assert_eq!(end(&slots, Answer::Given), 0);
        assert_eq!(unreachable(), None);
    }

    #[test]
    fn what_waits_is_never_stranded() {
        for concurrency in 1..6 {
            let slots = slots(concurrency);
            let (mut running, mut waiting) = (0, 0);
            for _ in 0..8 {
                match slots.admit(leased("h"), 4) {
                    Admission::Run(_) => running += 1,
                    Admission::Waits => waiting += 1,
                    Admission::Refused(_) => {}
                }
            }
            let mut ended = 0;
            let all = running + waiting;
            while running > 0 {
                running -= 1;
                ended += 1;
                running += end(&slots, Answer::Later);
            }
            assert_eq!(ended, all);
            assert_eq!(slots.room(), concurrency);
        }
    }

    #[test]
    fn closing_gives_up_what_waits() {
        let slots = slots(4);
        for _ in 0..3 {
            slots.admit(leased("h"), 2);
        }
        assert_eq!(slots.close().len(), 1);
        assert!(matches!(slots.admit(leased("other"), 2), Admission::Refused(_)));
        assert_eq!(end(&slots, Answer::Given), 0);
    }
}
