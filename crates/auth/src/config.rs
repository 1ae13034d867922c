//! The settings of authentication.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

/// How messages are authenticated.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Recursive name servers. Empty: those of the system (`/etc/resolv.conf`). Default: empty.
    pub dns_servers: Vec<SocketAddr>,
    /// How long one server has for one answer. Default 3 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub dns_timeout: Duration,
    /// How often a question is repeated that got no answer. Default 2.
    pub dns_attempts: usize,
    /// The end of one look-up with all its tries. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub dns_deadline: Duration,
    /// Answers of each kind kept in memory. Default 16384.
    pub dns_cache_size: usize,
    /// An answer is kept no longer than this, whatever its TTL. Default 1 h.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub dns_max_ttl: Duration,
    /// An answer that there is no such record is kept no longer than this. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub dns_max_negative_ttl: Duration,
    /// The end of one method with all its look-ups: SPF, DKIM, ARC and DMARC each have so long. RFC 7208
    /// §4.6.4 asks for at least 20 s. Default 20 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub method_deadline: Duration,
    /// DKIM signatures of one message that are evaluated, from the top; the rest is ignored.
    /// Default 10.
    pub max_signatures: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dns_servers: Vec::new(),
            dns_timeout: Duration::from_secs(3),
            dns_attempts: 2,
            dns_deadline: Duration::from_secs(10),
            dns_cache_size: 16384,
            dns_max_ttl: Duration::from_secs(3600),
            dns_max_negative_ttl: Duration::from_secs(300),
            method_deadline: Duration::from_secs(20),
            max_signatures: 10,
        }
    }
}
