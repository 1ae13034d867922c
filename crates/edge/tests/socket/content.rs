//! What becomes of a message's content.

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::{Disposition, ErrorCode};
use testkit::smtp::Client;
use testkit::wait;

use crate::services::{CUT, Says};
use crate::site::Site;

const MESSAGE: &str = "From: a@there.test\r\nSubject: hi\r\n\r\n..dots\r\nbody\r\n";

#[tokio::test]
async fn a_message_is_committed_with_its_checksum_and_trace_fields() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.in_data().await?;
    client.send_raw(b"From: a@there.test\r\nSubject: hi\r\n\r\n..dots\r\nbody\r\n.\r\n").await?;
    let reply = client.expect_reply(250).await?;
    let stored = site.only_stored()?;
    ensure!(stored.content == b"From: a@there.test\r\nSubject: hi\r\n\r\n.dots\r\nbody\r\n");
    let prepend = String::from_utf8(stored.commit.prepend.to_vec())?;
    ensure!(prepend.starts_with("Authentication-Results: mx.test; none\r\nReceived: from client.test"));
    ensure!(prepend.contains("for <alice@here.test>") && prepend.contains("with ESMTP id"), "{prepend}");
    ensure!(stored.commit.cuts == [CUT] && stored.commit.disposition() == Disposition::Deliver);
    let ends = site.verifier.ends.lock().unwrap().clone();
    ensure!(ends.len() == 1 && ends[0].size == stored.commit.size && ends[0].sha256 == stored.commit.sha256);
    ensure!(reply.text().ends_with(&format!("queued as {}", stored.begin.queue_id)), "{reply}");
    Ok(())
}

#[tokio::test]
async fn a_rejected_message_is_never_committed() -> Result<()> {
    let site = Site::start().await?;
    site.verifier.verdict(Disposition::Reject, Some((550, "5.7.1", "No, by policy")));
    let mut client = site.in_data().await?;
    let reply = client.content(MESSAGE).await?;
    ensure!(reply.code == 550 && reply.text() == "5.7.1 No, by policy", "{reply}");
    ensure!(site.stored().is_empty());
    wait::until_true("the stream to be abandoned", Duration::from_secs(10), async || {
        *site.delivery.abandoned.lock().unwrap() == 1
    })
    .await?;
    let reply = client.transaction("a@there.test", &["alice@here.test"], MESSAGE).await?;
    ensure!(reply.code == 550, "the session goes on: {reply}");
    Ok(())
}

#[tokio::test]
async fn a_service_that_fails_makes_a_temporary_failure() -> Result<()> {
    let site = Site::with(|limits| limits.service_timeout = Duration::from_secs(1)).await?;
    for says in [Says::Fails, Says::Hangs, Says::Panics] {
        *site.verifier.says.lock().unwrap() = says;
        let reply = site.in_data().await?.content(MESSAGE).await?;
        ensure!(reply.code == 451, "{reply}");
    }
    site.verifier.verdict(Disposition::Deliver, None);
    for (code, expected) in [(ErrorCode::Unavailable, 451), (ErrorCode::ResourceExhausted, 452)] {
        *site.delivery.fails.lock().unwrap() = Some(code);
        let reply = site.in_data().await?.content(MESSAGE).await?;
        ensure!(reply.code == expected, "{reply}");
    }
    ensure!(site.stored().is_empty());
    *site.delivery.fails.lock().unwrap() = None;
    ensure!(site.in_data().await?.content(MESSAGE).await?.code == 250);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.in_data().await?;
    client.send_raw(b"Subject: half\r\n").await?;
    drop(client);
    wait::until_true("the stream to be abandoned", Duration::from_secs(10), async || {
        *site.delivery.abandoned.lock().unwrap() == 1
    })
    .await?;
    ensure!(site.stored().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_loop_is_broken() -> Result<()> {
    let site = Site::with(|limits| limits.max_hops = 5).await?;
    let looped = format!("{}{MESSAGE}", "Received: from x\r\n".repeat(6));
    let reply = Client::deliver(site.mx, "a@there.test", &["alice@here.test"], &looped).await?;
    ensure!(reply.code == 554 && reply.text().starts_with("5.4.6 "), "{reply}");
    let near = format!("{}{MESSAGE}", "Received: from x\r\n".repeat(5));
    let reply = Client::deliver(site.mx, "a@there.test", &["alice@here.test"], &near).await?;
    ensure!(reply.code == 250, "{reply}");
    Ok(())
}

#[tokio::test]
async fn a_verdict_becomes_one_reply_of_its_class() -> Result<()> {
    let site = Site::start().await?;
    for (disposition, reply, expected) in [
        (Disposition::Reject, None, "550 5.7.1 The message is refused by policy"),
        (Disposition::Defer, None, "451 4.7.0 The message is refused by policy"),
        (Disposition::Defer, Some((450, "4.7.1", "Later")), "450 4.7.1 Later"),
        (Disposition::Reject, Some((250, "5.7.26", "No")), "550 5.7.26 No"),
        (Disposition::Reject, Some((554, "no code", "No\r\n250 Ok")), "554 5.7.1 No??250 Ok"),
        (Disposition::Unspecified, None, "451 4.3.0 The message cannot be taken now, try again later"),
    ] {
        site.verifier.verdict(disposition, reply);
        let mut client = site.in_data().await?;
        let reply = client.content(MESSAGE).await?;
        ensure!(reply.to_string() == expected, "{reply}, not {expected}");
        client.expect(250, "NOOP").await?;
    }
    ensure!(site.stored().is_empty());
    site.verifier.verdict(Disposition::Quarantine, None);
    ensure!(site.in_data().await?.content(MESSAGE).await?.code == 250);
    ensure!(site.only_stored()?.commit.disposition() == Disposition::Quarantine);
    Ok(())
}

#[tokio::test]
async fn a_large_message_streams_through_unchanged() -> Result<()> {
    let site = Site::start().await?;
    let message = format!("Subject: large\r\n\r\n{}", ".a line that begins with a dot\r\n".repeat(30_000));
    let mut client = site.client().await?;
    client.expect(250, &format!("MAIL FROM:<a@there.test> SIZE={}", message.len())).await?;
    client.expect(250, "RCPT TO:<x@open.test>").await?;
    client.expect(354, "DATA").await?;
    let reply = client.content(&message).await?;
    ensure!(reply.code == 250, "{reply}");
    let stored = site.only_stored()?;
    ensure!(stored.content == message.as_bytes() && stored.begin.declared_size == message.len() as u64);
    Ok(())
}

#[tokio::test]
async fn our_trace_field_is_ascii_unless_the_client_asked_for_more() -> Result<()> {
    let site = Site::start().await?;
    let forms = [("", "b?cher.test", "ESMTP"), (" SMTPUTF8", "b\u{fc}cher.test", "UTF8SMTP")];
    for (parameter, name, with) in forms {
        let mut client = Client::connect(site.mx).await?;
        client.expect(250, "EHLO b\u{fc}cher.test").await?;
        client.expect(250, &format!("MAIL FROM:<a@there.test>{parameter}")).await?;
        client.expect(250, "RCPT TO:<alice@here.test>").await?;
        client.expect(354, "DATA").await?;
        ensure!(client.content(MESSAGE).await?.code == 250);
        let stored = site.stored().pop().unwrap();
        let prepend = String::from_utf8(stored.commit.prepend.to_vec())?;
        ensure!(prepend.contains(&format!("Received: from {name} (")), "{prepend}");
        ensure!(prepend.contains(&format!("with {with} id")), "{prepend}");
    }
    Ok(())
}
