//! Each limit answers with a reply that says so.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;
use testkit::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_long_line_is_refused_and_the_session_goes_on() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    // RFC 5321 §4.5.3.1.4: 512 octets with the CRLF.
    client.expect(250, &format!("NOOP {}", "x".repeat(505))).await?;
    client.expect(500, &format!("NOOP {}", "x".repeat(506))).await?;
    client.expect(500, &"y".repeat(100_000)).await?;
    client.expect(500, &format!("{}QUIT", "z".repeat(4096))).await?;
    client.expect(250, "NOOP").await?;
    let long = format!("{}@{}", "a".repeat(64), ["b".repeat(60), "c".repeat(60), "d".repeat(60)].join("."));
    client
        .expect(250, &format!("MAIL FROM:<{long}> SIZE=1000 BODY=8BITMIME AUTH={}", "e".repeat(500)))
        .await?;
    client.expect(500, &format!("RCPT TO:<alice@here.test> {}", "f".repeat(2048))).await?;
    client.expect(250, "RCPT TO:<alice@here.test>").await?;
    Ok(())
}

#[tokio::test]
async fn a_line_without_end_is_ended() -> Result<()> {
    let site = Site::with(|limits| limits.command_timeout = Duration::from_millis(300)).await?;
    let (mut from, mut to) = TcpStream::connect(site.submission).await?.into_split();
    let flood = tokio::spawn(async move { while to.write_all(&[b'x'; 16 * 1024]).await.is_ok() {} });
    let mut said = Vec::new();
    // What is left of the flood resets the connection.
    let _ = timeout(PATIENCE, from.read_to_end(&mut said)).await?;
    flood.await?;
    let said = String::from_utf8(said)?;
    ensure!(said.contains("\r\n421 4.4.2 "), "{said}");
    Ok(())
}

#[tokio::test]
async fn too_many_errors_end_the_session() -> Result<()> {
    let site = Site::with(|limits| limits.max_errors = 3).await?;
    let mut client = site.client().await?;
    for _ in 0..3 {
        client.expect(500, "WIZ").await?;
    }
    client.expect_reply(421).await?;
    client.wait_for_close(PATIENCE).await
}

#[tokio::test]
async fn recipients_are_limited() -> Result<()> {
    let site = Site::with(|limits| limits.max_recipients = 1).await?;
    let mut client = site.client().await?;
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    client.expect(250, "RCPT TO:<alice@here.test>").await?;
    let reply = client.expect(452, "RCPT TO:<bob@here.test>").await?;
    ensure!(reply.text().starts_with("4.5.3 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn sessions_are_limited_and_places_given_back() -> Result<()> {
    let by_client = Site::with(|limits| limits.max_sessions_per_client = 1).await?;
    let in_all = Site::with(|limits| limits.max_sessions = 1).await?;
    for site in [by_client, in_all] {
        let mut first = site.client().await?;
        // All listeners count together.
        for address in [site.mx, site.submission] {
            let mut second = Client::open(address).await?;
            let reply = second.expect_reply(421).await?;
            ensure!(reply.text().starts_with("4.3.2 "), "{reply}");
            second.wait_for_close(PATIENCE).await?;
        }
        first.expect(221, "QUIT").await?;
        first.wait_for_close(PATIENCE).await?;
        wait::until_true("the place to be free", PATIENCE, async || site.client().await.is_ok()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_stalls_is_ended() -> Result<()> {
    let site = Site::with(|limits| limits.data_timeout = Duration::from_millis(300)).await?;
    let mut client = site.in_data().await?;
    client.send_raw(b"Subject: slow\r\n").await?;
    client.expect_reply(421).await?;
    client.wait_for_close(PATIENCE).await?;
    ensure!(site.stored().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_message_that_takes_too_long_in_all_is_ended() -> Result<()> {
    let site = Site::with(|limits| limits.message_timeout = Duration::from_millis(300)).await?;
    let mut client = site.in_data().await?;
    client.send_raw(b"Subject: slow\r\n").await?;
    client.expect_reply(421).await?;
    client.wait_for_close(PATIENCE).await?;
    ensure!(site.stored().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_old_session_is_ended_between_transactions() -> Result<()> {
    let site = Site::with(|limits| limits.session_timeout = Duration::from_millis(500)).await?;
    let mut client = site.client().await?;
    client.expect_reply(421).await?;
    client.wait_for_close(PATIENCE).await
}

#[tokio::test]
async fn an_open_transaction_keeps_no_session_for_ever() -> Result<()> {
    let site = Site::with(|limits| {
        limits.session_timeout = Duration::from_millis(500);
        limits.command_timeout = Duration::from_millis(500);
    })
    .await?;
    let mut client = site.client().await?;
    client.expect(250, "MAIL FROM:<a@there.test>").await?;
    wait::until_true("421", PATIENCE, async || {
        client.command("NOOP").await.is_ok_and(|reply| reply.code == 421)
    })
    .await?;
    client.wait_for_close(PATIENCE).await
}
