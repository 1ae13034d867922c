//! Verify: dispositions, the field that is prepended, the forged ones that are cut.

use proto::Disposition;
use testkit::keys::{Algorithm, DkimKey};

use crate::support::{Bench, SENDER};

const ZONE: &str = r#"
author.test.         300 IN TXT "v=spf1 ip4:192.0.2.1 -all"
_dmarc.author.test.  300 IN TXT "v=DMARC1; p=reject"
strict.test.         300 IN TXT "v=spf1 -all"
_dmarc.strict.test.  300 IN TXT "v=DMARC1; p=reject"
junk.test.           300 IN TXT "v=spf1 -all"
_dmarc.junk.test.    300 IN TXT "v=DMARC1; p=quarantine"
watch.test.          300 IN TXT "v=spf1 -all"
_dmarc.watch.test.   300 IN TXT "v=DMARC1; p=none"
free.test.           300 IN TXT "v=spf1 -all"
1.2.0.192.in-addr.arpa. 300 IN PTR mail.author.test.
mail.author.test.    300 IN A 192.0.2.1
"#;

fn message(from: &str) -> String {
    format!("From: {from}\r\nTo: bob@receiver.test\r\nSubject: x\r\n\r\ntext\r\n")
}

#[tokio::test]
async fn policies_are_followed() {
    let bench = Bench::new(ZONE).await;
    for (domain, disposition, code, dmarc) in [
        ("author.test", Disposition::Deliver, "", "dmarc=pass header.from=author.test policy.dmarc=reject"),
        ("strict.test", Disposition::Reject, "550 5.7.1", ""),
        (
            "junk.test",
            Disposition::Quarantine,
            "",
            "dmarc=fail header.from=junk.test policy.dmarc=quarantine",
        ),
        ("watch.test", Disposition::Deliver, "", "dmarc=fail header.from=watch.test policy.dmarc=none"),
        ("free.test", Disposition::Deliver, "", "dmarc=none header.from=free.test"),
    ] {
        let text = message(&format!("a@{domain}"));
        let judged = bench.verify(&format!("a@{domain}"), &["bob@receiver.test"], &text).await;
        assert_eq!((judged.disposition, judged.code().as_str()), (disposition, code), "{domain}");
        assert!(judged.results.contains(dmarc), "{}", judged.results);
        // Who does not follow policies gets it all, marked.
        let judged = bench.verify(&format!("a@{domain}"), &["bob@lax.test"], &text).await;
        assert_eq!(judged.disposition, Disposition::Deliver, "{domain}");
        assert!(judged.results.contains("dmarc="), "{}", judged.results);
        // And among several the strictest counts.
        let judged =
            bench.verify(&format!("a@{domain}"), &["bob@lax.test", "bob@receiver.test"], &text).await;
        assert_eq!(judged.disposition, disposition, "{domain}");
    }
}

#[tokio::test]
async fn the_results_are_put_in_front_whole() {
    let bench = Bench::new(ZONE).await;
    let text = message("a@author.test");
    let judged = bench.verify("a@author.test", &["bob@receiver.test"], &text).await;
    assert_eq!(
        judged.results,
        format!(
            "Authentication-Results: mx.receiver.test; iprev=pass policy.iprev={SENDER} (mail.author.test); \
             spf=pass smtp.mailfrom=a@author.test; dkim=none; \
             dmarc=pass header.from=author.test policy.dmarc=reject; arc=none\r\n"
        )
    );
    assert!(judged.stored.ends_with(&text) && judged.stored.starts_with("Authentication-Results: "));
    let null = bench.verify("", &["bob@receiver.test"], &message("a@free.test")).await;
    assert!(null.results.contains("spf=none smtp.helo=mail.author.test;"), "{}", null.results);
}

#[tokio::test]
async fn a_signature_carries_a_forwarded_message() {
    let key = DkimKey::generate(Algorithm::Rsa, "s").await.unwrap();
    let bench = Bench::new(&(ZONE.to_owned() + &key.zone_line("strict.test"))).await;
    let signed = testkit::dkim::sign(&message("a@strict.test"), "strict.test", &key).await.unwrap();
    let judged = bench.verify("list@free.test", &["bob@receiver.test"], &signed).await;
    assert_eq!(judged.disposition, Disposition::Deliver);
    assert!(judged.results.contains("dkim=pass header.d=strict.test"), "{}", judged.results);
    let changed = signed.replace("text", "another text");
    let judged = bench.verify("list@free.test", &["bob@receiver.test"], &changed).await;
    assert_eq!(judged.code(), "550 5.7.1");
}

#[tokio::test]
async fn forged_results_are_cut() {
    let bench = Bench::new(ZONE).await;
    let forged = "AUTHENTICATION-RESULTS:\r\n (x) MX.Receiver.test 1; dkim=pass\r\n header.d=bank.test\r\n";
    let other = "Authentication-Results: mx.other.test; spf=pass\r\n";
    let text = format!("Received: a\r\n{forged}{other}{forged}{}", message("a@author.test"));
    let judged = bench.verify("a@author.test", &["bob@receiver.test"], &text).await;
    let (field, rest) = judged.stored.split_at(judged.stored.find("Received: a").unwrap());
    assert!(field.starts_with("Authentication-Results: mx.receiver.test;"));
    assert_eq!(rest, format!("Received: a\r\n{other}{}", message("a@author.test")));
}

#[tokio::test]
async fn mail_without_one_author_never_passes() {
    let bench = Bench::new(ZONE).await;
    for from in [
        "a@author.test\r\nFrom: b@bank.test",
        "a@author.test, b@bank.test",
        "b@bank.test <a@author.test>",
        "nobody",
        "",
    ] {
        let judged = bench.verify("a@author.test", &["bob@receiver.test"], &message(from)).await;
        assert_eq!(judged.disposition, Disposition::Quarantine, "{from}");
        assert!(judged.results.contains("dmarc=permerror reason="), "{}", judged.results);
    }
}

#[tokio::test]
async fn a_failing_dns_defers_what_a_policy_hangs_on() {
    let bench = Bench::new(ZONE).await;
    let text = message("a@author.test");
    bench.dns.servfail("_dmarc.author.test").unwrap();
    let judged = bench.verify("a@author.test", &["bob@receiver.test"], &text).await;
    assert_eq!((judged.disposition, judged.code().as_str()), (Disposition::Defer, "451 4.4.3"));
    let judged = bench.verify("a@author.test", &["bob@lax.test"], &text).await;
    assert_eq!(judged.disposition, Disposition::Deliver);
    bench.dns.heal();
    bench.dns.servfail("author.test").unwrap();
    bench.dns.heal();
    let judged = bench.verify("a@author.test", &["bob@receiver.test"], &text).await;
    assert_eq!(judged.disposition, Disposition::Deliver);
    // A domain without policy waits for nothing.
    bench.dns.servfail("sub.free.test").unwrap();
    let judged = bench.verify("a@sub.free.test", &["bob@receiver.test"], &message("a@free.test")).await;
    assert_eq!(judged.disposition, Disposition::Deliver);
    assert!(judged.results.contains("spf=temperror"), "{}", judged.results);
}
