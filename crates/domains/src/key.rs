//! DKIM private keys as PEM text. Only what tells one kind from another is looked at here; the
//! signer reads the key itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};

use crate::types::Algorithm;

/// Smallest RSA modulus that signs, in bits (RFC 8301 §3.2 recommends it as the least).
const MIN_RSA_BITS: usize = 2048;
/// `1.3.101.112` in DER: Ed25519 (RFC 8410).
const ED25519_OID: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

/// A key that signs for a domain.
#[derive(Debug, Clone)]
pub struct SigningKey {
    /// Where its public half is published: `<selector>._domainkey.<domain>`.
    pub selector: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// PEM: PKCS#8, or PKCS#1 for RSA.
    pub private_key: SecretString,
}

/// Why a text is not a usable signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a PEM private key.
    #[error("it is not a PEM private key (-----BEGIN PRIVATE KEY----- or -----BEGIN RSA PRIVATE KEY-----)")]
    NotPem,
    /// RSA, but too short.
    #[error("the RSA key has {0} bits; 2048 are the least")]
    TooShort(usize),
    /// Neither RSA nor Ed25519.
    #[error("it is neither an RSA nor an Ed25519 key")]
    UnknownAlgorithm,
}

impl SigningKey {
    /// Takes a PEM text as a key.
    ///
    /// # Errors
    /// When it is no private key, or one that must not sign.
    pub fn from_pem(selector: &str, pem: SecretString) -> Result<Self, KeyError> {
        let algorithm = algorithm_of(pem.expose_secret())?;
        Ok(Self { selector: selector.to_owned(), algorithm, private_key: pem })
    }
}

fn algorithm_of(pem: &str) -> Result<Algorithm, KeyError> {
    let label = pem
        .lines()
        .find_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .filter(|label| matches!(*label, "PRIVATE KEY" | "RSA PRIVATE KEY"))
        .ok_or(KeyError::NotPem)?;
    let body: String = pem.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).map_err(|_| KeyError::NotPem)?;
    if label == "PRIVATE KEY" && der.windows(ED25519_OID.len()).take(24).any(|window| window == ED25519_OID) {
        return Ok(Algorithm::Ed25519Sha256);
    }
    // The encoding of an RSA key holds the modulus, the primes and the exponents: a little over four
    // and a half times the modulus' length; the modulus is the first long INTEGER in it.
    let bits = modulus_bits(&der).ok_or(KeyError::UnknownAlgorithm)?;
    if bits < MIN_RSA_BITS { Err(KeyError::TooShort(bits)) } else { Ok(Algorithm::RsaSha256) }
}

/// Length of the first INTEGER of 64 octets or more, in bits.
fn modulus_bits(der: &[u8]) -> Option<usize> {
    (0..der.len().min(64)).find_map(|at| {
        let length = match der.get(at..at + 4)? {
            [0x02, 0x81, length, _] => usize::from(*length),
            [0x02, 0x82, high, low] => usize::from(*high) << 8 | usize::from(*low),
            _ => return None,
        };
        let whole = (64..=2048).contains(&length) && der.len() >= at + length;
        // A leading zero octet keeps the number positive.
        whole.then_some((length - length % 2) * 8)
    })
}
