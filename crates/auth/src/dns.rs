//! Look-ups: one resolver for all methods, with a deadline for each question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use mail_auth::{MX, MessageAuthenticator, RecordSet, ResolverCache, Txt};

use crate::cache::Cache;
use crate::config::Config;
use crate::dmarc::Record;
use crate::error::SetupError;
use crate::keys::{Key, KeyFault};

/// No answer: it says nothing about the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("temporary DNS failure")]
pub(crate) struct TemporaryFailure;

/// The TXT records of a name.
#[derive(Debug, Clone)]
pub(crate) enum TxtRecords {
    /// The strings of each record, joined.
    Found(Arc<[Vec<u8>]>),
    /// The name exists and has none.
    Empty,
    /// NXDOMAIN.
    NoSuchName,
}

/// TXT records, and until when they may be kept.
#[derive(Debug, Clone)]
pub(crate) struct TxtAnswer {
    pub(crate) records: TxtRecords,
    pub(crate) until: Instant,
}

impl TxtAnswer {
    /// The records there are.
    pub(crate) fn found(&self) -> &[Vec<u8>] {
        match &self.records {
            TxtRecords::Found(records) => records,
            TxtRecords::Empty | TxtRecords::NoSuchName => &[],
        }
    }
}

/// What is asked and kept.
pub(crate) struct Dns {
    /// mail-auth's own look-ups go through the same resolver.
    pub(crate) authenticator: MessageAuthenticator,
    pub(crate) caches: Caches,
    txt: Cache<Box<str>, TxtAnswer>,
    deadline: Duration,
    method_deadline: Duration,
    max_negative_ttl: Duration,
}

/// What has been read from answers. Of its own look-ups (MX, A, AAAA, PTR and the TXT of included SPF
/// records) mail-auth keeps no denials: these stay in the resolver's cache.
pub(crate) struct Caches {
    pub(crate) txt: Cache<Box<str>, Txt>,
    pub(crate) mx: Cache<Box<str>, RecordSet<MX>>,
    pub(crate) v4: Cache<Box<str>, RecordSet<Ipv4Addr>>,
    pub(crate) v6: Cache<Box<str>, RecordSet<Ipv6Addr>>,
    pub(crate) ptr: Cache<IpAddr, RecordSet<Box<str>>>,
    pub(crate) keys: Cache<Box<str>, Result<Arc<Key>, KeyFault>>,
    pub(crate) dmarc: Cache<Box<str>, Option<Arc<Record>>>,
}

impl Dns {
    pub(crate) fn new(config: &Config) -> Result<Self, SetupError> {
        let servers = if config.dns_servers.is_empty() {
            hickory_resolver::system_conf::read_system_conf().map_err(SetupError::SystemServers)?.0
        } else {
            ResolverConfig::from_name_servers(config.dns_servers.iter().copied().map(name_server).collect())
        };
        let resolver = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default())
            .with_options(options(config))
            .build()
            .map_err(SetupError::Resolver)?;
        let size = config.dns_cache_size;
        Ok(Self {
            authenticator: MessageAuthenticator(resolver),
            caches: Caches {
                txt: Cache::new(size),
                mx: Cache::new(size),
                v4: Cache::new(size),
                v6: Cache::new(size),
                ptr: Cache::new(size),
                keys: Cache::new(size),
                dmarc: Cache::new(size),
            },
            txt: Cache::new(size),
            deadline: config.dns_deadline,
            method_deadline: config.method_deadline,
            max_negative_ttl: config.dns_max_negative_ttl,
        })
    }

    /// The end of one look-up.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The end of one method with all its look-ups.
    pub(crate) fn method_deadline(&self) -> Duration {
        self.method_deadline
    }

    /// The TXT records of a full name, in lower case; a name that the DNS cannot hold does not exist.
    pub(crate) async fn txt(&self, name: &str) -> Result<TxtAnswer, TemporaryFailure> {
        if let Some(known) = self.txt.get(name) {
            return Ok(known);
        }
        let Ok(mut full) = Name::from_str_relaxed(name) else {
            return Ok(TxtAnswer { records: TxtRecords::NoSuchName, until: Instant::now() });
        };
        full.set_fqdn(true);
        let asked = self.authenticator.0.lookup(full, RecordType::TXT);
        let (records, until) = match tokio::time::timeout(self.deadline, asked).await {
            Ok(Ok(lookup)) => {
                let strings = lookup.answers().iter().filter_map(|record| match &record.data {
                    RData::TXT(txt) => Some(txt.txt_data.concat()),
                    _ => None,
                });
                (TxtRecords::Found(strings.collect()), lookup.valid_until())
            }
            Ok(Err(error)) => match &error {
                NetError::Dns(DnsError::NoRecordsFound(none)) => {
                    let ttl = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
                    let records =
                        if error.is_nx_domain() { TxtRecords::NoSuchName } else { TxtRecords::Empty };
                    (records, Instant::now() + ttl.min(self.max_negative_ttl))
                }
                _ => return Err(temporary(name, &error)),
            },
            Err(elapsed) => return Err(temporary(name, &elapsed)),
        };
        let answer = TxtAnswer { records, until };
        self.txt.insert(name.into(), answer.clone(), until);
        Ok(answer)
    }
}

fn temporary(name: &str, cause: &(dyn std::error::Error + 'static)) -> TemporaryFailure {
    metrics::counter!("packetboat_auth_dns_failures_total").increment(1);
    tracing::debug!(name, cause, "look-up got no answer");
    TemporaryFailure
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn options(config: &Config) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = config.dns_timeout;
    options.attempts = config.dns_attempts;
    options.cache_size = config.dns_cache_size as u64;
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(config.dns_max_ttl);
    options.negative_max_ttl = Some(config.dns_max_negative_ttl);
    options.try_tcp_on_error = true;
    options
}

impl<K: std::hash::Hash + Eq + Clone, V: Clone> ResolverCache<K, V> for Cache<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        Self::get(self, key)
    }

    fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        Self::remove(self, key)
    }

    fn insert(&self, key: K, value: V, until: Instant) {
        Self::insert(self, key, value, until);
    }
}
