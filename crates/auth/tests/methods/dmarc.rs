//! DMARC: the table of alignments, policies and discovery.

use std::time::Duration;

use auth::{Algorithm, DmarcCheck, DmarcResult, Policy, Purpose, Signer, Validity};
use testkit::keys::{Algorithm as KeyAlgorithm, DkimKey};

use crate::support::{Judge, fields, scan};

const SENDER: &str = "192.0.2.1";

fn message(from: &str) -> String {
    format!("From: {from}\r\nTo: b@receiver.test\r\nSubject: x\r\n\r\ntext\r\n")
}

/// A zone with the given DMARC records; SPF passes for mail of every name here.
fn zone(records: &[(&str, &str)]) -> String {
    let mut zone = String::new();
    for name in
        ["example.test", "sub.example.test", "other.example.test", "deep.sub.example.test", "bulk.test"]
    {
        zone += &format!("{name}. 300 IN TXT \"v=spf1 ip4:{SENDER} -all\"\n");
    }
    for (name, record) in records {
        zone += &format!("_dmarc.{name}. 300 IN TXT \"{record}\"\n");
    }
    zone
}

/// DMARC of a message of `from` whose MAIL FROM is of `mail_from` and passes SPF.
async fn by_spf(records: &[(&str, &str)], from: &str, mail_from: &str) -> DmarcCheck {
    let judge = Judge::new(&zone(records)).await;
    judge.verify_from(SENDER, &format!("a@{mail_from}"), &message(&format!("x@{from}"))).await.dmarc
}

#[tokio::test]
async fn alignment() {
    const RELAXED: &str = "v=DMARC1; p=reject";
    const STRICT: &str = "v=DMARC1; p=reject; aspf=s; adkim=s";
    for (record, from, mail_from, expected) in [
        (RELAXED, "example.test", "example.test", DmarcResult::Pass),
        (RELAXED, "EXAMPLE.test", "Example.TEST", DmarcResult::Pass),
        (RELAXED, "example.test", "sub.example.test", DmarcResult::Pass),
        (RELAXED, "sub.example.test", "example.test", DmarcResult::Pass),
        (RELAXED, "sub.example.test", "other.example.test", DmarcResult::Pass),
        (RELAXED, "example.test", "bulk.test", DmarcResult::Fail),
        (STRICT, "example.test", "example.test", DmarcResult::Pass),
        (STRICT, "example.test", "sub.example.test", DmarcResult::Fail),
        (STRICT, "sub.example.test", "example.test", DmarcResult::Fail),
    ] {
        let check = by_spf(&[("example.test", record)], from, mail_from).await;
        assert_eq!(check.result, expected, "{record} {from} {mail_from}");
        assert_eq!(check.policy, Some(Policy::Reject));
    }
    let none = by_spf(&[], "example.test", "example.test").await;
    assert_eq!((none.result, none.policy), (DmarcResult::None, None));
}

#[tokio::test]
async fn a_signature_that_is_aligned_is_enough() {
    let key = DkimKey::generate(KeyAlgorithm::Ed25519, "s").await.unwrap();
    let private_key = key.private_key.as_str().into();
    for (signed_by, strict, expected) in [
        ("example.test", true, DmarcResult::Pass),
        ("sub.example.test", false, DmarcResult::Pass),
        ("sub.example.test", true, DmarcResult::Fail),
        ("bulk.test", false, DmarcResult::Fail),
    ] {
        let record = if strict { "v=DMARC1; p=reject; adkim=s" } else { "v=DMARC1; p=reject" };
        let judge = Judge::new(&(zone(&[("example.test", record)]) + &key.zone_line(signed_by))).await;
        let message = message("x@example.test");
        let scanned = scan(&message, Purpose::Sign);
        let signer = Signer::new(signed_by, "s", Algorithm::Ed25519Sha256, &private_key).unwrap();
        let validity = Validity::starting_now(Duration::from_secs(60));
        let signature = signer.sign(&fields(&scanned), &scanned, validity).unwrap();
        let check = judge.verify(&format!("{signature}{message}")).await.dmarc;
        assert_eq!(check.result, expected, "{signed_by} {strict}");
    }
}

