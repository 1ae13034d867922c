//! Which command may come when, and what pipelining allows.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;

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
async fn nothing_may_follow_data_or_starttls_before_their_answers() -> Result<()> {
    let site = Site::start().await?;
    for last in ["DATA\r\nSubject: x\r\n\r\ny\r\n.\r\n", "STARTTLS\r\nNOOP\r\n"] {
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
    client.expect(221, "QUIT").await?;
    client.wait_for_close(PATIENCE).await
}

#[tokio::test]
async fn tls_begins_anew() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    client.starttls().await?;
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    client.expect(503, "STARTTLS").await?;
    client.expect(250, "RCPT TO:<x@strict.test>").await?;
    client.expect(354, "DATA").await?;
    ensure!(client.content("Subject: x\r\n\r\ny\r\n").await?.code == 250);
    let prepend = String::from_utf8(site.only_stored()?.commit.prepend.to_vec())?;
    ensure!(prepend.contains("with ESMTPS id"), "{prepend}");
    Ok(())
}
