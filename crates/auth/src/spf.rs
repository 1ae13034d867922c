//! The Sender Policy Framework (RFC 7208): whether a domain lets an address send its mail.
//!
//! It is done here and not by mail-auth, which in 0.13.3 takes many malformed records for good, the
//! first of several records for the one, and does not count look-ups that find nothing.

mod expand;
mod record;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;

use crate::client::SpfResult;
use crate::dns::{Dns, TemporaryFailure};

use expand::{DomainSpec, Variables};
pub(crate) use record::Record;
use record::{Malformed, Mechanism, Prefixes, Qualifier};

/// The most terms of one evaluation that need look-ups (§4.6.4).
const MAX_LOOKUPS: u8 = 10;
/// The most look-ups that find nothing (§4.6.4).
const MAX_VOIDS: u8 = 2;
/// The most hosts of one `mx`, and names of one `ptr` (§4.6.4).
const MAX_HOSTS: usize = 10;

/// The record of a domain, as it is remembered.
pub(crate) type Published = Option<Result<Arc<Record>, Malformed>>;

/// Who sends, as records may ask for it.
pub(crate) struct Sender<'a> {
    pub(crate) ip: IpAddr,
    pub(crate) local_part: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) helo: &'a str,
}

/// An evaluation that cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Temporary,
    Permanent,
}

impl From<TemporaryFailure> for Broken {
    fn from(_: TemporaryFailure) -> Self {
        Self::Temporary
    }
}

struct Evaluation<'a> {
    dns: &'a Dns,
    sender: &'a Sender<'a>,
    lookups: u8,
    voids: u8,
}

/// `check_host()` of §4.
pub(crate) async fn check_host(dns: &Dns, sender: &Sender<'_>) -> SpfResult {
    let mut evaluation = Evaluation { dns, sender, lookups: 0, voids: 0 };
    match evaluation.check(sender.domain.to_owned()).await {
        Ok(result) => result,
        Err(Broken::Temporary) => SpfResult::TempError,
        Err(Broken::Permanent) => SpfResult::PermError,
    }
}

