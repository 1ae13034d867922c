//! The embedded backend: it conforms, and what it has accepted survives.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use queue::conformance::{self, Subject};
use queue::embedded::EmbeddedQueue;
use queue::{Closing, EntryState, LeaseRequest, Next, Queue, Settlement, Target, Verb};

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_backend_conforms() {
    let root = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    conformance::run(|| {
        let folder: PathBuf = root.path().join(next.fetch_add(1, Ordering::Relaxed).to_string());
        async move { Arc::new(EmbeddedQueue::open(&folder).unwrap()) as Subject }
    })
    .await;
}

#[tokio::test]
async fn a_second_process_is_told_why_it_cannot_open_the_queue() {
    let root = tempfile::tempdir().unwrap();
    let _first = EmbeddedQueue::open(root.path()).unwrap();
    let error = EmbeddedQueue::open(root.path()).err().unwrap().to_string();
    assert!(error.contains("another process has it open"), "{error}");
}

/// Opens the folder again, once the process's own hold on it has gone.
#[allow(clippy::unwrap_used)]
async fn reopened(folder: &Path) -> EmbeddedQueue {
    let opened = async || EmbeddedQueue::open(folder).ok();
    testkit::wait::until("the folder to be free", Duration::from_secs(10), opened).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_holds_and_its_account_survive_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let messages = [common::message("mx:a"), common::message("mx:b"), common::message("mx:c")];
    let ids = messages.clone().map(|message| message.record.id);
    let request = LeaseRequest {
        worker: "test".to_owned(),
        max: 1,
        duration: Duration::from_secs(60),
        except: Vec::new(),
        except_pools: Vec::new(),
    };
    {
        let queue = EmbeddedQueue::open(root.path()).unwrap();
        for message in messages.clone() {
            queue.accept(message, None).await.unwrap();
        }
        let done = queue.lease(request.clone()).await.unwrap().remove(0);
        assert_eq!(done.message.id, ids[0]);
        let (lease, recipients) = (done.lease, done.entry.recipients);
        let next = Next::Done(Closing::Delivered);
        queue.settle(Settlement { lease, recipients, next, bounce: None }).await.unwrap();
        queue.operate(Target::Message(ids[1]), &Verb::Hold { why: "odd".to_owned() }, "test").await.unwrap();
        let in_doubt = queue.lease(request.clone()).await.unwrap().remove(0);
        assert_eq!(in_doubt.message.id, ids[2]);
        queue.doubt(&in_doubt.lease, "mx.example").await.unwrap();
    }

    let queue = reopened(root.path()).await;
    let ledger = queue.ledger().await.unwrap();
    assert_eq!((ledger.accepted, ledger.delivered, ledger.queued), (3, 1, 2));
    assert_eq!(ledger.unaccounted(), 0);
    assert!(queue.show(ids[0]).await.unwrap().is_none());
    let (_, held) = queue.show(ids[1]).await.unwrap().unwrap();
    assert_eq!((held[0].state, held[0].held.as_deref()), (EntryState::Held, Some("odd")));
    // The worker is gone with its process: its entry is due, and known to be in doubt.
    let again = queue.lease(request).await.unwrap().remove(0);
    assert_eq!(again.message.id, ids[2]);
    assert_eq!(again.entry.doubt.map(|doubt| doubt.peer).as_deref(), Some("mx.example"));
    assert!(again.lease.epoch > 1, "a lease from before the restart is stale");
    for message in messages {
        assert!(!queue.accept(message, None).await.unwrap().fresh, "accepted again after a restart");
    }
}
