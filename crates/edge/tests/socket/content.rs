//! What becomes of a message's content.

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::ErrorCode;
use testkit::smtp::Client;
use testkit::wait;

use crate::services::Says;
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
    ensure!(reply.text().ends_with(&format!("queued as {}", stored.begin.queue_id)), "{reply}");
    Ok(())
}

#[tokio::test]
async fn no_line_end_but_crlf_ends_a_message() -> Result<()> {
    let ends: [&[u8]; 9] = [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\n.\r\0\n",
        b"\r\n\0.\r\n",
        b"\n.\r",
    ];
    for end in ends {
        let site = Site::start().await?;
        let mut client = site.in_data().await?;
        let smuggled =
            b"MAIL FROM:<evil@there.test>\r\nRCPT TO:<bob@here.test>\r\nDATA\r\nfrom evil\r\n.\r\n";
        client.send_raw(&[b"Subject: x\r\n\r\nbody".as_slice(), end, smuggled].concat()).await?;
        client.expect_reply(554).await?;
        client.expect(250, "NOOP").await?;
        ensure!(site.stored().is_empty(), "{end:?} let something through");
    }
    Ok(())
}

#[tokio::test]
async fn a_rejected_message_is_never_committed() -> Result<()> {
    let site = Site::start().await?;
    *site.verifier.says.lock().unwrap() = Says::Reject;
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
    for says in [Says::Fails, Says::Hangs] {
        *site.verifier.says.lock().unwrap() = says;
        let reply = site.in_data().await?.content(MESSAGE).await?;
        ensure!(reply.code == 451, "{reply}");
    }
    *site.verifier.says.lock().unwrap() = Says::Deliver;
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
