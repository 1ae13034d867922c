//! The envelope being built: one MAIL, and the recipients accepted so far.

use message::QueueId;
use smtp::{Body, Mailbox, ReversePath};
use tracing::Span;

/// One mail transaction (RFC 5321 §3.3), from MAIL to the reply to its content.
pub(crate) struct Transaction {
    /// Its id, and that of the message in the queue.
    pub(crate) id: QueueId,
    /// Everything done for it happens in this span, here and in the other services.
    pub(crate) span: Span,
    pub(crate) reverse_path: ReversePath,
    pub(crate) recipients: Vec<Mailbox>,
    pub(crate) smtputf8: bool,
    pub(crate) eight_bit: bool,
    /// `SIZE=`, or 0.
    pub(crate) declared_size: u64,
    /// The largest message that the site and every recipient's domain take, in octets.
    pub(crate) max_size: u64,
}

impl Transaction {
    pub(crate) fn new(
        listener: &str,
        reverse_path: ReversePath,
        size: Option<u64>,
        body: Body,
        smtputf8: bool,
        max_size: u64,
    ) -> Self {
        let id = QueueId::generate();
        let span = tracing::info_span!(
            parent: None, "smtp.transaction", otel.kind = "server", queue_id = %id, listener,
            recipients = tracing::field::Empty, size = tracing::field::Empty, reply = tracing::field::Empty,
        );
        let eight_bit = body == Body::EightBitMime;
        let declared_size = size.unwrap_or(0);
        Self { id, span, reverse_path, recipients: Vec::new(), smtputf8, eight_bit, declared_size, max_size }
    }

    /// Adds a recipient; one named twice gets one copy.
    pub(crate) fn add(&mut self, recipient: Mailbox, limit: Option<u64>) {
        self.max_size = self.max_size.min(limit.unwrap_or(u64::MAX));
        if !self.recipients.contains(&recipient) {
            self.recipients.push(recipient);
        }
    }
}
