//! TLSA records (RFC 6698) that pin the key of a mail host's certificate, as RFC 7672 wants them: `3 1 1`. The record
//! of a key comes before its certificate is used, where cert-manager tells of the key; and it goes after the
//! certificate has been replaced everywhere for long enough.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use domains::types::{MailDomain, RecordPolicy, RecordState, RecordStatus};
use futures::future::join_all;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::observe::{Observation, Zones, is_below};
use crate::reconcile::Context;
use crate::record::{PIN, Purpose, Record, tlsa_name, tlsa_record, ttl};
use crate::signed::Security;

/// The keys of a certificate, as SHA-256 digests of their SubjectPublicKeyInfo.
struct Pinned {
    current: String,
    /// That of the certificate to come.
    next: Option<String>,
}

impl Pinned {
    fn values(&self) -> Vec<String> {
        let all: BTreeSet<&String> = [&self.current].into_iter().chain(&self.next).collect();
        all.into_iter().map(|digest| format!("{PIN}{digest}")).collect()
    }
}

/// What was found of TLSA records.
pub(crate) struct Pins {
    /// The records, and what the name servers say of each. One without values is to go.
    pub(crate) records: Vec<(Record, Observation)>,
    /// What follows, where the spec asks for them.
    pub(crate) state: Option<PinState>,
    /// An old record waits to go.
    pub(crate) waiting: bool,
}

/// How the TLSA records of a domain stand.
pub(crate) enum PinState {
    /// There is no certificate: why.
    NoCertificate(String),
    /// No mail host is the domain, or lies below it.
    NoHost,
    /// There is a certificate.
    Pinned {
        /// What TLSA says of the key that is in use.
        current: String,
        /// Whether anybody may believe the records.
        security: Security,
        /// Mail hosts whose records are others' business.
        outside: Vec<String>,
    },
}

/// Since when every name server shows what is wanted, by the MailDomain's UID and the name. What is forgotten, at
/// the end of the process, begins anew: old records stay for longer then.
#[derive(Default)]
pub(crate) struct Rollovers {
    shown: Mutex<HashMap<(String, String), Shown>>,
}

/// What every name server shows, and since when.
struct Shown {
    values: Vec<String>,
    since: Timestamp,
}

impl Rollovers {
    /// The old values that are to stay beside those that are wanted.
    fn kept(
        &self,
        uid: &str,
        record: &Record,
        seen: &Observation,
        wait: Duration,
        now: Timestamp,
    ) -> Vec<String> {
        let old =
            seen.observed.iter().filter(|value| value.starts_with(PIN) && !record.values.contains(value));
        let old: Vec<String> = old.cloned().collect();
        let place = (uid.to_owned(), record.name.clone());
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let everywhere = record.values.iter().all(|value| seen.shown.contains(value));
        if !everywhere || old.is_empty() {
            shown.remove(&place);
            return old;
        }
        let fresh = || Shown { values: record.values.clone(), since: now };
        let entry = shown.entry(place).or_insert_with(fresh);
        if entry.values != record.values {
            *entry = fresh();
        }
        let lasted: Duration = now.duration_since(entry.since).try_into().unwrap_or_default();
        if lasted >= wait { Vec::new() } else { old }
    }
}

/// The kind of cert-manager's objects.
pub(crate) fn certificates() -> ApiResource {
    let kind = GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate");
    ApiResource::from_gvk_with_plural(&kind, "certificates")
}

