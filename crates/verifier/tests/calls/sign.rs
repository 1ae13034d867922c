//! Sign: who may write as whom, what is added and taken out, and signatures that others verify.

use std::time::Duration;

use domains::{SecretsWanted, load_folder};
use proto::{Disposition, SignBegin};
use testkit::keys::{Algorithm, DkimKey};
use verifier::{Config, Unsigned};

use crate::support::Bench;

const OURS: &str = "submission: {usersSecretRef: {name: users}}\n\
    dkim: {imported: [{selector: r1, secretRef: {name: rsa}}, {selector: e1, secretRef: {name: ed}}]}\n";
const RECEIVED: &str = "Received: from x by mx.receiver.test; Mon, 5 Oct 2026 10:00:00 +0000\r\n";

struct Keys {
    rsa: DkimKey,
    ed: DkimKey,
}

impl Keys {
    async fn new() -> Self {
        Self {
            rsa: DkimKey::generate(Algorithm::Rsa, "r1").await.unwrap(),
            ed: DkimKey::generate(Algorithm::Ed25519, "e1").await.unwrap(),
        }
    }

    fn records(&self) -> Vec<(String, String)> {
        [&self.rsa, &self.ed]
            .map(|key| (format!("{}._domainkey.ours.test", key.selector), key.record.clone()))
            .to_vec()
    }

    async fn bench(&self, change: impl FnOnce(Config) -> Config) -> Bench {
        let domains = [("ours.test", OURS), ("bare.test", "suspend: false\n")];
        let secrets =
            [("rsa", self.rsa.private_key.as_str()), ("ed", self.ed.private_key.as_str()), ("users", "x")];
        Bench::with("", &domains, &secrets, change).await
    }
}

fn begin(user: &str) -> SignBegin {
    SignBegin {
        queue_id: "0123456789abcdefghjkmnpqrs".to_owned(),
        user: user.to_owned(),
        owned_addresses: vec!["alice@ours.test".to_owned(), "@bare.test".to_owned()],
        prepend: RECEIVED.into(),
    }
}

async fn verdicts(keys: &Keys, message: &str) -> Vec<bool> {
    let found = testkit::dkim::verify(message.as_bytes(), &keys.records()).await.unwrap();
    found.iter().map(|signature| signature.valid).collect()
}

#[tokio::test]
async fn what_a_user_sends_is_completed_and_signed() {
    let keys = Keys::new().await;
    let bench = keys.bench(|config| config).await;
    let message = "From: Alice <alice@ours.test>\r\nBcc: secret@x.test,\r\n other@x.test\r\n\
        To: carol@x.test\r\nBCC : more@x.test\r\nResent-Bcc: y@x.test\r\nSubject: hello\r\n\r\ntext \r\n \r\n";
    let signed = bench.sign(begin("alice@ours.test"), message).await;
    assert_eq!(signed.disposition, Disposition::Deliver);
    let stored = &signed.stored;
    assert!(!stored.to_lowercase().contains("bcc"), "{stored}");
    assert!(stored.contains("\r\nMessage-ID: <0123456789abcdefghjkmnpqrs@ours.test>\r\n"), "{stored}");
    assert!(stored.contains("\r\nDate: ") && stored.contains(" +0000\r\n"), "{stored}");
    let order: Vec<usize> = ["DKIM-Signature:", "\r\nReceived:", "\r\nDate:", "\r\nMessage-ID:", "\r\nFrom:"]
        .iter()
        .map(|name| stored.find(name).unwrap())
        .collect();
    assert!(order.is_sorted(), "{stored}");
    assert_eq!(verdicts(&keys, stored).await, [true, true], "{stored}");
    let added = stored.replacen("\r\nTo: carol", "\r\nCc: eve@x.test\r\nTo: carol", 1);
    assert_eq!(verdicts(&keys, &added).await, [false, false]);
}

