//! ARC chains made by dkimpy.

use std::io::Write;
use std::process::{Command, Stdio};

use auth::{ArcCheck, ArcResult};
use testkit::keys::{Algorithm, DkimKey};

use crate::support::Judge;

const MESSAGE: &str = "From: a@author.test\r\n\
    To: b@receiver.test\r\n\
    Subject: through a list\r\n\
    \r\n\
    text\r\n \r\n";

struct Sealer {
    key: DkimKey,
    file: tempfile::NamedTempFile,
}

impl Sealer {
    async fn new() -> Self {
        let key = DkimKey::generate(Algorithm::Rsa, "arc").await.unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(key.private_key.as_bytes()).unwrap();
        Self { key, file }
    }

    /// The message with one more set, sealed by `domain`.
    fn seal(&self, message: &str, domain: &str, chain: &str) -> String {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", include_str!("arc_seal.py"), domain, "arc"])
            .arg(self.file.path())
            .arg(chain)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

async fn check(judge: &Judge, message: &str) -> ArcCheck {
    judge.verify(message).await.arc
}

#[tokio::test]
async fn chains() {
    let sealer = Sealer::new().await;
    let zone = sealer.key.zone_line("one.test") + &sealer.key.zone_line("two.test");
    let judge = Judge::new(&zone).await;
    assert_eq!(check(&judge, MESSAGE).await.result, ArcResult::None);

    let one = sealer.seal(MESSAGE, "one.test", "none");
    let found = check(&judge, &one).await;
    assert_eq!(
        (found.result, found.sets, found.sealer.as_deref()),
        (ArcResult::Pass, 1, Some("one.test")),
        "{one}"
    );

    let two = sealer.seal(&one, "two.test", "pass");
    let found = check(&judge, &two).await;
    assert_eq!(
        (found.result, found.sets, found.sealer.as_deref()),
        (ArcResult::Pass, 2, Some("two.test")),
        "{two}"
    );

    let failed = sealer.seal(&one, "two.test", "fail");
    assert_eq!(check(&judge, &failed).await.result, ArcResult::Fail);

    for (from, to) in [
        ("through", "trough"),
        ("text", "other text"),
        ("spf=pass", "spf=fail"),
        ("i=1", "i=3"),
        ("ARC-Seal", "X-Seal"),
        ("ARC-Authentication-Results", "X-Results"),
        ("ARC-Message-Signature: i=1", "X-Signature: i=1"),
        ("rsa-sha256", "rsa-sha1"),
        ("cv=none", "cv=pass"),
        ("v=1", "v=1; l=4"),
    ] {
        for whole in [&one, &two] {
            let changed = whole.replacen(from, to, 1);
            if changed != *whole {
                let found = check(&judge, &changed).await;
                assert_eq!(found.result, ArcResult::Fail, "{from} → {to}");
                assert!(found.reason.is_some() && found.sealer.is_none());
            }
        }
    }

    let many = "ARC-Seal: i=1; a=rsa-sha256; cv=none; d=one.test; s=arc; b=AA==\r\n".repeat(60);
    assert_eq!(check(&judge, &(many + MESSAGE)).await.result, ArcResult::Fail);

    judge.dns.servfail("new.test").unwrap();
    let unknown = sealer.seal(MESSAGE, "new.test", "none");
    assert_eq!(check(&judge, &unknown).await.result, ArcResult::Fail);
}
