//! Messages and entries, as the queue holds them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use message::{Content, Envelope, QueueId, Recipient};
use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, by the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment and a while more.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long `self` lies after `earlier`; zero when it does not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where an entry goes next; entries of one message to one next hop share attempts and limits.
/// The text is chosen by delivery (`mx:example.org`, `maildir:example.com`, …) and opaque here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NextHop(pub String);

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose mail an entry is: a name chosen by delivery (the hosted domain), opaque here. Tenants share the
/// queue by weight, and each may have a rate. Entries from before there were tenants have the empty one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tenant(pub String);

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of an entry: its message's id and its number there (`ID.0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// The message.
    pub message: QueueId,
    /// Which of its entries.
    pub number: u32,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.number)
    }
}

impl FromStr for EntryId {
    type Err = message::id::QueueIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (message, number) = text.split_once('.').ok_or(message::id::QueueIdError)?;
        let number = number.parse().map_err(|_| message::id::QueueIdError)?;
        Ok(Self { message: message.parse()?, number })
    }
}

impl Serialize for EntryId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EntryId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the entries of a message share. Written once, at accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageRecord {
    /// The message's id.
    pub id: QueueId,
    /// From whom, and for whom it was at the time of accept.
    pub envelope: Envelope,
    /// Length of the whole content, in octets.
    pub size: u64,
    /// Octets of it in the inline part; the rest is staged in parts.
    pub inline_size: u64,
    /// How many parts follow the inline part.
    pub parts: u32,
    /// W3C `traceparent` of the accepting transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Quarantined by the sender domain's policy: goes to the junk folder.
    #[serde(default)]
    pub quarantine: bool,
    /// When it was accepted, by the store's clock: the backend fills this in.
    #[serde(default)]
    pub accepted_at: Timestamp,
}

/// A message to accept.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// Its record; `accepted_at` is set by the store.
    pub record: MessageRecord,
    /// Its inline content: the first `record.inline_size` octets.
    pub inline: Content,
    /// Its entries, one for each next hop; at least one.
    pub entries: Vec<NewEntry>,
}

/// An entry to accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Where it goes.
    pub next_hop: NextHop,
    /// Whose it is.
    pub tenant: Tenant,
    /// For whom.
    pub recipients: Vec<Recipient>,
    /// Given up so long after accept.
    pub max_age: Duration,
}

/// What an entry is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// Waiting for its time, or for a worker.
    Queued,
    /// In a worker's hands.
    Leased,
    /// Put aside, by an operator or because its workers keep dying: nobody leases it until it is released.
    Held,
}

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Closing {
    /// Every recipient was delivered.
    Delivered,
    /// A recipient was refused for good; the sender was told, where there is one.
    Bounced,
    /// A recipient was given up; the sender was told, where there is one.
    Expired,
}

/// The account of a queue: every entry that was accepted is in one of the other columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Entries accepted, bounces among them.
    pub accepted: u64,
    /// Closed as [`Closing::Delivered`].
    pub delivered: u64,
    /// Closed as [`Closing::Bounced`].
    pub bounced: u64,
    /// Closed as [`Closing::Expired`].
    pub expired: u64,
    /// Removed by operators.
    pub removed: u64,
    /// In the queue, whatever they are doing. Counted, not computed.
    pub queued: u64,
}

impl Ledger {
    /// Entries that were accepted and are nowhere; negative when more is found than was accepted.
    /// Anything but zero is a fault.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let found = self.delivered + self.bounced + self.expired + self.removed + self.queued;
        i64::try_from(self.accepted).unwrap_or(i64::MAX) - i64::try_from(found).unwrap_or(i64::MAX)
    }

    /// Counts a closed entry.
    pub fn close(&mut self, closing: Closing) {
        match closing {
            Closing::Delivered => self.delivered += 1,
            Closing::Bounced => self.bounced += 1,
            Closing::Expired => self.expired += 1,
        }
    }
}

impl std::ops::AddAssign for Ledger {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.bounced += other.bounced;
        self.expired += other.expired;
        self.removed += other.removed;
        self.queued += other.queued;
    }
}

/// An entry, as the queue holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// Where it goes.
    pub next_hop: NextHop,
    /// Whose it is.
    #[serde(default)]
    pub tenant: Tenant,
    /// For whom, and where each stands.
    pub recipients: Vec<Recipient>,
    /// What it is doing.
    pub state: EntryState,
    /// How often it was leased; the present lease's fencing token.
    pub epoch: u64,
    /// Attempts settled so far.
    pub attempts: u32,
    /// When it is due (queued), or when its lease ends (leased).
    pub due: Timestamp,
    /// When it is given up.
    pub expires: Timestamp,
    /// Why the last attempt did not finish it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Who holds the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Why it is held, or will be when its lease ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Why it is to fail without another attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doomed: Option<String>,
    /// An attempt that went as far as the end of the message, and is not settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<Doubt>,
}

/// An attempt of which only its worker knows how it ended: the next hop may have the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// The host that was being given the message.
    pub peer: String,
    /// Since when, by the store's clock.
    pub since: Timestamp,
}

/// The right to attempt an entry until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Which entry.
    pub entry: EntryId,
    /// The fencing token: a settlement with an older one is refused.
    pub epoch: u64,
}

/// An entry in this worker's hands.
#[derive(Debug, Clone)]
pub struct Leased {
    /// The right to it.
    pub lease: Lease,
    /// The entry.
    pub entry: Entry,
    /// Its message.
    pub message: Arc<MessageRecord>,
    /// The inline content, where the backend had it at hand.
    pub inline: Option<Content>,
    /// The store's clock when the lease was given.
    pub now: Timestamp,
}

/// What becomes of an entry after an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Every recipient is final: the entry goes.
    Done(Closing),
    /// Due again after a wait.
    Retry {
        /// From now.
        after: Duration,
        /// Why, for operators.
        error: String,
    },
}

/// The outcome of one attempt.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The right to say so.
    pub lease: Lease,
    /// All recipients of the entry, with their new standing.
    pub recipients: Vec<Recipient>,
    /// What becomes of it.
    pub next: Next,
    /// A notification to the sender, accepted in the same step. Its inline content is all of it, and
    /// its id is made from that of the message by [`QueueId::with_random`]: so the two are kept together.
    pub bounce: Option<NewMessage>,
}
