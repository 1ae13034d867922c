//! DKIM signatures made (RFC 6376, 8463): relaxed/relaxed, without `l=`, over header fields that nobody
//! may add to afterwards.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mail_auth::common::crypto::{DkimKey, Ed25519Key, RsaKey, Sha256, SigningKey};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, Signature};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};

use crate::content::Scanned;
use crate::error::{SignError, SigningKeyError};

/// Signed as often as they are there and once more, so that one added later breaks the signature
/// (RFC 6376 §8.15).
const OVERSIGNED: [&str; 12] = [
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Reply-To",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];

/// Signed as often as they are there.
const SIGNED: [&str; 14] = [
    "Sender",
    "In-Reply-To",
    "References",
    "Auto-Submitted",
    "Content-ID",
    "Content-Description",
    "List-Id",
    "List-Help",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
    "Resent-From",
    "Resent-Date",
];

/// How a signature is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, PKCS#1 v1.5 (RFC 6376 §3.3.2).
    RsaSha256,
    /// Ed25519 (RFC 8463).
    Ed25519Sha256,
}

/// From when to when a signature holds, in seconds since 1970 (`t=` and `x=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    signed: u64,
    expires: u64,
}

/// A private key that signs for a domain.
pub struct Signer {
    key: DkimKey,
    domain: String,
    selector: String,
}

impl Algorithm {
    /// The value of `a=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RsaSha256 => "rsa-sha256",
            Self::Ed25519Sha256 => "ed25519-sha256",
        }
    }
}

impl Validity {
    /// From now on, for so long.
    #[must_use]
    pub fn starting_now(length: Duration) -> Self {
        let signed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        Self { signed, expires: signed.saturating_add(length.as_secs()) }
    }
}

impl Signer {
    /// Reads a private key: PEM of PKCS#8, for RSA of PKCS#1 too.
    ///
    /// # Errors
    /// When the text is no such key of the algorithm, or an RSA key has less than 2048 bits (RFC 8301
    /// §3.2) or more than 8192.
    pub fn new(
        domain: &str,
        selector: &str,
        algorithm: Algorithm,
        private_key: &SecretString,
    ) -> Result<Self, SigningKeyError> {
        let der = PrivateKeyDer::from_pem_slice(private_key.expose_secret().as_bytes())
            .map_err(SigningKeyError::Pem)?;
        let unfit = |wanted, reason: &dyn std::fmt::Display| SigningKeyError::Key {
            algorithm: algorithm.as_str(),
            wanted,
            reason: reason.to_string(),
        };
        let key = match (algorithm, der) {
            // The library takes 2048 to 8192 bits.
            (Algorithm::RsaSha256, der) => RsaKey::<Sha256>::from_key_der(der)
                .map(DkimKey::Rsa)
                .map_err(|error| unfit("an RSA key of at least 2048 bits", &error))?,
            (Algorithm::Ed25519Sha256, PrivateKeyDer::Pkcs8(der)) => {
                Ed25519Key::from_pkcs8_maybe_unchecked_der(der.secret_pkcs8_der())
                    .map(DkimKey::Ed25519)
                    .map_err(|error| unfit("an Ed25519 key", &error))?
            }
            (Algorithm::Ed25519Sha256, _) => {
                return Err(unfit("an Ed25519 key in PKCS#8", &"it is in another form"));
            }
        };
        Ok(Self { key, domain: domain.to_owned(), selector: selector.to_owned() })
    }

    /// The selector under which the public key is found.
    #[must_use]
    pub fn selector(&self) -> &str {
        &self.selector
    }

    /// Signs: `fields` are all the fields of the message as it will be sent, from the top, each as its
    /// name and its value with the CRLF at its end; the body is the one scanned. Gives a
    /// `DKIM-Signature` field, folded, ended by CRLF. An RSA signature takes about a millisecond.
    ///
    /// # Errors
    /// When there is no `From`, or the cryptographic library fails.
    pub fn sign(
        &self,
        fields: &[(&[u8], &[u8])],
        scanned: &Scanned,
        validity: Validity,
    ) -> Result<String, SignError> {
        let body = scanned.relaxed.as_ref().ok_or(SignError::NotHashed)?;
        let covered = covered(fields);
        if !covered.iter().any(|(name, field)| *name == "From" && field.is_some()) {
            return Err(SignError::NoFrom);
        }
        let mut signature = Signature {
            v: 1,
            a: self.key.algorithm(),
            d: self.domain.clone(),
            s: self.selector.clone(),
            h: covered.iter().map(|(name, _)| (*name).to_owned()).collect(),
            bh: body.sha256.to_vec(),
            t: validity.signed,
            x: validity.expires,
            ch: Canonicalization::Relaxed,
            cb: Canonicalization::Relaxed,
            ..Signature::default()
        };
        let mut signed = Vec::with_capacity(2048);
        let present = covered.iter().filter_map(|(_, field)| *field);
        Canonicalization::Relaxed.canonicalize_headers(present, &mut signed);
        // The signature itself comes last, with an empty b= and without a line end (§3.7).
        signature.write(&mut signed, false);
        signature.b = self.key.sign(&signed[..]).map_err(|error| SignError::Crypto(error.to_string()))?;
        Ok(signature.to_header())
    }
}

type Covered<'a> = (&'static str, Option<(&'a [u8], &'a [u8])>);

/// What `h=` lists, in its order: of each name the fields from the bottom up (§5.4.2), and for names
/// that must not be added to, one entry more than there are fields.
fn covered<'a>(fields: &[(&'a [u8], &'a [u8])]) -> Vec<Covered<'a>> {
    let mut covered: Vec<Covered<'a>> = Vec::with_capacity(32);
    let names = OVERSIGNED.iter().map(|name| (*name, true)).chain(SIGNED.iter().map(|name| (*name, false)));
    for (name, oversign) in names {
        let is_name = |field: &&(&[u8], &[u8])| field.0.eq_ignore_ascii_case(name.as_bytes());
        covered.extend(fields.iter().rev().filter(is_name).map(|field| (name, Some(*field))));
        if oversign {
            covered.push((name, None));
        }
    }
    covered
}
