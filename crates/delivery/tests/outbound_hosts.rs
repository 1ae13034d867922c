//! From host to host: mail exchangers in order, TLS and its absence, idle connections, probes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use delivery::outbound::{OutboundConfig, PoolConfig, Probe, Protocol};
use delivery::transfer::RecipientOutcome;
use support::*;
use testkit::dns::DnsServer;
use testkit::smtp::{Sink, Verb};

const ONE: &[&str] = &["a@example.test"];
const TWO: &[&str] = &["a@example.test", "b@example.test"];
const GROUP: &str = "MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<a@example.test>\r\nDATA\r\n";
const GROUP_TWO: &str = "MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<a@example.test>\r\n\
                         RCPT TO:<b@example.test>\r\nDATA\r\n";

/// Two exchangers at one port, at 127.0.0.1 and 127.0.0.2.
async fn two_exchangers(first: Vec<Vec<Step>>, second: Vec<Vec<Step>>) -> (Peer, Peer, DnsServer) {
    let first = Peer::start(first).await;
    let second = Peer::bind(neighbour(first.address, 2), second).await;
    let zone = "example.test. 300 IN MX 10 first.example.test.\n\
                example.test. 300 IN MX 20 second.example.test.\n\
                first.example.test. 300 IN A 127.0.0.1\n\
                second.example.test. 300 IN A 127.0.0.2\n";
    (first, second, DnsServer::start(zone).await.expect("DNS server"))
}

/// A whole session that takes one message for these commands.
fn taking(group: &'static str, reply: &'static str) -> Vec<Step> {
    let replies = if group == GROUP {
        "250 ok\r\n250 ok\r\n354 go\r\n"
    } else {
        "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"
    };
    let rest = [HearAtOnce(group), Say(replies), HearContent(STUFFED), Say(reply)];
    opening(PIPELINING).into_iter().chain(rest).collect()
}

fn then(mut script: Vec<Step>, rest: impl IntoIterator<Item = Step>) -> Vec<Step> {
    script.extend(rest);
    script
}

async fn to_domain(recipients: &[&str], exchangers: (Peer, Peer, DnsServer)) -> Vec<RecipientOutcome> {
    let (first, second, dns) = exchangers;
    let transport = outbound(unpooled(first.address.port()), Some(dns.address()));
    let outcomes = transport.to_domain("example.test", &transfer(recipients)).await;
    first.finish().await;
    second.finish().await;
    outcomes
}

#[tokio::test]
async fn the_next_exchanger_gets_only_what_the_first_left_open() {
    let mixed = [
        HearAtOnce(GROUP_TWO),
        Say("250 ok\r\n550 5.1.1 who?\r\n450 4.2.0 greylisted\r\n503 no\r\n"),
        Hear("RSET"),
        Say("250 ok\r\n"),
        Closed,
    ];
    let first = then(opening(PIPELINING), mixed);
    let rest = "MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<b@example.test>\r\nDATA\r\n";
    let go =
        [HearAtOnce(rest), Say("250 ok\r\n250 ok\r\n354 go\r\n"), HearContent(STUFFED), Say("250 taken\r\n")];
    let second = then(opening(PIPELINING), go);
    let outcomes = to_domain(TWO, two_exchangers(vec![first], vec![second]).await).await;
    let lines = summary(&outcomes);
    assert_eq!(lines[0], "failed 5.1.1: first.example.test [127.0.0.1] refused RCPT TO: 550 5.1.1 who?");
    assert_eq!(lines[1], "delivered: 250 taken");
    let RecipientOutcome::Delivered { by, .. } = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(by, "second.example.test [127.0.0.2]");
}

#[tokio::test]
async fn an_exchanger_in_trouble_is_passed_over() {
    for trouble in [
        vec![Say("421 busy\r\n"), Closed],
        vec![Say("554 go away\r\n"), Closed],
        vec![Hangup],
        vec![Hang],
        then(opening(PLAIN), [Hangup]),
    ] {
        let taken = taking(GROUP, "250 taken\r\n");
        let outcomes = to_domain(ONE, two_exchangers(vec![trouble], vec![taken]).await).await;
        assert_eq!(summary(&outcomes), ["delivered: 250 taken"]);
    }
}

#[tokio::test]
async fn a_message_that_may_have_been_taken_is_not_given_to_the_next_exchanger() {
    let go = [HearAtOnce(GROUP), Say("250 ok\r\n250 ok\r\n354 go\r\n"), HearContent(STUFFED), Hangup];
    let first = then(opening(PIPELINING), go);
    let outcomes = to_domain(ONE, two_exchangers(vec![first], vec![]).await).await;
    assert!(summary(&outcomes)[0].ends_with("it may have taken the message all the same"));
}