#[tokio::test]
async fn which_policy_applies() {
    const ORG: &str = "example.test";
    for (records, from, policy, applied) in [
        (&[(ORG, "v=DMARC1; p=quarantine")][..], ORG, Policy::Quarantine, Policy::Quarantine),
        (&[(ORG, "v=DMARC1; p=reject; sp=none")], ORG, Policy::Reject, Policy::Reject),
        (&[(ORG, "v=DMARC1; p=reject; sp=none")], "sub.example.test", Policy::None, Policy::None),
        (&[(ORG, "v=DMARC1; p=none; sp=reject")], "deep.sub.example.test", Policy::Reject, Policy::Reject),
        (&[(ORG, "v=DMARC1; p=none; np=reject")], "absent.example.test", Policy::Reject, Policy::Reject),
        (&[(ORG, "v=DMARC1; p=none; np=reject")], "sub.example.test", Policy::None, Policy::None),
        (
            &[(ORG, "v=DMARC1; p=none; sp=quarantine; np=reject")],
            "sub.example.test",
            Policy::Quarantine,
            Policy::Quarantine,
        ),
        (&[(ORG, "v=DMARC1; p=reject; t=y")], ORG, Policy::Reject, Policy::Quarantine),
        (&[(ORG, "v=DMARC1; p=reject; pct=0")], ORG, Policy::Reject, Policy::Quarantine),
        (&[(ORG, "v=DMARC1; p=quarantine; pct=0")], ORG, Policy::Quarantine, Policy::None),
        (&[(ORG, "v=DMARC1; p=nonsense; rua=mailto:a@b.test")], ORG, Policy::None, Policy::None),
        (&[(ORG, "v=DMARC1; p=reject; x=y; adkim=q")], ORG, Policy::Reject, Policy::Reject),
        (
            &[(ORG, "v=DMARC1; p=reject"), ("sub.example.test", "v=DMARC1; p=none")],
            "sub.example.test",
            Policy::None,
            Policy::None,
        ),
        (&[("test", "v=DMARC1; p=reject; psd=y; np=quarantine")], ORG, Policy::Reject, Policy::Reject),
        (
            &[("test", "v=DMARC1; p=reject; psd=y; np=quarantine")],
            "absent.test",
            Policy::Quarantine,
            Policy::Quarantine,
        ),
    ] {
        let check = by_spf(records, from, "bulk.test").await;
        assert_eq!(check.result, DmarcResult::Fail, "{records:?} {from}");
        assert_eq!((check.policy, check.applied), (Some(policy), applied), "{records:?} {from}");
    }
}

#[tokio::test]
async fn records_that_do_not_count() {
    const ORG: &str = "example.test";
    for records in [
        &[(ORG, "v=DMARC1; p=reject"), (ORG, "v=DMARC1; p=none")][..],
        &[(ORG, "v=DMARC1; p=nonsense")],
        &[(ORG, "p=reject; v=DMARC1")],
        &[(ORG, "v=dmarc1; p=reject")],
        &[(ORG, "v=spf1 -all")],
    ] {
        let check = by_spf(records, ORG, "bulk.test").await;
        assert_eq!(check.result, DmarcResult::None, "{records:?}");
    }
    let check = by_spf(&[(ORG, "some text"), (ORG, "v=DMARC1; p=reject")], ORG, "bulk.test").await;
    assert_eq!(check.result, DmarcResult::Fail);
}

#[tokio::test]
async fn public_suffixes_part_their_domains() {
    // Two customers of one suffix are strangers, though a record above says they share it.
    let records = [("test", "v=DMARC1; p=none; psd=y"), ("example.test", "v=DMARC1; p=reject")];
    assert_eq!(by_spf(&records, "example.test", "bulk.test").await.result, DmarcResult::Fail);
    let records = [("test", "v=DMARC1; p=reject; psd=y")];
    assert_eq!(by_spf(&records, "sub.example.test", "other.example.test").await.result, DmarcResult::Pass);
    assert_eq!(by_spf(&records, "example.test", "bulk.test").await.result, DmarcResult::Fail);
    let records = [("example.test", "v=DMARC1; p=reject"), ("sub.example.test", "v=DMARC1; p=reject; psd=n")];
    assert_eq!(by_spf(&records, "sub.example.test", "example.test").await.result, DmarcResult::Fail);
    assert_eq!(by_spf(&records, "deep.sub.example.test", "sub.example.test").await.result, DmarcResult::Pass);
}

