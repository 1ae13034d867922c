//! How the queue is shared: weights and rates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{NextHop, Tenant};

/// A source pool: the addresses that mail leaves from, by a name that delivery knows; opaque here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pool(pub String);

impl Pool {
    /// The pool of mail for which no other is named.
    pub const DEFAULT: &'static str = "default";
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a tenant, a next hop or a pool may have.
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
    /// Of source pools; weights mean nothing here.
    pub pools: BTreeMap<Pool, Allowance>,
    /// The pools of tenants. All mail of a tenant leaves by its pool, by [`Pool::DEFAULT`] where none is named here.
    /// What waits follows a change at once.
    pub tenant_pools: BTreeMap<Tenant, Pool>,
    /// What the names of next hops begin with, up to the first colon, that mail of nobody leaves for: by
    /// [`Pool::DEFAULT`]. Other mail of nobody does not leave, and has no pool.
    pub leaving: BTreeSet<String>,
}

impl Policy {
    /// The pool by which what waits of a tenant for a next hop leaves, if it leaves.
    #[must_use]
    pub fn pool_of(&self, tenant: &str, next_hop: &str) -> Option<&str> {
        pool_of(&self.tenant_pools, &self.leaving, tenant, next_hop)
    }
}

/// See [`Policy::pool_of`].
pub(crate) fn pool_of<'a>(
    tenant_pools: &'a BTreeMap<Tenant, Pool>,
    leaving: &BTreeSet<String>,
    tenant: &str,
    next_hop: &str,
) -> Option<&'a str> {
    if tenant.is_empty() {
        let kind = next_hop.split_once(':').map_or(next_hop, |(kind, _)| kind);
        return leaving.contains(kind).then_some(Pool::DEFAULT);
    }
    Some(tenant_pools.get(&Tenant(tenant.to_owned())).map_or(Pool::DEFAULT, |pool| pool.0.as_str()))
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
