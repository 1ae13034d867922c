//! Look-ups over hickory-resolver.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::dnssec::TrustAnchors;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::time::{Instant, timeout};

use crate::address::{AddressPolicy, in_order};
use crate::config::DnsConfig;
use crate::error::{AddressError, LookupError, MxError, ResolverError};
use crate::mx::{self, MxHost, MxPlan};
use crate::silence::Silence;

/// Asks recursive name servers. Cheap to clone; clones share the cache.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    /// Full names only, and the DNS only: for what strangers' records name.
    public: TokioResolver,
    /// With the hosts file and the system's search list: for what the configuration names.
    local: TokioResolver,
    config: DnsConfig,
    silence: Silence,
}

/// What an existing or missing name has of one type.
pub(crate) enum Answer {
    Records(Lookup),
    /// The name exists, without such records.
    Empty,
    /// NXDOMAIN.
    NoSuchName,
}

impl Resolver {
    /// A resolver of these settings. It sends nothing yet.
    ///
    /// # Errors
    /// When the system's servers or the trust anchor are wanted and cannot be read.
    pub fn new(config: DnsConfig) -> Result<Self, ResolverError> {
        let (servers, system_options) = if config.servers.is_empty() {
            hickory_resolver::system_conf::read_system_conf().map_err(ResolverError::System)?
        } else {
            let servers = config.servers.iter().copied().map(name_server).collect();
            (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        };
        let anchors = config.trust_anchor.as_ref().map(|path| {
            TrustAnchors::from_file(path)
                .map(Arc::new)
                .map_err(|source| ResolverError::TrustAnchor { path: path.clone(), source: source.into() })
        });
        let anchors = anchors.transpose()?;
        let build =
            |hosts: ResolveHosts, servers: ResolverConfig| {
                let provider = TokioRuntimeProvider::default();
                let mut builder = TokioResolver::builder_with_config(servers, provider)
                    .with_options(options(&config, &system_options, hosts));
                if let Some(anchors) = &anchors {
                    builder = builder.with_trust_anchor(anchors.clone());
                }
                builder.build().map_err(ResolverError::Setup)
            };
        let public = build(ResolveHosts::Never, servers.clone())?;
        let local = build(ResolveHosts::Always, servers)?;
        let silence = Silence::of(&config.servers);
        Ok(Self { inner: Arc::new(Inner { public, local, config, silence }) })
    }

    /// Where mail for `domain` goes: its mail exchangers in the order to try them, without
    /// `own_name` and those no better than it.
    ///
    /// # Errors
    /// See [`MxError`]; only [`MxError::Temporary`] is worth another try.
    pub async fn mx_plan(&self, domain: &str, own_name: &str) -> Result<MxPlan, MxError> {
        let Some(name) = full_name(domain) else {
            return Err(MxError::NoSuchDomain { domain: domain.to_owned() });
        };
        let records = match self.lookup(name, RecordType::MX).await {
            Ok(Answer::Records(lookup)) => mx_records(&lookup),
            Ok(Answer::Empty) => Vec::new(),
            Ok(Answer::NoSuchName) => return Err(MxError::NoSuchDomain { domain: domain.to_owned() }),
            Err(source) => return Err(MxError::Temporary { domain: domain.to_owned(), source }),
        };
        mx::plan(domain, records, own_name, self.inner.config.max_mx_hosts)
    }

    /// All addresses of a mail exchanger that the policy permits, in the order to try them, at most
    /// `max_addresses`. A and AAAA are asked for at once; the answer to one is enough.
    ///
    /// # Errors
    /// See [`AddressError`]; only [`AddressError::Temporary`] is worth another try.
    pub async fn addresses(&self, host: &str, policy: AddressPolicy) -> Result<Vec<IpAddr>, AddressError> {
        let Some(name) = full_name(host) else {
            return Err(AddressError::NoAddress { host: host.to_owned() });
        };
        let (v4, v6) =
            tokio::join!(self.lookup(name.clone(), RecordType::A), self.lookup(name, RecordType::AAAA));
        let failure = v4.as_ref().err().or(v6.as_ref().err()).cloned();
        let v4 = v4.map(|answer| ip_records(&answer)).unwrap_or_default();
        let v6 = v6.map(|answer| ip_records(&answer)).unwrap_or_default();
        let found = in_order(v4, v6, usize::MAX);
        let mut permitted: Vec<IpAddr> = found.iter().copied().filter(|ip| policy.permits(*ip)).collect();
        permitted.truncate(self.inner.config.max_addresses);
        if !permitted.is_empty() {
            return Ok(permitted);
        }
        // The family that could not be asked may hold the address that is missing.
        Err(match (failure, found.first()) {
            (Some(source), _) => AddressError::Temporary { host: host.to_owned(), source },
            (None, Some(&address)) => AddressError::Refused { host: host.to_owned(), address },
            (None, None) => AddressError::NoAddress { host: host.to_owned() },
        })
    }

    /// The addresses of a host that the configuration names: an address literal, or a name looked
    /// up with the hosts file and, where the system's servers are used, its search list.
    ///
    /// # Errors
    /// See [`AddressError`]; nothing is refused here, whoever configures may name any host.
    pub async fn host_addresses(&self, host: &str) -> Result<Vec<IpAddr>, AddressError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let deadline = self.inner.config.deadline;
        let temporary = |source| AddressError::Temporary { host: host.to_owned(), source };
        match timeout(deadline, self.inner.local.lookup_ip(host)).await {
            Err(_) => Err(temporary(LookupError::Deadline(deadline))),
            Ok(Err(error)) if error.is_no_records_found() => {
                Err(AddressError::NoAddress { host: host.to_owned() })
            }
            Ok(Err(error)) => Err(temporary(LookupError::Server(error))),
            Ok(Ok(lookup)) => {
                let (v4, v6) = lookup.iter().partition(IpAddr::is_ipv4);
                Ok(in_order(v4, v6, self.inner.config.max_addresses))
            }
        }
    }

