//! An independent judge of DKIM signatures: dkimpy, fed with keys from zone text.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The judge. It reads the message from its input and the keys from its arguments, and prints JSON.
const SCRIPT: &str = include_str!("dkim_verify.py");

/// What dkimpy says about one `DKIM-Signature`, in the order of the header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Signature {
    /// The signing domain, `d=`.
    pub domain: String,
    /// The selector, `s=`.
    pub selector: String,
    /// `rsa-sha256` or `ed25519-sha256`.
    pub algorithm: String,
    /// The header fields under the signature, `h=`, in lower case.
    pub headers: Vec<String>,
    /// Whether the body length is limited (`l=`).
    pub has_length: bool,
    /// Whether the signature verifies.
    pub valid: bool,
    /// Why it does not.
    pub error: Option<String>,
}

/// Verifies every signature of a message. `keys` are names (`s._domainkey.example.com`) and the text
/// of their TXT records.
pub async fn verify(message: &[u8], keys: &[(String, String)]) -> Result<Vec<Signature>> {
    // The system's interpreter: dkimpy is a package of the distribution, not of a virtual environment.
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", SCRIPT])
        .args(keys.iter().map(|(name, record)| format!("{name}={record}")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting python3 (packages python3-dkim and python3-nacl)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(message).await?;
    }
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "the DKIM judge failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("reading what the DKIM judge printed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_without_signature_gives_none() {
        assert_eq!(verify(b"From: a@example.com\r\n\r\nhello\r\n", &[]).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_signature_without_key_is_not_valid() {
        let message = "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=s1;\r\n h=From; \
                       bh=AAAA; b=AAAA\r\nFrom: a@example.com\r\n\r\nhello\r\n";
        let found = verify(message.as_bytes(), &[]).await.unwrap();
        assert_eq!(found.len(), 1);
        assert!(!found[0].valid);
        assert_eq!((found[0].domain.as_str(), found[0].selector.as_str()), ("example.com", "s1"));
    }
}
