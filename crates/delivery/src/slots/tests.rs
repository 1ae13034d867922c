//! Limits on attempts at once.

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
    let admitted = |name| slots.admit(leased(name), 2, None);
    assert!(matches!((admitted("slow"), admitted("slow")), (Admission::Run(_), Admission::Run(_))));
    assert!(matches!(admitted("slow"), Admission::Waits));
    assert_eq!(slots.full().0, [hop("slow")]);
    assert!(!slots.has_room_for(&hop("slow"), None));
    assert!(matches!(admitted("slow"), Admission::Waits));
    assert!(matches!(admitted("slow"), Admission::Refused(_)));
    assert!(matches!(admitted("quick"), Admission::Run(_)));
    assert_eq!(slots.room(), 7);
}

fn end(slots: &Slots, answer: Answer) -> usize {
    slots.release_next_hop(&hop("h"), None, answer).len() + slots.finish(&hop("h"), None).len()
}

#[test]
fn the_limit_follows_what_the_next_hop_does() {
    let slots = slots(100);
    for _ in 0..16 {
        slots.admit(leased("h"), 8, None);
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
        slots.admit(leased("h"), 2, None);
    }
    assert_eq!(slots.release_next_hop(&hop("h"), None, Answer::Given).len(), 1);
    assert!(!slots.has_room_for(&hop("other"), None), "but one of the whole");
    assert_eq!(slots.finish(&hop("h"), None).len(), 0);
    assert!(slots.has_room_for(&hop("other"), None));
}

#[test]
fn an_unreachable_next_hop_is_left_alone_once_it_has_one_slot() {
    let slots = slots(10);
    let failure = Failure { status: "4.4.1".into(), reply: None, remote_mta: None, text: "no route".into() };
    let unreachable = || match slots.admit(leased("h"), 2, None) {
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
            match slots.admit(leased("h"), 4, None) {
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
        slots.admit(leased("h"), 2, None);
    }
    assert_eq!(slots.close().len(), 1);
    assert!(matches!(slots.admit(leased("other"), 2, None), Admission::Refused(_)));
    assert_eq!(end(&slots, Answer::Given), 0);
}

fn by_pool(slots: &Slots, hop: &str, most: usize) -> Admission {
    slots.admit(leased(hop), 4, Some(PoolLimit { name: "p".to_owned(), most }))
}

#[test]
fn a_source_pool_is_shared_by_next_hops() {
    let slots = slots(100);
    assert!(matches!(by_pool(&slots, "a", 2), Admission::Run(_)));
    assert!(matches!(by_pool(&slots, "b", 2), Admission::Run(_)));
    assert!(matches!(by_pool(&slots, "c", 2), Admission::Waits));
    assert!(matches!(slots.admit(leased("c"), 4, None), Admission::Run(_)), "others are not held up");
    assert_eq!(slots.full().1, [Pool("p".to_owned())]);
    let next = slots.release_next_hop(&hop("a"), Some("p"), Answer::Given);
    assert_eq!(next.iter().map(|one| one.next_hop().0.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(slots.finish(&hop("a"), Some("p")).len(), 0);
    assert!(!slots.forget_if_idle(&Scope::Pool("p".to_owned())));
}

#[test]
fn without_a_share_in_a_pool_nothing_waits_for_it() {
    let slots = slots(100);
    assert!(matches!(by_pool(&slots, "a", 1), Admission::Run(_)));
    assert!(matches!(by_pool(&slots, "b", 1), Admission::Waits));
    assert_eq!(slots.limit_pool("p", 0).len(), 1);
    assert!(matches!(by_pool(&slots, "c", 0), Admission::Refused(_)));
    assert_eq!(slots.release_next_hop(&hop("a"), Some("p"), Answer::Given).len(), 0);
    assert_eq!(slots.finish(&hop("a"), Some("p")).len(), 0);
    assert_eq!(slots.room(), 100);
    assert!(slots.forget_if_idle(&Scope::Pool("p".to_owned())));
    assert!(slots.full().1.is_empty(), "a pool without a share would never be asked for again");
}

/// Whatever waits, for a next hop or for a pool, is run in the end.
#[test]
fn what_waits_for_pools_is_never_stranded() {
    for concurrency in 1..6 {
        for most in 1..4 {
            let slots = slots(concurrency);
            let (mut running, mut waiting) = (Vec::new(), 0);
            for at in 0..24 {
                let hop = ["a", "b", "c"][at % 3];
                let pool = (at % 4 != 0).then(|| PoolLimit { name: ["p", "q"][at % 2].to_owned(), most });
                match slots.admit(leased(hop), 2, pool) {
                    Admission::Run(in_hand) => running.push(in_hand),
                    Admission::Waits => waiting += 1,
                    Admission::Refused(_) => {}
                }
            }
            let (all, mut ended) = (running.len() + waiting, 0);
            while let Some(one) = running.pop() {
                ended += 1;
                running.extend(slots.release_next_hop(one.next_hop(), one.pool.as_deref(), Answer::Later));
                running.extend(slots.finish(one.next_hop(), one.pool.as_deref()));
            }
            assert_eq!(ended, all, "{concurrency} at once, {most} by each pool");
            assert_eq!(slots.room(), concurrency);
        }
    }
}
