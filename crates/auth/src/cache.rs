//! Answers of the DNS for as long as they hold, so that the domains that write often cost no look-up.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const SHARDS: usize = 16;

type Shard<K, V> = HashMap<K, (V, Instant)>;

/// A map whose entries end at their time, with a bound on their number.
pub(crate) struct Cache<K, V> {
    shards: [Mutex<Shard<K, V>>; SHARDS],
    hasher: RandomState,
    shard_capacity: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// A cache of about so many entries.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            hasher: RandomState::new(),
            shard_capacity: capacity.div_ceil(SHARDS).max(1),
        }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let shard = self.shard(key);
        let (value, until) = shard.get(key)?;
        (*until > Instant::now()).then(|| value.clone())
    }

    pub(crate) fn insert(&self, key: K, value: V, until: Instant) {
        let mut shard = self.shard(&key);
        if shard.len() >= self.shard_capacity && !shard.contains_key(&key) {
            let now = Instant::now();
            shard.retain(|_, (_, until)| *until > now);
            if shard.len() >= self.shard_capacity {
                // Which one goes is left to the map's order, which no stranger can foresee.
                if let Some(victim) = shard.keys().next().cloned() {
                    shard.remove(&victim);
                }
            }
        }
        shard.insert(key, (value, until));
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> MutexGuard<'_, Shard<K, V>> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        // A panic elsewhere cannot have left a map half changed.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn entries_end_at_their_time() {
        let cache: Cache<Box<str>, u8> = Cache::new(10);
        let now = Instant::now();
        cache.insert("past".into(), 1, now);
        cache.insert("future".into(), 2, now + Duration::from_secs(60));
        assert_eq!(cache.get("past"), None);
        assert_eq!(cache.get("future"), Some(2));
    }

    #[test]
    fn the_number_is_bounded() {
        let cache: Cache<u32, ()> = Cache::new(64);
        let until = Instant::now() + Duration::from_secs(60);
        (0..10_000).for_each(|key| cache.insert(key, (), until));
        let held: usize = cache.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= 64, "{held}");
    }
}
