//! Who may not go on now: rates and suspensions, in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::policy::{Rate, pool_of};
use crate::{Policy, Pool, Scope, Suspension, Tenant, Timestamp};

/// For so long something suspended is not looked at again.
const SUSPENDED_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Timestamp,
}

/// Weights, rates and suspensions.
#[derive(Debug, Default)]
pub(super) struct Limits {
    weights: HashMap<String, u32>,
    rates: HashMap<Scope, Rate>,
    buckets: HashMap<Scope, Bucket>,
    tenant_pools: BTreeMap<Tenant, Pool>,
    leaving: BTreeSet<String>,
    pub(super) suspended: BTreeMap<Scope, Suspension>,
}

impl Limits {
    pub(super) fn set_policy(&mut self, policy: &Policy) {
        let tenants = policy.tenants.iter().map(|(name, one)| (Scope::Tenant(name.0.clone()), one));
        let hops = policy.next_hops.iter().map(|(name, one)| (Scope::NextHop(name.0.clone()), one));
        let pools = policy.pools.iter().map(|(name, one)| (Scope::Pool(name.0.clone()), one));
        let all = tenants.chain(hops).chain(pools);
        self.rates = all.filter_map(|(scope, one)| Some((scope, one.rate(1)?))).collect();
        self.weights = policy.tenants.iter().map(|(name, one)| (name.0.clone(), one.weight())).collect();
        self.tenant_pools.clone_from(&policy.tenant_pools);
        self.leaving.clone_from(&policy.leaving);
        let rates = &self.rates;
        self.buckets.retain(|scope, _| rates.contains_key(scope));
    }

    /// The source pool by which what waits of a tenant for a next hop leaves.
    pub(super) fn pool_of(&self, tenant: &str, hop: &str) -> Option<Scope> {
        pool_of(&self.tenant_pools, &self.leaving, tenant, hop).map(|pool| Scope::Pool(pool.to_owned()))
    }

    pub(super) fn weight(&self, tenant: &str) -> usize {
        self.weights.get(tenant).map_or(1, |weight| usize::try_from(*weight).unwrap_or(1))
    }

    /// How many entries of a scope may start now; or, where none may, for how long it need not be asked again.
    pub(super) fn tokens(&mut self, scope: &Scope, now: Timestamp) -> Result<usize, Duration> {
        if self.suspended.contains_key(scope) {
            return Err(SUSPENDED_FOR);
        }
        let Some(rate) = self.rates.get(scope) else { return Ok(usize::MAX) };
        let bucket = self.buckets.entry(scope.clone()).or_insert(Bucket { level: rate.burst, at: now });
        let since = now.since(bucket.at).as_secs_f64() * 1000.0;
        *bucket = Bucket { level: (bucket.level + since * rate.per_ms).min(rate.burst), at: now };
        if bucket.level >= 1.0 {
            return Ok(bucket.level as usize);
        }
        Err(Duration::from_millis(((1.0 - bucket.level) / rate.per_ms).ceil().max(1.0) as u64))
    }

    /// The same for several scopes together.
    pub(super) fn tokens_of_all(&mut self, scopes: &[Scope], now: Timestamp) -> Result<usize, Duration> {
        let (mut tokens, mut wait) = (usize::MAX, None);
        for scope in scopes {
            match self.tokens(scope, now) {
                Ok(some) => tokens = tokens.min(some),
                Err(closed) => wait = wait.max(Some(closed)),
            }
        }
        wait.map_or(Ok(tokens), Err)
    }

    pub(super) fn spend(&mut self, scope: &Scope, count: usize) {
        if let Some(bucket) = self.buckets.get_mut(scope) {
            bucket.level -= count as f64;
        }
    }
}
