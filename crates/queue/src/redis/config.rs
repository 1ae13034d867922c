//! Settings of the Redis backend.

use std::path::PathBuf;
use std::time::Duration;

use redis::{ClientTlsConfig, TlsCertificates};
use serde::Deserialize;

use super::gather::Limits;
use crate::QueueError;

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
    /// Certificates for `rediss://`. Absent: the system's authorities, and no certificate of our own.
    pub tls: Option<TlsConfig>,
    /// Over so many hash slots the queue is spread at least, 1 to 1024. A greater number than before adds shards,
    /// while mail flows, for all processes; a lesser one changes nothing. Default 4.
    pub shards: u32,
    /// So many replicas must hold a message before it is answered for. Default 0.
    pub replicas: u32,
    /// Replicas must have synced it to their disks, too, where the server can tell (WAITAOF, from 7.2 on); they
    /// need `appendonly yes`, then. Default true.
    pub replicas_sync: bool,
    /// So many changes (messages accepted, entries settled or in doubt) go together in one call at most: those
    /// that came while others were on their way. Default 64.
    pub changes_per_call: usize,
    /// A call is closed at so many octets. Default 1 MiB.
    pub octets_per_call: usize,
    /// Such calls on their way at a time; of a Cluster, for each shard. With more than one, each syncs the log for
    /// fewer changes. Default 1.
    pub calls_at_a_time: usize,
    /// How long a connection may take. Default 3 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub connect_timeout: Duration,
    /// How long an answer may take. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub response_timeout: Duration,
    /// For so long the server may be away, or loading, when a process starts; after that the process gives up.
    /// Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub startup_timeout: Duration,
    /// Refuse a server that does not sync each write to its disk, or that may evict keys; otherwise
    /// only a warning is logged. Default true.
    pub require_durable: bool,
}

/// Sentinels, and what they look after.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentinelConfig {
    /// `redis://[user:password@]host:port` of each Sentinel, `rediss://…` for TLS.
    pub urls: Vec<String>,
    /// The name under which they know the primary.
    pub master: String,
    /// How to log in at the primary that they name: `redis://user:password@primary`, `rediss://…` for TLS.
    /// What it says of the host is not used. Absent: no login, no TLS.
    #[serde(default)]
    pub primary: Option<String>,
}

/// Files of certificates, PEM.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The authorities that may vouch for the server; absent: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, for a server that asks for one; with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// The key of our certificate.
    pub key_file: Option<PathBuf>,
}

impl TlsConfig {
    /// Reads the files.
    pub(super) fn read(&self) -> Result<TlsCertificates, QueueError> {
        let read = |(path, setting): (&PathBuf, &str)| {
            std::fs::read(path).map_err(|cause| QueueError::Unavailable {
                doing: format!("reading {} (queue.redis.tls.{setting})", path.display()),
                cause: Box::new(cause),
            })
        };
        let client_tls = match (&self.certificate_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some(ClientTlsConfig {
                client_cert: read((certificate, "certificate_file"))?,
                client_key: read((key, "key_file"))?,
            }),
            (None, None) => None,
            _ => {
                return Err(QueueError::Unavailable {
                    doing: "reading queue.redis.tls".to_owned(),
                    cause: "certificate_file and key_file go together".into(),
                });
            }
        };
        let root_cert = self.ca_file.as_ref().map(|path| read((path, "ca_file"))).transpose()?;
        Ok(TlsCertificates { client_tls, root_cert })
    }
}

impl Config {
    /// Whether anything says where the queue is.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.url.is_some() || !self.cluster.is_empty() || self.sentinel.is_some()
    }

    /// How many shards there should be.
    pub(super) fn wanted_shards(&self) -> usize {
        usize::try_from(self.shards).unwrap_or(1).clamp(1, super::layout::MOST_SHARDS)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            changes: self.changes_per_call.clamp(1, 1024),
            octets: self.octets_per_call,
            calls: self.calls_at_a_time.clamp(1, 64),
        }
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
            tls: None,
            shards: 4,
            replicas: 0,
            replicas_sync: true,
            changes_per_call: 64,
            octets_per_call: 1024 * 1024,
            calls_at_a_time: 1,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(5),
            startup_timeout: Duration::from_secs(30),
            require_durable: true,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("shards", &self.shards)
            .field("replicas", &self.replicas)
            .field("replicas_sync", &self.replicas_sync)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("startup_timeout", &self.startup_timeout)
            .field("require_durable", &self.require_durable)
            .finish_non_exhaustive()
    }
}
