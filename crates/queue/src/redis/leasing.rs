//! Leasing from all shards, some of which may be away.
//!
//! What a shard has leased has been leased, whatever becomes of the others: were it not handed over, nobody would hold
//! it, and it would wait for the end of its lease and be counted as one that ended without a word.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::client::{Call, Client};
use super::rows::Row;
use super::{Counts, RedisQueue, millis};
use crate::{LeaseRequest, Leased, MAX_LOST_LEASES, QueueError, Timestamp};

/// Content up to this length comes along with its lease. Octets.
const INLINE_WITH_LEASE: usize = 64 * 1024;
/// How often a shard that is away is asked whether it is back.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often it is told of one shard that it is away.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The shards that failed when they were leased from, until they answer again. Meanwhile they are left out: one that
/// says nothing would hold up each lease from the others, and might make all those leases later, for nobody.
#[derive(Default)]
pub(super) struct Away {
    shards: Mutex<BTreeMap<usize, Shard>>,
    more: Notify,
}

/// What is known of a shard that failed.
#[derive(Default)]
struct Shard {
    away: bool,
    told: Option<Instant>,
}

impl Away {
    fn shards(&self) -> MutexGuard<'_, BTreeMap<usize, Shard>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> Vec<usize> {
        self.shards().iter().filter(|(_, known)| known.away).map(|(shard, _)| *shard).collect()
    }

    fn failed(&self, shard: usize, error: &QueueError) {
        let mut shards = self.shards();
        let known = shards.entry(shard).or_default();
        known.away = true;
        let error = error as &dyn std::error::Error;
        if known.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            known.told = Some(Instant::now());
            tracing::warn!(shard, error, "a shard cannot be leased from, the others go on without it");
        } else {
            tracing::debug!(shard, error, "a shard cannot be leased from");
        }
        drop(shards);
        self.more.notify_one();
    }

    fn answers(&self, shard: usize) {
        if let Some(known) = self.shards().get_mut(&shard)
            && std::mem::take(&mut known.away)
        {
            tracing::info!(shard, "a shard answers again and is leased from");
        }
    }
}

/// Asks the shards that are away whether they are back, until it is dropped.
pub(super) async fn keep(client: Arc<Client>) {
    loop {
        let away = client.away.list();
        if away.is_empty() {
            client.away.more.notified().await;
            continue;
        }
        sleep(ASK_AGAIN).await;
        join_all(away.into_iter().map(|shard| client.ask_whether_back(shard))).await;
    }
}

impl Client {
    async fn ask_whether_back(&self, shard: usize) {
        let asked = self.run::<Counts>("looking for a shard", self.call(shard, Call::Depth)).await;
        if asked.is_ok() {
            self.away.answers(shard);
        }
    }
}

impl RedisQueue {
    /// Leases from all shards that are not away; from all, where they all are.
    pub(super) async fn lease_from_all(&self, request: &LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        let shards = self.shards();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut open: Vec<usize> = (0..shards).map(|at| (first + at) % shards).collect();
        let away = self.client.away.list();
        if away.len() < shards {
            open.retain(|shard| !away.contains(shard));
        }
        let (mut leased, mut failure) = (Vec::new(), None);
        // Each round asks the shards that may have more for a fair share of what is still wanted. What is there is not
        // held up for long: after a failure, which may have taken its time, it is enough.
        while leased.len() < request.max && !open.is_empty() && (failure.is_none() || leased.is_empty()) {
            let wanted = request.max - leased.len();
            let shares: Vec<(usize, usize)> = open
                .iter()
                .enumerate()
                .map(|(at, shard)| (*shard, (wanted + open.len() - 1 - at) / open.len()))
                .filter(|(_, share)| *share > 0)
                .collect();
            let asked = shares.iter().map(|(shard, share)| self.lease_from(*shard, *share, request));
            for ((shard, share), answer) in shares.iter().zip(join_all(asked).await) {
                let more = answer.as_ref().is_ok_and(|answer| answer.len() >= *share);
                if !more {
                    open.retain(|open| open != shard);
                }
                match answer {
                    Ok(answer) => {
                        self.client.away.answers(*shard);
                        leased.extend(answer);
                    }
                    Err(error) => {
                        self.client.away.failed(*shard, &error);
                        failure = Some(error);
                    }
                }
            }
        }
        match failure {
            Some(error) if leased.is_empty() => Err(error),
            _ => Ok(leased),
        }
    }

    /// Leases from one shard.
    async fn lease_from(
        &self,
        shard: usize,
        max: usize,
        request: &LeaseRequest,
    ) -> Result<Vec<Leased>, QueueError> {
        let mut call = self.client.call(shard, Call::Lease);
        call.arg(&request.worker)
            .arg(max)
            .arg(millis(request.duration))
            .arg(INLINE_WITH_LEASE)
            .arg(MAX_LOST_LEASES)
            .arg(request.except_pools.len());
        for pool in &request.except_pools {
            call.arg(&pool.0);
        }
        for hop in &request.except {
            call.arg(&hop.0);
        }
        let (now, rows): (u64, Vec<Row>) = self.client.run("leasing from the queue", call).await?;
        let mut leased = Vec::with_capacity(rows.len());
        for row in rows {
            match row.into_leased(Timestamp(now)) {
                Ok(one) => leased.push(one),
                // Its lease ends, and it is tried again; the others go on.
                Err(error) => tracing::error!(%error, "queue entry cannot be read"),
            }
        }
        Ok(leased)
    }
}
