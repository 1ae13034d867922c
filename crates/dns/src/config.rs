//! The settings under `dns`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// How look-ups are made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// Recursive name servers, asked over UDP and, where an answer is cut short or lost, TCP.
    /// Empty: those of the system (`/etc/resolv.conf`). Default: empty.
    pub servers: Vec<SocketAddr>,
    /// A file of DNSKEY records at which trust begins, for a private DNSSEC root. Given, every
    /// answer is validated, and a bogus one counts as a temporary failure.
    pub trust_anchor: Option<PathBuf>,
    /// How long one server has for one answer. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub timeout: Duration,
    /// How often a question is repeated that got no answer. Default 2.
    pub attempts: usize,
    /// The end of a look-up, with all its tries. Default 20 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub deadline: Duration,
    /// Answers kept. Default 8192.
    pub cache_size: u64,
    /// An answer is kept no shorter than this. Default 0 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub min_ttl: Duration,
    /// An answer is kept no longer than this. Default 1 h.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_ttl: Duration,
    /// An answer that there is no such record is kept no longer than this. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_negative_ttl: Duration,
    /// Mail exchangers of a domain beyond so many are left out, the least preferred first. Default 20.
    pub max_mx_hosts: usize,
    /// Addresses of a host beyond so many are left out. Default 10.
    pub max_addresses: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            trust_anchor: None,
            timeout: Duration::from_secs(5),
            attempts: 2,
            deadline: Duration::from_secs(20),
            cache_size: 8192,
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(3600),
            max_negative_ttl: Duration::from_secs(300),
            max_mx_hosts: 20,
            max_addresses: 10,
        }
    }
}
