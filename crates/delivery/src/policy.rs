//! What the queue is told of who may have how much: from the hosted domains and the settings.

use std::collections::BTreeMap;

use domains::DomainIndex;
use queue::{Allowance, NextHop, Policy, Tenant};

use crate::config::NextHopLimit;

/// The policy that follows from the domains and the limits on next hops.
pub(crate) fn policy(index: &DomainIndex, next_hops: &BTreeMap<String, NextHopLimit>) -> Policy {
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
    Policy {
        tenants: index.all().filter_map(of_domain).collect(),
        next_hops: next_hops.iter().filter_map(of_hop).collect(),
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
        let told = policy(&DomainIndex::default(), &next_hops);
        assert!(told.tenants.is_empty());
        let expected = Allowance { weight: 1, per_minute: Some(60) };
        assert_eq!(told.next_hops, BTreeMap::from([(NextHop("mx:b".to_owned()), expected)]));
    }
}
