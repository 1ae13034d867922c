//! How long keys have been in their stages, by this process's own count. The times that keys carry are those of
//! a clock that may be set; what has been waited for is the shorter of both.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use domains::types::Stage;
use tokio::time::Instant;

use crate::store::StoredKey;

/// A MailDomain's UID, and a selector.
type Place = (String, String);

/// Stages that keys came to while this process was there.
#[derive(Default)]
pub(crate) struct Waits {
    stages: Mutex<HashMap<Place, (Stage, Instant)>>,
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<Place, (Stage, Instant)>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a key has come to a stage.
    pub(crate) fn note(&self, uid: &str, selector: &str, stage: Stage) {
        self.lock().insert((uid.to_owned(), selector.to_owned()), (stage, Instant::now()));
    }

    /// Tells keys how long they have been in their stages, where that is known.
    pub(crate) fn tell(&self, uid: &str, keys: &mut [StoredKey]) {
        let mut stages = self.lock();
        stages.retain(|(of, selector), (stage, _)| {
            let stands = |stored: &StoredKey| stored.key.selector == *selector && stored.key.stage == *stage;
            of != uid || keys.iter().any(stands)
        });
        for stored in keys {
            let place = (uid.to_owned(), stored.key.selector.clone());
            stored.key.waited = stages.get(&place).map(|(_, since)| since.elapsed());
        }
    }

    /// Forgets a domain that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().retain(|(of, _), _| of != uid);
    }
}
