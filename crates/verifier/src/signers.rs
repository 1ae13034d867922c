//! The keys of the hosted domains, read once for as long as they do not change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use auth::Signer;
use domains::types::Algorithm;
use domains::{HostedDomain, SigningKey};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

/// The most keys kept ready.
const CAPACITY: usize = 4096;

/// What tells a key from its successor of the same name.
type Fingerprint = [u8; 32];

/// By domain and selector.
type Ready = HashMap<(String, String), (Fingerprint, Arc<Signer>)>;

/// Signers ready for use.
#[derive(Default)]
pub(crate) struct Signers {
    ready: Mutex<Ready>,
}

impl Signers {
    /// The signers of a domain: one for each of its keys. A key that cannot be used is left out, with
    /// an error in the log.
    pub(crate) fn of(&self, domain: &HostedDomain) -> Vec<Arc<Signer>> {
        domain.signing_keys.iter().filter_map(|key| self.signer(domain, key)).collect()
    }

    fn signer(&self, domain: &HostedDomain, key: &SigningKey) -> Option<Arc<Signer>> {
        let fingerprint = Sha256::digest(key.private_key.expose_secret().as_bytes()).into();
        let name = (domain.name.clone(), key.selector.clone());
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, signer)) = ready.get(&name)
            && *known == fingerprint
        {
            return Some(signer.clone());
        }
        let algorithm = match key.algorithm {
            Algorithm::RsaSha256 => auth::Algorithm::RsaSha256,
            Algorithm::Ed25519Sha256 => auth::Algorithm::Ed25519Sha256,
        };
        match Signer::new(&domain.name, &key.selector, algorithm, &key.private_key) {
            Ok(signer) => {
                if ready.len() >= CAPACITY {
                    ready.clear();
                }
                let signer = Arc::new(signer);
                ready.insert(name, (fingerprint, signer.clone()));
                Some(signer)
            }
            Err(error) => {
                tracing::error!(
                    mail_domain = domain.resource,
                    selector = key.selector,
                    error = &error as &dyn std::error::Error,
                    "signing key cannot be used: put a key of the declared algorithm in its secret"
                );
                None
            }
        }
    }
}
