//! What the queue is told of who may have how much: from the hosted domains and the settings.

use std::collections::BTreeMap;

use domains::DomainIndex;
use queue::{Allowance, NextHop, Policy, Pool, Scope, Tenant};

use crate::config::NextHopLimit;
use crate::outbound::SourcePool;
use crate::route::Hop;

/// The policy that follows from the domains, the limits on next hops and the source pools.
pub(crate) fn policy(
    index: &DomainIndex,
    next_hops: &BTreeMap<String, NextHopLimit>,
    pools: &BTreeMap<String, SourcePool>,
) -> Policy {
    let of_domain = |domain: &std::sync::Arc<domains::HostedDomain>| {
        let outbound = domain.spec.outbound.as_ref()?;
        let weight = outbound.weight.unwrap_or(1);
        let allowance = Allowance { weight, per_minute: outbound.rate_per_minute };
        (allowance != Allowance::default()).then(|| (Tenant(domain.name.clone()), allowance))
    };
    let of_hop = |(name, limit): (&String, &NextHopLimit)| {
        let allowance = Allowance { weight: 1, per_minute: Some(limit.per_minute?) };
        Some((NextHop(name.clone()), allowance))
    };
    let of_pool = |(name, pool): (&String, &SourcePool)| {
        let allowance = Allowance { weight: 1, per_minute: Some(pool.rate_per_minute?) };
        Some((Pool(name.clone()), allowance))
    };
    let by_pool = |domain: &std::sync::Arc<domains::HostedDomain>| {
        let pool = domain.spec.outbound.as_ref()?.pool.clone()?;
        Some((Tenant(domain.name.clone()), Pool(pool)))
    };
    Policy {
        tenants: index.all().filter_map(of_domain).collect(),
        next_hops: next_hops.iter().filter_map(of_hop).collect(),
        pools: pools.iter().filter_map(of_pool).collect(),
        tenant_pools: index.all().filter_map(by_pool).collect(),
        leaving: Hop::LEAVING.iter().map(|kind| (*kind).to_owned()).collect(),
    }
}

/// The source pool by which what waits of a tenant for a next hop leaves; `None` for what does not leave. The queue
/// comes to the same by [`policy`].
pub(crate) fn pool_of(index: &DomainIndex, tenant: &Tenant, next_hop: &NextHop) -> Option<String> {
    if !Hop::parse(next_hop)?.leaves() {
        return None;
    }
    let named = || index.hosted(&tenant.0)?.spec.outbound.as_ref()?.pool.clone();
    Some(named().unwrap_or_else(|| Pool::DEFAULT.to_owned()))
}

/// The limits on connections that all workers share.
pub(crate) fn shared_limits(
    next_hops: &BTreeMap<String, NextHopLimit>,
    pools: &BTreeMap<String, SourcePool>,
) -> BTreeMap<Scope, usize> {
    let hops =
        next_hops.iter().filter_map(|(name, limit)| Some((Scope::NextHop(name.clone()), limit.connections?)));
    let pools = pools.iter().filter_map(|(name, pool)| Some((Scope::Pool(name.clone()), pool.connections?)));
    hops.chain(pools).collect()
}

/// Says which domains name a source pool that is not there: their mail waits.
pub(crate) fn warn_of_unknown_pools(policy: &Policy, pools: &BTreeMap<String, SourcePool>) {
    for (tenant, pool) in &policy.tenant_pools {
        if pool.0 != Pool::DEFAULT && !pools.contains_key(&pool.0) {
            tracing::error!(
                domain = %tenant,
                %pool,
                "source pool of a MailDomain is not in outbound.pools, mail of the domain waits"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_are_told() {
        let limit = |connections, per_minute| NextHopLimit { connections, per_minute };
        let next_hops = BTreeMap::from([
            ("mx:a".to_owned(), limit(Some(3), None)),
            ("mx:b".to_owned(), limit(None, Some(60))),
        ]);
        let slow = SourcePool { rate_per_minute: Some(5), connections: Some(2), ..SourcePool::default() };
        let pools = BTreeMap::from([("slow".to_owned(), slow), ("any".to_owned(), SourcePool::default())]);
        let told = policy(&DomainIndex::default(), &next_hops, &pools);
        assert!(told.tenants.is_empty() && told.tenant_pools.is_empty());
        let expected = |per_minute| Allowance { weight: 1, per_minute: Some(per_minute) };
        assert_eq!(told.next_hops, BTreeMap::from([(NextHop("mx:b".to_owned()), expected(60))]));
        assert_eq!(told.pools, BTreeMap::from([(Pool("slow".to_owned()), expected(5))]));
        assert_eq!(told.pool_of("", "relay:h:25"), Some("default"));
        assert_eq!(told.pool_of("", "local:a"), None);
        let limits = shared_limits(&next_hops, &pools);
        assert_eq!(limits.get(&Scope::NextHop("mx:a".to_owned())), Some(&3));
        assert_eq!(limits.get(&Scope::Pool("slow".to_owned())), Some(&2));
        assert_eq!(limits.len(), 2);
    }
}
