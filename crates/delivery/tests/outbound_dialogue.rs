//! One next hop: what each reply, and each loss, at each step of the dialogue comes to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use delivery::outbound::{OutboundConfig, Protocol};
use delivery::transfer::{RecipientOutcome, Transfer};
use support::*;

const ONE: &[&str] = &["a@example.test"];
const TWO: &[&str] = &["a@example.test", "b@example.test"];
const GROUP: &str = "MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<a@example.test>\r\nDATA\r\n";
const GROUP_TWO: &str = "MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<a@example.test>\r\n\
                         RCPT TO:<b@example.test>\r\nDATA\r\n";

/// Offers the transfer to a peer that opens with `keywords` and goes on with `rest`.
async fn offer(keywords: &'static str, rest: Vec<Step>, transfer: &Transfer) -> Vec<RecipientOutcome> {
    let script = opening(keywords).into_iter().chain(rest).collect();
    offer_to(vec![script], Protocol::Smtp, transfer).await
}

async fn offer_to(scripts: Vec<Vec<Step>>, protocol: Protocol, transfer: &Transfer) -> Vec<RecipientOutcome> {
    let peer = Peer::start(scripts).await;
    let address = peer.address.to_string();
    let outcomes = outbound(unpooled(25), None).to_host(&address, protocol, transfer).await;
    peer.finish().await;
    outcomes
}

