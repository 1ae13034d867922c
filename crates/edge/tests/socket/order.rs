//! Which command may come when, and what pipelining allows.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_pipelined_group_is_answered_in_order() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    let group =
        "MAIL FROM:<a@there.test>\r\nRCPT TO:<nobody@here.test>\r\nRCPT TO:<alice@here.test>\r\nDATA\r\n";
    client.send_raw(group.as_bytes()).await?;
    for code in [250, 550, 250, 354] {
        client.expect_reply(code).await?;
    }
    ensure!(client.content("Subject: x\r\n\r\ny\r\n").await?.code == 250);
    ensure!(site.only_stored()?.begin.envelope.unwrap_or_default().forward_paths == ["alice@here.test"]);
    Ok(())
}

#[tokio::test]
async fn a_pipelined_group_is_answered_in_one_write() -> Result<()> {
    let site = Site::start().await?;
    let mut stream = TcpStream::connect(site.mx).await?;
    let mut said = [0; 4096];
    let mut exchange = async |group: &[u8]| -> Result<String> {
        stream.write_all(group).await?;
        let count = timeout(PATIENCE, stream.read(&mut said)).await??;
        Ok(String::from_utf8_lossy(&said[..count]).into_owned())
    };
    let codes = |replies: &str| -> Vec<String> {
        replies.lines().map(|line| line.get(..3).unwrap_or_default().to_owned()).collect()
    };
    ensure!(exchange(b"").await?.starts_with("220 "));
    ensure!(exchange(b"EHLO client.test\r\n").await?.contains("250-PIPELINING\r\n"));
    let group = b"RSET\r\nMAIL FROM:<a@there.test>\r\nRCPT TO:<alice@here.test>\r\nRCPT TO:<nobody@here.test>\r\nDATA\r\n";
    let replies = exchange(group).await?;
    ensure!(codes(&replies) == ["250", "250", "250", "550", "354"], "{replies}");
    // The content and what follows it are one group, too.
    let replies = exchange(b"Subject: x\r\n\r\ny\r\n.\r\nNOOP\r\nQUIT\r\n").await?;
    ensure!(codes(&replies) == ["250", "250", "221"], "{replies}");
    Ok(())
}

#[tokio::test]
async fn nothing_may_follow_what_must_be_answered_first() -> Result<()> {
    let site = Site::start().await?;
    let large = format!("DATA\r\n{}\r\n.\r\n", "Subject: x\r\n".repeat(10_000));
    for last in [
        "DATA\r\nSubject: x\r\n\r\ny\r\n.\r\n",
        "DATA\r\n.",
        &large,
        "STARTTLS\r\nNOOP\r\n",
        "STARTTLS\r\nNO",
        "EHLO again.test\r\nRSET\r\n",
    ] {
        let mut client = site.client().await?;
        client.expect(250, "MAIL FROM:<a@there.test>").await?;
        client.expect(250, "RCPT TO:<alice@here.test>").await?;
        if last.starts_with("STARTTLS") {
            client.expect(250, "RSET").await?;
        }
        client.send_raw(last.as_bytes()).await?;
        client.expect_reply(503).await?;
        client.wait_for_close(PATIENCE).await?;
    }
    ensure!(site.stored().is_empty());
    Ok(())
}

#[tokio::test]
async fn who_talks_before_the_greeting_is_refused() -> Result<()> {
    let site = Site::with(|limits| limits.greet_pause = PATIENCE).await?;
    let mut client = Client::open(site.mx).await?;
    client.send_raw(b"EHLO early.test\r\n").await?;
    client.expect_reply(554).await?;
    client.wait_for_close(PATIENCE).await
}

#[tokio::test]
async fn a_bare_line_feed_ends_the_session() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    client.send_raw(b"NOOP\nMAIL FROM:<a@there.test>\r\n").await?;
    client.expect_reply(500).await?;
    client.wait_for_close(PATIENCE).await
}

#[tokio::test]
async fn what_is_no_text_is_refused() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    for line in [&b"NOOP \x1b[2J\r\n"[..], b"NOOP\t\r\n", b"NOOP \xff\r\n", b"\x80\r\n", b"\r\n"] {
        client.send_raw(line).await?;
        client.expect_reply(500).await?;
    }
    for line in ["EHLO", "EHLO a b", "EHLO a(b)", "EHLO a;b", "HELO <a>", "MAIL FROM: a@b.test", "VRFY"] {
        client.expect(501, line).await?;
    }
    client.expect(250, "NOOP").await?;
    Ok(())
}

#[tokio::test]
async fn the_small_commands_are_answered() -> Result<()> {
    let site = Site::start().await?;
    let mut client = Client::connect(site.mx).await?;
    client.expect(503, "MAIL FROM:<a@there.test>").await?;
    let helo = client.expect(250, "HELO client.test").await?;
    ensure!(helo.lines == ["mx.test"], "no extensions after HELO: {helo}");
    client.expect(252, "VRFY alice").await?;
    client.expect(214, "HELP").await?;
    client.expect(250, "NOOP").await?;
    client.expect(500, "WIZ").await?;
    client.expect(502, "AUTH PLAIN AAAA").await?;
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    client.expect(250, "RSET").await?;
    client.expect(503, "RCPT TO:<alice@here.test>").await?;
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    client.expect(250, "RCPT TO:<alice@here.test>").await?;
    client.expect(354, "DATA").await?;
    ensure!(client.content("Subject: x\r\n\r\ny\r\n").await?.code == 250);
    let prepend = String::from_utf8(site.only_stored()?.commit.prepend.to_vec())?;
    ensure!(prepend.contains("with SMTP id"), "{prepend}");
    client.expect(221, "QUIT").await?;
    client.wait_for_close(PATIENCE).await
}

#[tokio::test]
async fn tls_begins_anew() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    client.expect(220, "STARTTLS").await?;
    client.secure().await?;
    client.expect(503, "MAIL FROM:<a@there.test>").await?;
    let offered = client.expect(250, "EHLO client.test").await?;
    ensure!(!offered.lines.iter().any(|line| line == "STARTTLS"), "{offered}");
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    client.expect(503, "STARTTLS").await?;
    client.expect(250, "RCPT TO:<x@strict.test>").await?;
    client.expect(354, "DATA").await?;
    ensure!(client.content("Subject: x\r\n\r\ny\r\n").await?.code == 250);
    let prepend = String::from_utf8(site.only_stored()?.commit.prepend.to_vec())?;
    ensure!(prepend.contains("with ESMTPS id"), "{prepend}");
    Ok(())
}
