//! The client's side where the server must be who it says: policies over HTTPS, and mail exchangers that are looked
//! at as a sender with a policy would.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::TlsError;
use crate::files::PemFile;

/// Begins TLS sessions with servers whose certificate must chain to a known authority and hold their name. Cheap
/// to clone.
#[derive(Clone)]
pub struct TrustedTls {
    connector: TlsConnector,
}

impl TrustedTls {
    /// Trusts the system's authorities and, beside them, those of a PEM file. Blocks on file reads: call it at
    /// start.
    ///
    /// # Errors
    /// When the file cannot be read or holds no certificate.
    pub fn load(authorities: Option<&Path>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = authorities {
            roots.add_parsable_certificates(PemFile::new("authorities", file).certificates()?);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(client)) })
    }

    /// Does the client's part of the handshake with `host`, whose name is sent as SNI. It takes as long as the
    /// peer lets it: the caller sets a deadline.
    ///
    /// # Errors
    /// What the connection says; [`io::ErrorKind::InvalidData`] with a [`rustls::Error`] when the certificate is
    /// not trusted or is another host's; [`io::ErrorKind::InvalidInput`] when `host` is no name.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.trim_end_matches('.').to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.connector.connect(name, stream).await
    }
}
