//! The server's side: the identity that listeners present, and its reload.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::TlsError;
use crate::files::{Identity, IdentityFiles, tell_expiry};
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
            (Some(certificate), Some(key)) => {
                IdentityFiles { certificate: certificate.clone(), key: key.clone() }
            }
            (None, None) => self_signed::in_folder(data_dir, hostname)?,
            _ => return Err(TlsError::HalfConfigured),
        };
        Self::of(&[files], config, "listeners")
    }

    /// Loads identities of which a client is shown the one that holds the name it asks for, and the first when
    /// none does. `shown_to` tells in the metrics whose they are. Blocks on file reads: call it at start.
    ///
    /// # Errors
    /// When a file is missing or holds something else, or a key is not its certificate's.
    pub fn of(
        files: &[IdentityFiles],
        config: &ServerTlsConfig,
        shown_to: &'static str,
    ) -> Result<Self, TlsError> {
        let identities: Vec<Identity> = files.iter().map(Identity::from).collect();
        let watched = identities.iter().flat_map(Identity::paths).collect();
        let build = move || server_config(&identities, shown_to);
        let config_of_files = Reloading::load(watched, config.reload_interval, build)?;
        Ok(Self { config: Arc::new(config_of_files), handshake_timeout: config.handshake_timeout })
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

/// A server that presents one of these identities, and asks for none.
fn server_config(identities: &[Identity], shown_to: &'static str) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let keys = identities.iter().map(|one| certified_key(one, &provider).map(Arc::new));
    let by_name = ByName(keys.collect::<Result<_, _>>()?);
    tell_expiry(shown_to, by_name.0.iter().filter_map(|key| key.cert.first()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    Ok(Arc::new(config))
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = identity.certificate.certificates()?;
    CertifiedKey::from_der(chain, identity.key.private_key()?, provider).map_err(identity.mismatch())
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
