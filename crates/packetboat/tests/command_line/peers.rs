//! TLS between services: both ends show a certificate of one authority, and nobody else is served.

use proto::client::{Peers, VerifierClient};
use proto::{ErrorCode, PeerTls, ServiceError, Verifier, frames_of};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_util::sync::CancellationToken;

use crate::support::{Site, free};

/// A certificate for localhost of a new authority.
fn identity() -> PeerTls {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    PeerTls {
        certificate: certificate.into(),
        key: key.serialize_pem().into(),
        authority: authority_pem.into(),
    }
}

/// What a call comes to that sends no frames: the verifier itself says that it wants some.
async fn call(endpoint: &str, tls: Option<&PeerTls>) -> ServiceError {
    let peers = Peers::watch(&[endpoint.to_owned()], tls, CancellationToken::new()).await.unwrap();
    VerifierClient(peers).verify(frames_of(Vec::new())).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_not_served() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (site, admin, listen, ours) = (Site::new(), free(), free(), identity());
    for (name, pem) in [("c.pem", &ours.certificate), ("k.pem", &ours.key), ("a.pem", &ours.authority)] {
        site.write(name, std::str::from_utf8(pem).unwrap());
    }
    let config = site.config(
        "p.yaml",
        &format!(
            "admin: {{address: \"{admin}\"}}\nverifier: {{listen: \"{listen}\"}}\n\
             tls: {{peer: {{certificate: c.pem, key: k.pem, authority: a.pem}}}}\n"
        ),
    );
    let mut verifier = site.start("verifier", &config, admin);
    verifier.wait_for_readiness(200);
    let (open, closed) =
        (format!("http://localhost:{}", listen.port()), format!("https://localhost:{}", listen.port()));

    let served = call(&closed, Some(&ours)).await;
    assert_eq!(served.code, ErrorCode::Aborted, "{served}");
    for (endpoint, tls) in [(&open, None), (&closed, Some(&identity()))] {
        let refused = call(endpoint, tls).await;
        assert_ne!(refused.code, ErrorCode::Aborted, "{endpoint}: {refused}");
    }
    let said = site.run(&["check", "--config", "p.yaml"]);
    assert!(said.success, "{}", said.out);

    // The connections of these clients are still open: they must not hold up the end.
    verifier.terminate();
    assert!(verifier.wait().success() && !verifier.log().contains("in time"), "{}", verifier.log());
}
