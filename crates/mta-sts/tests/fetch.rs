//! What is taken for a domain's policy, and what is not (RFC 8461 §3.3): the host may be anybody's.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use dns::{DnsConfig, Resolver};
use mta_sts::{FetchConfig, FetchError, Fetcher, Mode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use testkit::dns::DnsServer;
use tls::{IdentityFiles, ServerTls, ServerTlsConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const ZONE: &str = "\
    mta-sts.good.test. 300 IN A 127.0.0.1
    mta-sts.moved.test. 300 IN A 127.0.0.1
    mta-sts.html.test. 300 IN A 127.0.0.1
    mta-sts.long.test. 300 IN A 127.0.0.1
    mta-sts.slow.test. 300 IN A 127.0.0.1
    mta-sts.bad.test. 300 IN A 127.0.0.1
    mta-sts.stranger.test. 300 IN A 127.0.0.1
    mta-sts.silent.test. 300 IN A 127.0.0.2
";
const POLICY: &str = "version: STSv1\nmode: enforce\nmx: *.good.test\nmax_age: 604800\n";

fn answer(head: &str) -> String {
    let of = |fields: &str, text: &str| {
        format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{text}", text.len())
    };
    let host =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("host: ").map(str::to_owned));
    match host.as_deref().unwrap_or_default() {
        "mta-sts.good.test" => of("Content-Type: text/plain; charset=utf-8\r\n", POLICY),
        "mta-sts.moved.test" => "HTTP/1.1 301 Moved Permanently\r\nLocation: https://mta-sts.good.test/\
            .well-known/mta-sts.txt\r\nContent-Length: 0\r\n\r\n"
            .to_owned(),
        "mta-sts.html.test" => of("Content-Type: text/html\r\n", POLICY),
        "mta-sts.long.test" => {
            of("Content-Type: text/plain\r\n", &format!("{POLICY}{}", "x: y\n".repeat(20_000)))
        }
        "mta-sts.bad.test" => of("Content-Type: text/plain\r\n", "<html>"),
        _ => String::new(),
    }
}

/// Serves the hosts of the zone, but the stranger's, under one certificate of the authority in `folder`.
async fn serve(folder: &Path) -> SocketAddr {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let names = ["good", "moved", "html", "long", "slow", "bad"].map(|name| format!("mta-sts.{name}.test"));
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
    let files = IdentityFiles { certificate: folder.join("server.pem"), key: folder.join("server.key") };
    let tls = ServerTls::of(&[files], &ServerTlsConfig::default(), "policies").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await?;
                let (mut head, mut room) = (String::new(), [0; 4096]);
                while !head.contains("\r\n\r\n") {
                    let more = stream.read(&mut room).await?;
                    head.push_str(&String::from_utf8_lossy(&room[..more]));
                }
                stream.write_all(answer(&head).as_bytes()).await?;
                if head.contains("mta-sts.slow.test") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n").await?;
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                std::io::Result::Ok(())
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_policy_from_the_right_place_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let address = serve(folder.path()).await;
    let names = DnsServer::start(ZONE).await.unwrap();
    let resolver =
        Resolver::new(DnsConfig { servers: vec![names.address()], ..DnsConfig::default() }).unwrap();
    let config = FetchConfig {
        authorities: Some(folder.path().join("ca.pem")),
        https_port: address.port(),
        timeout: Duration::from_secs(2),
        allow_loopback: true,
        ..FetchConfig::default()
    };
    let fetcher = Fetcher::new(resolver.clone(), config.clone()).unwrap();
    let (policy, text) = fetcher.fetch("good.test").await.unwrap();
    assert_eq!((policy.mode, policy.max_age, text.as_str()), (Mode::Enforce, 604_800, POLICY));
    assert!(policy.covers("mx.good.test"));
    assert_eq!(fetcher.texts("good.test").await.unwrap(), [POLICY]);

    let error = async |domain: &str| fetcher.fetch(domain).await.unwrap_err();
    assert!(matches!(error("moved.test").await, FetchError::Status { status, .. } if status == 301));
    assert!(matches!(error("html.test").await, FetchError::MediaType(kind) if kind == "text/html"));
    assert!(matches!(error("long.test").await, FetchError::TooLong));
    assert!(matches!(error("slow.test").await, FetchError::Deadline { .. }));
    assert!(matches!(error("bad.test").await, FetchError::Policy(_)));
    assert!(matches!(error("silent.test").await, FetchError::Connect { .. }));
    assert!(matches!(error("nowhere.test").await, FetchError::Address(_)));
    let stranger = error("stranger.test").await;
    assert!(stranger.is_certificate(), "{stranger:?}");

    // Without the authority nothing is taken; and no name leads to this machine.
    let trusting = FetchConfig { authorities: None, ..config.clone() };
    let untrusted = Fetcher::new(resolver.clone(), trusting).unwrap().fetch("good.test").await.unwrap_err();
    assert!(untrusted.is_certificate(), "{untrusted:?}");
    let strict = Fetcher::new(resolver, FetchConfig { allow_loopback: false, ..config }).unwrap();
    let refused = strict.fetch("good.test").await.unwrap_err();
    assert!(matches!(refused, FetchError::Address(dns::AddressError::Refused { .. })), "{refused:?}");
}
