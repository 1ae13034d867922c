//! Reads a certificate chain and its key, and tells when the files have changed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::TlsError;

/// Largest certificate or key file read, in octets.
const MAX_FILE: u64 = 1024 * 1024;

/// The two files of a server's identity.
#[derive(Debug, Clone)]
pub(crate) struct IdentityFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
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

    /// Builds the rustls configuration of a server that presents this identity.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = read_chain(&self.certificate)?;
        let key = read_key(&self.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Mismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source,
            })?;
        Ok(Arc::new(config))
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

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let setting = "tls.certificate";
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
