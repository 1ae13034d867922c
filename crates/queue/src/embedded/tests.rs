//! The queue through restarts of a machine whose clock is wrong.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};

use super::EmbeddedQueue;
use super::clock::wall;
use crate::{
    LeaseRequest, MessageRecord, NewEntry, NewMessage, Next, NextHop, Queue, Settlement, Tenant, Timestamp,
};

const HOUR: Duration = Duration::from_secs(3600);

fn message() -> NewMessage {
    let address: smtp::Mailbox = "a@b.example".parse().expect("an address");
    let envelope = Envelope {
        reverse_path: smtp::ReversePath::Null,
        recipients: vec![address.clone()],
        smtputf8: false,
        eight_bit: false,
        user: None,
        origin: Origin::Mx,
    };
    let record = MessageRecord {
        id: QueueId::generate(),
        envelope,
        size: 2,
        inline_size: 2,
        parts: 0,
        traceparent: None,
        quarantine: false,
        accepted_at: Timestamp::default(),
    };
    let entry = NewEntry {
        next_hop: NextHop("mx:a".to_owned()),
        tenant: Tenant::default(),
        recipients: vec![Recipient { address, original: None, standing: Standing::Pending, attempt: None }],
        max_age: 120 * HOUR,
    };
    NewMessage { record, inline: Content::from(Bytes::from_static(b"\r\n")), entries: vec![entry] }
}

/// Opens the queue as soon as the one before has let go of it.
async fn open(folder: &Path, clock: Timestamp) -> EmbeddedQueue {
    for _ in 0..200 {
        if let Ok(queue) = EmbeddedQueue::open_at(folder, clock) {
            return queue;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    EmbeddedQueue::open_at(folder, clock).expect("open")
}

/// Accepts a message, defers it for an hour, and restarts with the clock at `clock`. When it is due, and when it
/// expires, from then on.
async fn after_a_restart_at(clock: impl FnOnce(Timestamp) -> Timestamp) -> (Duration, Duration) {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = open(folder.path(), wall()).await;
    let request = LeaseRequest {
        worker: "test".to_owned(),
        max: 1,
        duration: HOUR,
        except: Vec::new(),
        except_pools: Vec::new(),
    };
    let leased = queue.accept(message(), Some(request)).await.expect("accept").leased;
    // The time is written down with what comes a second later, or more.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let next = Next::Retry { after: HOUR, error: "busy".to_owned() };
    let recipients = leased[0].entry.recipients.clone();
    let settlement = Settlement { lease: leased[0].lease, recipients, next, bounce: None };
    queue.settle(settlement).await.expect("settle");
    let id = leased[0].message.id;
    let weak = Arc::downgrade(&queue.shared);
    drop(queue);
    while weak.upgrade().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let queue = open(folder.path(), clock(wall())).await;
    let (_, entries) = queue.show(id).await.expect("show").expect("it is there");
    let now = queue.shared.now();
    (entries[0].due.since(now), entries[0].expires.since(now))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_keeps_nothing_waiting() {
    let (due, _) = after_a_restart_at(|wall| Timestamp(wall.0 - 1000 * 3_600_000)).await;
    assert!(due <= HOUR, "{due:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_leapt_ahead_expires_nothing() {
    let (due, expires) = after_a_restart_at(|wall| wall.after(1000 * HOUR)).await;
    assert_eq!(due, Duration::ZERO);
    assert!(expires > 90 * HOUR, "{expires:?}");
}
