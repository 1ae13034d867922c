//! Queue and spool: who is due, leased and retried, and what the bytes are.
//!
//! The unit of scheduling is an *entry*: one message to the recipients of one next hop. The entries
//! of one message share its record and its content. The queue never looks inside a message.
//!
//! [`Queue`] is the contract, [`invariants`] what holds of every queue; [`conformance`] is the one suite that every
//! backend passes.

#[cfg(feature = "conformance")]
#[allow(clippy::expect_used)]
pub mod conformance;
pub mod embedded;
mod entry;
mod error;
pub mod invariants;
mod operator;
mod outbox;
mod policy;
pub mod redis;
pub mod spool;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use message::QueueId;

pub use entry::{
    Closing, Doubt, Entry, EntryId, EntryState, Lease, Leased, Ledger, MessageRecord, NewEntry, NewMessage,
    Next, NextHop, Settlement, Tenant, Timestamp,
};
pub use error::QueueError;
pub use operator::{AuditPage, Oddity, Scope, Suspension, Target, Verb, VerbRecord};
pub use outbox::{Event, EventKind, Events};
pub use policy::{Allowance, Policy, Pool};

/// Content longer than this is staged in parts before [`Queue::accept`]; what is shorter travels
/// inside it, in the same round trip. Octets.
pub const INLINE_LIMIT: usize = 256 * 1024;

/// The size of a staged part, in octets. Only the last may be shorter.
pub const PART_SIZE: usize = 1024 * 1024;

/// An entry whose lease ended so often in a row, without a word of its holder, is held: it may be what
/// kills them.
pub const MAX_LOST_LEASES: u32 = 5;

/// What [`Queue::accept`] did.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// False when a message of this id had been accepted before: nothing was written.
    pub fresh: bool,
    /// The entries, leased to the caller, where it asked for that and `fresh` is true. They start
    /// their life leased, so that a first attempt costs no further round trip.
    pub leased: Vec<Leased>,
}

/// How a worker leases.
#[derive(Debug, Clone)]
pub struct LeaseRequest {
    /// Who asks: shown to operators, not trusted for anything.
    pub worker: String,
    /// At most so many entries.
    pub max: usize,
    /// The lease ends so long after now, unless renewed.
    pub duration: Duration,
    /// Next hops to pass over: the worker is at its limit there, and their entries stay queued, so
    /// that a slow next hop does not stall the others. The cost of a lease may grow with the length
    /// of this list, never with the number of entries that wait for these next hops. Ignored by
    /// [`Queue::accept`].
    pub except: Vec<NextHop>,
    /// The same for source pools.
    pub except_pools: Vec<Pool>,
}

/// Which entries [`Queue::list`] tells of: those that meet every condition given.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only entries of this next hop.
    pub next_hop: Option<String>,
    /// Only entries of this tenant.
    pub tenant: Option<String>,
    /// Only entries that leave by this source pool, as the policy has it now.
    pub pool: Option<String>,
    /// Only entries with a recipient in this domain, or from a sender in it.
    pub domain: Option<String>,
    /// Only messages accepted at least so long ago, by the store's clock.
    pub older_than: Option<Duration>,
    /// Only entries in this state.
    pub state: Option<EntryState>,
    /// The cursor that the page before gave; `None` starts.
    pub cursor: Option<String>,
    /// At most so many entries a page (1 to 1000).
    pub limit: usize,
}

impl ListFilter {
    /// Whether an entry meets the conditions that need its addresses.
    fn concerns(&self, entry: &Entry, record: &MessageRecord) -> bool {
        let Some(domain) = &self.domain else { return true };
        let is = |mailbox: &smtp::Mailbox| {
            mailbox.domain_name().is_some_and(|name| name.eq_ignore_ascii_case(domain))
        };
        record.envelope.reverse_path.mailbox().is_some_and(is)
            || entry.recipients.iter().any(|recipient| is(&recipient.address))
    }
}

/// One page of a listing.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries, in no promised order; one that changes meanwhile may be missed or told twice.
    pub entries: Vec<(Entry, MessageRecord)>,
    /// Give this back for the next page; `None` at the end.
    pub next: Option<String>,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Entries waiting for their time or for a worker.
    pub queued: u64,
    /// Entries in a worker's hands.
    pub leased: u64,
    /// Entries put aside.
    pub held: u64,
    /// Age of the entry that is due and has waited longest; zero when none is due.
    pub oldest_due: Duration,
}

