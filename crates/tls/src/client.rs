//! The client's side: opportunistic TLS towards remote servers (RFC 7435, RFC 3207).
//!
//! Without a policy that says otherwise (MTA-STS, DANE), any certificate is taken: a server that
//! would be refused for its certificate would get the mail in clear instead. Whether the
//! certificate would have been good is recorded.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::TlsError;

/// How patient the client is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// A handshake that takes longer is ended. Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub handshake_timeout: Duration,
}

impl Default for ClientTlsConfig {
    fn default() -> Self {
        Self { handshake_timeout: Duration::from_secs(30) }
    }
}

/// What a handshake came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// `TLSv1.3` or `TLSv1.2`.
    pub protocol: &'static str,
    /// The cipher suite, as IANA names it.
    pub cipher: String,
    /// The certificate chains to a root of this system and names the host.
    pub verified: bool,
}

/// Begins TLS sessions with servers whose certificate nobody vouches for. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    /// `None` where the system has no roots: then nothing counts as verified.
    roots: Option<Arc<WebPkiServerVerifier>>,
    handshake_timeout: Duration,
}

impl ClientTls {
    /// A client that takes any certificate, and judges it by the system's roots for the record.
    /// Blocks on file reads: call it at start.
    ///
    /// # Errors
    /// When rustls refuses the settings.
    pub fn opportunistic(config: &ClientTlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let accept_any = Arc::new(AcceptAny { provider: provider.clone() });
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(accept_any)
            .with_no_client_auth();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let roots = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().ok();
        if roots.is_none() {
            tracing::info!("the system has no root certificates, no server will count as verified");
        }
        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            roots,
            handshake_timeout: config.handshake_timeout,
        })
    }

    /// Does the client's part of the handshake on a connection to `host`, which is also the SNI
    /// (an address is not sent as one, RFC 6066 §3).
    ///
    /// # Errors
    /// What the connection or rustls says; [`io::ErrorKind::TimedOut`] after `handshake_timeout`;
    /// [`io::ErrorKind::InvalidInput`] when `host` is neither a DNS name nor an address.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<(TlsStream<S>, Security)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.trim_end_matches('.').to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let limit = self.handshake_timeout;
        let stream = match timeout(limit, self.connector.connect(name.clone(), stream)).await {
            Ok(result) => result?,
            Err(_) => {
                let text = format!("the TLS handshake was not done within {} s", limit.as_secs_f32());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        };
        let security = self.judge(&name, stream.get_ref().1);
        Ok((stream, security))
    }

    fn judge(&self, name: &ServerName<'_>, session: &ClientConnection) -> Security {
        let verified = match (&self.roots, session.peer_certificates()) {
            (Some(roots), Some([end_entity, intermediates @ ..])) => {
                roots.verify_server_cert(end_entity, intermediates, name, &[], UnixTime::now()).is_ok()
            }
            _ => false,
        };
        let protocol = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let cipher = session
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("unknown")
            .to_owned();
        Security { protocol, cipher, verified }
    }
}

/// Takes any certificate, but lets its owner prove that the key is theirs: only then may a
/// certificate that the roots vouch for be recorded as verified.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

/// A certificate that webpki cannot read (X.509 version 1, say) cannot be recorded as verified
/// either, so its signature proves nothing that anyone relies on.
fn is_readable(cert: &CertificateDer<'_>) -> bool {
    ParsedCertificate::try_from(cert).is_ok()
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if is_readable(cert) {
            verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
        } else {
            Ok(HandshakeSignatureValid::assertion())
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if is_readable(cert) {
            verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
        } else {
            Ok(HandshakeSignatureValid::assertion())
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
