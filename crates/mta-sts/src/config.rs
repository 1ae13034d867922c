//! Settings.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tls::IdentityFiles;

/// Settings of the server of policies.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Where it listens; nothing is served when absent.
    pub listen: Option<SocketAddr>,
    /// It speaks HTTP without TLS, for an ingress or gateway in front of it that has the certificates. Default no.
    pub plain: bool,
    /// Its certificates; the first whose names hold the host that a client asks for is shown, and the first of
    /// all to others. Without any, that of `tls` is shown.
    pub certificates: Vec<IdentityFiles>,
    /// Connections at a time. Default 1000.
    pub max_connections: usize,
    /// Connections at a time from one address. Behind an ingress that is all of it. Default 100.
    pub max_connections_per_client: usize,
    /// A request's head must come within this, and the next request on a connection. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub header_timeout: Duration,
    /// A request's head may have so many octets, 8192 at least. Default 8192.
    pub max_header_bytes: usize,
    /// A connection is ended after this. Default 60 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub connection_timeout: Duration,
    /// On shutdown, connections get this long to end. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: None,
            plain: false,
            certificates: Vec::new(),
            max_connections: 1000,
            max_connections_per_client: 100,
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 8192,
            connection_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}
