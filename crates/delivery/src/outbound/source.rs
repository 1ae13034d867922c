//! Source pools: the addresses that mail leaves from, and the name that is said there.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;

/// A source pool, as the settings have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourcePool {
    /// The addresses that connections are made from, in turn, each to peers of its family. They are to be this
    /// machine's. Default: whichever the system takes.
    pub addresses: Vec<IpAddr>,
    /// The name given in EHLO (RFC 5321 §4.1.1.1). Default: `hostname`.
    pub ehlo: Option<String>,
    /// Attempts at once, at least 1, over all workers, who share them evenly. Default: no limit.
    pub connections: Option<usize>,
    /// Attempts begun a minute, at least 1, over all workers. Default: no limit.
    pub rate_per_minute: Option<u32>,
}

impl SourcePool {
    /// What cannot be meant: the key, and why.
    #[must_use]
    pub fn fault(&self) -> Option<(&'static str, String)> {
        if let Some(address) = self.addresses.iter().find(|one| one.is_unspecified() || one.is_multicast()) {
            return Some(("addresses", format!("{address} is no address to send from")));
        }
        if let Some(Err(error)) = self.ehlo.as_ref().map(|name| name.parse::<smtp::Domain>()) {
            return Some(("ehlo", error.to_string()));
        }
        let text = "must be at least 1; suspend the pool to stop it".to_owned();
        if self.connections == Some(0) {
            return Some(("connections", text));
        }
        (self.rate_per_minute == Some(0)).then_some(("rate_per_minute", text))
    }
}

/// Whether a pool may be called so; MailDomains can name it then.
#[must_use]
pub fn is_pool_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-') && !name.ends_with('-')
}

/// A pool at work. Two of one name are the same.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    addresses: Vec<IpAddr>,
    ehlo: Option<String>,
    turn: AtomicUsize,
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl Source {
    fn new(name: &str, pool: &SourcePool) -> Self {
        let (addresses, ehlo) = (pool.addresses.clone(), pool.ehlo.clone());
        Self { name: name.to_owned(), addresses, ehlo, turn: AtomicUsize::new(0) }
    }

    fn of_family(&self, peer: IpAddr) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().copied().filter(move |one| one.is_ipv4() == peer.is_ipv4())
    }

    /// Whether a peer can be reached from this pool: it has an address of its family, or leaves that to the system.
    pub(super) fn reaches(&self, peer: IpAddr) -> bool {
        self.addresses.is_empty() || self.of_family(peer).next().is_some()
    }

    /// The next address to reach a peer from; `None` leaves it to the system.
    pub(super) fn address_for(&self, peer: IpAddr) -> Option<IpAddr> {
        let fitting: Vec<IpAddr> = self.of_family(peer).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        fitting.get(turn % fitting.len().max(1)).copied()
    }

    pub(super) fn ehlo(&self) -> Option<&str> {
        self.ehlo.as_deref()
    }
}

/// All pools, by name. There is always a default one.
#[derive(Debug)]
pub(super) struct Sources(BTreeMap<String, Arc<Source>>);

impl Sources {
    pub(super) fn new(pools: &BTreeMap<String, SourcePool>) -> Self {
        let source = |(name, pool): (&String, &SourcePool)| (name.clone(), Arc::new(Source::new(name, pool)));
        let mut sources: BTreeMap<_, _> = pools.iter().map(source).collect();
        let name = queue::Pool::DEFAULT;
        let default = || Arc::new(Source::new(name, &SourcePool::default()));
        sources.entry(name.to_owned()).or_insert_with(default);
        Self(sources)
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<Source>> {
        self.0.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_turns_within_a_family() {
        let addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|text| text.parse().unwrap()).to_vec();
        let source = Source::new("bulk", &SourcePool { addresses, ..SourcePool::default() });
        let peer: IpAddr = "198.51.100.1".parse().unwrap();
        let taken: Vec<String> = (0..3).map(|_| source.address_for(peer).unwrap().to_string()).collect();
        assert_eq!(taken, ["192.0.2.1", "192.0.2.2", "192.0.2.1"]);
        let v4_only = SourcePool { addresses: vec![peer], ..SourcePool::default() };
        assert!(!Source::new("x", &v4_only).reaches("2001:db8::2".parse().unwrap()));
        let any = Source::new("y", &SourcePool::default());
        assert!(any.reaches(peer) && any.address_for(peer).is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_told() {
        let pool = SourcePool {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ehlo: Some("out.example.org".to_owned()),
            ..SourcePool::default()
        };
        let key = |pool: SourcePool| pool.fault().map(|(key, _)| key);
        assert_eq!(key(pool.clone()), None);
        let nowhere = vec!["0.0.0.0".parse().unwrap()];
        assert_eq!(key(SourcePool { addresses: nowhere, ..pool.clone() }), Some("addresses"));
        assert_eq!(key(SourcePool { ehlo: Some("not a name".to_owned()), ..pool.clone() }), Some("ehlo"));
        assert_eq!(key(SourcePool { connections: Some(0), ..pool.clone() }), Some("connections"));
        assert_eq!(key(SourcePool { rate_per_minute: Some(0), ..pool }), Some("rate_per_minute"));
        assert!(is_pool_name("bulk-2") && !is_pool_name("Bulk") && !is_pool_name("-x") && !is_pool_name(""));
    }
}
