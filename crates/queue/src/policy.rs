//! How the queue is shared: weights and rates.

use std::collections::BTreeMap;

use crate::{NextHop, Tenant};

/// What a tenant or a next hop may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Its share beside others, 1 to 1000. Of tenants alone.
    pub weight: u32,
    /// Entries leased a minute at most, retries among them; `None` is no limit. Over all workers and shards;
    /// each shard has its even part, and five seconds' worth, at least one, may come at once in each.
    pub per_minute: Option<u32>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { weight: 1, per_minute: None }
    }
}

/// The weights and rates of a queue. Who is not named has weight 1 and no rate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Of tenants.
    pub tenants: BTreeMap<Tenant, Allowance>,
    /// Of next hops; weights mean nothing here.
    pub next_hops: BTreeMap<NextHop, Allowance>,
}

/// A rate as one shard keeps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate {
    /// Tokens a millisecond.
    pub(crate) per_ms: f64,
    /// Tokens at most.
    pub(crate) burst: f64,
}

impl Allowance {
    /// The part of one of `shards`.
    pub(crate) fn rate(&self, shards: usize) -> Option<Rate> {
        let per_ms = f64::from(self.per_minute?.max(1)) / 60_000.0 / shards.max(1) as f64;
        Some(Rate { per_ms, burst: (per_ms * 5000.0).max(1.0) })
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.clamp(1, 1000)
    }
}
