//! Who sent the message: SPF (RFC 7208) and iprev (RFC 8601 §3). The content is not needed for it, so
//! it is done while the content still comes in.

use std::borrow::Borrow;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mail_auth::common::parse::TxtRecordParser;
use mail_auth::spf::Spf;
use mail_auth::spf::verify::SpfParameters;
use mail_auth::{MX, Parameters, RecordSet, ResolverCache};
use smtp::{Domain, ReversePath};

use crate::cache::Cache;
use crate::dns::Dns;

/// The most look-ups that find nothing in one SPF evaluation (RFC 7208 §4.6.4).
const MAX_VOID_LOOKUPS: usize = 2;

/// The SMTP client and what it said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address, after any PROXY header.
    pub ip: IpAddr,
    /// The argument of EHLO or HELO as given.
    pub helo: String,
    /// The argument of MAIL FROM.
    pub reverse_path: ReversePath,
}

/// A result of SPF (RFC 7208 §2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SpfResult {
    None,
    Neutral,
    Pass,
    Fail,
    SoftFail,
    TempError,
    PermError,
}

/// Whose record was evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpfIdentity {
    /// The domain of MAIL FROM.
    MailFrom,
    /// The EHLO name, as the sender is null (RFC 7208 §2.4).
    Helo,
}

/// The SPF check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpfCheck {
    /// What it came to.
    pub result: SpfResult,
    /// Which identity was checked.
    pub identity: SpfIdentity,
    /// The identity as `Authentication-Results` shows it: the address or the EHLO name.
    pub value: String,
    /// The domain whose record was evaluated; `None` when the identity holds no domain name.
    pub domain: Option<String>,
}

/// A result of iprev (RFC 8601 §2.7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IprevResult {
    /// The address has a name that has the address.
    Pass,
    /// It has names, none of which has the address.
    Fail,
    /// The DNS gave no answer.
    TempError,
    /// The address has no name.
    PermError,
}

/// The iprev check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IprevCheck {
    /// What it came to.
    pub result: IprevResult,
    /// The address.
    pub ip: IpAddr,
    /// The first name it has, without the dot at the end.
    pub name: Option<String>,
}

/// What is known of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCheck {
    /// The SPF check.
    pub spf: SpfCheck,
    /// The iprev check.
    pub iprev: IprevCheck,
}

impl SpfResult {
    /// The keyword of RFC 8601 §2.7.2.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Neutral => "neutral",
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::SoftFail => "softfail",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

impl IprevResult {
    /// The keyword of RFC 8601 §2.7.3.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::TempError => "temperror",
            Self::PermError => "permerror",
        }
    }
}

impl From<mail_auth::SpfResult> for SpfResult {
    fn from(result: mail_auth::SpfResult) -> Self {
        match result {
            mail_auth::SpfResult::Pass => Self::Pass,
            mail_auth::SpfResult::Fail => Self::Fail,
            mail_auth::SpfResult::SoftFail => Self::SoftFail,
            mail_auth::SpfResult::Neutral => Self::Neutral,
            mail_auth::SpfResult::TempError => Self::TempError,
            mail_auth::SpfResult::PermError => Self::PermError,
            mail_auth::SpfResult::None => Self::None,
        }
    }
}

/// Evaluates iprev. Denials are kept by the resolver, answers here.
pub(crate) async fn iprev(dns: &Dns, ip: IpAddr) -> IprevCheck {
    let caches = &dns.caches;
    let parameters = Parameters::new(ip)
        .with_txt_cache(&caches.txt)
        .with_mx_cache(&caches.mx)
        .with_ptr_cache(&caches.ptr)
        .with_ipv4_cache(&caches.v4)
        .with_ipv6_cache(&caches.v6);
    let Ok(output) = tokio::time::timeout(dns.deadline(), dns.authenticator.verify_iprev(parameters)).await
    else {
        return IprevCheck { result: IprevResult::TempError, ip, name: None };
    };
    let result = match output.result {
        mail_auth::IprevResult::Pass => IprevResult::Pass,
        mail_auth::IprevResult::Fail(_) => IprevResult::Fail,
        mail_auth::IprevResult::TempError(_) => IprevResult::TempError,
        // A name without addresses has been looked up forward in vain: that is a failure.
        mail_auth::IprevResult::PermError(_) if output.ptr.is_some() => IprevResult::Fail,
        mail_auth::IprevResult::PermError(_) | mail_auth::IprevResult::None => IprevResult::PermError,
    };
    let name = output.ptr.as_deref().and_then(<[Box<str>]>::first);
    IprevCheck { result, ip, name: name.map(|name| name.trim_end_matches('.').to_owned()) }
}

/// Evaluates SPF for MAIL FROM or, where that is null, for the EHLO name.
pub(crate) async fn spf(dns: &Dns, client: &Client, host: &str) -> SpfCheck {
    let (identity, value, domain) = match &client.reverse_path {
        ReversePath::Mailbox(mailbox) => {
            (SpfIdentity::MailFrom, mailbox.to_string(), mailbox.domain_name().map(str::to_owned))
        }
        ReversePath::Null => {
            let domain = match client.helo.parse() {
                Ok(Domain::Name(name)) => Some(name),
                Ok(Domain::Literal(_)) | Err(_) => None,
            };
            (SpfIdentity::Helo, client.helo.clone(), domain)
        }
    };
    let result = match &domain {
        None => SpfResult::None,
        Some(domain) => {
            let parameters = match identity {
                SpfIdentity::MailFrom => {
                    SpfParameters::verify_mail_from(client.ip, &client.helo, host, &value)
                }
                SpfIdentity::Helo => SpfParameters::verify_ehlo(client.ip, domain, host),
            };
            let evaluation = evaluate(dns, client.ip, domain, parameters);
            let evaluation = tokio::time::timeout(dns.method_deadline(), evaluation);
            evaluation.await.unwrap_or(SpfResult::TempError)
        }
    };
    SpfCheck { result, identity, value, domain }
}