/// A durable queue of messages. See the crate's documentation for the words.
///
/// Every method that changes something is atomic and may be repeated after a lost answer: accept by
/// the message's id, the others by the lease's epoch.
///
/// Errors: [`QueueError::Unavailable`] whenever the store cannot be reached or cannot make a change
/// durable; then nothing may be assumed done.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Writes part `number` (from 0) of a long content ahead of [`Queue::accept`]. Parts that no
    /// accept ever names are swept after an hour.
    async fn stage(&self, id: QueueId, number: u32, octets: Bytes) -> Result<(), QueueError>;

    /// Makes a message durable with all its entries, or changes nothing. Idempotent by the
    /// message's id for at least an hour, even when the message has been settled meanwhile.
    ///
    /// With `lease`, the entries start leased to that worker, when they are few enough for `max`.
    async fn accept(&self, message: NewMessage, lease: Option<LeaseRequest>) -> Result<Accepted, QueueError>;

    /// Leases entries that are due, longest due first; returns expired leases to the queue on the way.
    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Leased>, QueueError>;

    /// Moves a lease's end to `duration` from now.
    ///
    /// # Errors
    /// [`QueueError::StaleLease`] when the epoch is not the entry's present one.
    async fn renew(&self, lease: &Lease, duration: Duration) -> Result<(), QueueError>;

    /// Writes down that `peer` is about to have the whole message: until the settlement, the entry is in
    /// doubt. A worker asks for it before it ends the message; so one whose lease is stale never does.
    ///
    /// # Errors
    /// [`QueueError::StaleLease`] when the epoch is not the entry's present one.
    async fn doubt(&self, lease: &Lease, peer: &str) -> Result<(), QueueError>;

    /// Hands a lease back untried: due at once, no attempt counted. A stale lease is no error.
    async fn hand_back(&self, lease: &Lease) -> Result<(), QueueError>;

    /// Writes an attempt's outcome and gives up the lease; with a bounce, enqueues it in the same
    /// atomic step. When the last entry of a message is done, its record and content go.
    ///
    /// # Errors
    /// [`QueueError::StaleLease`] when the epoch is not the entry's present one; nothing changed.
    async fn settle(&self, settlement: Settlement) -> Result<(), QueueError>;

    /// The inline part of a message's content.
    async fn inline_content(&self, id: QueueId) -> Result<Bytes, QueueError>;

    /// Part `number` of a message's content, as it was staged.
    async fn part(&self, id: QueueId, number: u32) -> Result<Bytes, QueueError>;

    /// Waits until there may be something to lease, or `at_most` has passed.
    async fn wait(&self, at_most: Duration);

    /// How full the queue is.
    async fn depth(&self) -> Result<Depth, QueueError>;

    /// One page of entries.
    async fn list(&self, filter: ListFilter) -> Result<Page, QueueError>;

    /// All entries of one message, and its record; `None` when it is not in the queue.
    async fn show(&self, id: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError>;

    /// Does what an operator asks to the entries of `target`, and writes down that `by` asked for it; says
    /// how many entries it concerned.
    async fn operate(&self, target: Target, verb: &Verb, by: &str) -> Result<u64, QueueError>;

    /// What operators have asked for, the latest first; some ten thousand of them are kept.
    async fn verbs(&self, limit: usize) -> Result<Vec<VerbRecord>, QueueError>;

    /// Writes down what an operator asked for, where it is more than [`Queue::operate`] on one target with a
    /// name for who asked: a job over many entries. The time is the store's.
    async fn record(&self, verb: &VerbRecord) -> Result<(), QueueError>;

    /// Leaves the entries of a next hop, a tenant or a source pool where they are until it is resumed. What is leased is
    /// tried to its end. Suspending again replaces the reason.
    async fn suspend(&self, scope: &Scope, why: &str, by: &str) -> Result<(), QueueError>;

    /// Ends a suspension; false when there was none. Its entries are leased again within seconds.
    async fn resume(&self, scope: &Scope, by: &str) -> Result<bool, QueueError>;

    /// What is suspended.
    async fn suspensions(&self) -> Result<Vec<Suspension>, QueueError>;

    /// Sets the weights of tenants, the rates of tenants, next hops and source pools, and who leaves by which pool,
    /// in place of those set before. All workers of a queue are to say the same.
    async fn set_policy(&self, policy: &Policy) -> Result<(), QueueError>;

    /// How many workers that work on `scope` there are, this one among them, and how many of them come
    /// before it in an order that all agree on: so a limit of connections is shared without a word between
    /// them. A worker counts until `lasts` after it asked last.
    async fn sharers(
        &self,
        scope: &Scope,
        worker: &str,
        lasts: Duration,
    ) -> Result<(usize, usize), QueueError>;

    /// The events after those that `reader` has passed, at most `limit` of each shard. The first call makes
    /// the reader known: events are kept from then on, until every reader has passed them.
    async fn events(&self, reader: &str, limit: usize) -> Result<Events, QueueError>;

    /// Says that `reader` needs what lies up to `cursor`, which [`Queue::events`] gave, no more.
    async fn passed(&self, reader: &str, cursor: &str) -> Result<(), QueueError>;

    /// Forgets a reader: nothing is kept for it any more.
    async fn forget_reader(&self, reader: &str) -> Result<(), QueueError>;

    /// Compares what the queue holds with itself, a page at a time, and names what does not fit. Entries that
    /// change meanwhile are not at fault.
    async fn audit(&self, cursor: Option<&str>) -> Result<AuditPage, QueueError>;

    /// The account of the queue.
    async fn ledger(&self) -> Result<Ledger, QueueError>;

    /// Fails unless the store answers and can write.
    async fn check(&self) -> Result<(), QueueError>;
}