impl Context {
    /// What is to be said by TLSA records, and what is said.
    pub(crate) async fn look_at_tlsa(&self, domain: &MailDomain, zones: &Zones) -> Result<Pins, Error> {
        let mut pins = Pins { records: Vec::new(), state: None, waiting: false };
        if Purpose::Tlsa.policy(&domain.spec) == RecordPolicy::Ignore {
            return Ok(pins);
        }
        let name = &domain.spec.domain;
        let hosts = domain.spec.mx.iter().map(|mx| mx.host.trim_end_matches('.').to_ascii_lowercase());
        let hosts = hosts.filter(|_| domain.spec.tlsa.is_some());
        let (inside, outside): (Vec<String>, Vec<String>) =
            hosts.partition(|host| host == name || is_below(host, name));
        let names: Vec<String> = inside.iter().map(|host| tlsa_name(host)).collect();
        let (standing, dropped): (Vec<Record>, Vec<Record>) =
            told(domain).into_iter().partition(|record| names.contains(&record.name));
        let mut records: Vec<Record> =
            dropped.into_iter().map(|record| Record { values: Vec::new(), ..record }).collect();
        let mut current = None;
        if domain.spec.tlsa.is_some() {
            match self.pinned(domain).await? {
                Err(why) => {
                    records.extend(standing);
                    pins.state = Some(PinState::NoCertificate(why));
                }
                Ok(_) if names.is_empty() => pins.state = Some(PinState::NoHost),
                Ok(pinned) => {
                    records
                        .extend(inside.iter().map(|host| tlsa_record(&domain.spec, host, pinned.values())));
                    current = Some(format!("{PIN}{}", pinned.current));
                }
            }
        }
        let seen = join_all(records.iter().map(|record| self.observer.look(&zones.own, record))).await;
        for (mut record, mut seen) in records.into_iter().zip(seen) {
            // What was to go is gone, and need not be told any more.
            if record.values.is_empty() && seen.state == RecordState::Verified {
                continue;
            }
            pins.waiting |= self.keep_old(domain, &mut record, &mut seen);
            pins.records.push((record, seen));
        }
        if let (Some(current), Some(name)) = (current, names.first()) {
            let security = self.observer.security(&zones.own, name).await;
            pins.state = Some(PinState::Pinned { current, security, outside });
        }
        Ok(pins)
    }

    /// Adds to a record the old values that are to stay for a while. True when there are any.
    fn keep_old(&self, domain: &MailDomain, record: &mut Record, seen: &mut Observation) -> bool {
        let Some(tlsa) = domain.spec.tlsa.as_ref().filter(|_| !record.values.is_empty()) else {
            return false;
        };
        let wait = tlsa.retire_after.max(ttl(&domain.spec));
        let uid = domain.uid().unwrap_or_default();
        let old = self.rollovers.kept(&uid, record, seen, wait, Timestamp::now());
        if old.is_empty() {
            return false;
        }
        record.values.extend(old);
        record.values.sort_unstable();
        let agreed = seen.state != RecordState::Unknown && seen.shown == record.values;
        if agreed && seen.observed.iter().all(|value| record.values.contains(value)) {
            (seen.state, seen.observed) = (RecordState::Verified, Vec::new());
        }
        true
    }

    /// The keys of the certificate that the spec names; or why there are none.
    async fn pinned(&self, domain: &MailDomain) -> Result<Result<Pinned, String>, Error> {
        let Some(tlsa) = &domain.spec.tlsa else { return Ok(Err(String::new())) };
        let (name, namespace) = (&tlsa.certificate_ref.name, domain.namespace().unwrap_or_default());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &certificates());
        let certificate = match api.get_opt(name).await {
            Ok(certificate) => certificate,
            // Without cert-manager there is no such kind; an operator that may not read it does without.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => None,
            Err(error) => return Err(Error::kube("reading a Certificate")(error)),
        };
        let text = |path: &str| {
            let found = certificate.as_ref().and_then(|certificate| certificate.data.pointer(path));
            found.and_then(|value| value.as_str()).map(str::to_owned)
        };
        let secret = text("/spec/secretName").unwrap_or_else(|| name.clone());
        let Some(chain) = self.ways.secret(&namespace, &secret).await?.remove("tls.crt") else {
            return Ok(Err(format!(
                "tlsa.certificateRef: there is no certificate {name}: the Secret {secret} has no key \"tls.crt\", or is not there"
            )));
        };
        let Some(current) = key_of_certificate(&chain.0) else {
            return Ok(Err(format!(
                "tlsa.certificateRef: tls.crt in the Secret {secret} is no certificate in PEM"
            )));
        };
        let next = match text("/status/nextPrivateKeySecretName") {
            Some(next) => {
                let key = self.ways.secret(&namespace, &next).await?.remove("tls.key");
                let key = key.and_then(|octets| String::from_utf8(octets.0).ok()).map(SecretString::from);
                key.as_ref().and_then(key_of_private_key)
            }
            None => None,
        };
        Ok(Ok(Pinned { current, next }))
    }
}

