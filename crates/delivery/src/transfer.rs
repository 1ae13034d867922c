//! What is handed to a transport, and what comes back.

use futures::future::BoxFuture;
use message::{Failure, QueueId};
use queue::QueueError;
use smtp::{Mailbox, ReversePath};

use crate::content::ContentReader;

/// One message for some recipients, to be offered to one next hop.
pub struct Transfer {
    /// For logs and traces.
    pub id: QueueId,
    /// The source pool to leave by; `None` leaves the address to the system.
    pub pool: Option<String>,
    /// MAIL FROM.
    pub reverse_path: ReversePath,
    /// RCPT TO, in this order; the outcomes come back in the same order.
    pub recipients: Vec<Mailbox>,
    /// The message asks for SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// The message holds 8-bit octets (RFC 6152).
    pub eight_bit: bool,
    /// Length of the content in octets, for `SIZE=`.
    pub size: u64,
    /// Asked, with the peer's name, before the end of the message goes out: writes down that the peer
    /// may have it from then on. When it fails, the message is not ended.
    pub before_end: Box<dyn Fn(String) -> BoxFuture<'static, Result<(), QueueError>> + Send + Sync>,
    /// Makes a fresh cursor over the content, for each try.
    pub content: Box<dyn Fn() -> ContentReader + Send + Sync>,
}

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientOutcome {
    /// The next hop has taken responsibility.
    Delivered {
        /// Who took it (`mx.example.org [192.0.2.1]`).
        by: String,
        /// Its reply.
        reply: String,
    },
    /// To be tried again.
    Deferred(Failure),
    /// Refused for good.
    Failed(Failure),
}