fn one(outcomes: Vec<RecipientOutcome>) -> String {
    let mut lines = summary(&outcomes);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[tokio::test]
async fn without_pipelining_every_command_waits_for_its_reply() {
    let rest = vec![
        Hear("MAIL FROM:<sender@us.test>"),
        Say("250 2.1.0 ok\r\n"),
        Hear("RCPT TO:<a@example.test>"),
        Say("250 2.1.5 ok\r\n"),
        Hear("RCPT TO:<b@example.test>"),
        Say("251 will forward\r\n"),
        Hear("DATA"),
        Say("354 go\r\n"),
        HearContent(STUFFED),
        Say("250 2.0.0 taken as 1\r\n"),
        Closed,
    ];
    let outcomes = offer(PLAIN, rest, &transfer(TWO)).await;
    assert_eq!(summary(&outcomes), ["delivered: 250 2.0.0 taken as 1"; 2]);
    let RecipientOutcome::Delivered { by, .. } = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(by, "[127.0.0.1]");
}

#[tokio::test]
async fn with_pipelining_the_envelope_goes_out_at_once() {
    let rest = vec![
        HearAtOnce(GROUP_TWO),
        Say("250 ok\r\n250 ok\r\n550 5.1.1 no such user\r\n354 go\r\n"),
        HearAtOnce(STUFFED),
        Say("250 2.0.0 taken\r\n"),
        Closed,
    ];
    let outcomes = offer(PIPELINING, rest, &transfer(TWO)).await;
    let lines = summary(&outcomes);
    assert_eq!(lines[0], "delivered: 250 2.0.0 taken");
    assert_eq!(lines[1], "failed 5.1.1: [127.0.0.1] refused RCPT TO: 550 5.1.1 no such user");
    let RecipientOutcome::Failed(failure) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(failure.reply.as_deref(), Some("550 5.1.1 no such user"));
    assert_eq!(failure.remote_mta.as_deref(), Some("[127.0.0.1]"));
}

#[tokio::test]
async fn a_peer_that_knows_no_ehlo_is_greeted_with_helo() {
    let script = vec![
        Say("220-peer.test\r\n220 at your service\r\n"),
        Hear("EHLO mx.us.test"),
        Say("502 what?\r\n"),
        Hear("HELO mx.us.test"),
        Say("250 peer.test\r\n"),
        Hear("MAIL FROM:<sender@us.test>"),
        Say("250 ok\r\n"),
        Hear("RCPT TO:<a@example.test>"),
        Say("250 ok\r\n"),
        Hear("DATA"),
        Say("354 go\r\n"),
        HearContent(STUFFED),
        Say("250 taken\r\n"),
    ];
    let outcomes = offer_to(vec![script], Protocol::Smtp, &transfer(ONE)).await;
    assert_eq!(one(outcomes), "delivered: 250 taken");
}

#[tokio::test]
async fn replies_to_the_greeting_and_ehlo_are_heeded() {
    let greeted = async |script: Vec<Step>| one(offer_to(vec![script], Protocol::Smtp, &transfer(ONE)).await);
    let line = greeted(vec![Say("421 4.3.2 shutting down\r\n"), Closed]).await;
    assert_eq!(line, "deferred 4.3.2: [127.0.0.1] put off the connection: 421 4.3.2 shutting down");
    let line = greeted(vec![Say("521 5.3.2 no mail here\r\n"), Closed]).await;
    assert_eq!(line, "failed 5.3.2: [127.0.0.1] refused the connection: 521 5.3.2 no mail here");
    let line = greeted(vec![Say("220 hi\r\n"), Hear("EHLO mx.us.test"), Say("451 later\r\n"), Closed]).await;
    assert_eq!(line, "deferred 4.0.0: [127.0.0.1] put off EHLO: 451 later");
}

#[tokio::test]
async fn replies_to_mail_are_heeded() {
    let mail = async |keywords, reply: &'static str, last: Vec<Step>| {
        let heard = if keywords == PLAIN { Hear("MAIL FROM:<sender@us.test>") } else { HearAtOnce(GROUP) };
        let rest = [heard, Say(reply)].into_iter().chain(last).collect();
        one(offer(keywords, rest, &transfer(ONE)).await)
    };
    let line = mail(PLAIN, "550 5.7.1 not you\r\n", vec![Closed]).await;
    assert_eq!(line, "failed 5.7.1: [127.0.0.1] refused MAIL FROM: 550 5.7.1 not you");
    let line = mail(PLAIN, "450 4.7.1 slow down\r\n", vec![Closed]).await;
    assert_eq!(line, "deferred 4.7.1: [127.0.0.1] put off MAIL FROM: 450 4.7.1 slow down");
    let replies = "550 5.7.1 not you\r\n503 no\r\n503 no\r\n";
    let line = mail(PIPELINING, replies, vec![Hear("RSET"), Say("250 ok\r\n"), Closed]).await;
    assert_eq!(line, "failed 5.7.1: [127.0.0.1] refused MAIL FROM: 550 5.7.1 not you");
    let line = mail(PIPELINING, "421 4.7.0 enough\r\n", vec![Closed]).await;
    assert_eq!(line, "deferred 4.7.0: [127.0.0.1] put off MAIL FROM: 421 4.7.0 enough");
}

#[tokio::test]
async fn replies_to_rcpt_and_data_are_heeded() {
    let pipelined = async |replies: &'static str, last: Vec<Step>| {
        let rest = [HearAtOnce(GROUP_TWO), Say(replies)].into_iter().chain(last).collect();
        summary(&offer(PIPELINING, rest, &transfer(TWO)).await)
    };
    let reset = || vec![Hear("RSET"), Say("250 ok\r\n"), Closed];

    let lines = pipelined("250 ok\r\n450 4.2.1 full\r\n550 5.1.1 who?\r\n554 no\r\n", reset()).await;
    assert_eq!(lines[0], "deferred 4.2.1: [127.0.0.1] put off RCPT TO: 450 4.2.1 full");
    assert_eq!(lines[1], "failed 5.1.1: [127.0.0.1] refused RCPT TO: 550 5.1.1 who?");

    let lines = pipelined("250 ok\r\n250 ok\r\n250 ok\r\n451 4.3.0 disk\r\n", reset()).await;
    assert_eq!(lines, ["deferred 4.3.0: [127.0.0.1] put off DATA: 451 4.3.0 disk"; 2]);

    let lines = pipelined("250 ok\r\n250 ok\r\n421 4.7.0 bye\r\n", vec![Closed]).await;
    assert_eq!(lines, ["deferred 4.7.0: [127.0.0.1] put off RCPT TO: 421 4.7.0 bye"; 2]);

    // A peer that wants content for nobody gets none.
    let rest = vec![Hear("."), Say("554 5.5.1 no recipients\r\n"), Closed];
    let lines = pipelined("250 ok\r\n550 5.1.1 who?\r\n550 5.1.1 who?\r\n354 go\r\n", rest).await;
    assert_eq!(lines, ["failed 5.1.1: [127.0.0.1] refused RCPT TO: 550 5.1.1 who?"; 2]);
}

