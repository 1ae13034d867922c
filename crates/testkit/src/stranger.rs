//! A stranger that knocks at the doors of services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::authority::Identity;
use crate::smtp::TrustAnybody;

/// How long a door may take to open, or to stay shut.
const PATIENCE: Duration = Duration::from_secs(10);
/// The HTTP/2 connection preface with an empty SETTINGS frame (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Knocks at a port that gRPC is served on, with this identity or none, and gives the certificate of the
/// server when it speaks HTTP/2 with us. Whoever it is, it is believed.
///
/// # Errors
/// When it does not speak with us.
pub async fn knock(address: SocketAddr, identity: Option<&Identity>) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)));
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