impl<'a> Evaluation<'a> {
    /// The result for a domain, with what it redirects to. Boxed, as records include each other; how
    /// deep is bounded by the look-ups.
    fn check<'s>(
        &'s mut self,
        domain: String,
    ) -> Pin<Box<dyn Future<Output = Result<SpfResult, Broken>> + Send + 's>> {
        Box::pin(async move {
            let mut domain = domain;
            let mut redirected = false;
            loop {
                let record = match published(self.dns, &domain).await? {
                    Some(Ok(record)) => record,
                    Some(Err(Malformed)) => return Err(Broken::Permanent),
                    None if redirected => return Err(Broken::Permanent),
                    None => return Ok(SpfResult::None),
                };
                for (qualifier, mechanism) in &record.directives {
                    if self.matches(&domain, mechanism).await? {
                        return Ok(result(*qualifier));
                    }
                }
                let Some(target) = &record.redirect else {
                    return Ok(SpfResult::Neutral);
                };
                self.count_lookup()?;
                domain = self.expand(target, &domain).await;
                redirected = true;
            }
        })
    }

    async fn matches(&mut self, domain: &str, mechanism: &Mechanism) -> Result<bool, Broken> {
        let ip = self.sender.ip;
        match mechanism {
            Mechanism::All => Ok(true),
            Mechanism::Ip4(network, prefix) => {
                let prefixes = Prefixes { v4: *prefix, v6: 128 };
                Ok(is_within(ip, IpAddr::V4(*network), prefixes))
            }
            Mechanism::Ip6(network, prefix) => {
                let prefixes = Prefixes { v4: 32, v6: *prefix };
                Ok(is_within(ip, IpAddr::V6(*network), prefixes))
            }
            Mechanism::Include(target) => {
                self.count_lookup()?;
                let target = self.expand(target, domain).await;
                match self.check(target).await? {
                    SpfResult::Pass => Ok(true),
                    SpfResult::None => Err(Broken::Permanent),
                    _ => Ok(false),
                }
            }
            Mechanism::A(target, prefixes) => {
                self.count_lookup()?;
                let name = self.target(target.as_ref(), domain).await;
                let addresses = self.addresses(&name).await?;
                self.count_void(addresses.is_empty())?;
                Ok(addresses.iter().any(|address| is_within(ip, *address, *prefixes)))
            }
            Mechanism::Mx(target, prefixes) => {
                self.count_lookup()?;
                let name = self.target(target.as_ref(), domain).await;
                self.matches_mx(&name, *prefixes).await
            }
            Mechanism::Ptr(target) => {
                self.count_lookup()?;
                let name = self.target(target.as_ref(), domain).await;
                Ok(self.validated_names().await.iter().any(|validated| is_below(validated, &name)))
            }
            Mechanism::Exists(target) => {
                self.count_lookup()?;
                let name = self.expand(target, domain).await;
                // A records, whatever the family of the client (§5.7).
                let found = !self.dns.v4(&name).await?.found().is_empty();
                self.count_void(!found)?;
                Ok(found)
            }
        }
    }

    async fn matches_mx(&mut self, name: &str, prefixes: Prefixes) -> Result<bool, Broken> {
        let answer = self.dns.mx(name).await?;
        self.count_void(answer.found().is_empty())?;
        if answer.found().len() > MAX_HOSTS {
            return Err(Broken::Permanent);
        }
        for host in answer.found() {
            let addresses = self.addresses(host).await?;
            if addresses.iter().any(|address| is_within(self.sender.ip, *address, prefixes)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The addresses of a name that are of the client's family.
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, TemporaryFailure> {
        addresses(self.dns, name, self.sender.ip).await
    }

    /// The names of the client's address that have this address (§5.5). Those that cannot be looked up
    /// are passed over.
    async fn validated_names(&self) -> Vec<String> {
        let Ok(answer) = self.dns.ptr(self.sender.ip).await else {
            return Vec::new();
        };
        let mut validated = Vec::new();
        for name in answer.found().iter().take(MAX_HOSTS) {
            if self.addresses(name).await.is_ok_and(|found| found.contains(&self.sender.ip)) {
                validated.push(name.clone());
            }
        }
        validated
    }

    async fn target(&mut self, target: Option<&DomainSpec>, domain: &str) -> String {
        match target {
            Some(target) => self.expand(target, domain).await,
            None => domain.to_owned(),
        }
    }

    async fn expand(&mut self, target: &DomainSpec, domain: &str) -> String {
        let validated = if target.needs_validated() { self.validated_name(domain).await } else { None };
        target.expand(&Variables {
            ip: self.sender.ip,
            local_part: self.sender.local_part,
            sender_domain: self.sender.domain,
            helo: self.sender.helo,
            domain,
            validated: validated.as_deref(),
        })
    }

    /// What `%{p}` stands for: the domain itself if it is a name of the address, or one below it, or
    /// any (§7.3).
    async fn validated_name(&self, domain: &str) -> Option<String> {
        let names = self.validated_names().await;
        let same = names.iter().find(|name| *name == domain);
        let below = same.or_else(|| names.iter().find(|name| is_below(name, domain)));
        below.or(names.first()).cloned()
    }

    fn count_lookup(&mut self) -> Result<(), Broken> {
        self.lookups += 1;
        if self.lookups > MAX_LOOKUPS { Err(Broken::Permanent) } else { Ok(()) }
    }

    fn count_void(&mut self, void: bool) -> Result<(), Broken> {
        self.voids += u8::from(void);
        if self.voids > MAX_VOIDS { Err(Broken::Permanent) } else { Ok(()) }
    }
}

/// The addresses of a name that are of the family of `like`.
pub(crate) async fn addresses(dns: &Dns, name: &str, like: IpAddr) -> Result<Vec<IpAddr>, TemporaryFailure> {
    Ok(match like {
        IpAddr::V4(_) => dns.v4(name).await?.found().iter().copied().map(IpAddr::V4).collect(),
        IpAddr::V6(_) => dns.v6(name).await?.found().iter().copied().map(IpAddr::V6).collect(),
    })
}

/// The one record of a domain (§4.5); several are as good as a malformed one.
async fn published(dns: &Dns, domain: &str) -> Result<Published, TemporaryFailure> {
    if let Some(known) = dns.caches.spf.get(domain) {
        return Ok(known);
    }
    let answer = dns.txt(domain).await?;
    let mut records = answer.found().iter().filter(|record| record::is_spf(record));
    let published = match (records.next(), records.next()) {
        (None, _) => None,
        (Some(record), None) => Some(Record::parse(record).map(Arc::new)),
        (Some(_), Some(_)) => Some(Err(Malformed)),
    };
    dns.caches.spf.insert(domain.into(), published.clone(), answer.until);
    Ok(published)
}

fn result(qualifier: Qualifier) -> SpfResult {
    match qualifier {
        Qualifier::Pass => SpfResult::Pass,
        Qualifier::Fail => SpfResult::Fail,
        Qualifier::SoftFail => SpfResult::SoftFail,
        Qualifier::Neutral => SpfResult::Neutral,
    }
}

/// Whether an address is in a network of its own family.
fn is_within(ip: IpAddr, network: IpAddr, prefixes: Prefixes) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let differ = Ipv4Addr::to_bits(ip) ^ Ipv4Addr::to_bits(network);
            differ.leading_zeros() >= prefixes.v4.into()
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let differ = Ipv6Addr::to_bits(ip) ^ Ipv6Addr::to_bits(network);
            differ.leading_zeros() >= prefixes.v6.into()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Whether a name is `domain` or below it.
fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