/// The TLSA records that the status tells of: what is wanted no more, left alone, would say what is wrong as soon as
/// the key changes; and without a certificate those that stand stay.
fn told(domain: &MailDomain) -> Vec<Record> {
    let told = domain.status.iter().flat_map(|status| &status.records);
    let record = |told: &RecordStatus| {
        let host = told.name.strip_prefix(&tlsa_name(""))?;
        let values = told.zone_lines.iter().filter_map(|line| Some(line.split_once(" TLSA ")?.1.to_owned()));
        Some(tlsa_record(&domain.spec, host, values.collect()))
    };
    told.filter(|told| told.purpose == Purpose::Tlsa.key()).filter_map(record).collect()
}

/// The digest of the key of the first certificate in a PEM text.
#[must_use]
pub fn key_of_certificate(pem: &[u8]) -> Option<String> {
    let certificate = CertificateDer::from_pem_slice(pem).ok()?;
    let parsed = ParsedCertificate::try_from(&certificate).ok()?;
    Some(hex(&Sha256::digest(parsed.subject_public_key_info().as_ref())))
}

/// The digest of the public half of a private key in PEM.
fn key_of_private_key(pem: &SecretString) -> Option<String> {
    let key = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes()).ok()?;
    let key = any_supported_type(&key).ok()?;
    Some(hex(&Sha256::digest(key.public_key()?.as_ref())))
}

/// Octets as TLSA records have them in text.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_its_key_have_the_same_digest() {
        let made = testkit::certificate::Certificate::new(&["mx.example.test"]).unwrap();
        let certificate = key_of_certificate(made.certificate.as_bytes()).unwrap();
        assert_eq!(certificate.len(), 64);
        assert_eq!(key_of_private_key(&SecretString::from(made.key)), Some(certificate));
        assert!(key_of_certificate(b"none").is_none());
    }

    #[test]
    fn an_old_key_stays_until_the_new_one_was_shown_for_long_enough() {
        let rollovers = Rollovers::default();
        let pin = |key: &str| format!("{PIN}{key}");
        let record = |values: &[&str]| Record {
            purpose: Purpose::Tlsa,
            name: tlsa_name("mx.example.test"),
            ttl: 300,
            values: values.iter().map(|key| pin(key)).collect(),
        };
        let seen = |shown: &[&str], observed: &[&str]| Observation {
            state: RecordState::Drifted,
            observed: observed.iter().map(|key| pin(key)).collect(),
            shown: shown.iter().map(|key| pin(key)).collect(),
        };
        let (new, wait) = (record(&["new"]), Duration::from_secs(300));
        let kept = |seen: &Observation, second: i64| {
            rollovers.kept("1", &new, seen, wait, Timestamp::from_second(second).unwrap())
        };
        // One server does not show the new one yet.
        assert_eq!(kept(&seen(&["old"], &["new", "old"]), 0), [pin("old")]);
        assert_eq!(kept(&seen(&["new", "old"], &["new", "old"]), 1000), [pin("old")]);
        assert_eq!(kept(&seen(&["new", "old"], &["new", "old"]), 1299), [pin("old")]);
        // It was away in between: the time begins anew.
        assert_eq!(kept(&seen(&["old"], &["new", "old"]), 1299), [pin("old")]);
        assert_eq!(kept(&seen(&["new", "old"], &["new", "old"]), 1300), [pin("old")]);
        // A clock that is set back makes it longer.
        assert_eq!(kept(&seen(&["new", "old"], &["new", "old"]), 700), [pin("old")]);
        assert!(kept(&seen(&["new", "old"], &["new", "old"]), 1600).is_empty());
    }
}