#[tokio::test]
async fn whom_the_peer_has_no_room_for_goes_into_the_next_transaction() {
    let rest = vec![
        HearAtOnce(GROUP_TWO),
        Say("250 ok\r\n250 ok\r\n452 4.5.3 too many\r\n354 go\r\n"),
        HearContent(STUFFED),
        Say("250 first\r\n"),
        HearAtOnce("MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"),
        Say("250 ok\r\n250 ok\r\n354 go\r\n"),
        HearContent(STUFFED),
        Say("250 second\r\n"),
        Closed,
    ];
    let outcomes = offer(PIPELINING, rest, &transfer(TWO)).await;
    assert_eq!(summary(&outcomes), ["delivered: 250 first", "delivered: 250 second"]);
}

#[tokio::test]
async fn replies_to_the_content_are_heeded() {
    let content = async |reply: &'static str| {
        let rest = vec![
            HearAtOnce(GROUP),
            Say("250 ok\r\n250 ok\r\n354 go\r\n"),
            HearContent(STUFFED),
            Say(reply),
            Closed,
        ];
        one(offer(PIPELINING, rest, &transfer(ONE)).await)
    };
    let line = content("554 5.7.1 spam\r\n").await;
    assert_eq!(line, "failed 5.7.1: [127.0.0.1] refused the message: 554 5.7.1 spam");
    let line = content("451 4.3.0 disk\r\n").await;
    assert_eq!(line, "deferred 4.3.0: [127.0.0.1] put off the message: 451 4.3.0 disk");
    let line = content("250-2.6.0 several\r\n250 2.6.0 lines\r\n").await;
    assert!(line.starts_with("delivered: 250 2.6.0 several"), "{line}");
    let line = content("hello\r\n").await;
    assert!(
        line.starts_with("deferred 4.5.0") && line.ends_with("it may have taken the message all the same")
    );
}

#[tokio::test]
async fn a_lost_connection_is_temporary_wherever_it_happens() {
    let lost = async |rest: Vec<Step>| one(offer(PIPELINING, rest, &transfer(ONE)).await);
    let said = "closed the connection before it answered";
    let line = lost(vec![HearAtOnce(GROUP), Hangup]).await;
    assert_eq!(line, format!("deferred 4.4.2: [127.0.0.1] {said} MAIL FROM"));
    let line = lost(vec![HearAtOnce(GROUP), Say("250 ok\r\n250 ok\r\n"), Hangup]).await;
    assert_eq!(line, format!("deferred 4.4.2: [127.0.0.1] {said} DATA"));
    let go = Say("250 ok\r\n250 ok\r\n354 go\r\n");
    let line = lost(vec![HearAtOnce(GROUP), go, HearContent(STUFFED), Hangup]).await;
    let doubt = "it may have taken the message all the same";
    assert_eq!(line, format!("deferred 4.4.2: [127.0.0.1] {said} the message; {doubt}"));
}

