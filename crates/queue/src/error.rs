//! What can go wrong with a queue.

use message::QueueId;

/// Why a queue operation failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The store cannot be reached, or cannot make the change durable. Nothing may be assumed done.
    #[error("the queue store is unavailable: {doing}")]
    Unavailable {
        /// What was attempted, with the store's address.
        doing: String,
        /// The store's own error.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The entry is no longer in this worker's hands.
    #[error("the lease is stale: its entry was leased again, settled or removed")]
    StaleLease,
    /// The message is not in the queue.
    #[error("message {0} is not in the queue")]
    Gone(QueueId),
    /// What the store holds cannot be read.
    #[error("the queue store holds something unreadable: {what}")]
    Corrupt {
        /// Which key or record.
        what: String,
        /// Why it cannot be read.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The outbox has as many readers as it may have.
    #[error("the outbox has {0} readers already: have one of them forgotten")]
    TooManyReaders(usize),
    /// The store refuses to be used at the durability asked for.
    #[error("the queue store does not meet the durability asked for: {0}")]
    NotDurable(String),
    /// The queue and the spool it is to be used with do not belong together, or one of them was lost.
    #[error("the queue and its spool do not fit: {0}")]
    Mismatch(String),
}
