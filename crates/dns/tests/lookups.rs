//! Look-ups against a DNS server of our own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::IpAddr;
use std::time::Duration;

use dns::{AddressError, AddressPolicy, DnsConfig, MxError, Resolver};
use testkit::dns::DnsServer;

const OWN_NAME: &str = "mx.us.test";

const ZONE: &str = r#"
example.test.       300 IN MX 20 second.example.test.
example.test.       300 IN MX 10 first.example.test.
example.test.       300 IN TXT "not a mail exchanger"
first.example.test. 300 IN A 192.0.2.1
first.example.test. 300 IN A 192.0.2.2
first.example.test. 300 IN AAAA 2001:db8::1
second.example.test. 300 IN A 192.0.2.3
alias-mx.test.      300 IN MX 10 alias.alias-mx.test.
alias.alias-mx.test. 300 IN CNAME first.example.test.
aliased.test.       300 IN CNAME example.test.
implicit.test.      300 IN A 192.0.2.4
text-only.test.     300 IN TXT "neither MX nor address"
null.test.          300 IN MX 0 .
ours.test.          300 IN MX 10 mx.us.test.
ours.test.          300 IN MX 20 first.example.test.
backup.test.        300 IN MX 10 first.example.test.
backup.test.        300 IN MX 20 MX.us.test.
rebound.test.       300 IN A 127.0.0.1
rebound.test.       300 IN A 192.0.2.5
loop.test.          300 IN A 127.0.0.1
"#;

async fn start() -> (DnsServer, Resolver) {
    let server = DnsServer::start(ZONE).await.expect("DNS server");
    let config = DnsConfig {
        servers: vec![server.address()],
        timeout: Duration::from_millis(200),
        attempts: 1,
        deadline: Duration::from_secs(2),
        ..DnsConfig::default()
    };
    let resolver = Resolver::new(config).expect("resolver");
    (server, resolver)
}

async fn hosts(resolver: &Resolver, domain: &str) -> Vec<String> {
    let plan = resolver.mx_plan(domain, OWN_NAME).await.expect("a plan");
    plan.hosts.into_iter().map(|host| host.name).collect()
}

async fn sorted(resolver: &Resolver, host: &str) -> Vec<IpAddr> {
    let mut addresses = resolver.addresses(host, AddressPolicy::default()).await.expect("addresses");
    addresses.sort();
    addresses
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[tokio::test]
async fn exchangers_come_in_order_of_preference() {
    let (_server, resolver) = start().await;
    let both = ["first.example.test", "second.example.test"];
    assert_eq!(hosts(&resolver, "example.test").await, both);
    assert_eq!(hosts(&resolver, "aliased.test").await, both);
    assert_eq!(hosts(&resolver, "backup.test").await, ["first.example.test"]);
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_exchanger() {
    let (_server, resolver) = start().await;
    let plan = resolver.mx_plan("implicit.test", OWN_NAME).await.expect("a plan");
    assert!(plan.implicit);
    assert_eq!(plan.hosts[0].name, "implicit.test");

    assert!(resolver.mx_plan("text-only.test", OWN_NAME).await.expect("a plan").implicit);
    let error = resolver.addresses("text-only.test", AddressPolicy::default()).await.unwrap_err();
    assert!(matches!(error, AddressError::NoAddress { .. }), "{error}");
}

#[tokio::test]
async fn domains_that_take_no_mail_are_refused_for_good() {
    let (_server, resolver) = start().await;
    let error = async |domain: &str| resolver.mx_plan(domain, OWN_NAME).await.unwrap_err();
    let missing = error("missing.test").await;
    assert!(matches!(missing, MxError::NoSuchDomain { .. }), "{missing}");
    assert_eq!((missing.status(), missing.is_permanent()), ("5.1.2", true));
    assert_eq!(error("null.test").await.status(), "5.1.10");
    assert_eq!(error("ours.test").await.status(), "5.4.6");
    assert_eq!(error("no..such.name").await.status(), "5.1.2");
}

#[tokio::test]
async fn failing_name_servers_are_no_verdict_on_the_domain() {
    let (server, resolver) = start().await;
    server.servfail("example.test.").unwrap();
    server.ignore("implicit.test.").unwrap();
    for domain in ["example.test", "implicit.test"] {
        let error = resolver.mx_plan(domain, OWN_NAME).await.unwrap_err();
        assert_eq!((error.status(), error.is_permanent()), ("4.4.3", false), "{error}");
    }
    let error = resolver.addresses("implicit.test", AddressPolicy::default()).await.unwrap_err();
    assert!(matches!(error, AddressError::Temporary { .. }), "{error}");
    server.heal();
    assert_eq!(hosts(&resolver, "example.test").await.len(), 2);
}

#[tokio::test]
async fn all_addresses_of_both_families_are_found() {
    let (_server, resolver) = start().await;
    let all = [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")];
    assert_eq!(sorted(&resolver, "first.example.test").await, all);
    assert_eq!(sorted(&resolver, "alias.alias-mx.test").await, all);
}

#[tokio::test]
async fn mail_is_not_led_to_this_machine() {
    let (_server, resolver) = start().await;
    assert_eq!(sorted(&resolver, "rebound.test").await, [ip("192.0.2.5")]);
    let error = resolver.addresses("loop.test", AddressPolicy::default()).await.unwrap_err();
    assert!(matches!(error, AddressError::Refused { .. }), "{error}");
    let lenient = AddressPolicy { allow_loopback: true };
    assert_eq!(resolver.addresses("loop.test", lenient).await.unwrap(), [ip("127.0.0.1")]);
}

#[tokio::test]
async fn configured_hosts_may_be_addresses_or_any_name() {
    let (_server, resolver) = start().await;
    assert_eq!(resolver.host_addresses("::1").await.unwrap(), [ip("::1")]);
    assert_eq!(resolver.host_addresses("loop.test").await.unwrap(), [ip("127.0.0.1")]);
    assert!(resolver.host_addresses("localhost").await.unwrap().contains(&ip("127.0.0.1")));
    let error = resolver.host_addresses("missing.test").await.unwrap_err();
    assert!(matches!(error, AddressError::NoAddress { .. }), "{error}");
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let (server, resolver) = start().await;
    let ask = || resolver.mx_plan("example.test", OWN_NAME);
    let (a, b, c) = tokio::join!(ask(), ask(), ask());
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert!(ask().await.is_ok());
    assert_eq!(server.queries("example.test.", "MX").unwrap(), 1);
}

#[tokio::test]
async fn a_missing_trust_anchor_is_named() {
    let config = DnsConfig {
        servers: vec!["127.0.0.1:53".parse().unwrap()],
        trust_anchor: Some("/nonexistent/anchor.key".into()),
        ..DnsConfig::default()
    };
    let error = Resolver::new(config).err().expect("an error").to_string();
    assert!(error.contains("/nonexistent/anchor.key") && error.contains("dns.trust_anchor"), "{error}");
}
