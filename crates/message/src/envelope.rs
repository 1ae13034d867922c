//! The envelope (RFC 5321 §2.3.1): who it is from and whom it is for, apart from the content.

use serde::{Deserialize, Serialize};
use smtp::{Mailbox, ReversePath};

/// Where a message entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// From another site, at an `mx` listener: it may only go where we are responsible.
    Mx,
    /// From an authenticated user at a `submission` listener.
    Submission,
    /// Written by Packetboat: a bounce or a report.
    Local,
}

/// The envelope of one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where notifications go; null for a notification.
    pub reverse_path: ReversePath,
    /// Whom it is for, in the order of RCPT.
    pub recipients: Vec<Mailbox>,
    /// MAIL carried SMTPUTF8 (RFC 6531): header and addresses may hold UTF-8.
    pub smtputf8: bool,
    /// MAIL carried BODY=8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// The authenticated user of submitted mail.
    pub user: Option<String>,
    /// Where it entered.
    pub origin: Origin,
}

/// One recipient of a queue entry, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// The address to deliver to.
    pub address: Mailbox,
    /// The address as it was given in RCPT, where an alias led from it to `address`
    /// (`Original-Recipient` of RFC 3464 §2.3.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Mailbox>,
    /// The last word on it.
    #[serde(default)]
    pub standing: Standing,
    /// The attempt that deferred it, as a W3C `traceparent`, where it was traced: the next one links to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
}

/// Where one recipient of an entry stands. `Delivered` and `Failed` are final: they are never tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not tried yet.
    #[default]
    Pending,
    /// Answered with a temporary failure: to be tried again.
    Deferred(Failure),
    /// The next hop has taken it.
    Delivered,
    /// Refused for good, or given up; a bounce tells the sender.
    Failed(Failure),
}

impl Standing {
    /// Whether a later attempt has anything to do for this recipient.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Pending | Self::Deferred(_))
    }
}

/// Why a recipient could not be served: the fields of RFC 3464 §2.3, and words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Enhanced status code (RFC 3463), as `5.1.1`.
    pub status: String,
    /// The remote server's reply (`550 5.1.1 no such user`), when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// The host that gave the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_mta: Option<String>,
    /// One sentence that says what happened.
    pub text: String,
}
