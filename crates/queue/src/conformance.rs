//! What every backend must do. A backend is one when [`run`] passes on it.
//!
//! Each check gets a queue of its own from `make`, empty and working. Durations are short; nothing
//! sleeps for longer than a lease takes to end.

/// Runs checks, each on a queue of its own, of which the invariants hold at the end.
macro_rules! checks {
    ($make:ident: $($check:ident),* $(,)?) => {$(
        let queue = $make().await;
        $check(std::sync::Arc::clone(&queue)).await;
        let found = $crate::invariants::Witness::default().look(&*queue).await;
        assert!(found.is_ok(), "after {}: {found:?}", stringify!($check));
    )*};
}

mod operating;
mod sharing;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use smtp::ReversePath;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Closing, EntryState, LeaseRequest, Leased, Ledger, MAX_LOST_LEASES, MessageRecord, NewEntry, NewMessage,
    Next, NextHop, PART_SIZE, Queue, QueueError, Settlement, Target, Tenant, Verb,
};

/// A queue under test.
pub type Subject = Arc<dyn Queue>;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs every check.
///
/// # Panics
/// When the backend does not conform: with the check's name and what was found.
pub async fn run<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Subject>,
{
    checks!(make:
        accept_is_idempotent,
        accepted_mail_can_be_leased_with_its_content,
        accept_can_lease_at_once,
        what_has_been_due_longest_comes_first,
        excepted_next_hops_are_passed_over,
        a_lease_that_ends_returns_the_entry_and_fences_its_holder,
        a_renewed_lease_does_not_end,
        a_lease_handed_back_is_due_at_once,
        a_settled_message_leaves_nothing,
        a_retry_waits_and_keeps_what_was_learned,
        a_bounce_comes_with_its_settlement,
        long_content_is_staged_in_parts,
        a_doubt_is_kept_until_it_is_settled,
        an_entry_that_kills_its_workers_is_held,
        the_account_balances,
        depth_counts,
        waiting_ends_when_mail_comes,
        workers_never_hold_one_entry_twice,
    );
    operating::run(&make).await;
    sharing::run(&make).await;
}

fn recipient(text: &str) -> Recipient {
    Recipient {
        address: text.parse().expect("an address"),
        original: None,
        standing: Standing::Pending,
        attempt: None,
    }
}

/// A message with one entry for each next hop.
fn message(hops: &[&str]) -> NewMessage {
    let content = Bytes::from_static(b"Subject: test\r\n\r\nbody\r\n");
    let recipients = vec!["a@b.example".parse().expect("an address")];
    let entry = |hop: &&str| NewEntry {
        next_hop: NextHop((*hop).to_owned()),
        tenant: Tenant::default(),
        recipients: vec![recipient("a@b.example")],
        max_age: LONG,
    };
    NewMessage {
        record: MessageRecord {
            id: QueueId::generate(),
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                recipients,
                smtputf8: false,
                eight_bit: false,
                user: None,
                origin: Origin::Mx,
            },
            size: content.len() as u64,
            inline_size: content.len() as u64,
            parts: 0,
            traceparent: None,
            quarantine: false,
            accepted_at: crate::Timestamp::default(),
        },
        inline: Content::from(content),
        entries: hops.iter().map(entry).collect(),
    }
}

fn request(max: usize, duration: Duration) -> LeaseRequest {
    LeaseRequest { worker: "test".to_owned(), max, duration, except: Vec::new(), except_pools: Vec::new() }
}

async fn accept(queue: &Subject, hops: &[&str]) -> QueueId {
    let message = message(hops);
    let id = message.record.id;
    assert!(queue.accept(message, None).await.expect("accept").fresh);
    id
}

/// Asks for something to be done to a message, as an operator.
async fn operate(queue: &Subject, id: QueueId, verb: &Verb) -> Result<u64, QueueError> {
    queue.operate(Target::Message(id), verb, "test").await
}

async fn lease(queue: &Subject, max: usize, duration: Duration) -> Vec<Leased> {
    queue.lease(request(max, duration)).await.expect("lease")
}

/// Leases one entry as soon as there is one.
async fn lease_one(queue: &Subject, duration: Duration) -> Leased {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(leased) = lease(queue, 1, duration).await.pop() {
            return leased;
        }
        assert!(Instant::now() < deadline, "nothing came to be due");
        queue.wait(Duration::from_millis(20)).await;
    }
}

fn done(leased: &Leased) -> Settlement {
    let mut recipients = leased.entry.recipients.clone();
    recipients.iter_mut().for_each(|recipient| recipient.standing = Standing::Delivered);
    Settlement { lease: leased.lease, recipients, next: Next::Done(Closing::Delivered), bounce: None }
}

