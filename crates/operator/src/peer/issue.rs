//! Makes authorities and certificates, and reads what they say.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::plan::Validity;

/// Clocks of pods may differ by this: certificates hold from so long before they are made.
const SKEW: Duration = Duration::from_secs(300);

/// A certificate cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("a certificate cannot be made: check operator.peer_certificates.domain")]
pub struct IssueError(#[from] rcgen::Error);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: SecretString,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) validity: Validity,
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) names: Vec<String>,
}

/// A new authority, with a name of its own.
pub(super) fn authority(now: Timestamp, life: Duration) -> Result<Identity, IssueError> {
    let mut params = params(Vec::new(), now, life)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    let number: u64 = rand::random();
    params.distinguished_name.push(DnType::CommonName, format!("packetboat services {number:016x}"));
    let key = new_key()?;
    let certificate = params.self_signed(&key)?.pem();
    Ok(Identity { certificate, key: key.serialize_pem().into() })
}

/// A certificate for this DNS name, for both ends of connections.
pub(super) fn certificate(
    authority: &Identity,
    name: &str,
    now: Timestamp,
    life: Duration,
) -> Result<Identity, IssueError> {
    let issuer =
        Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(authority.key.expose_secret())?)?;
    let mut params = params(vec![name.to_owned()], now, life)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = new_key()?;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Identity { certificate, key: key.serialize_pem().into() })
}

fn new_key() -> Result<KeyPair, IssueError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn params(names: Vec<String>, now: Timestamp, life: Duration) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::new(names)?;
    let at = |time: Timestamp| {
        OffsetDateTime::from_unix_timestamp(time.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    };
    params.not_before = at(now.saturating_sub(SKEW).unwrap_or(now));
    params.not_after = at(now.saturating_add(life).unwrap_or(Timestamp::MAX));
    Ok(params)
}

/// Reads a certificate; nothing when it cannot be read.
pub(super) fn read(pem: &str) -> Option<Said> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).ok();
    let since = time(certificate.validity().not_before)?;
    let names = certificate.subject_alternative_name().ok()?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    Some(Said {
        // Since it was made, that is.
        validity: Validity {
            since: since.saturating_add(SKEW).ok()?,
            until: time(certificate.validity().not_after)?,
        },
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        names: names.iter().filter_map(dns).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_what_it_was_made_for() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let ours = authority(now, day * 10).unwrap();
        let made = certificate(&ours, "edge.packetboat.internal", now, day).unwrap();
        let (above, said) = (read(&ours.certificate).unwrap(), read(&made.certificate).unwrap());
        assert_eq!(said.validity, Validity { since: now, until: now + day });
        assert_eq!((&said.issuer, said.names), (&above.subject, vec!["edge.packetboat.internal".to_owned()]));
        assert_ne!(read(&authority(now, day).unwrap().certificate).unwrap().subject, above.subject);
    }
}
