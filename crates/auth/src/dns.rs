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
use mail_auth::MessageAuthenticator;
use tracing::Instrument;
use tracing::field::Empty;

use crate::cache::Cache;
use crate::config::Config;
use crate::dmarc::Record;
use crate::error::SetupError;
use crate::keys::{Key, KeyFault};
use crate::spf::Published;

/// No answer: it says nothing about the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("temporary DNS failure")]
pub(crate) struct TemporaryFailure;

/// The records of one type that a name has.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    records: Arc<[T]>,
    /// NXDOMAIN: there is nothing of any type.
    pub(crate) no_such_name: bool,
    /// How long this may be remembered.
    pub(crate) until: Instant,
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self { records: self.records.clone(), ..*self }
    }
}

impl<T> Answer<T> {
    /// The records there are.
    pub(crate) fn found(&self) -> &[T] {
        &self.records
    }

    fn none(no_such_name: bool, until: Instant) -> Self {
        Self { records: Arc::new([]), no_such_name, until }
    }
}

type Answers<T> = Cache<Box<str>, Answer<T>>;

/// What is asked and kept.
pub(crate) struct Dns {
    /// Verifies signatures with keys that are given to it; it asks nothing itself.
    pub(crate) authenticator: MessageAuthenticator,
    pub(crate) caches: Caches,
    resolver: TokioResolver,
    txt: Answers<Vec<u8>>,
    mx: Answers<String>,
    v4: Answers<Ipv4Addr>,
    v6: Answers<Ipv6Addr>,
    ptr: Answers<String>,
    deadline: Duration,
    method_deadline: Duration,
    max_negative_ttl: Duration,
    silence: dns::Silence,
}

/// What has been read from answers, by the name that was asked for.
pub(crate) struct Caches {
    pub(crate) spf: Cache<Box<str>, Published>,
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
            authenticator: MessageAuthenticator(resolver.clone()),
            caches: Caches { spf: Cache::new(size), keys: Cache::new(size), dmarc: Cache::new(size) },
            resolver,
            txt: Cache::new(size),
            mx: Cache::new(size),
            v4: Cache::new(size),
            v6: Cache::new(size),
            ptr: Cache::new(size),
            deadline: config.dns_deadline,
            method_deadline: config.method_deadline,
            max_negative_ttl: config.dns_max_negative_ttl,
            silence: dns::Silence::of(&config.dns_servers),
        })
    }

    /// The end of one method with all its look-ups.
    pub(crate) fn method_deadline(&self) -> Duration {
        self.method_deadline
    }

    /// The TXT records of a full name in lower case, the strings of each joined.
    pub(crate) async fn txt(&self, name: &str) -> Result<Answer<Vec<u8>>, TemporaryFailure> {
        let read = |data: &RData| match data {
            RData::TXT(txt) => Some(txt.txt_data.concat()),
            _ => None,
        };
        self.ask(&self.txt, name, RecordType::TXT, read).await
    }

    /// The mail exchangers of a name.
    pub(crate) async fn mx(&self, name: &str) -> Result<Answer<String>, TemporaryFailure> {
        let read = |data: &RData| match data {
            RData::MX(mx) => Some(text(&mx.exchange)),
            _ => None,
        };
        self.ask(&self.mx, name, RecordType::MX, read).await
    }

    /// The IPv4 addresses of a name.
    pub(crate) async fn v4(&self, name: &str) -> Result<Answer<Ipv4Addr>, TemporaryFailure> {
        let read = |data: &RData| match data {
            RData::A(address) => Some(address.0),
            _ => None,
        };
        self.ask(&self.v4, name, RecordType::A, read).await
    }

    /// The IPv6 addresses of a name.
    pub(crate) async fn v6(&self, name: &str) -> Result<Answer<Ipv6Addr>, TemporaryFailure> {
        let read = |data: &RData| match data {
            RData::AAAA(address) => Some(address.0),
            _ => None,
        };
        self.ask(&self.v6, name, RecordType::AAAA, read).await
    }

    /// The names of an address.
    pub(crate) async fn ptr(&self, ip: IpAddr) -> Result<Answer<String>, TemporaryFailure> {
        let read = |data: &RData| match data {
            RData::PTR(name) => Some(text(name)),
            _ => None,
        };
        self.ask(&self.ptr, &text(&Name::from(ip)), RecordType::PTR, read).await
    }

    /// Asks, unless the answer is known. A name that the DNS cannot hold does not exist.
    async fn ask<T>(
        &self,
        known: &Answers<T>,
        name: &str,
        record_type: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, TemporaryFailure> {
        if let Some(answer) = known.get(name) {
            return Ok(answer);
        }
        let labels = name.split('.').map(str::as_bytes);
        let Ok(mut full) = Name::from_labels(labels) else {
            return Ok(Answer::none(true, Instant::now()));
        };
        full.set_fqdn(true);
        // Not the name: a macro of SPF can put the sender's address into it.
        let span = tracing::info_span!(
            "dns", otel.kind = "client", otel.status_code = Empty, error.type = Empty, dns.question.type = %record_type
        );
        let failed = |kind| tracing::record_all!(span, otel.status_code = "error", error.type = kind);
        let asked = self.resolver.lookup(full, record_type).instrument(span.clone());
        let answer = match tokio::time::timeout(self.deadline, asked).await {
            Ok(Ok(lookup)) => {
                let records = lookup.answers().iter().filter_map(|record| read(&record.data));
                Answer { records: records.collect(), no_such_name: false, until: lookup.valid_until() }
            }
            Ok(Err(error)) => match &error {
                NetError::Dns(DnsError::NoRecordsFound(none)) => {
                    let ttl = Duration::from_secs(none.negative_ttl.unwrap_or(0).into());
                    let until = Instant::now() + ttl.min(self.max_negative_ttl);
                    Answer::none(error.is_nx_domain(), until)
                }
                _ => {
                    failed("no_answer");
                    self.silence.note(Some(&error));
                    return Err(temporary(name, record_type, &error));
                }
            },
            Err(elapsed) => {
                failed("timeout");
                self.silence.note(None);
                return Err(temporary(name, record_type, &elapsed));
            }
        };
        known.insert(name.into(), answer.clone(), answer.until);
        Ok(answer)
    }
}

/// A name in lower case, without the dot at its end.
fn text(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.strip_suffix('.').map_or(text.clone(), str::to_owned)
}

fn temporary(
    name: &str,
    record_type: RecordType,
    cause: &(dyn std::error::Error + 'static),
) -> TemporaryFailure {
    metrics::counter!("packetboat_auth_dns_failures_total").increment(1);
    tracing::debug!(name, %record_type, cause, "look-up got no answer");
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
