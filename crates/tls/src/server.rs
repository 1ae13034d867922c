//! The server's side: the identity that listeners present, and its reload.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::TlsError;
use crate::files::{Fingerprint, IdentityFiles, server_config};
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
    shared: Arc<Shared>,
}

struct Shared {
    files: Vec<IdentityFiles>,
    config: ArcSwap<ServerConfig>,
    handshake_timeout: Duration,
    reload_interval: Duration,
    seen: Mutex<Seen>,
}

/// The state of the files when they were last looked at.
struct Seen {
    fingerprints: Vec<Fingerprint>,
    at: Instant,
}

fn fingerprints(files: &[IdentityFiles]) -> Vec<Fingerprint> {
    files.iter().map(IdentityFiles::fingerprint).collect()
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
            (Some(certificate), Some(key)) => {
                IdentityFiles { certificate: certificate.clone(), key: key.clone() }
            }
            (None, None) => self_signed::in_folder(data_dir, hostname)?,
            _ => return Err(TlsError::HalfConfigured),
        };
        Self::of(vec![files], config)
    }

    /// Loads identities of which a client is shown the one that holds the name it asks for, and the first when
    /// none does. Blocks on file reads: call it at start.
    ///
    /// # Errors
    /// When a file is missing or holds something else, or a key is not its certificate's.
    pub fn of(files: Vec<IdentityFiles>, config: &ServerTlsConfig) -> Result<Self, TlsError> {
        // Taken before the files are read: a change meanwhile is then seen as one.
        let fingerprints = fingerprints(&files);
        let loaded = server_config(&files)?;
        Ok(Self {
            shared: Arc::new(Shared {
                files,
                config: ArcSwap::new(loaded),
                handshake_timeout: config.handshake_timeout,
                reload_interval: config.reload_interval,
                seen: Mutex::new(Seen { fingerprints, at: Instant::now() }),
            }),
        })
    }

    /// Does the server's part of the handshake on a connection.
    ///
    /// # Errors
    /// What the connection or rustls says; [`io::ErrorKind::TimedOut`] after `handshake_timeout`.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.reload_if_changed().await;
        let acceptor = TlsAcceptor::from(self.shared.config.load_full());
        let limit = self.shared.handshake_timeout;
        match timeout(limit, acceptor.accept(stream)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the TLS handshake was not done within {} s", limit.as_secs_f32()),
            )),
        }
    }

    async fn reload_if_changed(&self) {
        // Whoever finds the lock taken goes on with the identity there is.
        let Ok(mut seen) = self.shared.seen.try_lock() else { return };
        if seen.at.elapsed() < self.shared.reload_interval {
            return;
        }
        seen.at = Instant::now();
        let files = self.shared.files.clone();
        let before = seen.fingerprints.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let now = fingerprints(&files);
            (now != before).then(|| (now, server_config(&files)))
        });
        let Ok(Some((fingerprints, loaded))) = looked.await else { return };
        seen.fingerprints = fingerprints;
        let names: Vec<String> =
            self.shared.files.iter().map(|files| files.certificate.display().to_string()).collect();
        let certificate = names.join(", ");
        match loaded {
            Ok(config) => {
                self.shared.config.store(config);
                tracing::info!(%certificate, "certificate reloaded");
            }
            Err(error) => tracing::error!(
                %certificate,
                error = &error as &dyn std::error::Error,
                "changed certificate cannot be used, the one before stays"
            ),
        }
    }
}