fn retry(leased: &Leased, after: Duration) -> Settlement {
    let next = Next::Retry { after, error: "busy".to_owned() };
    Settlement { lease: leased.lease, recipients: leased.entry.recipients.clone(), next, bounce: None }
}

fn hold() -> Verb {
    Verb::Hold { why: "looks odd".to_owned() }
}

async fn only_entry(queue: &Subject, id: QueueId) -> crate::Entry {
    let (_, mut entries) = queue.show(id).await.expect("show").expect("it is there");
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn is_stale(result: Result<(), QueueError>) -> bool {
    matches!(result, Err(QueueError::StaleLease))
}

async fn accept_is_idempotent(queue: Subject) {
    let message = message(&["mx:a"]);
    assert!(queue.accept(message.clone(), None).await.expect("accept").fresh);
    assert!(!queue.accept(message.clone(), None).await.expect("accept").fresh, "accepted twice");
    let leased = lease(&queue, 10, LONG).await;
    assert_eq!(leased.len(), 1, "a second accept made a second entry");
    queue.settle(done(&leased[0])).await.expect("settle");
    assert!(!queue.accept(message, None).await.expect("accept").fresh, "accepted again after it was settled");
    assert!(lease(&queue, 10, LONG).await.is_empty());
}

async fn accepted_mail_can_be_leased_with_its_content(queue: Subject) {
    let id = accept(&queue, &["mx:a", "mx:b"]).await;
    let leased = lease(&queue, 10, LONG).await;
    let hops: HashSet<_> = leased.iter().map(|leased| leased.entry.next_hop.0.clone()).collect();
    assert_eq!(hops, HashSet::from(["mx:a".to_owned(), "mx:b".to_owned()]));
    assert!(leased.iter().all(|leased| leased.message.id == id && leased.lease.epoch == 1));
    assert!(leased[0].message.accepted_at.0 > 0, "the store tells no time");
    assert_eq!(queue.inline_content(id).await.expect("content"), "Subject: test\r\n\r\nbody\r\n");
    let expires = leased[0].entry.expires.since(leased[0].message.accepted_at);
    assert_eq!(expires, LONG);
}

async fn accept_can_lease_at_once(queue: Subject) {
    let message = message(&["mx:a", "mx:b"]);
    let accepted = queue.accept(message.clone(), Some(request(2, LONG))).await.expect("accept");
    assert_eq!(accepted.leased.len(), 2);
    let inline = accepted.leased[0].inline.as_ref().expect("the content is at hand");
    assert_eq!(inline.to_bytes(), message.inline.to_bytes());
    assert!(lease(&queue, 10, LONG).await.is_empty(), "leased twice");
    for leased in &accepted.leased {
        queue.settle(done(leased)).await.expect("settle");
    }
    assert!(queue.show(message.record.id).await.expect("show").is_none());
}

async fn what_has_been_due_longest_comes_first(queue: Subject) {
    let mut ids = Vec::new();
    for hop in ["mx:a", "mx:b", "mx:a", "mx:c"] {
        ids.push(accept(&queue, &[hop]).await);
        sleep(Duration::from_millis(3)).await;
    }
    let mut order = Vec::new();
    for _ in 0..ids.len() {
        order.extend(lease(&queue, 1, LONG).await.iter().map(|leased| leased.message.id));
    }
    assert_eq!(HashSet::<_>::from_iter(&order), HashSet::<_>::from_iter(&ids), "not each was leased once");
}

async fn excepted_next_hops_are_passed_over(queue: Subject) {
    for _ in 0..50 {
        accept(&queue, &["mx:slow"]).await;
    }
    let quick = accept(&queue, &["mx:quick"]).await;
    let mut request = request(10, LONG);
    request.except = vec![NextHop("mx:slow".to_owned())];
    let leased = queue.lease(request).await.expect("lease");
    assert_eq!(leased.iter().map(|leased| leased.message.id).collect::<Vec<_>>(), [quick]);
}

async fn a_lease_that_ends_returns_the_entry_and_fences_its_holder(queue: Subject) {
    accept(&queue, &["mx:a"]).await;
    let first = lease_one(&queue, SHORT).await;
    let second = lease_one(&queue, LONG).await;
    assert_eq!(first.lease.entry, second.lease.entry);
    assert!(second.lease.epoch > first.lease.epoch);
    assert!(is_stale(queue.settle(done(&first)).await), "an old epoch was settled");
    assert!(is_stale(queue.renew(&first.lease, LONG).await), "an old epoch was renewed");
    queue.hand_back(&first.lease).await.expect("a stale hand-back is no error");
    assert!(lease(&queue, 1, LONG).await.is_empty(), "a stale hand-back took the lease away");
    queue.settle(done(&second)).await.expect("settle");
    assert!(is_stale(queue.settle(done(&second)).await), "settled twice");
}

async fn a_renewed_lease_does_not_end(queue: Subject) {
    accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, SHORT).await;
    queue.renew(&leased.lease, LONG).await.expect("renew");
    sleep(SHORT * 2).await;
    assert!(lease(&queue, 1, LONG).await.is_empty(), "a renewed lease ended");
    queue.settle(done(&leased)).await.expect("settle");
}