#[tokio::test]
async fn what_is_there_stays() {
    let keys = Keys::new().await;
    let bench = keys.bench(|config| config).await;
    let foreign = "DKIM-Signature: v=1; a=rsa-sha256; d=other.test; s=s; h=From; bh=AA==; b=AA==\r\n";
    let forged = "Authentication-Results: mx.receiver.test; spf=pass\r\n";
    let kept =
        "date: Mon, 5 Oct 2026 10:00:00 +0000\r\nMessage-Id: <own@ours.test>\r\nFrom: alice@ours.test\r\n";
    let message = format!("{foreign}{forged}{kept}\r\nbody\r\n");
    let signed = bench.sign(begin("alice@ours.test"), &message).await;
    assert!(signed.stored.ends_with(&format!("{RECEIVED}{foreign}{kept}\r\nbody\r\n")), "{}", signed.stored);
    assert_eq!(verdicts(&keys, &signed.stored).await, [true, true, false]);
}

#[tokio::test]
async fn nobody_writes_as_another() {
    let keys = Keys::new().await;
    let bench = keys.bench(|config| config).await;
    for fields in [
        "From: bob@ours.test",
        "From: alice@ours.test, bob@ours.test",
        "From: alice@ours.test\r\nFrom: bob@ours.test",
        "From: alice@ours.test\r\nSender: bob@ours.test",
        "From: alice@ours.test\r\nResent-From: bob@ours.test",
        "To: alice@ours.test",
    ] {
        let signed = bench.sign(begin("alice@ours.test"), &format!("{fields}\r\n\r\ntext\r\n")).await;
        let reply = signed.reply.unwrap();
        assert_eq!((signed.disposition, reply.code), (Disposition::Reject, 550), "{fields}");
        assert_eq!(reply.enhanced, "5.7.1");
    }
}

#[tokio::test]
async fn nothing_goes_out_unsigned_by_accident() {
    let keys = Keys::new().await;
    let message = "From: x@bare.test\r\nTo: y@x.test\r\n\r\ntext\r\n";
    let bench = keys.bench(|config| config).await;
    let refused = bench.sign(begin("alice@ours.test"), message).await;
    let reply = refused.reply.unwrap();
    assert_eq!(
        (refused.disposition, reply.code, reply.enhanced.as_str()),
        (Disposition::Defer, 451, "4.7.5")
    );
    assert!(reply.text.contains("bare.test"));
    // A bounce of ours goes out all the same.
    let bounce = bench.sign(begin(""), message).await;
    assert_eq!(bounce.disposition, Disposition::Deliver);
    assert!(bounce.stored.starts_with(RECEIVED));
    let signed = bench.sign(begin(""), &message.replace("bare.test", "ours.test")).await;
    assert_eq!(verdicts(&keys, &signed.stored).await, [true, true]);
    let open = keys.bench(|config| Config { unsigned: Unsigned::Allow, ..config }).await;
    assert_eq!(open.sign(begin("alice@ours.test"), message).await.disposition, Disposition::Deliver);
}

#[tokio::test]
async fn a_changed_key_signs_at_once() {
    let keys = Keys::new().await;
    let message = "From: alice@ours.test\r\nTo: y@x.test\r\n\r\ntext\r\n";
    let domains = [("ours.test", OURS)];
    let secrets =
        [("rsa", keys.rsa.private_key.as_str()), ("ed", keys.ed.private_key.as_str()), ("users", "x")];
    let bench = Bench::with("", &domains, &secrets, |config| config).await;
    bench.sign(begin("alice@ours.test"), message).await;
    let next = Keys::new().await;
    bench.site().secret("rsa", &[("tls.key", &next.rsa.private_key)]).unwrap();
    bench.site().secret("ed", &[("tls.key", &next.ed.private_key)]).unwrap();
    let wanted = SecretsWanted { signing_keys: true, ..SecretsWanted::default() };
    bench.domains().replace(load_folder(&bench.site().path().join("domains"), wanted).unwrap());
    let signed = bench.sign(begin("alice@ours.test"), message).await;
    assert_eq!(verdicts(&next, &signed.stored).await, [true, true]);
}

#[tokio::test]
async fn signatures_outlive_the_queue() {
    let keys = Keys::new().await;
    let lifetime = Duration::from_secs(9 * 86400);
    let bench = keys.bench(|config| Config { signature_lifetime: lifetime, ..config }).await;
    let signed = bench.sign(begin("alice@ours.test"), "From: alice@ours.test\r\n\r\ntext\r\n").await;
    let time = |tag: &str| -> u64 {
        let rest = signed.stored.split(tag).nth(1).unwrap();
        rest.split(';').next().unwrap().parse().unwrap()
    };
    assert_eq!(time(" x=") - time(" t="), lifetime.as_secs());
}
