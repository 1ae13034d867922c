//! An independent maker and judge of DKIM signatures: dkimpy, fed with keys from zone text.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::keys::DkimKey;

/// The judge. It reads the message from its input and the keys from its arguments, and prints JSON.
const VERIFY: &str = include_str!("dkim_verify.py");
/// The signer. It reads the message from its input and prints the header field.
const SIGN: &str = include_str!("dkim_sign.py");
/// The judge that asks name servers, for as many messages as there are lines of JSON on its input.
const JUDGE: &str = include_str!("dkim_judge.py");
/// How long one verdict may take.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let keys: Vec<String> = keys.iter().map(|(name, record)| format!("{name}={record}")).collect();
    let printed = python(VERIFY, &keys, message).await?;
    serde_json::from_slice(&printed).context("reading what the DKIM judge printed")
}

/// Verifies messages with the keys that name servers tell, one process for many.
pub struct Judge {
    child: tokio::process::Child,
    questions: ChildStdin,
    verdicts: Lines<BufReader<ChildStdout>>,
}

impl Judge {
    /// Starts the judge.
    pub fn start() -> Result<Self> {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", JUDGE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting python3 (packages python3-dkim, python3-nacl and python3-dnspython)")?;
        let questions = child.stdin.take().context("the judge has no input")?;
        let verdicts = BufReader::new(child.stdout.take().context("the judge has no output")?).lines();
        Ok(Self { child, questions, verdicts })
    }

    /// What it says of every signature of a message, with the keys that this name server tells now.
    ///
    /// # Errors
    /// When it has ended, or takes too long.
    pub async fn verify(&mut self, message: &str, server: SocketAddr) -> Result<Vec<Signature>> {
        let question = serde_json::json!({
            "message": message,
            "server": server.ip().to_string(),
            "port": server.port(),
        });
        self.questions.write_all(format!("{question}\n").as_bytes()).await?;
        self.questions.flush().await?;
        let verdict = timeout(PATIENCE, self.verdicts.next_line()).await.context("the judge is silent")??;
        let verdict = verdict.with_context(|| format!("the judge has ended: {:?}", self.child.try_wait()))?;
        serde_json::from_str(&verdict).context("reading what the DKIM judge printed")
    }
}

/// The message with a signature of `domain` in front. Line ends must be CRLF.
pub async fn sign(message: &str, domain: &str, key: &DkimKey) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &key.private_key)?;
    let file_name = file.path().to_string_lossy().into_owned();
    let arguments = [domain, &key.selector, key.algorithm.name(), &file_name].map(str::to_owned);
    let field = python(SIGN, &arguments, message.as_bytes()).await?;
    Ok(format!("{}{message}", String::from_utf8(field)?))
}

async fn python(script: &str, arguments: &[String], input: &[u8]) -> Result<Vec<u8>> {
    // The system's interpreter: dkimpy is a package of the distribution, not of a virtual environment.
    let mut child = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting python3 (packages python3-dkim and python3-nacl)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).await?;
    }
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "dkimpy failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Message;
    use crate::keys::Algorithm;

    #[tokio::test]
    async fn a_message_without_signature_gives_none() {
        assert_eq!(verify(b"From: a@example.com\r\n\r\nhello\r\n", &[]).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_signed_verifies_until_it_is_changed() {
        for algorithm in [Algorithm::Rsa, Algorithm::Ed25519] {
            let key = DkimKey::generate(algorithm, "s1").await.unwrap();
            let message = Message::new("a@example.com", "b@example.net", "dkim-1").text();
            let signed = sign(&message, "example.com", &key).await.unwrap();
            let keys = [key.answer("example.com")];
            let found = verify(signed.as_bytes(), &keys).await.unwrap();
            assert!(found.len() == 1 && found[0].valid, "{found:?}");
            assert_eq!((found[0].algorithm.as_str(), found[0].has_length), (algorithm.name(), false));
            let changed = signed.replace("This is", "This was");
            assert!(!verify(changed.as_bytes(), &keys).await.unwrap()[0].valid);
        }
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
