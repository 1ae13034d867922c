//! What the authoritative name servers say, each asked by itself: caches would tell what was.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use dns::Resolver;
use domains::types::{Dkim, MailDomainSpec, RecordState};
use futures::future::join_all;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::exchange::{ExchangeError, ask};
use crate::record::{Purpose, Record};
use crate::tlsa::hex;

/// The port of name servers.
const DNS_PORT: u16 = 53;
/// The negative time to live that is assumed where the zone's own cannot be known.
const NEGATIVE_TTL: Duration = Duration::from_secs(60);
/// CNAMEs that are followed within one answer.
const MAX_CNAMES: usize = 8;

/// Who is authoritative for a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// The zone's name.
    pub zone: String,
    /// The servers to ask: every one of them.
    pub servers: Vec<SocketAddr>,
    /// How long resolvers may remember that a name is not there.
    pub negative_ttl: Duration,
}

/// The zones of a domain's records.
#[derive(Debug, Clone)]
pub struct Zones {
    /// The domain's own.
    pub own: Authorities,
    /// The one that the selectors lead into, where they are CNAMEs, and below which name in it.
    pub target: Option<(String, Authorities)>,
}

impl Zones {
    /// Whether a record lies in the zone that selectors lead into.
    #[must_use]
    pub fn is_delegated(&self, record: &Record) -> bool {
        self.target.as_ref().is_some_and(|(base, _)| is_below(&record.name, base))
    }

    /// Who is authoritative for a record.
    #[must_use]
    pub fn of(&self, record: &Record) -> &Authorities {
        match &self.target {
            Some((_, target)) if self.is_delegated(record) => target,
            _ => &self.own,
        }
    }

    /// How long resolvers may remember that a name is not there, in any of them.
    #[must_use]
    pub fn negative_ttl(&self) -> Duration {
        let target = self.target.as_ref().map(|(_, target)| target.negative_ttl);
        self.own.negative_ttl.max(target.unwrap_or_default())
    }
}

/// Whether a name lies below another.
pub(crate) fn is_below(name: &str, base: &str) -> bool {
    name.strip_suffix(base).is_some_and(|rest| rest.ends_with('.'))
}

/// Why it is not known who is authoritative.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// A look-up failed.
    #[error("the zone of {0} cannot be looked up")]
    Lookup(String, #[source] dns::LookupError),
    /// There is no zone.
    #[error("{0} lies in no zone that has name servers with addresses")]
    NoZone(String),
    /// A server of the settings cannot be found.
    #[error(
        "the name server {0} (dns.verification.servers, or dkim.delegation.servers) has no address, or is not host:port"
    )]
    NoServer(String),
}

/// What was seen of a record set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// What follows from it.
    pub state: RecordState,
    /// What is there instead, at any server.
    pub observed: Vec<String>,
    /// What every server shows; nothing where one did not answer. Sorted.
    pub shown: Vec<String>,
}

/// Asks name servers.
#[derive(Clone)]
pub struct Observer {
    resolver: Resolver,
}

impl Observer {
    /// `resolver` finds zones and servers; nothing else is asked of it.
    #[must_use]
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }

    /// What finds zones and servers.
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The zones of a domain's records.
    ///
    /// # Errors
    /// See [`AuthoritiesError`].
    pub async fn zones(&self, spec: &MailDomainSpec) -> Result<Zones, AuthoritiesError> {
        let given = spec.dns.as_ref().map(|dns| dns.verification.servers.as_slice()).unwrap_or_default();
        let own = self.authorities(&spec.domain, given).await?;
        let target = match spec.dkim.as_ref().and_then(Dkim::delegated) {
            Some(delegation) => {
                let zone = delegation.target_zone.trim_end_matches('.');
                let authorities = self.authorities(zone, &delegation.servers).await?;
                Some((delegation.base(&spec.domain), authorities))
            }
            None => None,
        };
        Ok(Zones { own, target })
    }

    /// Who is authoritative for a name: the servers given, or those of its zone's NS records.
    async fn authorities(&self, domain: &str, given: &[String]) -> Result<Authorities, AuthoritiesError> {
        let mut servers = Vec::new();
        for server in given {
            servers
                .extend(self.server(server).await.ok_or_else(|| AuthoritiesError::NoServer(server.clone()))?);
        }
        let zone = match self.resolver.zone_of(domain).await {
            Ok(zone) => zone,
            Err(_) if !servers.is_empty() => None,
            Err(error) => return Err(AuthoritiesError::Lookup(domain.to_owned(), error)),
        };
        match zone {
            Some(zone) if servers.is_empty() => Ok(Authorities {
                servers: zone.servers.iter().map(|server| SocketAddr::new(*server, DNS_PORT)).collect(),
                zone: zone.name,
                negative_ttl: zone.negative_ttl,
            }),
            None if servers.is_empty() => Err(AuthoritiesError::NoZone(domain.to_owned())),
            _ => {
                let name = zone.map_or_else(|| domain.to_owned(), |zone| zone.name);
                let negative_ttl = negative_ttl(&servers, &name).await;
                Ok(Authorities { zone: name, servers, negative_ttl })
            }
        }
    }

    /// The addresses behind `host:port`.
    pub async fn server(&self, text: &str) -> Option<Vec<SocketAddr>> {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let addresses = self.resolver.host_addresses(host.trim_matches(['[', ']'])).await.ok()?;
        Some(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// What all servers say of a record set.
    pub async fn look(&self, authorities: &Authorities, record: &Record) -> Observation {
        let asked = authorities.servers.iter().map(|server| values_at(*server, record));
        judge(record, join_all(asked).await)
    }
}

async fn negative_ttl(servers: &[SocketAddr], zone: &str) -> Duration {
    let Ok(name) = name_of(zone) else { return NEGATIVE_TTL };
    for server in servers {
        if let Ok(answer) = ask(*server, &name, RecordType::SOA).await {
            for record in &answer.answers {
                if let RData::SOA(soa) = &record.data {
                    return Duration::from_secs(soa.minimum.min(record.ttl).into());
                }
            }
        }
    }
    NEGATIVE_TTL
}

/// A name as the DNS has it.
///
/// # Errors
/// When the DNS cannot hold it.
pub(crate) fn name_of(text: &str) -> Result<Name, hickory_proto::ProtoError> {
    let mut name = Name::from_ascii(text)?;
    name.set_fqdn(true);
    Ok(name)
}

/// The record type of a purpose.
pub(crate) fn type_of(purpose: Purpose) -> RecordType {
    match purpose {
        Purpose::Mx => RecordType::MX,
        Purpose::DkimCname => RecordType::CNAME,
        Purpose::Tlsa => RecordType::TLSA,
        _ => RecordType::TXT,
    }
}

/// Why a server's answer says nothing.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("the name cannot be asked for")]
    Name,
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("the answer is {0}")]
    Code(ResponseCode),
}