async fn a_lease_handed_back_is_due_at_once(queue: Subject) {
    accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    queue.hand_back(&leased.lease).await.expect("hand back");
    let again = lease_one(&queue, LONG).await;
    assert_eq!(again.entry.attempts, 0, "a hand-back was counted as an attempt");
}

async fn a_settled_message_leaves_nothing(queue: Subject) {
    let id = accept(&queue, &["mx:a", "mx:b"]).await;
    let leased = lease(&queue, 10, LONG).await;
    queue.settle(done(&leased[0])).await.expect("settle");
    assert!(queue.inline_content(id).await.is_ok(), "the content went before the last entry");
    queue.settle(done(&leased[1])).await.expect("settle");
    assert!(matches!(queue.inline_content(id).await, Err(QueueError::Gone(_))), "the content stayed");
    assert!(queue.show(id).await.expect("show").is_none(), "the record stayed");
}

async fn a_retry_waits_and_keeps_what_was_learned(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    let mut settlement = retry(&leased, SHORT * 2);
    settlement.recipients[0].standing = Standing::Delivered;
    queue.settle(settlement).await.expect("settle");
    assert!(lease(&queue, 1, LONG).await.is_empty(), "due before its time");
    let (_, entries) = queue.show(id).await.expect("show").expect("it is there");
    assert_eq!((entries[0].attempts, entries[0].last_error.as_deref()), (1, Some("busy")));
    let again = lease_one(&queue, LONG).await;
    assert_eq!(again.entry.recipients[0].standing, Standing::Delivered);
    assert_eq!(again.entry.expires, leased.entry.expires, "the end of its age moved");
    assert!(again.lease.epoch > leased.lease.epoch);
}

async fn a_bounce_comes_with_its_settlement(queue: Subject) {
    accept(&queue, &["mx:a"]).await;
    let leased = lease_one(&queue, LONG).await;
    let mut bounce = message(&["local:b"]);
    bounce.record.id = leased.message.id.with_random(7);
    let mut settlement = done(&leased);
    settlement.bounce = Some(bounce.clone());
    queue.settle(settlement.clone()).await.expect("settle");
    assert!(is_stale(queue.settle(settlement).await));
    let bounces = lease(&queue, 10, LONG).await;
    assert_eq!(bounces.iter().map(|leased| leased.message.id).collect::<Vec<_>>(), [bounce.record.id]);
    assert_eq!(queue.inline_content(bounce.record.id).await.expect("content"), bounce.inline.to_bytes());
}

async fn long_content_is_staged_in_parts(queue: Subject) {
    let mut message = message(&["mx:a"]);
    let id = message.record.id;
    message.record.parts = 2;
    assert!(queue.accept(message.clone(), None).await.is_err(), "parts that are not there were accepted");
    let parts = [Bytes::from(vec![b'x'; PART_SIZE]), Bytes::from_static(b"end\r\n")];
    for (number, part) in parts.iter().enumerate() {
        queue.stage(id, u32::try_from(number).expect("small"), part.clone()).await.expect("stage");
    }
    message.record.size += parts.iter().map(|part| part.len() as u64).sum::<u64>();
    assert!(queue.accept(message, None).await.expect("accept").fresh);
    assert_eq!(queue.part(id, 0).await.expect("part"), parts[0]);
    assert_eq!(queue.part(id, 1).await.expect("part"), parts[1]);
    let leased = lease_one(&queue, LONG).await;
    queue.settle(done(&leased)).await.expect("settle");
    assert!(queue.part(id, 0).await.is_err(), "a part stayed");
}

async fn a_doubt_is_kept_until_it_is_settled(queue: Subject) {
    let id = accept(&queue, &["mx:a"]).await;
    let first = lease_one(&queue, SHORT).await;
    queue.doubt(&first.lease, "mx.example").await.expect("doubt");
    let second = lease_one(&queue, LONG).await;
    let doubt = second.entry.doubt.clone().expect("the next worker is told");
    assert_eq!(doubt.peer, "mx.example");
    assert!(doubt.since.0 > 0);
    assert!(is_stale(queue.doubt(&first.lease, "mx.example").await), "a stale lease may end a message");
    assert!(only_entry(&queue, id).await.doubt.is_some());
    queue.settle(retry(&second, Duration::from_millis(1))).await.expect("settle");
    assert_eq!(only_entry(&queue, id).await.doubt, None);
    let third = lease_one(&queue, LONG).await;
    queue.doubt(&third.lease, "mx.example").await.expect("doubt");
    queue.settle(done(&third)).await.expect("settle");
    assert!(is_stale(queue.doubt(&third.lease, "mx.example").await));
}

