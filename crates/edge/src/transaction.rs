//! The envelope being built: one MAIL, and the recipients accepted so far.

use std::net::IpAddr;

use message::QueueId;
use smtp::{Body, Mailbox, Reply, ReversePath};
use tracing::Span;
use tracing::field::{Empty, display};

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
        client: IpAddr,
        reverse_path: ReversePath,
        size: Option<u64>,
        body: Body,
        smtputf8: bool,
        max_size: u64,
    ) -> Self {
        let id = QueueId::generate();
        let span = tracing::info_span!(
            parent: None, "smtp.transaction",
            otel.kind = "server", otel.status_code = Empty, error.type = Empty,
            network.protocol.name = "smtp", client.address = %client,
            mail.queue_id = %id, mail.listener = listener, mail.recipients = Empty, mail.size = Empty,
            smtp.status_code = Empty, smtp.enhanced_status_code = Empty,
        );
        let eight_bit = body == Body::EightBitMime;
        let declared_size = size.unwrap_or(0);
        Self { id, span, reverse_path, recipients: Vec::new(), smtputf8, eight_bit, declared_size, max_size }
    }

    /// Tells the span how the transaction ended.
    pub(crate) fn tell(span: &Span, reply: &Reply) {
        span.record("smtp.status_code", reply.code);
        if let Some(enhanced) = reply.enhanced {
            span.record("smtp.enhanced_status_code", display(enhanced));
        }
        // A refusal is an answer; that a message cannot be taken is our fault.
        if reply.is_transient() {
            span.record("otel.status_code", "error").record("error.type", display(reply.code));
        }
    }

    /// Adds a recipient; one named twice gets one copy.
    pub(crate) fn add(&mut self, recipient: Mailbox, limit: Option<u64>) {
        self.max_size = self.max_size.min(limit.unwrap_or(u64::MAX));
        if !self.recipients.contains(&recipient) {
            self.recipients.push(recipient);
        }
    }
}