#[tokio::test]
async fn silence_is_ended_by_the_deadlines() {
    let silent = async |script: Vec<Step>| one(offer_to(vec![script], Protocol::Smtp, &transfer(ONE)).await);
    let after =
        |rest: Vec<Step>| opening(PIPELINING).into_iter().chain(rest).chain([Hang]).collect::<Vec<_>>();
    let line = |stage: &str| format!("deferred 4.4.2: [127.0.0.1] did not answer {stage} within 0.3 s");
    assert_eq!(silent(vec![Hang]).await, line("the connection"));
    assert_eq!(silent(vec![Say("220 hi\r\n"), Hang]).await, line("EHLO"));
    assert_eq!(silent(after(vec![HearAtOnce(GROUP)])).await, line("MAIL FROM"));
    assert_eq!(silent(after(vec![HearAtOnce(GROUP), Say("250 ok\r\n")])).await, line("RCPT TO"));
    assert_eq!(silent(after(vec![HearAtOnce(GROUP), Say("250 ok\r\n250 ok\r\n")])).await, line("DATA"));
}

#[tokio::test]
async fn a_peer_that_stops_in_the_middle_of_the_content_has_not_taken_it() {
    let large: String = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(200_000);
    let message = transfer_of(&[&large], ONE);
    let go = "250 ok\r\n250 ok\r\n354 go\r\n";
    let group = "MAIL FROM:<sender@us.test>\r\nRCPT TO:<a@example.test>\r\nDATA\r\n";
    let keywords = "250-peer.test\r\n250 PIPELINING\r\n";
    let line = one(offer(keywords, vec![HearAtOnce(group), Say(go), Hangup], &message).await);
    assert!(line.starts_with("deferred 4.4.2: the connection to [127.0.0.1] broke at the message"), "{line}");

    // What it says before it stops listening counts.
    let full = Say("250 ok\r\n250 ok\r\n354 go\r\n552 5.2.2 mailbox full\r\n");
    let line = one(offer(keywords, vec![HearAtOnce(group), full, Hang], &message).await);
    assert_eq!(line, "failed 5.2.2: [127.0.0.1] refused the message: 552 5.2.2 mailbox full");
}

#[tokio::test]
async fn content_that_must_not_or_cannot_be_sent_never_gets_its_final_dot() {
    let go = || vec![HearAtOnce(GROUP), Say("250 ok\r\n250 ok\r\n354 go\r\n"), Hang];
    let mut bare = transfer_of(&["Subject: smuggled\r\n", "one\ntwo\r\n"], ONE);
    bare.size = 31;
    let line = one(offer(PIPELINING, go(), &bare).await);
    assert_eq!(line, "failed 5.6.0: the message holds a bare CR or LF, which cannot be sent");

    let line = one(offer(PIPELINING, go(), &unreadable_transfer(ONE)).await);
    assert_eq!(line, "deferred 4.3.0: this server could not read the message from its queue");

    let line = one(offer(PIPELINING, go(), &stale_transfer(ONE)).await);
    assert_eq!(line, "deferred 4.3.0: this server could not write to its queue");
}

#[tokio::test]
async fn a_peer_that_lacks_what_a_message_needs_is_not_sent_it() {
    let unfit = async |keywords, change: fn(&mut Transfer)| {
        let mut message = transfer(ONE);
        change(&mut message);
        one(offer(keywords, vec![Closed], &message).await)
    };
    let line = unfit(PLAIN, |message| message.eight_bit = true).await;
    assert_eq!(line, "failed 5.6.1: [127.0.0.1] does not take 8-bit content (no 8BITMIME)");
    let line = unfit(PLAIN, |message| message.smtputf8 = true).await;
    assert_eq!(line, "failed 5.6.7: [127.0.0.1] does not take internationalised mail (no SMTPUTF8)");
    let line = unfit(PIPELINING, |message| message.size = 1_000_001).await;
    let text = "takes messages of 1000000 octets at most, and this one has 1000001";
    assert_eq!(line, format!("failed 5.3.4: [127.0.0.1] {text}"));
}

