//! SPF and iprev over a real resolver and a DNS server of the test.

use crate::support::Judge;
use auth::{IprevResult, SpfIdentity, SpfResult};

const ZONE: &str = r#"
pass.test.      300 IN TXT "v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all"
other.test.     300 IN TXT "google-site-verification=x"
softfail.test.  300 IN TXT "v=spf1 ~all"
neutral.test.   300 IN TXT "v=spf1 ?all"
nothing.test.   300 IN TXT "v=spf1"
two.test.       300 IN TXT "v=spf1 -all"
two.test.       300 IN TXT "v=spf1 +all"
mixed.test.     300 IN TXT "verification=1"
mixed.test.     300 IN TXT "v=spf1 ip4:192.0.2.1 -all"
mixed.test.     300 IN TXT "v=spf10 +all"
broken.test.    300 IN TXT "v=spf1 ip4:not-an-address -all"
broken.test.    300 IN TXT "verification=1"
a.test.         300 IN TXT "v=spf1 a mx:mx.test -all"
a.test.         300 IN A 192.0.2.1
mx.test.        300 IN MX 10 host.mx.test.
mx.test.        300 IN MX 10 six.mx.test.
host.mx.test.   300 IN A 192.0.2.2
six.mx.test.    300 IN AAAA 2001:db8::2
include.test.   300 IN TXT "v=spf1 include:pass.test -all"
redirect.test.  300 IN TXT "v=spf1 redirect=pass.test"
missing.test.   300 IN TXT "v=spf1 include:absent.test -all"
exists.test.    300 IN TXT "v=spf1 exists:%{ir}.%{l}.list.test -all"
1.2.0.192.user.list.test. 300 IN A 127.0.0.2
void.test.      300 IN TXT "v=spf1 a:v1.void.test a:v2.void.test ip4:192.0.2.1 -all"
voids.test.     300 IN TXT "v=spf1 a:v1.void.test a:v2.void.test a:v3.void.test ip4:192.0.2.1 -all"
deep.test.      300 IN TXT "v=spf1 include:d1.test -all"
loop.test.      300 IN TXT "v=spf1 include:loop.test -all"
temp.test.      300 IN TXT "v=spf1 include:servfail.test -all"
helo.test.      300 IN TXT "v=spf1 ip4:192.0.2.1 -all"
split.test.     300 IN TXT "v=spf1 ip4:192." "0.2.1 -all"
1.2.0.192.in-addr.arpa. 300 IN PTR host.rdns.test.
host.rdns.test. 300 IN A 192.0.2.1
2.2.0.192.in-addr.arpa. 300 IN PTR liar.rdns.test.
liar.rdns.test. 300 IN A 192.0.2.77
3.2.0.192.in-addr.arpa. 300 IN PTR nowhere.rdns.test.
"#;

