//! A message to accept.

use std::time::Duration;

use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use queue::{MessageRecord, NewEntry, NewMessage, NextHop, Timestamp};
use smtp::{Domain, Mailbox, ReversePath};

/// A small message with one entry.
#[allow(clippy::unwrap_used)]
pub(crate) fn message(next_hop: &str) -> NewMessage {
    let address = Mailbox::new("a", Domain::Name("b.example".to_owned())).unwrap();
    let inline = Content::from(bytes::Bytes::from_static(b"Subject: test\r\n\r\nbody\r\n"));
    let recipient =
        Recipient { address: address.clone(), original: None, standing: Standing::Pending, attempt: None };
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        recipients: vec![address],
        smtputf8: false,
        eight_bit: false,
        user: None,
        origin: Origin::Mx,
    };
    let record = MessageRecord {
        id: QueueId::generate(),
        envelope,
        size: inline.len(),
        inline_size: inline.len(),
        parts: 0,
        traceparent: None,
        quarantine: false,
        accepted_at: Timestamp::default(),
    };
    let entry = NewEntry {
        next_hop: NextHop(next_hop.to_owned()),
        tenant: queue::Tenant::default(),
        recipients: vec![recipient],
        max_age: Duration::from_secs(3600),
    };
    NewMessage { record, inline, entries: vec![entry] }
}
