//! What a call costs once the DNS answers are known. A measurement, so run by hand, optimised:
//! `cargo test --release -p verifier --test calls -- --ignored --nocapture`.

use std::time::Instant;

use proto::{SignBegin, Verifier, frames_of};
use testkit::keys::{Algorithm, DkimKey};

use crate::support::{Bench, verify_frames};

const CALLS: u32 = 2000;
const ZONE: &str = r#"
author.test.         300 IN TXT "v=spf1 include:spf.author.test -all"
spf.author.test.     300 IN TXT "v=spf1 ip4:198.51.100.0/24 ip4:192.0.2.1 ~all"
_dmarc.author.test.  300 IN TXT "v=DMARC1; p=reject"
1.2.0.192.in-addr.arpa. 300 IN PTR mail.author.test.
mail.author.test.    300 IN A 192.0.2.1
"#;

fn message() -> String {
    let line = "A line of text as people write them, with words of usual length.\r\n";
    let header = "From: Alice <a@author.test>\r\nTo: bob@receiver.test\r\nSubject: a subject\r\n\
        Date: Mon, 5 Oct 2026 10:00:00 +0000\r\nMessage-ID: <1@author.test>\r\nMIME-Version: 1.0\r\n\
        Content-Type: text/plain; charset=utf-8\r\nReceived: from a by b; now\r\n\r\n";
    format!("{header}{}", line.repeat(58))
}

async fn measure(name: &str, bench: &Bench, from: &str, message: &str) {
    for round in ["first", "then"] {
        let calls = if round == "first" { 1 } else { CALLS };
        let started = Instant::now();
        for _ in 0..calls {
            bench
                .service
                .verify(frames_of(verify_frames(from, &["bob@receiver.test"], message)))
                .await
                .unwrap();
        }
        println!("{name}, {} octets, {round}: {:?} a call", message.len(), started.elapsed() / calls);
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn verify() {
    let rsa = DkimKey::generate(Algorithm::Rsa, "r").await.unwrap();
    let ed = DkimKey::generate(Algorithm::Ed25519, "e").await.unwrap();
    let zone = ZONE.to_owned() + &rsa.zone_line("author.test") + &ed.zone_line("author.test");
    let bench = Bench::new(&zone).await;
    let message = message();
    measure("unsigned", &bench, "a@author.test", &message).await;
    measure(
        "unsigned, nothing known of the sender",
        &bench,
        "a@absent.test",
        &message.replace("author", "absent"),
    )
    .await;
    let signed = testkit::dkim::sign(&message, "author.test", &rsa).await.unwrap();
    measure("one RSA signature", &bench, "a@author.test", &signed).await;
    let signed = testkit::dkim::sign(&message, "author.test", &ed).await.unwrap();
    measure("one Ed25519 signature", &bench, "a@author.test", &signed).await;
    let large =
        testkit::dkim::sign(&(message.clone() + &message.repeat(200)), "author.test", &rsa).await.unwrap();
    measure("one RSA signature", &bench, "a@author.test", &large).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn sign() {
    let rsa = DkimKey::generate(Algorithm::Rsa, "r1").await.unwrap();
    let spec = "submission: {usersSecretRef: {name: users}}\n\
        dkim: {imported: [{selector: r1, secretRef: {name: rsa}}]}\n";
    let secrets = [("rsa", rsa.private_key.as_str()), ("users", "x")];
    let bench = Bench::with("", &[("author.test", spec)], &secrets, |config| config).await;
    let begin = SignBegin {
        user: "a@author.test".to_owned(),
        owned_addresses: vec!["a@author.test".to_owned()],
        ..SignBegin::default()
    };
    let message = message();
    let started = Instant::now();
    for _ in 0..CALLS {
        bench.sign(begin.clone(), &message).await;
    }
    println!("sign with RSA, {} octets: {:?} a call", message.len(), started.elapsed() / CALLS);
}
