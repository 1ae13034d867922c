//! Settings of the Redis backend.

use std::time::Duration;

use serde::Deserialize;

/// Which server, and what is asked of it.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `redis://[user:password@]host:port[/database]`, or `rediss://…` for TLS. It may hold a password
    /// and is never shown. Required.
    pub url: Option<String>,
    /// Over so many hash slots the queue is spread, 1 to 1024. All processes must agree on it, and it
    /// may not change while there are messages. Default 4.
    pub shards: u32,
    /// So many replicas must hold a message before it is answered for. Default 0.
    pub replicas: u32,
    /// How long a connection may take. Default 3 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub connect_timeout: Duration,
    /// How long an answer may take. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub response_timeout: Duration,
    /// Refuse a server that does not sync each write to its disk, or that may evict keys; otherwise
    /// only a warning is logged. Default true.
    pub require_durable: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            shards: 4,
            replicas: 0,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(5),
            require_durable: true,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("shards", &self.shards)
            .field("replicas", &self.replicas)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("require_durable", &self.require_durable)
            .finish_non_exhaustive()
    }
}