async fn values_at(server: SocketAddr, record: &Record) -> Result<BTreeSet<String>, Silence> {
    let name = name_of(&record.name).map_err(|_| Silence::Name)?;
    let answer = ask(server, &name, type_of(record.purpose)).await?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(values_in(&answer, name, record.purpose)),
        ResponseCode::NXDomain => Ok(BTreeSet::new()),
        code => Err(Silence::Code(code)),
    }
}

/// The values of one kind in an answer, CNAMEs followed as far as it goes.
fn values_in(answer: &Message, mut name: Name, purpose: Purpose) -> BTreeSet<String> {
    let steps = if purpose == Purpose::DkimCname { 0 } else { MAX_CNAMES };
    for _ in 0..steps {
        let target = answer.answers.iter().filter(|record| record.name == name).find_map(|record| {
            match &record.data {
                RData::CNAME(target) => Some(target.0.clone()),
                _ => None,
            }
        });
        match target {
            Some(target) => name = target,
            None => break,
        }
    }
    let own = answer.answers.iter().filter(|record| record.name == name);
    own.filter_map(|record| value(&record.data)).filter(|value| purpose.is_one(value)).collect()
}

/// A value in the form of [`Record::values`].
pub(crate) fn value(data: &RData) -> Option<String> {
    match data {
        RData::TXT(txt) => {
            let octets: Vec<u8> = txt.txt_data.iter().flat_map(|string| string.iter().copied()).collect();
            Some(String::from_utf8_lossy(&octets).into_owned())
        }
        RData::MX(mx) => {
            let host = mx.exchange.to_ascii().to_ascii_lowercase();
            Some(format!("{} {}", mx.preference, host.trim_end_matches('.')))
        }
        RData::TLSA(tlsa) => {
            let (usage, selector, matching) =
                (u8::from(tlsa.cert_usage), u8::from(tlsa.selector), u8::from(tlsa.matching));
            Some(format!("{usage} {selector} {matching} {}", hex(&tlsa.cert_data)))
        }
        RData::CNAME(target) => {
            Some(target.0.to_ascii().to_ascii_lowercase().trim_end_matches('.').to_owned())
        }
        _ => None,
    }
}

fn judge(record: &Record, answers: Vec<Result<BTreeSet<String>, Silence>>) -> Observation {
    let wanted: BTreeSet<String> = record.values.iter().cloned().collect();
    let (mut silent, mut missing, mut drifted, mut conflict) = (answers.is_empty(), false, false, false);
    let mut observed = BTreeSet::new();
    let mut shown: Option<BTreeSet<String>> = None;
    for answer in answers {
        match answer {
            Err(error) => {
                tracing::debug!(name = record.name, %error, "name server says nothing of use");
                silent = true;
            }
            Ok(values) if values == wanted => shown = Some(common(shown, values)),
            Ok(values) => {
                shown = Some(common(shown, values.clone()));
                // Two SPF records are an error for every receiver (RFC 7208 §4.5).
                conflict |= record.purpose == Purpose::Spf && values.len() > 1;
                missing |= values.is_empty();
                drifted |= !values.is_empty();
                observed.extend(values);
            }
        }
    }
    let state = match (silent, conflict, drifted, missing) {
        (true, ..) => RecordState::Unknown,
        (_, true, ..) => RecordState::Conflict,
        (_, _, true, _) => RecordState::Drifted,
        (_, _, _, true) => RecordState::Missing,
        _ => RecordState::Verified,
    };
    let shown = shown.filter(|_| !silent).unwrap_or_default();
    Observation { state, observed: observed.into_iter().collect(), shown: shown.into_iter().collect() }
}

/// What one more server shows as well.
fn common(shown: Option<BTreeSet<String>>, values: BTreeSet<String>) -> BTreeSet<String> {
    match shown {
        Some(shown) => shown.intersection(&values).cloned().collect(),
        None => values,
    }
}
