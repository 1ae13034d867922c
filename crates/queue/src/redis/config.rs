//! Settings of the Redis backend.

use std::time::Duration;

use serde::Deserialize;

/// Which server, and what is asked of it.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `redis://[user:password@]host:port[/database]`, or `rediss://…` for TLS. It may hold a password
    /// and is never shown. One of this, `cluster` and `sentinel` is required.
    pub url: Option<String>,
    /// Nodes of a Redis Cluster, as URLs; the others are found through them. Shards are spread over its
    /// primaries by their hash tags.
    pub cluster: Vec<String>,
    /// Sentinels that name the primary; it is followed through failovers.
    pub sentinel: Option<SentinelConfig>,
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

/// Sentinels, and what they look after.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentinelConfig {
    /// `redis://host:port` of each Sentinel.
    pub urls: Vec<String>,
    /// The name under which they know the primary.
    pub master: String,
}

impl Config {
    /// Whether anything says where the queue is.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.url.is_some() || !self.cluster.is_empty() || self.sentinel.is_some()
    }

    /// Where the queue is, without passwords.
    pub(super) fn shown(&self) -> String {
        use redis::IntoConnectionInfo;
        let address = |url: &str| {
            url.into_connection_info()
                .map_or_else(|_| "an unreadable URL".to_owned(), |info| info.addr().to_string())
        };
        if let Some(sentinel) = &self.sentinel {
            let urls: Vec<String> = sentinel.urls.iter().map(|url| address(url)).collect();
            return format!("the primary {} of the Sentinels {}", sentinel.master, urls.join(", "));
        }
        if !self.cluster.is_empty() {
            let nodes: Vec<String> = self.cluster.iter().map(|url| address(url)).collect();
            return format!("the Cluster of {}", nodes.join(", "));
        }
        self.url.as_deref().map_or_else(|| "no URL".to_owned(), address)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            cluster: Vec::new(),
            sentinel: None,
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
