//! Reads certificates and keys from PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::TlsError;

/// Largest certificate or key file read, in octets.
const MAX_FILE: u64 = 1024 * 1024;

/// A file, and the setting that names it.
#[derive(Debug, Clone)]
pub(crate) struct PemFile {
    pub(crate) setting: &'static str,
    pub(crate) path: PathBuf,
}

/// The two files of a server's identity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// PEM of the certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// PEM of the private key (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
}

/// The two files of an identity, and the settings that name them.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: PemFile,
    pub(crate) key: PemFile,
}

impl From<&IdentityFiles> for Identity {
    fn from(files: &IdentityFiles) -> Self {
        Self {
            certificate: PemFile::new("tls.certificate", &files.certificate),
            key: PemFile::new("tls.key", &files.key),
        }
    }
}

impl PemFile {
    pub(crate) fn new(setting: &'static str, path: &Path) -> Self {
        Self { setting, path: path.to_owned() }
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        let failed = |source| TlsError::Read { setting: self.setting, path: self.path.clone(), source };
        let length = std::fs::metadata(&self.path).map_err(failed)?.len();
        if length > MAX_FILE {
            return Err(self.unusable("PEM", format!("it is {length} octets long, more than {MAX_FILE}")));
        }
        std::fs::read(&self.path).map_err(failed)
    }

    fn unusable(&self, wanted: &'static str, reason: impl ToString) -> TlsError {
        let reason = reason.to_string();
        TlsError::Content { setting: self.setting, path: self.path.clone(), wanted, reason }
    }

    /// All certificates of the file; one at least.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let pem = self.read()?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| self.unusable("certificate", error))?;
        if chain.is_empty() {
            return Err(self.unusable("certificate", "no BEGIN CERTIFICATE line"));
        }
        Ok(chain)
    }

    /// The certificates of the file as authorities.
    pub(crate) fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.unusable("authority", error))?;
        }
        Ok(roots)
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.read()?).map_err(|error| self.unusable("private key", error))
    }
}

impl Identity {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        vec![self.certificate.path.clone(), self.key.path.clone()]
    }

    /// What rustls says when the two do not belong together.
    pub(crate) fn mismatch(&self) -> impl Fn(rustls::Error) -> TlsError {
        let (certificate, key) = (self.certificate.path.clone(), self.key.path.clone());
        move |source| TlsError::Mismatch { certificate: certificate.clone(), key: key.clone(), source }
    }
}

/// Tells when the first of the certificates that are presented runs out; `of` says to whom they are presented.
pub(crate) fn tell_expiry<'a>(of: &'static str, own: impl IntoIterator<Item = &'a CertificateDer<'a>>) {
    let ends = own.into_iter().filter_map(|certificate| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(parsed.validity().not_after.timestamp())
    });
    if let Some(expires) = ends.min() {
        metrics::gauge!("packetboat_certificate_expires_seconds", "of" => of).set(expires as f64);
    }
}
