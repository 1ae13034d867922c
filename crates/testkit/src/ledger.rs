//! The account book of a load test: what was answered `250` has to turn up somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard};

/// What is known of messages, by the id that the test gave each (not the queue id).
#[derive(Default)]
pub struct Ledger {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    sent: BTreeSet<String>,
    accepted: BTreeSet<String>,
    arrived: BTreeMap<String, usize>,
    bounced: BTreeSet<String>,
}

/// The state of the accounts at one moment. Its text says in one glance what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Messages handed in at least once.
    pub sent: usize,
    /// Messages answered `250`.
    pub accepted: usize,
    /// Different messages that arrived.
    pub arrived: usize,
    /// Different messages that came back as a bounce.
    pub bounced: usize,
    /// Copies beyond the first of messages that arrived.
    pub duplicates: usize,
    /// Answered `250`, and neither arrived nor bounced: lost, or not there yet.
    pub missing: Vec<String>,
    /// Arrived or bounced, and never sent: another test's mail or a damaged id.
    pub unknown: Vec<String>,
}

impl Ledger {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// The message is about to be handed in.
    pub fn sent(&self, id: &str) {
        self.book().sent.insert(id.to_owned());
    }

    /// The message was answered `250`: responsibility has passed.
    pub fn accepted(&self, id: &str) {
        self.book().accepted.insert(id.to_owned());
    }

    /// A copy of the message arrived.
    pub fn arrived(&self, id: &str) {
        *self.book().arrived.entry(id.to_owned()).or_default() += 1;
    }

    /// A bounce about the message arrived.
    pub fn bounced(&self, id: &str) {
        self.book().bounced.insert(id.to_owned());
    }

    /// Forgets arrivals and bounces, for a check that counts a mailbox anew.
    pub fn forget_arrivals(&self) {
        let mut book = self.book();
        book.arrived.clear();
        book.bounced.clear();
    }

    /// The state of the accounts now.
    pub fn balance(&self) -> Balance {
        let book = self.book();
        let closed = |id: &&String| book.arrived.contains_key(*id) || book.bounced.contains(*id);
        let turned_up = book.arrived.keys().chain(&book.bounced);
        Balance {
            sent: book.sent.len(),
            accepted: book.accepted.len(),
            arrived: book.arrived.len(),
            bounced: book.bounced.len(),
            duplicates: book.arrived.values().map(|copies| copies - 1).sum(),
            missing: book.accepted.iter().filter(|id| !closed(id)).cloned().collect(),
            unknown: turned_up.filter(|id| !book.sent.contains(*id)).cloned().collect(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Balance {
    /// Whether nothing is lost and nothing came from nowhere.
    pub fn is_even(&self) -> bool {
        self.missing.is_empty() && self.unknown.is_empty()
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, accepted, arrived, bounced, duplicates, missing, unknown } = self;
        write!(
            f,
            "sent {sent}, answered 250 {accepted}, arrived {arrived}, bounced {bounced}, duplicates {duplicates}"
        )?;
        write!(f, ", missing {}, unknown {}", missing.len(), unknown.len())?;
        for (word, ids) in [("missing", missing), ("unknown", unknown)] {
            if let Some(first) = ids.first() {
                write!(f, "\n  first {word}: {first}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_answered_250_that_never_arrives_is_missing() {
        let ledger = Ledger::new();
        for id in ["a", "b", "c", "d"] {
            ledger.sent(id);
        }
        for id in ["a", "b", "c"] {
            ledger.accepted(id);
        }
        ledger.arrived("a");
        ledger.arrived("a");
        ledger.bounced("b");
        let balance = ledger.balance();
        assert_eq!((balance.missing.as_slice(), balance.duplicates), (["c".to_owned()].as_slice(), 1));
        ledger.arrived("c");
        ledger.arrived("d"); // not answered in time, but stored: allowed
        assert!(ledger.balance().is_even(), "{}", ledger.balance());
        ledger.arrived("x");
        assert_eq!(ledger.balance().unknown, ["x"]);
    }
}