#[tokio::test]
async fn tries_are_bounded() {
    let zone = (1..=9)
        .map(|n| format!("many.test. 300 IN MX {n} m{n}.many.test.\nm{n}.many.test. 300 IN A 127.0.0.{n}\n"))
        .collect::<String>();
    let dns = DnsServer::start(&zone).await.unwrap();
    let peer = Peer::start(vec![vec![Say("450 later\r\n"), Closed]; 1]).await;
    let config = OutboundConfig { max_connects: 1, ..unpooled(peer.address.port()) };
    let outcomes = outbound(config, Some(dns.address())).to_domain("many.test", &transfer(ONE)).await;
    assert_eq!(
        summary(&outcomes),
        ["deferred 4.0.0: m1.many.test [127.0.0.1] put off the connection: 450 later"]
    );
    peer.finish().await;
}

#[tokio::test]
async fn domains_that_lead_nowhere_say_why() {
    let zone = "null.test. 300 IN MX 0 .\n\
                ours.test. 300 IN MX 10 mx.us.test.\n\
                lost.test. 300 IN MX 10 nowhere.lost.test.\n\
                bare.test. 300 IN TXT \"no address\"\n\
                loop.test. 300 IN A 127.0.0.1\n\
                broken.test. 300 IN A 192.0.2.1\n";
    let dns = DnsServer::start(zone).await.unwrap();
    dns.servfail("broken.test.").unwrap();
    let config = OutboundConfig { allow_loopback: false, ..unpooled(25) };
    let transport = outbound(config, Some(dns.address()));
    let line = async |domain: &str| summary(&transport.to_domain(domain, &transfer(ONE)).await).remove(0);
    assert_eq!(line("null.test").await, "failed 5.1.10: the domain null.test accepts no mail (null MX)");
    assert_eq!(line("missing.test").await, "failed 5.1.2: the domain missing.test does not exist");
    assert!(line("ours.test").await.starts_with("failed 5.4.6: the MX records of ours.test lead back"));
    assert_eq!(line("lost.test").await, "failed 5.4.4: nowhere.lost.test has no address");
    let bare = line("bare.test").await;
    assert_eq!(bare, "failed 5.1.2: the domain bare.test has neither an MX record nor an address");
    assert!(
        line("loop.test").await.starts_with("failed 5.4.4: loop.test has only addresses that mail is not")
    );
    assert!(line("[127.0.0.1]").await.starts_with("failed 5.4.4: 127.0.0.1 has only addresses"));
    let broken = line("broken.test").await;
    assert!(
        broken.starts_with("deferred 4.4.3: the MX records of broken.test cannot be looked up"),
        "{broken}"
    );
}

#[tokio::test]
async fn a_route_to_a_host_without_an_address_waits_for_it() {
    let dns = DnsServer::start("").await.unwrap();
    let transport = outbound(unpooled(25), Some(dns.address()));
    let outcomes = transport.to_host("store.test:24", Protocol::Lmtp, &transfer(ONE)).await;
    assert_eq!(summary(&outcomes), ["deferred 4.4.3: store.test has no address"]);
}

#[tokio::test]
async fn an_address_literal_is_its_own_exchanger() {
    let peer = Peer::start(vec![taking(GROUP, "250 taken\r\n")]).await;
    let transport = outbound(unpooled(peer.address.port()), None);
    let outcomes = transport.to_domain("[127.0.0.1]", &transfer(ONE)).await;
    assert_eq!(summary(&outcomes), ["delivered: 250 taken"]);
    peer.finish().await;
}

#[tokio::test]
async fn tls_is_used_where_it_is_offered() {
    let sink = Sink::smtp().await.unwrap();
    let transport = outbound(config(25), None);
    let outcomes = transport.to_host(&sink.address().to_string(), Protocol::Smtp, &transfer(TWO)).await;
    assert!(summary(&outcomes).iter().all(|line| line.starts_with("delivered")), "{outcomes:?}");
    let received = sink.received();
    assert!(received[0].tls);
    assert_eq!(received[0].to, TWO);
    assert_eq!(received[0].message, MESSAGE);
}

#[tokio::test]
async fn a_failed_handshake_is_followed_by_a_session_in_clear() {
    let broken =
        then(opening(STARTTLS), [Hear("STARTTLS"), Say("220 go\r\n"), Say("this is no TLS\r\n"), Hang]);
    let peer = Peer::start(vec![broken, taking(GROUP, "250 taken\r\n")]).await;
    let transport = outbound(unpooled(25), None);
    let outcomes = transport.to_host(&peer.address.to_string(), Protocol::Smtp, &transfer(ONE)).await;
    assert_eq!(summary(&outcomes), ["delivered: 250 taken"]);
    peer.finish().await;
}

#[tokio::test]
async fn a_denied_starttls_goes_on_in_clear() {
    let group = "MAIL FROM:<sender@us.test>\r\nRCPT TO:<a@example.test>\r\nDATA\r\n";
    let denied = [
        Hear("STARTTLS"),
        Say("454 4.7.0 not now\r\n"),
        HearAtOnce(group),
        Say("250 ok\r\n250 ok\r\n354 go\r\n"),
        HearContent(STUFFED),
        Say("250 taken\r\n"),
    ];
    let peer = Peer::start(vec![then(opening(STARTTLS), denied)]).await;
    let transport = outbound(unpooled(25), None);
    let outcomes = transport.to_host(&peer.address.to_string(), Protocol::Smtp, &transfer(ONE)).await;
    assert_eq!(summary(&outcomes), ["delivered: 250 taken"]);
    peer.finish().await;
}

