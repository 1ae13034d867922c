//! DKIM signatures verified: those of an independent signer, and those that must not count.

use auth::{Algorithm, DkimCheck, DkimResult, Purpose, Signer, Validity};
use std::time::Duration;
use testkit::keys::{Algorithm as KeyAlgorithm, DkimKey};

use crate::support::{Judge, fields, scan};

const MESSAGE: &str = "From: Alice <alice@signed.test>\r\n\
    To: bob@receiver.test\r\n\
    Subject: a subject\r\n\
    Date: Mon, 5 Oct 2026 10:00:00 +0000\r\n\
    Message-ID: <1@signed.test>\r\n\
    \r\n\
    A line.\r\n\
    \r\n\
    Another  line. \r\n";

/// Bodies whose canonical form is easily got wrong.
const BODIES: [&str; 8] = [
    "",
    "\r\n",
    " \r\n\t\r\n",
    "text\r\n",
    "text\r\n \r\n\t \r\n",
    "text \t \r\n\r\n\r\n",
    "text\r\n\r\n  \r\nmore\r\n   \r\n\r\n",
    "  leading\ttab and  spaces \r\n..\r\n",
];

fn with_body(body: &str) -> String {
    let header = MESSAGE.split_inclusive("\r\n\r\n").next().unwrap();
    format!("{header}{body}")
}

pub(crate) fn signer(key: &DkimKey, algorithm: Algorithm) -> Signer {
    Signer::new("signed.test", &key.selector, algorithm, &key.private_key.as_str().into()).unwrap()
}

fn signed(signer: &Signer, message: &str) -> String {
    let scanned = scan(message, Purpose::Sign);
    let validity = Validity::starting_now(Duration::from_secs(600));
    let signature = signer.sign(&fields(&scanned), &scanned, validity).unwrap();
    format!("{signature}{message}")
}

async fn ed25519() -> (Judge, Signer) {
    let key = DkimKey::generate(KeyAlgorithm::Ed25519, "ed").await.unwrap();
    let judge = Judge::new(&key.zone_line("signed.test")).await;
    (judge, signer(&key, Algorithm::Ed25519Sha256))
}

async fn only(judge: &Judge, message: &str) -> DkimCheck {
    let mut checks = judge.verify(message).await.dkim;
    assert_eq!(checks.len(), 1, "{checks:?}");
    checks.remove(0)
}

#[tokio::test]
async fn signatures_of_another_signer_verify() {
    for algorithm in [KeyAlgorithm::Rsa, KeyAlgorithm::Ed25519] {
        let key = DkimKey::generate(algorithm, "sel").await.unwrap();
        let judge = Judge::new(&key.zone_line("signed.test")).await;
        for body in BODIES {
            let message = testkit::dkim::sign(&with_body(body), "signed.test", &key).await.unwrap();
            let check = only(&judge, &message).await;
            assert_eq!(check.result, DkimResult::Pass, "{algorithm:?} {body:?} {check:?}");
            assert_eq!((check.domain.as_str(), check.selector.as_str()), ("signed.test", "sel"));
        }
    }
}

#[tokio::test]
async fn what_was_changed_does_not_pass() {
    let (judge, signer) = ed25519().await;
    let message = signed(&signer, MESSAGE);
    let check = only(&judge, &message).await;
    assert_eq!((check.result, check.reason), (DkimResult::Pass, None));
    for (from, to) in [
        ("a subject", "another"),
        ("A line.", "A lie."),
        ("alice@signed.test>\r\nTo", "mallory@signed.test>\r\nTo"),
        ("To: bob", "Cc: eve@receiver.test\r\nTo: bob"),
        ("; t=", "; t=1"),
        ("\r\n\r\nA", "\r\nReply-To: x@y.test\r\n\r\nA"),
        ("; bh=", "; bh=A"),
        ("Another", "Another "),
    ] {
        let changed = message.replacen(from, to, 1);
        assert_ne!(changed, message, "{from}");
        let check = only(&judge, &changed).await;
        // A space more between words is no change in the relaxed form.
        let harmless = from == "Another";
        assert_eq!(check.result == DkimResult::Pass, harmless, "{from}: {check:?}");
    }
}