async fn evaluate(dns: &Dns, ip: IpAddr, domain: &str, parameters: SpfParameters<'_>) -> SpfResult {
    let Ok(answer) = dns.txt(domain).await else {
        return SpfResult::TempError;
    };
    // mail-auth takes the first record that it can read; RFC 7208 §4.5 and §4.6 want exactly one,
    // and an error where it cannot be read.
    let mut records = answer.found().iter().filter(|record| is_spf(record));
    let record = match (records.next(), records.next()) {
        (None, _) => return SpfResult::None,
        (Some(_), Some(_)) => return SpfResult::PermError,
        (Some(record), None) => record,
    };
    let key = format!("{domain}.");
    if dns.caches.txt.get(key.as_str()).is_none() {
        match Spf::parse(record) {
            Ok(parsed) => dns.caches.txt.insert(key.into(), parsed.into(), answer.until),
            Err(_) => return SpfResult::PermError,
        }
    }
    let voids = VoidCount::default();
    let caches = &dns.caches;
    let (v4, v6, mx, ptr) = (
        Counted { cache: &caches.v4, voids: ip.is_ipv4().then_some(&voids) },
        Counted { cache: &caches.v6, voids: ip.is_ipv6().then_some(&voids) },
        Named { cache: &caches.mx, voids: &voids },
        Named { cache: &caches.ptr, voids: &voids },
    );
    let parameters = Parameters::new(parameters)
        .with_txt_cache(&caches.txt)
        .with_mx_cache(&mx)
        .with_ptr_cache(&ptr)
        .with_ipv4_cache(&v4)
        .with_ipv6_cache(&v6);
    let output = dns.authenticator.check_host(parameters).await;
    if voids.count() > MAX_VOID_LOOKUPS { SpfResult::PermError } else { output.result().into() }
}

/// `v=spf1`, ended by a space or the end of the record (RFC 7208 §4.5).
fn is_spf(record: &[u8]) -> bool {
    let version = record.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"v=spf1"));
    version && matches!(record.get(6), None | Some(b' '))
}

/// Counts the terms whose look-up found nothing, which mail-auth does not. It sees them in the caches:
/// a look-up misses there, and only one that finds something is kept there.
#[derive(Default)]
struct VoidCount {
    voids: AtomicUsize,
    /// Hosts that MX and PTR records name: their addresses are no terms of the record.
    exempt: Mutex<Vec<Box<str>>>,
}

impl VoidCount {
    fn count(&self) -> usize {
        self.voids.load(Ordering::Relaxed)
    }

    fn exempt<'n>(&self, names: impl Iterator<Item = &'n Box<str>>) {
        let mut exempt = self.exempt.lock().unwrap_or_else(PoisonError::into_inner);
        exempt.extend(names.cloned());
    }
}

/// The cache of addresses of the client's family.
struct Counted<'a, V> {
    cache: &'a Cache<Box<str>, V>,
    voids: Option<&'a VoidCount>,
}

impl<V: Clone> ResolverCache<Box<str>, V> for Counted<'_, V> {
    fn get<Q>(&self, name: &Q) -> Option<V>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let known = self.cache.get(name);
        if let (None, Some(voids)) = (&known, self.voids) {
            let exempt = voids.exempt.lock().unwrap_or_else(PoisonError::into_inner);
            if !exempt.iter().any(|host| host.borrow() == name) {
                voids.voids.fetch_add(1, Ordering::Relaxed);
            }
        }
        known
    }

    fn remove<Q>(&self, name: &Q) -> Option<V>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.cache.remove(name)
    }

    fn insert(&self, name: Box<str>, value: V, until: Instant) {
        if let Some(voids) = self.voids {
            let exempt = voids.exempt.lock().unwrap_or_else(PoisonError::into_inner);
            if !exempt.contains(&name) {
                voids.voids.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.cache.insert(name, value, until);
    }
}

/// The cache of records that name hosts.
struct Named<'a, K, V> {
    cache: &'a Cache<K, RecordSet<V>>,
    voids: &'a VoidCount,
}

trait Hosts {
    fn hosts(&self) -> impl Iterator<Item = &Box<str>>;
}

impl Hosts for MX {
    fn hosts(&self) -> impl Iterator<Item = &Box<str>> {
        self.exchanges.iter()
    }
}

impl Hosts for Box<str> {
    fn hosts(&self) -> impl Iterator<Item = &Box<str>> {
        std::iter::once(self)
    }
}

impl<K: Hash + Eq + Clone, V: Hosts + Clone> ResolverCache<K, RecordSet<V>> for Named<'_, K, V> {
    fn get<Q>(&self, name: &Q) -> Option<RecordSet<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let known = self.cache.get(name)?;
        self.voids.exempt(known.rrset.iter().flat_map(Hosts::hosts));
        Some(known)
    }

    fn remove<Q>(&self, name: &Q) -> Option<RecordSet<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.cache.remove(name)
    }

    fn insert(&self, name: K, value: RecordSet<V>, until: Instant) {
        self.voids.exempt(value.rrset.iter().flat_map(Hosts::hosts));
        self.cache.insert(name, value, until);
    }
}