#[tokio::test]
async fn a_long_name_costs_no_more_than_eight_look_ups() {
    let judge = Judge::new(&zone(&[("example.test", "v=DMARC1; p=reject")])).await;
    let check = judge.verify(&message("x@1.2.3.4.5.6.7.8.9.example.test")).await.dmarc;
    assert_eq!((check.result, check.policy), (DmarcResult::Fail, Some(Policy::Reject)));
    let asked = |name: &str| judge.dns.queries(&format!("_dmarc.{name}"), "TXT").unwrap();
    assert_eq!(asked("1.2.3.4.5.6.7.8.9.example.test"), 1);
    for name in ["2.3.4.5.6.7.8.9.example.test", "4.5.6.7.8.9.example.test"] {
        assert_eq!(asked(name), 0, "{name}");
    }
    for name in ["5.6.7.8.9.example.test", "9.example.test", "example.test", "test"] {
        assert_eq!(asked(name), 1, "{name}");
    }
}

#[tokio::test]
async fn what_the_dns_did_not_say_is_a_temporary_error() {
    let records = [("example.test", "v=DMARC1; p=reject")];
    // The policy itself.
    let judge = Judge::new(&zone(&records)).await;
    judge.dns.servfail("_dmarc.example.test").unwrap();
    let check = judge.verify(&message("x@example.test")).await.dmarc;
    assert_eq!((check.result, check.policy), (DmarcResult::TempError, None));
    // SPF of an aligned domain, and of another.
    let judge = Judge::new(&zone(&records)).await;
    judge.dns.servfail("sub.example.test").unwrap();
    judge.dns.servfail("bulk.test").unwrap();
    let from = message("x@example.test");
    let aligned = judge.verify_from(SENDER, "a@sub.example.test", &from).await.dmarc;
    assert_eq!((aligned.result, aligned.policy), (DmarcResult::TempError, Some(Policy::Reject)));
    let other = judge.verify_from(SENDER, "a@bulk.test", &from).await.dmarc;
    assert_eq!(other.result, DmarcResult::Fail);
    // A key of an aligned domain.
    let signature = "DKIM-Signature: v=1; a=rsa-sha256; d=sub.example.test; s=s; c=relaxed/relaxed; h=From; \
                     bh=g3zLYH4xKxcPrHOD18z9YfpQcnk/GaJedfustWU5uGs=; b=AAAA\r\n";
    let check = judge.verify(&format!("{signature}{from}")).await;
    assert_eq!(check.dmarc.result, DmarcResult::TempError, "{check:?}");
    // A pass elsewhere settles it.
    let passed = judge.verify_from(SENDER, "a@example.test", &format!("{signature}{from}")).await.dmarc;
    assert_eq!(passed.result, DmarcResult::Pass);
}

#[tokio::test]
async fn without_one_author_nothing_passes() {
    let judge = Judge::new(&zone(&[("example.test", "v=DMARC1; p=reject")])).await;
    for header in [
        "To: b@receiver.test",
        "From: x@example.test\r\nFrom: x@example.test",
        "From: x@example.test\r\nfrom: y@bulk.test",
        "From: x@example.test, y@bulk.test",
        "From : x@example.test",
        "From: x@bulk.test <x@example.test>",
        "From: group: x@example.test;",
        "From: =?utf-8?q?x=40example.test?=",
        "From: x@[192.0.2.1]",
        "From: x@example.test\r\nthis is no field",
    ] {
        let message = format!("{header}\r\n\r\ntext\r\n");
        let check = judge.verify_from(SENDER, "a@example.test", &message).await.dmarc;
        assert_eq!(check.result, DmarcResult::PermError, "{header}");
        assert!(check.author_error.is_some() && check.domain.is_none());
    }
}

#[tokio::test]
async fn one_look_up_is_enough_where_the_author_s_own_domain_passed() {
    let judge = Judge::new(&zone(&[("sub.example.test", "v=DMARC1; p=reject")])).await;
    for _ in 0..3 {
        let check =
            judge.verify_from(SENDER, "a@sub.example.test", &message("x@sub.example.test")).await.dmarc;
        assert_eq!(check.result, DmarcResult::Pass);
    }
    assert_eq!(judge.dns.queries("_dmarc.sub.example.test", "TXT").unwrap(), 1);
    assert_eq!(judge.dns.queries("_dmarc.example.test", "TXT").unwrap(), 0);
}