#[tokio::test]
async fn signatures_that_do_not_count() {
    let (judge, signer) = ed25519().await;
    let message = signed(&signer, MESSAGE);
    for (from, to, result, reason) in [
        ("v=1", "v=2", DkimResult::PermError, "the version is not 1"),
        ("v=1; ", "", DkimResult::PermError, "the version is not 1"),
        ("v=1; ", "v=1; v=1; ", DkimResult::PermError, "the signature is malformed"),
        ("v=1; ", "v=1; D=evil.test; ", DkimResult::PermError, "the signature is malformed"),
        ("ed25519-sha256", "rsa-sha1", DkimResult::Policy, "rsa-sha1 is not accepted"),
        ("ed25519-sha256", "rsa-sha256", DkimResult::PermError, "the key is of another algorithm"),
        ("ed25519-sha256", "rot13", DkimResult::PermError, "the algorithm is unknown"),
        ("h=From:From:", "h=", DkimResult::PermError, "the signature does not cover one From field"),
        ("v=1; ", "v=1; q=http; ", DkimResult::PermError, "the key is not in the DNS"),
        ("v=1; ", "v=1; l=3; ", DkimResult::Policy, "the signature covers part of the body"),
        ("v=1; ", "v=1; l=9999; ", DkimResult::PermError, "the body is shorter than the signature says"),
        ("; x=", "; x=1 ;y=", DkimResult::PermError, "the signature expires before it is made"),
        ("; t=", "; t=1; T2=", DkimResult::Fail, "the signature does not fit the header"),
        ("v=1; ", "v=1; i=a@other.test; ", DkimResult::PermError, "the identity is not of the domain"),
        ("s=ed;", "s=none;", DkimResult::PermError, "there is no such key"),
        ("d=signed.test", "d=", DkimResult::PermError, "the signature names no domain and selector"),
        (
            "From: Alice",
            "From: x@y.test\r\nFrom: Alice",
            DkimResult::PermError,
            "the signature does not cover one From field",
        ),
    ] {
        let changed = message.replacen(from, to, 1);
        assert_ne!(changed, message, "{from}");
        let check = only(&judge, &changed).await;
        assert_eq!((check.result, check.reason), (result, Some(reason)), "{from} → {to}");
    }
}

#[tokio::test]
async fn expired_signatures_fail() {
    let (judge, signer) = ed25519().await;
    let scanned = scan(MESSAGE, Purpose::Sign);
    let validity = Validity::starting_now(Duration::from_secs(1));
    let signature = signer.sign(&fields(&scanned), &scanned, validity).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let check = only(&judge, &format!("{signature}{MESSAGE}")).await;
    assert_eq!((check.result, check.reason), (DkimResult::Fail, Some("the signature has expired")));
}

#[tokio::test]
async fn keys_that_do_not_serve() {
    let key = DkimKey::generate(KeyAlgorithm::Ed25519, "ed").await.unwrap();
    let judge = Judge::new("").await;
    let message = signed(&signer(&key, Algorithm::Ed25519Sha256), MESSAGE);
    let published = |record: &str| format!("ed._domainkey.signed.test. 0 IN TXT \"{record}\"\n");
    for (record, result, vouches) in [
        (key.record.clone(), DkimResult::Pass, true),
        (format!("{}; t=s; s=email; h=sha256", key.record), DkimResult::Pass, true),
        (format!("{}; t=y", key.record), DkimResult::Pass, false),
        (format!("{}; h=sha1", key.record), DkimResult::PermError, false),
        (format!("{}; s=web", key.record), DkimResult::PermError, false),
        ("v=DKIM1; k=ed25519; p=".to_owned(), DkimResult::PermError, false),
        ("v=DKIM1; k=ed25519".to_owned(), DkimResult::PermError, false),
        ("nonsense".to_owned(), DkimResult::PermError, false),
    ] {
        judge.dns.set_zone(&published(&record)).unwrap();
        let check = only(&judge, &message).await;
        assert_eq!((check.result, check.vouches()), (result, vouches), "{record}");
    }
    judge.dns.servfail("signed.test").unwrap();
    assert_eq!(only(&judge, &message).await.result, DkimResult::TempError);
}

#[tokio::test]
async fn short_rsa_keys_do_not_count() {
    // 512 bits, made for this test; the modulus is all that is looked at.
    let short = "MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBALPR+5vBuMmzTcSCYuG2b6HFcpRaOcTUjzRfMsuLgDWL\
                 mR1K3VBjVr6UqVE9eXbA6uLNfK8kGc0M3pYWUFEm4fsCAwEAAQ==";
    let judge = Judge::new(&format!("rsa._domainkey.signed.test. 300 IN TXT \"v=DKIM1; p={short}\"\n")).await;
    let key = DkimKey::generate(KeyAlgorithm::Rsa, "rsa").await.unwrap();
    let message = signed(&signer(&key, Algorithm::RsaSha256), MESSAGE);
    let check = only(&judge, &message).await;
    assert_eq!(check.result, DkimResult::Policy, "{check:?}");
}

#[tokio::test]
async fn no_more_signatures_than_the_limit_are_evaluated() {
    let (judge, signer) = ed25519().await;
    let mut message = signed(&signer, MESSAGE);
    for at in 0..50 {
        message = format!(
            "DKIM-Signature: v=1; a=rsa-sha256; d=d{at}.test; s=s; h=From; bh=AA==; b=AA==\r\n{message}"
        );
    }
    let checks = judge.verify(&message).await.dkim;
    assert_eq!(checks.len(), 10);
    assert!(checks.iter().all(|check| check.result != DkimResult::Pass));
    assert_eq!(judge.dns.queries("s._domainkey.d0.test", "TXT").unwrap(), 0);
}

#[tokio::test]
async fn keys_are_remembered() {
    let (judge, signer) = ed25519().await;
    for _ in 0..3 {
        assert_eq!(only(&judge, &signed(&signer, MESSAGE)).await.result, DkimResult::Pass);
    }
    assert_eq!(judge.dns.queries("ed._domainkey.signed.test", "TXT").unwrap(), 1);
}
