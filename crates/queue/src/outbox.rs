//! The outbox: what has happened to entries, for those who follow the queue from outside.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Events of a shard that are kept at most, for a reader that does not come; then the oldest go, and it is
/// told with [`Events::lost`].
pub(crate) const OUTBOX_LIMIT: usize = 1_000_000;

/// Readers at most.
pub(crate) const OUTBOX_READERS: usize = 16;

/// What happened to an entry. Leases are not told: they are in the traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It was accepted.
    Accepted,
    /// A peer is about to have it.
    InDoubt,
    /// An attempt did not finish it; it is tried again.
    Deferred,
    /// It ended: delivered.
    Delivered,
    /// It ended: refused for good.
    Bounced,
    /// It ended: given up.
    Expired,
    /// An operator, or too many lost leases, put it aside.
    Held,
    /// An operator released it.
    Released,
    /// An operator made it due.
    Retried,
    /// An operator has it returned to its sender.
    Doomed,
    /// An operator removed it.
    Removed,
}

impl EventKind {
    /// Its name, as stores and listings have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::InDoubt => "in_doubt",
            Self::Deferred => "deferred",
            Self::Delivered => "delivered",
            Self::Bounced => "bounced",
            Self::Expired => "expired",
            Self::Held => "held",
            Self::Released => "released",
            Self::Retried => "retried",
            Self::Doomed => "doomed",
            Self::Removed => "removed",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        const ALL: [EventKind; 11] = [
            EventKind::Accepted,
            EventKind::InDoubt,
            EventKind::Deferred,
            EventKind::Delivered,
            EventKind::Bounced,
            EventKind::Expired,
            EventKind::Held,
            EventKind::Released,
            EventKind::Retried,
            EventKind::Doomed,
            EventKind::Removed,
        ];
        ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A change of state of an entry, written in the same step as the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the store's clock.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
    /// To which entry (`ID.N`).
    pub entry: String,
    /// The error, the reason or the peer; empty where there is none.
    pub detail: String,
}

/// Some events, in the order in which they happened to each entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The events.
    pub events: Vec<Event>,
    /// Give this to [`crate::Queue::passed`] once they are dealt with.
    pub cursor: String,
    /// The reader stayed away for so long that events were dropped.
    pub lost: bool,
}