async fn an_entry_that_kills_its_workers_is_held(queue: Subject) {
    const BRIEF: Duration = Duration::from_millis(20);
    let id = accept(&queue, &["mx:poison"]).await;
    let other = accept(&queue, &["mx:fine"]).await;
    let fine = loop {
        let leased = lease_one(&queue, LONG).await;
        if leased.message.id == other {
            break leased;
        }
        queue.hand_back(&leased.lease).await.expect("hand back");
    };
    for _ in 0..MAX_LOST_LEASES {
        assert_eq!(lease_one(&queue, BRIEF).await.message.id, id);
        sleep(BRIEF * 2).await;
    }
    assert!(lease(&queue, 10, LONG).await.is_empty(), "it was leased once more");
    let entry = only_entry(&queue, id).await;
    assert_eq!(entry.state, EntryState::Held);
    assert!(entry.held.is_some_and(|why| why.contains("ended without a word")));
    queue.settle(done(&fine)).await.expect("others flow");
    assert_eq!(operate(&queue, id, &Verb::Release).await.expect("release"), 1);
    queue.settle(done(&lease_one(&queue, LONG).await)).await.expect("settle");
}

async fn the_account_balances(queue: Subject) {
    let balanced = async || {
        let ledger = queue.ledger().await.expect("ledger");
        assert_eq!(ledger.unaccounted(), 0, "{ledger:?}");
        ledger
    };
    assert_eq!(balanced().await, Ledger::default());
    accept(&queue, &["mx:a", "mx:b"]).await;
    let removed = accept(&queue, &["mx:c"]).await;
    assert_eq!(balanced().await.queued, 3);
    operate(&queue, removed, &Verb::Remove).await.expect("remove");
    let leased = lease(&queue, 10, LONG).await;
    balanced().await;
    queue.settle(done(&leased[0])).await.expect("settle");
    let mut failed = done(&leased[1]);
    failed.next = Next::Done(Closing::Bounced);
    let mut bounce = message(&["local:b"]);
    bounce.record.id = leased[1].message.id.with_random(9);
    failed.bounce = Some(bounce);
    queue.settle(failed.clone()).await.expect("settle");
    assert!(is_stale(queue.settle(failed).await));
    let mut given_up = done(&lease_one(&queue, LONG).await);
    given_up.next = Next::Done(Closing::Expired);
    queue.settle(given_up).await.expect("settle");
    let expected = Ledger { accepted: 4, delivered: 1, bounced: 1, expired: 1, removed: 1, queued: 0 };
    assert_eq!(balanced().await, expected);
}

async fn depth_counts(queue: Subject) {
    assert_eq!(queue.depth().await.expect("depth").queued, 0);
    accept(&queue, &["mx:a", "mx:b", "mx:c"]).await;
    let leased = lease_one(&queue, LONG).await;
    let depth = queue.depth().await.expect("depth");
    assert_eq!((depth.queued, depth.leased), (2, 1));
    assert!(depth.oldest_due < PATIENCE);
    queue.settle(done(&leased)).await.expect("settle");
    assert_eq!(queue.depth().await.expect("depth").leased, 0);
}

async fn waiting_ends_when_mail_comes(queue: Subject) {
    let waiting = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { lease_one(&queue, LONG).await })
    };
    let id = accept(&queue, &["mx:a"]).await;
    let leased = timeout(PATIENCE, waiting).await.expect("in time").expect("no panic");
    assert_eq!(leased.message.id, id);
}

async fn workers_never_hold_one_entry_twice(queue: Subject) {
    const MESSAGES: usize = 200;
    let mut expected = HashSet::new();
    for _ in 0..MESSAGES {
        expected.insert(accept(&queue, &["mx:a"]).await);
    }
    let worker = |queue: Subject| async move {
        let mut mine = Vec::new();
        loop {
            let leased = lease(&queue, 7, LONG).await;
            if leased.is_empty() {
                return mine;
            }
            for leased in leased {
                queue.settle(done(&leased)).await.expect("settle");
                mine.push(leased.message.id);
            }
        }
    };
    let workers: Vec<_> = (0..8).map(|_| tokio::spawn(worker(Arc::clone(&queue)))).collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(timeout(PATIENCE, worker).await.expect("in time").expect("no panic"));
    }
    assert_eq!(all.len(), MESSAGES, "an entry was held twice, or not at all");
    assert_eq!(HashSet::from_iter(all), expected);
}
