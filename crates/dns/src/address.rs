//! Which addresses mail from strangers' DNS may be sent to, and in which order they are tried.

use std::net::IpAddr;

use rand::seq::SliceRandom;

/// Which addresses a mail exchanger may have. Anybody can publish an MX that names this machine or
/// its neighbours; mail must not become a way to reach them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressPolicy {
    /// Let loopback, link-local and unspecified addresses through too: for tests.
    pub allow_loopback: bool,
}

impl AddressPolicy {
    /// Whether mail may be sent to this address. Multicast and broadcast never qualify.
    #[must_use]
    pub fn permits(self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(ip) if ip.is_multicast() || ip.is_broadcast() => false,
            IpAddr::V6(ip) if ip.is_multicast() => false,
            _ if self.allow_loopback => true,
            // 0.0.0.0/8 is "this network" (RFC 1122 §3.2.1.3): 0.1.2.3 may reach this host too.
            IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.octets()[0] == 0),
            IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()),
        }
    }
}

/// Puts addresses in the order to try them: shuffled within each family (RFC 5321 §5.1), and the
/// families in turn, so that a family that is not routed here costs one try and a limit keeps both.
pub(crate) fn in_order(mut v4: Vec<IpAddr>, mut v6: Vec<IpAddr>, limit: usize) -> Vec<IpAddr> {
    v4.shuffle(&mut rand::rng());
    v6.shuffle(&mut rand::rng());
    let longest = v4.len().max(v6.len());
    (0..longest).flat_map(|at| [v4.get(at), v6.get(at)]).flatten().copied().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_its_neighbours_are_refused() {
        let strict = AddressPolicy::default();
        let refused = ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1"]
            .into_iter()
            .chain(["255.255.255.255", "::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1"]);
        for text in refused {
            assert!(!strict.permits(text.parse().unwrap()), "{text}");
        }
        for text in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert!(strict.permits(text.parse().unwrap()), "{text}");
        }
        let lenient = AddressPolicy { allow_loopback: true };
        assert!(lenient.permits("127.0.0.1".parse().unwrap()));
        assert!(!lenient.permits("ff02::1".parse().unwrap()));
    }

    #[test]
    fn a_limit_keeps_both_families() {
        let v4: Vec<IpAddr> = (1..9).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let v6: Vec<IpAddr> = vec!["2001:db8::1".parse().unwrap()];
        let order = in_order(v4, v6.clone(), 4);
        assert_eq!(order.len(), 4);
        assert_eq!(order[1], v6[0]);
    }
}
