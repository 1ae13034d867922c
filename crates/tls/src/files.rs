//! Reads certificate chains and their keys, and tells when the files have changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::Deserialize;

use crate::error::TlsError;

/// Largest certificate or key file read, in octets.
const MAX_FILE: u64 = 1024 * 1024;

/// The two files of a server's identity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// PEM of the certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// PEM of the private key (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
}

/// Device, inode, length and modification time (seconds and nanoseconds) of the two files, through
/// symbolic links: it changes both when a file is rewritten and when a mounted Secret is swapped.
pub(crate) type Fingerprint = [Option<(u64, u64, u64, i64, i64)>; 2];

impl IdentityFiles {
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let of = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        };
        [of(&self.certificate), of(&self.key)]
    }

    fn certified_key(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let chain = read_chain("tls.certificate", &self.certificate)?;
        let key = read_key(&self.key)?;
        CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Mismatch {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

/// Builds the rustls configuration of a server that presents one of these identities.
pub(crate) fn server_config(identities: &[IdentityFiles]) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let keys = identities.iter().map(|one| one.certified_key(&provider).map(Arc::new));
    let by_name = ByName(keys.collect::<Result<_, _>>()?);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    Ok(Arc::new(config))
}

/// Shows the first identity whose certificate holds the name that the client asks for, and the first of all to
/// a client that asks for none, or for another.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let holds = |key: &&Arc<CertifiedKey>| {
            let certificate =
                key.end_entity_cert().ok().and_then(|one| ParsedCertificate::try_from(one).ok());
            certificate.zip(asked.as_ref()).is_some_and(|(one, name)| verify_server_name(&one, name).is_ok())
        };
        let found = match self.0.as_slice() {
            [only] => Some(only),
            several => several.iter().find(holds).or(several.first()),
        };
        found.cloned()
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { setting, path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE {
        let reason = format!("it is {length} octets long, more than {MAX_FILE}");
        return Err(TlsError::Content { setting, path: path.to_owned(), wanted: "PEM", reason });
    }
    std::fs::read(path).map_err(failed)
}

pub(crate) fn read_chain(
    setting: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable =
        |reason: String| TlsError::Content { setting, path: path.to_owned(), wanted: "certificate", reason };
    let pem = read(setting, path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable("no BEGIN CERTIFICATE line".to_owned()));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let setting = "tls.key";
    let pem = read(setting, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Content {
        setting,
        path: path.to_owned(),
        wanted: "private key",
        reason: error.to_string(),
    })
}
