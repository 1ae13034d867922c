//! What operators ask of the queue, and what they are told.

use std::fmt;

use message::QueueId;
use serde::{Deserialize, Serialize};

use crate::{EntryId, Timestamp};

/// What an operator does to entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Its queued entries are due now.
    RetryNow,
    /// Its entries are put aside; one that is leased is, once its attempt ends without finishing it.
    Hold {
        /// Why, for other operators.
        why: String,
    },
    /// Its held entries are due now.
    Release,
    /// Its entries are not tried again: they fail, and a bounce tells the sender. One that is leased
    /// does so once its attempt ends without finishing it.
    Bounce {
        /// Why, for the sender.
        why: String,
    },
    /// Its entries go, leased ones too (their settlement will be stale), and nobody is told.
    Remove,
}

impl Verb {
    /// Its name, as commands and records have it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RetryNow => "retry",
            Self::Hold { .. } => "hold",
            Self::Release => "release",
            Self::Bounce { .. } => "bounce",
            Self::Remove => "remove",
        }
    }

    /// The reason that came with it; empty for those that need none.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Hold { why } | Self::Bounce { why } => why,
            Self::RetryNow | Self::Release | Self::Remove => "",
        }
    }
}

/// What a verb is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// All entries of a message.
    Message(QueueId),
    /// One of them.
    Entry(EntryId),
}

impl Target {
    /// The message that it is, or is part of.
    #[must_use]
    pub fn message(&self) -> QueueId {
        match self {
            Self::Message(id) => *id,
            Self::Entry(id) => id.message,
        }
    }

    /// Whether an entry of that message is meant.
    #[must_use]
    pub fn is(&self, id: EntryId) -> bool {
        match self {
            Self::Message(message) => *message == id.message,
            Self::Entry(entry) => *entry == id,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(id) => id.fmt(f),
            Self::Entry(id) => id.fmt(f),
        }
    }
}

/// What can be suspended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// A next hop, for everybody.
    NextHop(String),
    /// A tenant, wherever its mail goes.
    Tenant(String),
    /// A source pool, whoever leaves by it.
    Pool(String),
}

impl Scope {
    /// Its name in the store: `h:NEXTHOP`, `t:TENANT` or `p:POOL`.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::NextHop(name) => format!("h:{name}"),
            Self::Tenant(name) => format!("t:{name}"),
            Self::Pool(name) => format!("p:{name}"),
        }
    }

    pub(crate) fn from_key(key: &str) -> Option<Self> {
        let (kind, name) = key.split_once(':')?;
        match kind {
            "h" => Some(Self::NextHop(name.to_owned())),
            "t" => Some(Self::Tenant(name.to_owned())),
            "p" => Some(Self::Pool(name.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NextHop(name) => write!(f, "next hop {name}"),
            Self::Tenant(name) => write!(f, "tenant {name}"),
            Self::Pool(name) => write!(f, "source pool {name}"),
        }
    }
}

/// Something that is suspended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// What.
    pub scope: Scope,
    /// Why, in the words of who did it.
    pub why: String,
    /// Who did it.
    pub by: String,
    /// When, by the store's clock.
    pub since: Timestamp,
}

/// What an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerbRecord {
    /// When, by the store's clock.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// [`Verb::name`], `suspend` or `resume`.
    pub verb: String,
    /// A message, an entry, or what was suspended.
    pub target: String,
    /// The reason given; empty when there was none.
    pub why: String,
    /// How many entries it concerned.
    pub entries: u64,
}

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oddity {
    /// The entry or message.
    pub what: String,
    /// How it does not fit.
    pub why: String,
}

/// One page of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// Records looked at.
    pub checked: u64,
    /// What does not fit.
    pub odd: Vec<Oddity>,
    /// Give this back for the next page; `None` at the end.
    pub next: Option<String>,
}
