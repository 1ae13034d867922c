//! An authority that issues certificates for services, and a stranger that knocks at their doors.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a door may take to open, or to stay shut.
const PATIENCE: Duration = Duration::from_secs(10);
/// The HTTP/2 connection preface with an empty SETTINGS frame (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// An authority of its own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Good,
    /// No more.
    Expired,
    /// Not yet.
    Future,
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "services of a test");
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with these DNS names.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        match validity {
            Validity::Good => {}
            Validity::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Validity::Future => params.not_before = date_time_ymd(3001, 1, 1),
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

impl Identity {
    /// Writes `tls.crt`, `tls.key` and `ca.crt` (these authorities) as a mounted Secret shows them.
    pub fn mount(&self, folder: &Path, authorities: &[&Authority]) -> Result<()> {
        let roots: String = authorities.iter().map(|authority| authority.pem()).collect();
        mount(folder, &[("tls.crt", &self.certificate), ("tls.key", &self.key), ("ca.crt", &roots)])
    }
}

/// Writes files as the kubelet shows a Secret: all at once, by a symbolic link to a folder of this version.
pub fn mount(folder: &Path, files: &[(&str, &str)]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let version = tempfile::Builder::new().prefix("..").tempdir_in(folder)?.keep();
    for (name, text) in files {
        std::fs::write(version.join(name), text)?;
        let link = folder.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link)?;
        }
    }
    let draft = folder.join("..draft");
    std::os::unix::fs::symlink(version.file_name().context("no name")?, &draft)?;
    Ok(std::fs::rename(draft, folder.join("..data"))?)
}

/// Knocks at a port that gRPC is served on, with this identity or none, and gives the certificate of the
/// server when it speaks HTTP/2 with us. Whoever it is, it is believed.
///
/// # Errors
/// When it does not speak with us.
pub async fn knock(address: SocketAddr, identity: Option<&Identity>) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
        )?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("anyone.test")?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let settings = speak(&mut stream).await?;
        ensure!(settings, "the server says something else than SETTINGS");
        let shown =
            stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
        Ok(shown.to_vec())
    };
    timeout(PATIENCE, connecting).await.context("nothing in time")?
}

/// Knocks in plain text.
///
/// # Errors
/// When the server does not speak HTTP/2 with us.
pub async fn knock_in_plain_text(address: SocketAddr) -> Result<()> {
    let connecting = async {
        let mut stream = TcpStream::connect(address).await?;
        let settings = speak(&mut stream).await?;
        ensure!(settings, "the server says something else than SETTINGS");
        Ok(())
    };
    timeout(PATIENCE, connecting).await.context("nothing in time")?
}

/// Sends the preface; whether the answer is a SETTINGS frame.
async fn speak<S>(stream: &mut S) -> Result<bool>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(PREFACE).await?;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await?;
    Ok(frame[3] == 4)
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
