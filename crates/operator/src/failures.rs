//! How often in a row something failed, by domain, and how long it is to be waited for therefore.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The first wait is twice this; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Failures in a row, by UID: names recur in other namespaces.
#[derive(Default)]
pub(crate) struct Failures {
    counts: Mutex<HashMap<String, u32>>,
}

impl Failures {
    /// How many there were.
    pub(crate) fn count(&self, uid: &str) -> u32 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(uid).copied().unwrap_or(0)
    }

    /// One more; how long to wait, `longest` at most.
    pub(crate) fn wait(&self, uid: &str, longest: Duration) -> Duration {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        (FIRST_WAIT * 2_u32.saturating_pow((*count).min(10))).min(longest)
    }

    /// It went well.
    pub(crate) fn forget(&self, uid: &str) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let (failures, longest) = (Failures::default(), Duration::from_secs(10));
        let waits: Vec<u64> = (0..5).map(|_| failures.wait("a", longest).as_secs()).collect();
        assert_eq!((waits, failures.count("a"), failures.count("b")), (vec![2, 4, 8, 10, 10], 5, 0));
        failures.forget("a");
        assert_eq!(failures.wait("a", longest).as_secs(), 2);
    }
}
