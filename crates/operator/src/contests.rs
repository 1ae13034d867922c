//! Records that something else keeps changing back. Two writers that both insist would go on for ever; after so
//! many times this one stops, and tells.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::record::Record;

/// A record set is written so often within [`MEMORY`], the first time among them.
pub(crate) const LIMIT: usize = 10;
/// How long a write is remembered, and so how long a contested record set is left alone.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);

/// What was written where other values, or none, had been; by the MailDomain's UID and the record set. Another
/// wish for the same name is another record set, and begins anew.
#[derive(Default)]
pub(crate) struct Contests {
    writes: Mutex<HashMap<(String, Record), Vec<Timestamp>>>,
}

impl Contests {
    fn recent(&self, now: Timestamp) -> MutexGuard<'_, HashMap<(String, Record), Vec<Timestamp>>> {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.retain(|_, times| {
            times.retain(|time| now.duration_since(*time) < MEMORY);
            !times.is_empty()
        });
        writes
    }

    /// Whether a record set was written so often that it is to be left alone.
    pub(crate) fn is_contested(&self, uid: &str, record: &Record, now: Timestamp) -> bool {
        let key = (uid.to_owned(), record.clone());
        self.recent(now).get(&key).is_some_and(|times| times.len() >= LIMIT)
    }

    /// Notes that a record set was written.
    pub(crate) fn note(&self, uid: &str, record: &Record, now: Timestamp) {
        self.recent(now).entry((uid.to_owned(), record.clone())).or_default().push(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Purpose;

    #[test]
    fn a_contest_ends_after_an_hour_or_with_another_wish() {
        let record = |value: &str| Record {
            purpose: Purpose::Dmarc,
            name: "_dmarc.example.com".to_owned(),
            ttl: 300,
            values: vec![value.to_owned()],
        };
        let (ours, other) = (record("v=DMARC1; p=reject"), record("v=DMARC1; p=none"));
        let (contests, now) = (Contests::default(), Timestamp::UNIX_EPOCH);
        for _ in 0..LIMIT {
            assert!(!contests.is_contested("1", &ours, now));
            contests.note("1", &ours, now);
        }
        assert!(contests.is_contested("1", &ours, now));
        assert!(!contests.is_contested("1", &other, now) && !contests.is_contested("2", &ours, now));
        let later = now.checked_add(MEMORY).unwrap();
        assert!(!contests.is_contested("1", &ours, later));
    }
}
