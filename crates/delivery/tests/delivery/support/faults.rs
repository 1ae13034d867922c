//! A queue whose store fails when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use message::QueueId;
use queue::{
    Accepted, Depth, Entry, Lease, LeaseRequest, Leased, ListFilter, MessageRecord, NewMessage, Page, Queue,
    QueueError, Settlement,
};

/// Passes everything on to a real queue, but for the failures that are left to give.
pub(crate) struct Faulty {
    inner: Arc<dyn Queue>,
    /// So many accepts find the store unavailable.
    pub(crate) failing_accepts: AtomicUsize,
    /// So many leases find it unavailable.
    pub(crate) failing_leases: AtomicUsize,
    /// Leases given from now on outlast what the worker asks for: the queue's time stands still while the store is away.
    pub(crate) time_stands_still: AtomicBool,
    /// So many renewals find it unavailable.
    pub(crate) failing_renewals: AtomicUsize,
    /// So many settlements find it unavailable.
    pub(crate) failing_settlements: AtomicUsize,
    /// So many settlements are written, and the answer is lost.
    pub(crate) unanswered_settlements: AtomicUsize,
    /// So many settlements are lost, as if the worker had died.
    pub(crate) lost_settlements: AtomicUsize,
    /// So many reads of a staged part panic.
    pub(crate) panicking_parts: AtomicUsize,
    /// Settlements that were written.
    pub(crate) settlements: AtomicUsize,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Queue>) -> Self {
        Self {
            inner,
            failing_accepts: AtomicUsize::default(),
            failing_leases: AtomicUsize::default(),
            time_stands_still: AtomicBool::default(),
            failing_renewals: AtomicUsize::default(),
            failing_settlements: AtomicUsize::default(),
            unanswered_settlements: AtomicUsize::default(),
            lost_settlements: AtomicUsize::default(),
            panicking_parts: AtomicUsize::default(),
            settlements: AtomicUsize::default(),
        }
    }
}

fn fails(left: &AtomicUsize) -> Result<(), QueueError> {
    match left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Err(QueueError::Unavailable { doing: "a test".into(), cause: "told to".into() }),
        Err(_) => Ok(()),
    }
}

#[async_trait]
impl Queue for Faulty {
    async fn stage(&self, id: QueueId, number: u32, octets: Bytes) -> Result<(), QueueError> {
        self.inner.stage(id, number, octets).await
    }

    async fn accept(&self, message: NewMessage, lease: Option<LeaseRequest>) -> Result<Accepted, QueueError> {
        fails(&self.failing_accepts)?;
        let lasting = |lease| LeaseRequest { duration: Duration::from_secs(3600), ..lease };
        let lease = if self.time_stands_still.load(SeqCst) { lease.map(lasting) } else { lease };
        self.inner.accept(message, lease).await
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        fails(&self.failing_leases)?;
        self.inner.lease(request).await
    }

    async fn renew(&self, lease: &Lease, duration: Duration) -> Result<(), QueueError> {
        fails(&self.failing_renewals)?;
        self.inner.renew(lease, duration).await
    }

    async fn doubt(&self, lease: &Lease, peer: &str) -> Result<(), QueueError> {
        self.inner.doubt(lease, peer).await
    }

    async fn hand_back(&self, lease: &Lease) -> Result<(), QueueError> {
        self.inner.hand_back(lease).await
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), QueueError> {
        fails(&self.failing_settlements)?;
        if fails(&self.lost_settlements).is_err() {
            return Err(QueueError::StaleLease);
        }
        self.inner.settle(settlement).await?;
        self.settlements.fetch_add(1, SeqCst);
        fails(&self.unanswered_settlements)
    }

    async fn inline_content(&self, id: QueueId) -> Result<Bytes, QueueError> {
        self.inner.inline_content(id).await
    }

    async fn part(&self, id: QueueId, number: u32) -> Result<Bytes, QueueError> {
        assert!(fails(&self.panicking_parts).is_ok(), "told to");
        self.inner.part(id, number).await
    }

    async fn wait(&self, at_most: Duration) {
        self.inner.wait(at_most).await;
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        self.inner.depth().await
    }

    async fn list(&self, filter: ListFilter) -> Result<Page, QueueError> {
        self.inner.list(filter).await
    }

    async fn show(&self, id: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError> {
        self.inner.show(id).await
    }

    async fn operate(&self, target: queue::Target, verb: &queue::Verb, by: &str) -> Result<u64, QueueError> {
        self.inner.operate(target, verb, by).await
    }

    async fn verbs(&self, limit: usize) -> Result<Vec<queue::VerbRecord>, QueueError> {
        self.inner.verbs(limit).await
    }

    async fn record(&self, verb: &queue::VerbRecord) -> Result<(), QueueError> {
        self.inner.record(verb).await
    }

    async fn suspend(&self, scope: &queue::Scope, why: &str, by: &str) -> Result<(), QueueError> {
        self.inner.suspend(scope, why, by).await
    }

    async fn resume(&self, scope: &queue::Scope, by: &str) -> Result<bool, QueueError> {
        self.inner.resume(scope, by).await
    }

    async fn suspensions(&self) -> Result<Vec<queue::Suspension>, QueueError> {
        self.inner.suspensions().await
    }

    async fn set_policy(&self, policy: &queue::Policy) -> Result<(), QueueError> {
        self.inner.set_policy(policy).await
    }

    async fn sharers(
        &self,
        scope: &queue::Scope,
        worker: &str,
        lasts: Duration,
    ) -> Result<(usize, usize), QueueError> {
        self.inner.sharers(scope, worker, lasts).await
    }

    async fn events(&self, reader: &str, limit: usize) -> Result<queue::Events, QueueError> {
        self.inner.events(reader, limit).await
    }

    async fn passed(&self, reader: &str, cursor: &str) -> Result<(), QueueError> {
        self.inner.passed(reader, cursor).await
    }

    async fn forget_reader(&self, reader: &str) -> Result<(), QueueError> {
        self.inner.forget_reader(reader).await
    }

    async fn audit(&self, cursor: Option<&str>) -> Result<queue::AuditPage, QueueError> {
        self.inner.audit(cursor).await
    }

    async fn ledger(&self) -> Result<queue::Ledger, QueueError> {
        self.inner.ledger().await
    }

    async fn check(&self) -> Result<(), QueueError> {
        self.inner.check().await
    }
}
