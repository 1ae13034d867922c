//! The embedded backend: it conforms, and what it has accepted survives.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use queue::conformance::{self, Subject};
use queue::embedded::EmbeddedQueue;

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