    pub(crate) async fn lookup(&self, name: Name, record_type: RecordType) -> Result<Answer, LookupError> {
        let deadline = self.inner.config.deadline;
        let started = Instant::now();
        let answer = match timeout(deadline, self.inner.public.lookup(name, record_type)).await {
            Err(_) => Err(LookupError::Deadline(deadline)),
            Ok(Ok(lookup)) => Ok(Answer::Records(lookup)),
            Ok(Err(error)) if error.is_nx_domain() => Ok(Answer::NoSuchName),
            Ok(Err(error)) if error.is_no_records_found() => Ok(Answer::Empty),
            Ok(Err(error)) => Err(LookupError::Server(error)),
        };
        match &answer {
            Err(LookupError::Deadline(_)) => self.inner.silence.note(None),
            Err(LookupError::Server(error)) => self.inner.silence.note(Some(error)),
            Ok(_) => {}
        }
        let outcome = match &answer {
            Ok(Answer::Records(_)) => "found",
            Ok(Answer::Empty) => "no_records",
            Ok(Answer::NoSuchName) => "no_such_name",
            Err(LookupError::Deadline(_) | LookupError::Server(NetError::Timeout)) => "timeout",
            Err(LookupError::Server(_)) => "error",
        };
        let record_type: &'static str = record_type.into();
        metrics::counter!("packetboat_dns_lookups_total", "type" => record_type, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("packetboat_dns_lookup_duration_seconds", "type" => record_type)
            .record(started.elapsed());
        answer
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn options(config: &DnsConfig, system: &ResolverOpts, hosts: ResolveHosts) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.ndots = system.ndots;
    options.timeout = config.timeout;
    options.attempts = config.attempts;
    options.cache_size = config.cache_size;
    options.use_hosts_file = hosts;
    options.positive_min_ttl = Some(config.min_ttl);
    options.positive_max_ttl = Some(config.max_ttl);
    options.negative_max_ttl = Some(config.max_negative_ttl);
    options.try_tcp_on_error = true;
    options
}

/// The name as given, never completed by a search list; `None` when the DNS cannot hold it.
pub(crate) fn full_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn mx_records(lookup: &Lookup) -> Vec<MxHost> {
    let record = |data: &RData| match data {
        RData::MX(mx) => {
            let name = mx.exchange.to_ascii().to_ascii_lowercase();
            Some(MxHost { name: name.trim_end_matches('.').to_owned(), preference: mx.preference })
        }
        _ => None,
    };
    lookup.answers().iter().filter_map(|answer| record(&answer.data)).collect()
}

fn ip_records(answer: &Answer) -> Vec<IpAddr> {
    match answer {
        Answer::Records(lookup) => {
            lookup.answers().iter().filter_map(|answer| answer.data.ip_addr()).collect()
        }
        Answer::Empty | Answer::NoSuchName => Vec::new(),
    }
}
