//! Whether clients' addresses get here. Behind a Service that hides them, every client has a private one: a node's,
//! or a load balancer's. SPF, DNS names of clients and limits per client mean nothing then, and nothing else looks
//! wrong.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many addresses are told at most.
const TOLD: usize = 8;

/// Who began transactions on `mx` listeners since the last client with a public address.
pub(crate) struct Origins {
    window: Duration,
    transactions: u32,
    private: Mutex<Private>,
}

#[derive(Default)]
struct Private {
    since: Option<Instant>,
    transactions: u32,
    addresses: BTreeSet<IpAddr>,
}

impl Origins {
    /// `transactions` within at least `window`, all from private addresses, are told of; 0: they never are.
    pub(crate) fn new(window: Duration, transactions: u32) -> Self {
        Self { window, transactions, private: Mutex::default() }
    }

    /// A transaction began. Whether a warning was due, once for each window.
    pub(crate) fn note(&self, client: IpAddr, now: Instant) -> bool {
        if self.transactions == 0 {
            return false;
        }
        let mut private = self.private.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_private(client) {
            *private = Private::default();
            metrics::gauge!("packetboat_smtp_clients_all_private").set(0.0);
            return false;
        }
        let since = *private.since.get_or_insert(now);
        private.transactions = private.transactions.saturating_add(1);
        if private.addresses.len() < TOLD {
            private.addresses.insert(client);
        }
        if private.transactions < self.transactions || now.duration_since(since) < self.window {
            return false;
        }
        metrics::gauge!("packetboat_smtp_clients_all_private").set(1.0);
        let addresses: Vec<String> = private.addresses.iter().map(IpAddr::to_string).collect();
        tracing::warn!(
            transactions = private.transactions,
            addresses = addresses.join(" "),
            window = ?self.window,
            "every client has a private address, so SPF cannot work: set externalTrafficPolicy Local or use the \
             PROXY protocol"
        );
        *private = Private { since: Some(now), ..Private::default() };
        true
    }
}

/// An address that no client on the Internet has: RFC 1918, RFC 6598, RFC 4193, loopback and link-local.
fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let shared = first == 100 && second & 0xc0 == 64;
            address.is_private() || address.is_loopback() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "10.244.0.1";
    const WINDOW: Duration = Duration::from_secs(600);

    fn note(origins: &Origins, client: &str, at: Instant) -> bool {
        origins.note(client.parse().unwrap(), at)
    }

    #[tokio::test]
    async fn one_address_for_all_is_told_once_a_window() {
        let (origins, start) = (Origins::new(WINDOW, 3), Instant::now());
        assert!(!note(&origins, NODE, start));
        assert!(!note(&origins, NODE, start + WINDOW), "two are too few");
        assert!(note(&origins, NODE, start + WINDOW));
        for _ in 0..9 {
            assert!(!note(&origins, NODE, start + WINDOW), "told twice");
        }
        assert!(note(&origins, NODE, start + 2 * WINDOW));
    }

    #[tokio::test]
    async fn a_burst_is_not_enough() {
        let (origins, start) = (Origins::new(WINDOW, 3), Instant::now());
        for _ in 0..100 {
            assert!(!note(&origins, NODE, start + WINDOW / 2));
        }
    }

    #[tokio::test]
    async fn one_public_client_proves_that_addresses_get_here() {
        let (origins, start) = (Origins::new(WINDOW, 3), Instant::now());
        for _ in 0..5 {
            note(&origins, NODE, start);
        }
        assert!(!note(&origins, "192.0.2.7", start + WINDOW));
        for _ in 0..5 {
            assert!(!note(&origins, NODE, start + WINDOW + WINDOW / 2));
        }
    }

    #[tokio::test]
    async fn it_can_be_switched_off() {
        let (origins, start) = (Origins::new(Duration::ZERO, 0), Instant::now());
        assert!(!note(&origins, NODE, start));
        assert!(note(&Origins::new(Duration::ZERO, 1), NODE, start));
    }

    #[test]
    fn private_is_what_the_internet_does_not_route() {
        for private in
            ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "::ffff:10.0.0.1", "fd00::1", "::1"]
        {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["192.0.2.1", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:198.51.100.1"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }
}
