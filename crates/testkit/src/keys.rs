//! DKIM key pairs made by the `openssl` program, with the DNS records that publish them.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Octets in front of the key in the DER of an Ed25519 public key (RFC 8410 §4); DKIM publishes the
/// bare key (RFC 8463 §4).
const ED25519_DER_PREFIX: usize = 12;
/// The most octets of one character-string of a TXT record (RFC 1035 §3.3).
const TXT_STRING: usize = 255;

/// The algorithm of a DKIM key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA with 2048 bits (`rsa-sha256`).
    Rsa,
    /// Ed25519 (`ed25519-sha256`).
    Ed25519,
}

impl Algorithm {
    /// Its name in `a=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa-sha256",
            Self::Ed25519 => "ed25519-sha256",
        }
    }
}

/// A key pair and its selector.
#[derive(Clone, Debug)]
pub struct DkimKey {
    /// The kind of key.
    pub algorithm: Algorithm,
    /// The label below `_domainkey`.
    pub selector: String,
    /// The private key, PKCS#8 PEM.
    pub private_key: String,
    /// What the TXT record says: `v=DKIM1; k=…; p=…`.
    pub record: String,
}

impl DkimKey {
    /// A new key pair.
    pub async fn generate(algorithm: Algorithm, selector: &str) -> Result<Self> {
        let (arguments, name): (&[&str], _) = match algorithm {
            Algorithm::Rsa => (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "rsa"),
            Algorithm::Ed25519 => (&["-algorithm", "ED25519"], "ed25519"),
        };
        let private_key = String::from_utf8(openssl(&[&["genpkey"], arguments].concat(), b"").await?)?;
        let der = openssl(&["pkey", "-pubout", "-outform", "DER"], private_key.as_bytes()).await?;
        let public_key = match algorithm {
            Algorithm::Rsa => der.as_slice(),
            Algorithm::Ed25519 => {
                der.get(ED25519_DER_PREFIX..).context("openssl printed a short Ed25519 key")?
            }
        };
        let record = format!("v=DKIM1; k={name}; p={}", STANDARD.encode(public_key));
        Ok(Self { algorithm, selector: selector.to_owned(), private_key, record })
    }

    /// The name and text of the TXT record, as [`crate::dkim::verify`] takes them.
    pub fn answer(&self, domain: &str) -> (String, String) {
        (format!("{}._domainkey.{domain}", self.selector), self.record.clone())
    }

    /// The zone line that publishes the key for `domain`.
    pub fn zone_line(&self, domain: &str) -> String {
        let strings = self
            .record
            .as_bytes()
            .chunks(TXT_STRING)
            .map(|part| format!("\"{}\"", String::from_utf8_lossy(part)));
        let strings: Vec<String> = strings.collect();
        format!("{}._domainkey.{domain}. 300 IN TXT {}\n", self.selector, strings.join(" "))
    }
}

async fn openssl(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new("openssl");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("starting openssl (package openssl)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).await.context("writing to openssl")?;
    }
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
