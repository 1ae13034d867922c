//! Mutual TLS between the services: both sides show a certificate of one authority that names their role.
//!
//! A role is a DNS name in the certificate, such as `verifier.packetboat.internal`. A client expects the
//! role that it calls, wherever it was dialled; a server admits the roles that may call it, and refuses
//! others in the handshake. TLS 1.3 only, and without resumption: every connection is judged by what the
//! files say when it begins.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::error::TlsError;
use crate::files::{Identity, PemFile, tell_expiry};
use crate::reload::Reloading;
use crate::server::within;

/// HTTP/2, which gRPC is spoken over.
const ALPN: &[u8] = b"h2";

/// Where the certificates between services lie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerTlsConfig {
    /// PEM file of our certificate, with its chain. It names our role.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// PEM file of the authorities whose certificates are trusted; while one succeeds another, both.
    pub authority: PathBuf,
    /// The domain in which roles are named. Default `packetboat.internal`. Installations that share an
    /// authority take one each.
    pub domain: String,
    /// A handshake that takes longer is ended. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub handshake_timeout: Duration,
    /// The files are looked at for a change at most this often, when a connection starts. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub reload_interval: Duration,
}

impl Default for PeerTlsConfig {
    fn default() -> Self {
        Self {
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            authority: PathBuf::new(),
            domain: "packetboat.internal".to_owned(),
            handshake_timeout: Duration::from_secs(5),
            reload_interval: Duration::from_secs(10),
        }
    }
}

/// What a certificate stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// SMTP in.
    Edge,
    /// Verify and Sign.
    Verifier,
    /// Accept and Probe.
    Delivery,
}

impl PeerRole {
    /// All of them.
    pub const EACH: [Self; 3] = [Self::Edge, Self::Verifier, Self::Delivery];

    /// The first label of its DNS name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Verifier => "verifier",
            Self::Delivery => "delivery",
        }
    }

    /// Who may connect to it. What they may then call is for the service.
    #[must_use]
    pub fn callers(self) -> &'static [Self] {
        match self {
            Self::Edge => &[],
            Self::Verifier => &[Self::Edge, Self::Delivery],
            Self::Delivery => &[Self::Edge],
        }
    }

    fn server_name(self, domain: &str) -> Result<ServerName<'static>, TlsError> {
        ServerName::try_from(format!("{}.{domain}", self.name()))
            .map_err(|_| TlsError::Domain(domain.to_owned()))
    }
}

/// Begins and accepts connections between services. Cheap to clone; clones share the certificates.
///
/// When a file changes, connections that start after `reload_interval` use the new one; those that are
/// open go on. Files that cannot be used are logged, and the last good ones stay.
#[derive(Clone)]
pub struct PeerTls {
    ends: Arc<Reloading<Ends>>,
    names: Arc<[(PeerRole, ServerName<'static>)]>,
    handshake_timeout: Duration,
}

/// Both ends of a service's connections, by what the files say at one moment.
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl PeerTls {
    /// Loads the certificates of a role. Blocks on file reads: call it at start.
    ///
    /// # Errors
    /// When a file is missing or holds something else, when the key is not the certificate's, or when
    /// the certificate names another role.
    pub fn load(config: &PeerTlsConfig, role: PeerRole) -> Result<Self, TlsError> {
        let names = PeerRole::EACH
            .into_iter()
            .map(|role| Ok((role, role.server_name(&config.domain)?)))
            .collect::<Result<Arc<[_]>, TlsError>>()?;
        let files = Identity {
            certificate: PemFile::new("tls.peer.certificate", &config.certificate),
            key: PemFile::new("tls.peer.key", &config.key),
        };
        let authority = PemFile::new("tls.peer.authority", &config.authority);
        let mut watched = files.paths();
        watched.push(authority.path.clone());
        let known = Arc::clone(&names);
        let build = move || Ends::build(&files, &authority, role, &known);
        let ends = Arc::new(Reloading::load(watched, config.reload_interval, build)?);
        Ok(Self { ends, names, handshake_timeout: config.handshake_timeout })
    }

    /// Does the client's part of the handshake with a server of this role.
    ///
    /// # Errors
    /// When the server proves no such role, and what the connection or rustls says;
    /// [`io::ErrorKind::TimedOut`] after `handshake_timeout`.
    pub async fn connect<S>(&self, stream: S, role: PeerRole) -> io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.ends.fresh().await.client);
        let name = self.names.iter().find(|(one, _)| *one == role).map(|(_, name)| name.clone());
        let name = name.ok_or_else(|| io::Error::other("a role without a name"))?;
        within(self.handshake_timeout, TlsConnector::from(config).connect(name, stream)).await
    }

    /// Does the server's part of the handshake. The client has proven one of these roles.
    ///
    /// # Errors
    /// When the client proves no role that may call, and what the connection or rustls says;
    /// [`io::ErrorKind::TimedOut`] after `handshake_timeout`.
    pub async fn accept<S>(&self, stream: S) -> io::Result<(server::TlsStream<S>, Vec<PeerRole>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.ends.fresh().await.server);
        let stream = within(self.handshake_timeout, TlsAcceptor::from(config).accept(stream)).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let roles = shown.map(|certificate| roles_of(certificate, &self.names)).unwrap_or_default();
        Ok((stream, roles))
    }
}

/// The roles that a certificate names.
fn roles_of(certificate: &CertificateDer<'_>, names: &[(PeerRole, ServerName<'static>)]) -> Vec<PeerRole> {
    let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return Vec::new() };
    let named = names.iter().filter(|(_, name)| verify_server_name(&certificate, name).is_ok());
    named.map(|(role, _)| *role).collect()
}

impl Ends {
    fn build(
        files: &Identity,
        authority: &PemFile,
        role: PeerRole,
        names: &Arc<[(PeerRole, ServerName<'static>)]>,
    ) -> Result<Self, TlsError> {
        let chain = files.certificate.certificates()?;
        if !chain.first().is_some_and(|own| roles_of(own, names).contains(&role)) {
            let name = names.iter().find(|(one, _)| *one == role).map(|(_, name)| name.to_str());
            return Err(TlsError::Role {
                certificate: files.certificate.path.clone(),
                name: name.unwrap_or_default().into_owned(),
            });
        }
        let roots = Arc::new(authority.authorities()?);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), files.key.private_key()?)
            .map_err(files.mismatch())?;
        client.resumption = rustls::client::Resumption::disabled();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let chains = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Authority { authority: authority.path.clone(), source })?;
        let admission = Admission { chains, callers: role.callers(), names: Arc::clone(names) };
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(admission))
            .with_single_cert(chain.clone(), files.key.private_key()?)
            .map_err(files.mismatch())?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ALPN.to_vec()];
        tell_expiry("services", chain.first());
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

/// Admits clients whose certificate is of our authority and names a role that may call.
#[derive(Debug)]
struct Admission {
    chains: Arc<dyn ClientCertVerifier>,
    callers: &'static [PeerRole],
    names: Arc<[(PeerRole, ServerName<'static>)]>,
}

impl ClientCertVerifier for Admission {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chains.verify_client_cert(end_entity, intermediates, now)?;
        if roles_of(end_entity, &self.names).iter().any(|role| self.callers.contains(role)) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
