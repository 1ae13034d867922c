//! What a queue has to answer when its contents lie in a spool.

use std::time::Duration;

use async_trait::async_trait;
use message::QueueId;

use crate::{Queue, QueueError};

/// A queue whose contents may lie elsewhere: it can be lost, and made again.
///
/// Errors of all methods: [`QueueError::Unavailable`] when the store cannot be reached.
#[async_trait]
pub trait Index: Queue {
    /// The mark of the spool that the queue belongs to; none when the queue is new, or was lost.
    async fn mark(&self) -> Result<Option<String>, QueueError>;

    /// Sets the mark.
    async fn set_mark(&self, mark: &str) -> Result<(), QueueError>;

    /// Which of these messages are in the queue, in their order.
    async fn known(&self, ids: &[QueueId]) -> Result<Vec<bool>, QueueError>;

    /// Takes away whatever the queue has of a message, also that it ever had it: it can be accepted again.
    async fn forget(&self, id: QueueId) -> Result<(), QueueError>;

    /// True for one process of the queue within `lasts`: what needs to be done once.
    async fn turn(&self, lasts: Duration) -> Result<bool, QueueError>;
}
