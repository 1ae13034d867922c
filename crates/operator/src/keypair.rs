//! Key pairs: made, and read back. The private half leaves this module only as a PEM text to be stored.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use domains::Algorithm;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// Why there is no key pair.
#[derive(Debug, thiserror::Error)]
pub enum KeyPairError {
    /// The library could not make one.
    #[error("a {0} key cannot be made")]
    Generate(&'static str),
    /// The text is no private key of this kind.
    #[error("the text is no PKCS#8 private key in PEM of this algorithm")]
    Unreadable,
}

/// A new private key, as PKCS#8 in PEM. An RSA key of 4096 bits takes seconds.
///
/// # Errors
/// [`KeyPairError::Generate`] when the library fails, or `rsa_bits` is none of 2048, 3072 and 4096.
pub fn generate(algorithm: Algorithm, rsa_bits: u16) -> Result<SecretString, KeyPairError> {
    let der = match algorithm {
        Algorithm::RsaSha256 => {
            let failed = || KeyPairError::Generate("RSA");
            let size = match rsa_bits {
                2048 => KeySize::Rsa2048,
                3072 => KeySize::Rsa3072,
                4096 => KeySize::Rsa4096,
                _ => return Err(failed()),
            };
            let pair = RsaKeyPair::generate(size).map_err(|_| failed())?;
            let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(|_| failed())?;
            Zeroizing::new(der.as_ref().to_vec())
        }
        Algorithm::Ed25519Sha256 => {
            let failed = || KeyPairError::Generate("Ed25519");
            let pair = Ed25519KeyPair::generate().map_err(|_| failed())?;
            let der = pair.to_pkcs8v1().map_err(|_| failed())?;
            Zeroizing::new(der.as_ref().to_vec())
        }
    };
    let encoded = Zeroizing::new(STANDARD.encode(&*der));
    let mut pem = Zeroizing::new("-----BEGIN PRIVATE KEY-----\n".to_owned());
    for line in encoded.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(SecretString::from(pem.as_str()))
}

/// The public half in base64, as `p=` of the record has it (RFC 6376 §3.6.1, RFC 8463 §4).
///
/// # Errors
/// [`KeyPairError::Unreadable`].
pub fn public_key(algorithm: Algorithm, pem: &SecretString) -> Result<String, KeyPairError> {
    let body: Zeroizing<String> =
        Zeroizing::new(pem.expose_secret().lines().filter(|line| !line.starts_with("-----")).collect());
    let der = Zeroizing::new(STANDARD.decode(body.as_bytes()).map_err(|_| KeyPairError::Unreadable)?);
    match algorithm {
        Algorithm::RsaSha256 => {
            let pair = RsaKeyPair::from_pkcs8(&der).map_err(|_| KeyPairError::Unreadable)?;
            let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key());
            Ok(STANDARD.encode(public.map_err(|_| KeyPairError::Unreadable)?.as_ref()))
        }
        Algorithm::Ed25519Sha256 => {
            let pair =
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyPairError::Unreadable)?;
            Ok(STANDARD.encode(pair.public_key().as_ref()))
        }
    }
}

#[cfg(test)]
mod tests {
    use domains::SigningKey;

    use super::*;

    #[test]
    fn pairs_are_read_back_and_can_sign() {
        for (algorithm, octets) in [(Algorithm::RsaSha256, 294), (Algorithm::Ed25519Sha256, 32)] {
            let pem = generate(algorithm, 2048).unwrap();
            let public = public_key(algorithm, &pem).unwrap();
            assert_eq!(STANDARD.decode(public).unwrap().len(), octets);
            assert_eq!(SigningKey::from_pem("s", pem).unwrap().algorithm, algorithm);
        }
        assert!(generate(Algorithm::RsaSha256, 1024).is_err());
    }
}
