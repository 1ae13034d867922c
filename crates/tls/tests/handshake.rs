//! Both ends against each other over an in-memory connection.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tls::{ClientTls, ClientTlsConfig, Security, ServerTls, ServerTlsConfig, TlsError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

fn self_signed(folder: &Path, hostname: &str) -> ServerTls {
    ServerTls::load(&ServerTlsConfig::default(), folder, hostname).expect("self-signed certificate")
}

/// Shakes hands; returns what the client recorded and the certificate that the server showed.
async fn shake(server: &ServerTls, host: &str) -> (Security, Vec<u8>) {
    let client = ClientTls::opportunistic(&ClientTlsConfig::default()).expect("client");
    let (near, far) = duplex(64 * 1024);
    let serve = async {
        let mut session = server.accept(far).await.expect("server handshake");
        session.write_all(b"220 hello\r\n").await.expect("write");
        session.shutdown().await.expect("close");
    };
    let connect = async {
        let (mut session, security) = client.connect(host, near).await.expect("client handshake");
        let mut text = String::new();
        session.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "220 hello\r\n");
        let certificates = session.get_ref().1.peer_certificates().expect("certificates");
        (security, certificates[0].to_vec())
    };
    tokio::join!(serve, connect).1
}

#[tokio::test]
async fn a_self_signed_certificate_is_made_once_and_taken_unverified() {
    let folder = tempfile::tempdir().unwrap();
    let server = self_signed(folder.path(), "mx.example.test");
    let key = folder.path().join("tls/self-signed.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    let (security, first) = shake(&server, "mx.example.test").await;
    assert_eq!(security.protocol, "TLSv1.3");
    assert!(security.cipher.starts_with("TLS13_"), "{}", security.cipher);
    assert!(!security.verified);

    let (_, again) = shake(&self_signed(folder.path(), "mx.example.test"), "other.example.test").await;
    assert_eq!(first, again);
}

#[tokio::test]
async fn changed_files_are_used_without_a_restart_and_bad_ones_are_not() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    self_signed(old.path(), "old.example.test");
    self_signed(new.path(), "new.example.test");
    let config = ServerTlsConfig {
        certificate: Some(old.path().join("tls/self-signed.crt")),
        key: Some(old.path().join("tls/self-signed.key")),
        reload_interval: Duration::ZERO,
        ..ServerTlsConfig::default()
    };
    let server = ServerTls::load(&config, old.path(), "unused").unwrap();
    let (_, before) = shake(&server, "mx.example.test").await;

    // The certificate alone is changed: it does not fit the key, so the old identity stays.
    let replace = |name: &str| {
        std::fs::copy(new.path().join("tls").join(name), old.path().join("tls").join(name)).unwrap();
    };
    replace("self-signed.crt");
    assert_eq!(shake(&server, "mx.example.test").await.1, before);

    replace("self-signed.key");
    assert_ne!(shake(&server, "mx.example.test").await.1, before);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_handshake_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let server = self_signed(folder.path(), "mx.example.test");
    let (near, far) = duplex(1024);
    let error = server.accept(far).await.expect_err("no handshake");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    drop(near);

    let (near, _far) = duplex(1024);
    let client = ClientTls::opportunistic(&ClientTlsConfig::default()).unwrap();
    let error = client.connect("mx.example.test", near).await.expect_err("no handshake");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

fn load_error(certificate: &Path, key: &Path) -> TlsError {
    let config = ServerTlsConfig {
        certificate: Some(certificate.to_owned()),
        key: Some(key.to_owned()),
        ..ServerTlsConfig::default()
    };
    ServerTls::load(&config, Path::new("/nonexistent"), "unused").err().expect("an error")
}

#[tokio::test]
async fn errors_name_the_file_and_what_to_do() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    self_signed(one.path(), "one.example.test");
    self_signed(two.path(), "two.example.test");
    let certificate = one.path().join("tls/self-signed.crt");
    let key = one.path().join("tls/self-signed.key");

    let missing = load_error(&one.path().join("missing.pem"), &key).to_string();
    assert!(missing.contains("missing.pem") && missing.contains("tls.certificate"), "{missing}");

    let swapped = load_error(&key, &certificate).to_string();
    assert!(swapped.contains("self-signed.key holds no usable certificate"), "{swapped}");

    let mismatch = load_error(&certificate, &two.path().join("tls/self-signed.key"));
    assert!(matches!(mismatch, TlsError::Mismatch { .. }), "{mismatch}");

    let half = ServerTlsConfig { key: Some(key), ..ServerTlsConfig::default() };
    assert!(matches!(ServerTls::load(&half, one.path(), "x"), Err(TlsError::HalfConfigured)));
}
