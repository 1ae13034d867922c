//! Both ends against each other over an in-memory connection.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tls::{
    ClientTls, ClientTlsConfig, IdentityFiles, Security, ServerTls, ServerTlsConfig, TlsError, TrustedTls,
};
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

#[tokio::test]
async fn of_several_certificates_the_one_that_is_asked_for_is_shown_and_each_is_reloaded() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let names = ["a.example.test", "b.example.test", "b.example.test"];
    for (folder, name) in folders.iter().zip(names) {
        self_signed(folder.path(), name);
    }
    let files = |folder: &tempfile::TempDir| {
        let folder = folder.path().join("tls");
        IdentityFiles { certificate: folder.join("self-signed.crt"), key: folder.join("self-signed.key") }
    };
    let config = ServerTlsConfig { reload_interval: Duration::ZERO, ..ServerTlsConfig::default() };
    let identities: Vec<_> = folders[..2].iter().map(files).collect();
    let server = ServerTls::of(&identities, &config, "listeners").unwrap();
    let shown = async |name| shake(&server, name).await.1;
    let (a, b) = (shown("a.example.test").await, shown("b.example.test").await);
    assert_ne!(a, b);
    assert_eq!(shown("c.example.test").await, a, "to others the first is shown");
    let (old, new) = (files(&folders[1]), files(&folders[2]));
    std::fs::copy(&new.key, &old.key).unwrap();
    std::fs::copy(&new.certificate, &old.certificate).unwrap();
    assert_ne!(shown("b.example.test").await, b);
    assert_eq!(shown("a.example.test").await, a);
}

#[tokio::test]
async fn a_server_that_must_be_trusted_shows_a_certificate_of_a_known_authority_for_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let server = self_signed(folder.path(), "mta-sts.example.test");
    let shake = async |client: &TrustedTls, host: &str| {
        let (near, far) = duplex(64 * 1024);
        let (_, connected) = tokio::join!(server.accept(far), client.connect(host, near));
        connected.map(drop)
    };
    let stranger = TrustedTls::load(None).unwrap();
    assert!(shake(&stranger, "mta-sts.example.test").await.is_err());
    let friend = TrustedTls::load(Some(&folder.path().join("tls/self-signed.crt"))).unwrap();
    shake(&friend, "mta-sts.example.test").await.unwrap();
    assert!(shake(&friend, "other.example.test").await.is_err());
    let missing = TrustedTls::load(Some(&folder.path().join("none.pem")));
    assert!(matches!(missing, Err(TlsError::Read { .. })));
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
