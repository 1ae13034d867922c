//! The server's side: the identity that listeners present, and its reload.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::TlsError;
use crate::files::{IdentityFiles, PemFile, tell_expiry};
use crate::reload::Reloading;
use crate::self_signed;

/// What a server presents, and how patient it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTlsConfig {
    /// PEM file of the certificate chain, the server's own first. Absent, with `key`: a
    /// self-signed certificate is made in the data folder.
    pub certificate: Option<PathBuf>,
    /// PEM file of the private key (PKCS#8, PKCS#1 or SEC1).
    pub key: Option<PathBuf>,
    /// A handshake that takes longer is ended. Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub handshake_timeout: Duration,
    /// The files are looked at for a change at most this often, when a session starts. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub reload_interval: Duration,
}

impl Default for ServerTlsConfig {
    fn default() -> Self {
        Self {
            certificate: None,
            key: None,
            handshake_timeout: Duration::from_secs(30),
            reload_interval: Duration::from_secs(10),
        }
    }
}

/// Accepts TLS sessions. Cheap to clone; clones share the identity.
///
/// When the certificate or key file changes, sessions that start after `reload_interval` use the
/// new one. Files that cannot be used are logged, and the last good identity stays.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<Reloading<Arc<ServerConfig>>>,
    handshake_timeout: Duration,
}

impl ServerTls {
    /// Loads the configured identity, or a self-signed one for `hostname`, kept in `data_dir/tls`
    /// (the key with mode 0600). Blocks on file reads: call it at start.
    ///
    /// # Errors
    /// When a file is missing or holds something else, when the key is not the certificate's, or
    /// when the self-signed one cannot be made or written.
    pub fn load(config: &ServerTlsConfig, data_dir: &Path, hostname: &str) -> Result<Self, TlsError> {
        let files = match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => identity(certificate, key),
            (None, None) => self_signed::in_folder(data_dir, hostname)?,
            _ => return Err(TlsError::HalfConfigured),
        };
        let loaded = Reloading::load(files.paths(), config.reload_interval, move || server_config(&files))?;
        Ok(Self { config: Arc::new(loaded), handshake_timeout: config.handshake_timeout })
    }

    /// Does the server's part of the handshake on a connection.
    ///
    /// # Errors
    /// What the connection or rustls says; [`io::ErrorKind::TimedOut`] after `handshake_timeout`.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&*self.config.fresh().await);
        within(self.handshake_timeout, TlsAcceptor::from(config).accept(stream)).await
    }
}

/// The identity in these files.
pub(crate) fn identity(certificate: &Path, key: &Path) -> IdentityFiles {
    IdentityFiles {
        certificate: PemFile::new("tls.certificate", certificate),
        key: PemFile::new("tls.key", key),
    }
}

/// A server that presents this identity, and asks for none.
fn server_config(files: &IdentityFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = files.certificate.certificates()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain.clone(), files.key.private_key()?)
        .map_err(files.mismatch())?;
    tell_expiry("listeners", &chain);
    Ok(Arc::new(config))
}

/// A handshake that takes no longer than the limit.
pub(crate) async fn within<S>(
    limit: Duration,
    handshake: impl Future<Output = io::Result<S>>,
) -> io::Result<S> {
    match timeout(limit, handshake).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the TLS handshake was not done within {} s", limit.as_secs_f32()),
        )),
    }
}
