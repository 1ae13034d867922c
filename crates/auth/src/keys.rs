//! Public keys from the DNS (RFC 6376 §3.6), for DKIM and ARC.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::{DnsError, Error, ResolverCache, Txt};

use crate::dns::Dns;
use crate::tags::Tags;

/// The fewest bits of an RSA key that count (RFC 8301 §3.2).
const MIN_RSA_BITS: usize = 1024;
/// The most bits of an RSA key that are worked with.
const MAX_RSA_BITS: usize = 8192;

/// A key that may verify signatures of mail.
pub(crate) struct Key {
    pub(crate) key: Arc<DomainKey>,
    /// The domain is testing (`t=y`): nothing may rest on its signatures.
    pub(crate) testing: bool,
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyFault {
    Temporary,
    Missing,
    Malformed,
    Revoked,
    Unfit,
    Size,
}

impl KeyFault {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Temporary => "the key could not be looked up",
            Self::Missing => "there is no such key",
            Self::Malformed => "the key record is malformed",
            Self::Revoked => "the key is revoked",
            Self::Unfit => "the key is not for signing mail with SHA-256",
            Self::Size => "the key has less than 1024 or more than 8192 bits",
        }
    }
}

/// The key of a selector, from the cache where it still holds.
async fn key(dns: &Dns, selector: &str, domain: &str) -> Result<Arc<Key>, KeyFault> {
    let name = format!("{selector}._domainkey.{domain}").to_ascii_lowercase();
    if let Some(known) = dns.caches.keys.get(name.as_str()) {
        return known;
    }
    let answer = dns.txt(&name).await.map_err(|_| KeyFault::Temporary)?;
    // Several records are not foreseen (§3.6.2.2); the first that can be used is.
    let mut outcome = Err(KeyFault::Missing);
    for read in answer.found().iter().map(|record| read(record)) {
        match (&outcome, read) {
            (_, Ok(key)) => {
                outcome = Ok(Arc::new(key));
                break;
            }
            (Err(KeyFault::Missing), Err(fault)) => outcome = Err(fault),
            _ => {}
        }
    }
    dns.caches.keys.insert(name.into(), outcome.clone(), answer.until);
    outcome
}

/// The keys of several signatures, looked up at once; `Temporary` for those that are not there in time.
pub(crate) async fn keys(dns: &Dns, wanted: &[(&str, &str)]) -> Vec<Result<Arc<Key>, KeyFault>> {
    let until = tokio::time::Instant::now() + dns.method_deadline();
    let look_ups = wanted.iter().map(|(selector, domain)| async move {
        tokio::time::timeout_at(until, key(dns, selector, domain)).await.unwrap_or(Err(KeyFault::Temporary))
    });
    futures::future::join_all(look_ups).await
}

fn read(record: &[u8]) -> Result<Key, KeyFault> {
    let tags = Tags::parse(record).ok_or(KeyFault::Malformed)?;
    if tags.get("v").is_some() && tags.first() != Some(("v", "DKIM1")) {
        return Err(KeyFault::Malformed);
    }
    let for_mail = tags.lists("s", "*").is_none_or(|all| all || tags.lists("s", "email") == Some(true));
    if !for_mail || tags.lists("h", "sha256") == Some(false) {
        return Err(KeyFault::Unfit);
    }
    match tags.compact("p").as_deref() {
        None => return Err(KeyFault::Malformed),
        Some("") => return Err(KeyFault::Revoked),
        Some(_) => {}
    }
    let key = DomainKey::parse(record).map_err(|_| KeyFault::Malformed)?;
    let is_rsa = tags.get("k").is_none_or(|k| k.eq_ignore_ascii_case("rsa"));
    if is_rsa && !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&key.p.public_key_bits()) {
        return Err(KeyFault::Size);
    }
    Ok(Key { key: Arc::new(key), testing: tags.lists("t", "y") == Some(true) })
}

/// The keys of one message in the form mail-auth asks for them; it never goes to the network itself.
#[derive(Default)]
pub(crate) struct KeyView {
    keys: Vec<(Box<str>, Arc<DomainKey>)>,
}

impl KeyView {
    pub(crate) fn add(&mut self, selector: &str, domain: &str, key: &Key) {
        let name = format!("{selector}._domainkey.{domain}.").to_ascii_lowercase();
        self.keys.push((name.into(), key.key.clone()));
    }
}

impl ResolverCache<Box<str>, Txt> for KeyView {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let known = self.keys.iter().find(|(known, _)| known.borrow() == name);
        Some(known.map_or_else(
            || Txt::Error(Error::Dns(DnsError::RecordNotFound(ResponseCode::NXDomain))),
            |(_, key)| Txt::DomainKey(key.clone()),
        ))
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    fn fault(record: &str) -> Option<KeyFault> {
        read(record.as_bytes()).err()
    }

    #[test]
    fn records_are_judged() {
        assert_eq!(fault(ED25519), None);
        assert_eq!(fault(&format!("v=DKIM1; {ED25519}")), None);
        assert_eq!(
            fault(&format!("{ED25519}; s=email; h=sha1:sha256; t=s; n=hello; x-y")),
            Some(KeyFault::Malformed)
        );
        assert_eq!(fault(&format!("{ED25519}; s=email; h=sha1:sha256; t=s; n=hello")), None);
        assert_eq!(fault(&format!("{ED25519}; v=DKIM1")), Some(KeyFault::Malformed));
        assert_eq!(fault(&format!("v=DKIM2; {ED25519}")), Some(KeyFault::Malformed));
        assert_eq!(fault(&format!("{ED25519}; h=sha1")), Some(KeyFault::Unfit));
        assert_eq!(fault(&format!("{ED25519}; s=other")), Some(KeyFault::Unfit));
        assert_eq!(fault("v=DKIM1; p="), Some(KeyFault::Revoked));
        assert_eq!(fault("v=DKIM1; k=rsa"), Some(KeyFault::Malformed));
        assert_eq!(fault("v=DKIM1; p=AAAA"), Some(KeyFault::Size));
        assert!(read(format!("{ED25519}; t=s:y").as_bytes()).unwrap().testing);
    }
}