#[tokio::test]
async fn octets_smuggled_behind_the_reply_to_starttls_end_the_session() {
    let injected = [Hear("STARTTLS"), Say("220 go\r\n250 and taken\r\n"), Hang];
    let peer = Peer::start(vec![then(opening(STARTTLS), injected)]).await;
    let transport = outbound(unpooled(25), None);
    let outcomes = transport.to_host(&peer.address.to_string(), Protocol::Smtp, &transfer(ONE)).await;
    let line = "deferred 4.7.0: [127.0.0.1] sent more than its reply to STARTTLS in clear";
    assert_eq!(summary(&outcomes), [line]);
    peer.finish().await;
}

#[tokio::test]
async fn idle_connections_are_used_again() {
    let sink = Sink::smtp().await.unwrap();
    let transport = outbound(config(25), None);
    for _ in 0..5 {
        let outcomes = transport.to_host(&sink.address().to_string(), Protocol::Smtp, &transfer(ONE)).await;
        assert!(summary(&outcomes)[0].starts_with("delivered"), "{outcomes:?}");
    }
    assert_eq!((sink.count(), sink.connections()), (5, 1));
}

#[tokio::test]
async fn worn_connections_are_not() {
    let sink = Sink::smtp().await.unwrap();
    let pool = PoolConfig { max_messages: 2, ..PoolConfig::default() };
    let transport = outbound(OutboundConfig { pool, ..config(25) }, None);
    for _ in 0..5 {
        transport.to_host(&sink.address().to_string(), Protocol::Smtp, &transfer(ONE)).await;
    }
    assert_eq!((sink.count(), sink.connections()), (5, 3));
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_its_time_comes() {
    let script = then(taking(GROUP, "250 taken\r\n"), [Hear("QUIT"), Say("221 bye\r\n"), Closed]);
    let peer = Peer::start(vec![script]).await;
    let pool = PoolConfig { idle_timeout: Duration::from_millis(50), ..PoolConfig::default() };
    let transport = outbound(OutboundConfig { pool, ..config(25) }, None);
    transport.to_host(&peer.address.to_string(), Protocol::Smtp, &transfer(ONE)).await;
    peer.finish().await;
}

/// What a peer may do to an idle connection, and that the next message does not suffer from it.
async fn after_idling(farewell: Vec<Step>) {
    let first = then(taking(GROUP, "250 first\r\n"), farewell);
    let peer = Peer::start(vec![first, taking(GROUP, "250 second\r\n")]).await;
    let transport = outbound(config(25), None);
    for reply in ["delivered: 250 first", "delivered: 250 second"] {
        let outcomes = transport.to_host(&peer.address.to_string(), Protocol::Smtp, &transfer(ONE)).await;
        assert_eq!(summary(&outcomes), [reply]);
    }
    peer.finish().await;
}

#[tokio::test]
async fn an_idle_connection_that_died_is_replaced() {
    after_idling(vec![Hangup]).await;
    after_idling(vec![Say("421 4.4.2 idle too long\r\n"), Hangup]).await;
    // Seen only when the next message is offered.
    after_idling(vec![HearAtOnce(GROUP), Hangup]).await;
    after_idling(vec![HearAtOnce(GROUP), Say("421 4.4.2 idle too long\r\n"), Hangup]).await;
}

#[tokio::test]
async fn probes_ask_and_send_nothing() {
    let sink = Sink::lmtp().await.unwrap();
    sink.reply_to_recipient("nobody@example.test", "550 5.1.1 no such user");
    sink.reply_to_recipient("later@example.test", "451 4.3.0 index is being rebuilt");
    let transport = outbound(config(25), None);
    let address = sink.address().to_string();
    let probe =
        async |recipient: &str| transport.probe(&address, Protocol::Lmtp, &recipient.parse().unwrap()).await;
    assert_eq!(probe("a@example.test").await, Probe::Exists);
    assert_eq!(probe("nobody@example.test").await, Probe::Unknown("550 5.1.1 no such user".to_owned()));
    let Probe::Unavailable(reason) = probe("later@example.test").await else { panic!("a reason") };
    assert_eq!(reason, "[127.0.0.1] put off RCPT TO: 451 4.3.0 index is being rebuilt");
    assert_eq!((sink.count(), sink.connections()), (0, 1));

    // The sender's refusal is no verdict on the recipient.
    sink.reply(Verb::Mail, "550 5.7.1 not you");
    assert!(matches!(probe("a@example.test").await, Probe::Unavailable(_)));
    drop(sink);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1)).to_string();
    let unreachable = transport.probe(&nobody, Protocol::Smtp, &"a@example.test".parse().unwrap()).await;
    assert_eq!(unreachable, Probe::Unavailable("[127.0.0.1] refused the connection on port 1".to_owned()));
}
