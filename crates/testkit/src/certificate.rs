//! A certificate made on the spot, as the Secrets of Kubernetes have it.

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};

/// A self-signed certificate and its key, both PEM.
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
    /// The public half, as SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Makes one for these names.
    pub fn new(names: &[&str]) -> Result<Self> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names)?.self_signed(&key)?;
        let public_key = key.subject_public_key_info();
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem(), public_key })
    }

    /// The YAML of a Secret of the type `kubernetes.io/tls`.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> String {
        let (certificate, key) = (self.certificate.as_str(), self.key.as_str());
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": {"tls.crt": certificate, "tls.key": key},
        })
        .to_string()
    }
}
