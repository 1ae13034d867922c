//! This worker's share of the limits on connections that all workers have together.
//!
//! Every worker that works on a limited next hop, or by a limited source pool, says so to the queue store, and learns
//! how many do. The limit is divided among them. A share holds for a grace without a further word, for as long as the
//! others leave it; then it is nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use queue::{Queue, Scope};
use tokio::time::Instant;

use crate::error::with_causes;

pub(crate) struct Shares {
    queue: Arc<dyn Queue>,
    worker: String,
    limits: BTreeMap<Scope, usize>,
    grace: Duration,
    known: Mutex<HashMap<Scope, Share>>,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    most: usize,
    until: Instant,
}

impl Shares {
    /// `worker` must be another than that of every other process.
    pub(crate) fn new(
        queue: Arc<dyn Queue>,
        worker: String,
        limits: BTreeMap<Scope, usize>,
        grace: Duration,
    ) -> Self {
        Self { queue, worker, limits, grace, known: Mutex::default() }
    }

    /// How many attempts this worker may have at once within a scope; `None` when all workers together
    /// have no limit there.
    pub(crate) fn most(&self, scope: &Scope) -> Option<usize> {
        self.limits.get(scope)?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let share = known.get(scope).filter(|share| share.until > Instant::now());
        Some(share.map_or(0, |share| share.most))
    }

    /// Whether the share in a scope has to be asked for before anything is sent there.
    pub(crate) fn is_unknown(&self, scope: &Scope) -> bool {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.limits.contains_key(scope)
            && known().get(scope).is_none_or(|share| share.until <= Instant::now())
    }

    /// Asks for the share in a scope, and says for another grace that this worker is there. Without an
    /// answer the last one holds until its end.
    pub(crate) async fn ask(&self, scope: &Scope) {
        let Some(limit) = self.limits.get(scope) else { return };
        let until = Instant::now() + self.grace;
        match self.queue.sharers(scope, &self.worker, self.grace).await {
            Ok((workers, before)) => {
                let share = Share { most: share(*limit, workers, before), until };
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(scope.clone(), share);
            }
            Err(error) => {
                tracing::warn!(%scope, error = %with_causes(&error), "share of a limit cannot be asked for");
            }
        }
    }

    /// The scopes in which there is a share, or was one.
    pub(crate) fn kept(&self) -> Vec<Scope> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Nothing is in hand there: its share may go to others.
    pub(crate) fn leave(&self, scope: &Scope) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(scope);
    }

    /// How often shares are to be asked for anew.
    pub(crate) fn every(&self) -> Duration {
        self.grace / 3
    }
}

/// The part of `limit` that falls to the worker behind `before` others of `workers`.
fn share(limit: usize, workers: usize, before: usize) -> usize {
    let workers = workers.max(1);
    limit / workers + usize::from(before < limit % workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_make_up_the_limit() {
        for limit in 1..20 {
            for workers in 1..12 {
                let all: usize = (0..workers).map(|before| share(limit, workers, before)).sum();
                assert_eq!(all, limit, "{workers} workers");
            }
        }
    }
}