#[tokio::test]
async fn a_peer_is_told_what_a_message_needs() {
    let mut message = transfer(&["jürgen@example.test"]);
    message.eight_bit = true;
    let rest = vec![
        HearAtOnce(
            "MAIL FROM:<sender@us.test> SIZE=31 BODY=8BITMIME SMTPUTF8\r\n\
             RCPT TO:<jürgen@example.test>\r\nDATA\r\n",
        ),
        Say("250 ok\r\n250 ok\r\n354 go\r\n"),
        HearContent(STUFFED),
        Say("250 taken\r\n"),
    ];
    assert_eq!(one(offer(PIPELINING, rest, &message).await), "delivered: 250 taken");
}

#[tokio::test]
async fn lmtp_answers_for_each_recipient() {
    let script = vec![
        Say("220 store\r\n"),
        Hear("LHLO mx.us.test"),
        Say("250-store\r\n250-PIPELINING\r\n250 SIZE\r\n"),
        Hear("MAIL FROM:<sender@us.test> SIZE=31"),
        Hear("RCPT TO:<a@example.test>"),
        Hear("RCPT TO:<b@example.test>"),
        Hear("RCPT TO:<c@example.test>"),
        Hear("RCPT TO:<d@example.test>"),
        Hear("DATA"),
        Say("250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n250 ok\r\n250 ok\r\n354 go\r\n"),
        HearContent(STUFFED),
        Say("250 2.0.0 stored\r\n452 4.2.2 over quota\r\n"),
        Hangup,
    ];
    let four = transfer(&["a@example.test", "b@example.test", "c@example.test", "d@example.test"]);
    let lines = summary(&offer_to(vec![script], Protocol::Lmtp, &four).await);
    assert_eq!(lines[0], "delivered: 250 2.0.0 stored");
    assert_eq!(lines[1], "failed 5.1.1: [127.0.0.1] refused RCPT TO: 550 5.1.1 who?");
    assert_eq!(lines[2], "deferred 4.2.2: [127.0.0.1] put off the message: 452 4.2.2 over quota");
    assert!(lines[3].ends_with("it may have taken the message all the same"), "{}", lines[3]);
}

#[tokio::test]
async fn many_recipients_go_in_several_transactions() {
    let turn = |group, reply| {
        [HearAtOnce(group), Say("250 ok\r\n250 ok\r\n354 go\r\n"), HearContent(STUFFED), Say(reply)]
    };
    let second = "MAIL FROM:<sender@us.test> SIZE=31\r\nRCPT TO:<b@example.test>\r\nDATA\r\n";
    let script = opening(PIPELINING)
        .into_iter()
        .chain(turn(GROUP, "250 first\r\n"))
        .chain(turn(second, "250 second\r\n"))
        .collect();
    let peer = Peer::start(vec![script]).await;
    let config = OutboundConfig { max_recipients: 1, ..unpooled(25) };
    let address = peer.address.to_string();
    let outcomes = outbound(config, None).to_host(&address, Protocol::Smtp, &transfer(TWO)).await;
    assert_eq!(summary(&outcomes), ["delivered: 250 first", "delivered: 250 second"]);
    peer.finish().await;
}

#[tokio::test]
async fn nobody_there_is_temporary_and_says_where() {
    let gone = Peer::start(Vec::new()).await;
    let address = gone.address;
    gone.finish().await;
    let transport = outbound(unpooled(25), None);
    let line = one(transport.to_host(&address.to_string(), Protocol::Smtp, &transfer(ONE)).await);
    let port = address.port();
    assert_eq!(line, format!("deferred 4.4.1: [127.0.0.1] refused the connection on port {port}"));
    let line = one(transport.to_host("no port here", Protocol::Smtp, &transfer(ONE)).await);
    assert!(line.starts_with("deferred 4.3.5: the next hop \"no port here\" is not HOST:PORT"), "{line}");
}
