//! Our signatures before an independent judge.

use std::time::Duration;

use auth::{Algorithm, DkimResult, Purpose, Signer, SigningKeyError, Validity};
use testkit::keys::{Algorithm as KeyAlgorithm, DkimKey};

use crate::support::{Judge, fields, scan};

const HEADER: &str = "Received: from x by y; Mon, 5 Oct 2026 10:00:00 +0000\r\n\
    From:  \"Alice, A\"  <alice@signed.test>\r\n\
    to:bob@receiver.test,\r\n\tcarol@receiver.test\r\n\
    Subject:   folded\r\n \t subject  \r\n\
    References: <1@x> <2@x>\r\n\
    Date: Mon, 5 Oct 2026 10:00:00 +0000\r\n\
    Message-ID: <1@signed.test>\r\n\
    MIME-Version: 1.0\r\n\
    X-Unsigned: yes\r\n\
    \r\n";

const BODIES: [&str; 7] = [
    "",
    "\r\n",
    " \r\n\t\r\n",
    "text\r\n",
    "text\r\n \r\n\t \r\n",
    "text \t \r\n\r\n\r\n",
    "text\r\n\r\n  \r\nmore\twords  here\r\n   \r\n\r\n",
];

struct Pair {
    keys: Vec<(String, String)>,
    signers: Vec<Signer>,
    zone: String,
}

async fn pair() -> Pair {
    let rsa = DkimKey::generate(KeyAlgorithm::Rsa, "r2026").await.unwrap();
    let ed = DkimKey::generate(KeyAlgorithm::Ed25519, "e2026").await.unwrap();
    let name = |key: &DkimKey| (format!("{}._domainkey.signed.test", key.selector), key.record.clone());
    let signer = |key: &DkimKey, algorithm| {
        Signer::new("signed.test", &key.selector, algorithm, &key.private_key.as_str().into()).unwrap()
    };
    Pair {
        keys: vec![name(&rsa), name(&ed)],
        signers: vec![signer(&rsa, Algorithm::RsaSha256), signer(&ed, Algorithm::Ed25519Sha256)],
        zone: rsa.zone_line("signed.test") + &ed.zone_line("signed.test"),
    }
}

fn sign(pair: &Pair, message: &str) -> String {
    let scanned = scan(message, Purpose::Sign);
    let validity = Validity::starting_now(Duration::from_secs(7 * 86400));
    let signatures: String = pair
        .signers
        .iter()
        .map(|signer| signer.sign(&fields(&scanned), &scanned, validity).unwrap())
        .collect();
    signatures + message
}

#[tokio::test]
async fn an_independent_judge_agrees() {
    let pair = pair().await;
    let judge = Judge::new(&pair.zone).await;
    for body in BODIES {
        let message = sign(&pair, &format!("{HEADER}{body}"));
        let found = testkit::dkim::verify(message.as_bytes(), &pair.keys).await.unwrap();
        assert_eq!(found.len(), 2);
        for signature in &found {
            assert!(signature.valid, "{body:?} {signature:?}");
            assert!(!signature.has_length);
        }
        let checks = judge.verify(&message).await.dkim;
        assert!(checks.iter().all(|check| check.result == DkimResult::Pass), "{body:?} {checks:?}");
        assert!(message.lines().all(|line| line.len() <= 100), "{message}");
    }
}

#[tokio::test]
async fn added_fields_break_the_signature() {
    let pair = pair().await;
    let message = sign(&pair, &format!("{HEADER}text\r\n"));
    for name in [
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
    ] {
        for changed in [
            format!("{name}: added\r\n{message}"),
            message.replacen("X-Unsigned", &format!("{name}: added\r\nX"), 1),
        ] {
            let found = testkit::dkim::verify(changed.as_bytes(), &pair.keys).await.unwrap();
            assert!(found.iter().all(|signature| !signature.valid), "{name}");
        }
    }
    let harmless = format!("Received: from a by b; now\r\nX-Other: 1\r\n{message}");
    let found = testkit::dkim::verify(harmless.as_bytes(), &pair.keys).await.unwrap();
    assert!(found.iter().all(|signature| signature.valid), "{found:?}");
}

#[tokio::test]
async fn the_signature_says_how_long_it_holds() {
    let pair = pair().await;
    let message = sign(&pair, &format!("{HEADER}text\r\n"));
    let signature = message.split("\r\nReceived").next().unwrap().replace("\r\n\t", "");
    let tag = |name: &str| -> u64 {
        let value = signature.split("; ").find_map(|tag| tag.trim().strip_prefix(name)).unwrap();
        value.trim_end_matches(';').parse().unwrap()
    };
    assert_eq!(tag("x=") - tag("t="), 7 * 86400);
    assert!(!signature.contains(" l="));
}

#[tokio::test]
async fn keys_are_read_in_the_forms_they_come() {
    let key = DkimKey::generate(KeyAlgorithm::Rsa, "r").await.unwrap();
    let new = |algorithm, pem: &str| Signer::new("signed.test", "r", algorithm, &pem.into()).err();
    assert!(new(Algorithm::RsaSha256, &key.private_key).is_none());
    let pkcs1 = openssl(&["rsa", "-traditional"], &key.private_key);
    assert!(pkcs1.contains("BEGIN RSA PRIVATE KEY"));
    assert!(new(Algorithm::RsaSha256, &pkcs1).is_none());
    assert!(matches!(new(Algorithm::Ed25519Sha256, &key.private_key), Some(SigningKeyError::Key { .. })));
    assert!(matches!(new(Algorithm::Ed25519Sha256, &pkcs1), Some(SigningKeyError::Key { .. })));
    let ed = DkimKey::generate(KeyAlgorithm::Ed25519, "e").await.unwrap();
    assert!(matches!(new(Algorithm::RsaSha256, &ed.private_key), Some(SigningKeyError::Key { .. })));
    assert!(matches!(new(Algorithm::RsaSha256, "no key"), Some(SigningKeyError::Pem(_))));
    let short = openssl(&["genrsa", "-traditional", "1024"], "");
    assert!(matches!(new(Algorithm::RsaSha256, &short), Some(SigningKeyError::Key { .. })));
    let long = openssl(&["genrsa", "3072"], "");
    assert!(new(Algorithm::RsaSha256, &long).is_none());
}

fn openssl(arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