#[tokio::test]
async fn all_results() {
    let judge = Judge::new(ZONE).await;
    judge.dns.servfail("servfail.test").unwrap();
    for (ip, from, expected) in [
        ("192.0.2.1", "user@pass.test", SpfResult::Pass),
        ("::ffff:192.0.2.1", "user@pass.test", SpfResult::Pass),
        ("2001:db8::1", "user@pass.test", SpfResult::Pass),
        ("198.51.100.1", "user@pass.test", SpfResult::Fail),
        ("192.0.2.1", "user@other.test", SpfResult::None),
        ("192.0.2.1", "user@absent.test", SpfResult::None),
        ("192.0.2.1", "user@[192.0.2.1]", SpfResult::None),
        ("192.0.2.1", "user@softfail.test", SpfResult::SoftFail),
        ("192.0.2.1", "user@neutral.test", SpfResult::Neutral),
        ("192.0.2.1", "user@nothing.test", SpfResult::Neutral),
        ("192.0.2.1", "user@two.test", SpfResult::PermError),
        ("192.0.2.1", "user@mixed.test", SpfResult::Pass),
        ("192.0.2.1", "user@broken.test", SpfResult::PermError),
        ("192.0.2.1", "user@a.test", SpfResult::Pass),
        ("192.0.2.2", "user@a.test", SpfResult::Pass),
        ("2001:db8::2", "user@a.test", SpfResult::Pass),
        ("192.0.2.3", "user@a.test", SpfResult::Fail),
        ("192.0.2.1", "user@include.test", SpfResult::Pass),
        ("198.51.100.1", "user@include.test", SpfResult::Fail),
        ("192.0.2.1", "user@redirect.test", SpfResult::Pass),
        ("192.0.2.1", "user@missing.test", SpfResult::PermError),
        ("192.0.2.1", "user@exists.test", SpfResult::Pass),
        ("192.0.2.1", "other@exists.test", SpfResult::Fail),
        ("192.0.2.1", "user@void.test", SpfResult::Pass),
        ("192.0.2.1", "user@voids.test", SpfResult::PermError),
        ("192.0.2.1", "user@loop.test", SpfResult::PermError),
        ("192.0.2.1", "user@temp.test", SpfResult::TempError),
        ("192.0.2.1", "user@servfail.test", SpfResult::TempError),
        ("192.0.2.1", "user@split.test", SpfResult::Pass),
    ] {
        // Twice: what is remembered must not change the answer.
        for round in ["first", "second"] {
            let check = judge.check(ip, "helo.absent.test", from).await.spf;
            assert_eq!(check.result, expected, "{from} from {ip}, {round}");
            assert_eq!(check.identity, SpfIdentity::MailFrom);
            assert_eq!(check.value, from);
        }
    }
}

#[tokio::test]
async fn the_ehlo_name_stands_in_for_a_null_sender() {
    let judge = Judge::new(ZONE).await;
    for (helo, ip, expected) in [
        ("helo.test", "192.0.2.1", SpfResult::Pass),
        ("HELO.test", "192.0.2.2", SpfResult::Fail),
        ("absent.test", "192.0.2.1", SpfResult::None),
        ("[192.0.2.1]", "192.0.2.1", SpfResult::None),
        ("not a name", "192.0.2.1", SpfResult::None),
    ] {
        let check = judge.check(ip, helo, "").await.spf;
        assert_eq!((check.result, check.identity), (expected, SpfIdentity::Helo), "{helo}");
        assert_eq!(check.value, helo);
    }
}

#[tokio::test]
async fn names_of_addresses() {
    let judge = Judge::new(ZONE).await;
    judge.dns.servfail("9.2.0.192.in-addr.arpa").unwrap();
    for (ip, expected, name) in [
        ("192.0.2.1", IprevResult::Pass, Some("host.rdns.test")),
        ("192.0.2.2", IprevResult::Fail, Some("liar.rdns.test")),
        ("192.0.2.3", IprevResult::Fail, Some("nowhere.rdns.test")),
        ("192.0.2.4", IprevResult::PermError, None),
        ("192.0.2.9", IprevResult::TempError, None),
    ] {
        let check = judge.check(ip, "helo.test", "").await.iprev;
        assert_eq!((check.result, check.name.as_deref()), (expected, name), "{ip}");
    }
}

#[tokio::test]
async fn answers_are_remembered() {
    let judge = Judge::new(ZONE).await;
    for _ in 0..5 {
        judge.check("192.0.2.1", "helo.test", "user@a.test").await;
        judge.check("192.0.2.4", "helo.test", "user@absent.test").await;
    }
    for (name, record_type) in [
        ("a.test", "TXT"),
        ("a.test", "A"),
        ("1.2.0.192.in-addr.arpa", "PTR"),
        ("host.rdns.test", "A"),
        ("absent.test", "TXT"),
        ("4.2.0.192.in-addr.arpa", "PTR"),
    ] {
        assert_eq!(judge.dns.queries(name, record_type).unwrap(), 1, "{name} {record_type}");
    }
}

#[tokio::test]
async fn a_silent_server_is_a_temporary_error_in_bounded_time() {
    let judge = Judge::new(ZONE).await;
    judge.dns.ignore_all();
    let check = tokio::time::timeout(
        std::time::Duration::from_secs(5),
        judge.check("192.0.2.1", "helo.test", "user@pass.test"),
    );
    let check = check.await.unwrap();
    assert_eq!((check.spf.result, check.iprev.result), (SpfResult::TempError, IprevResult::TempError));
}
