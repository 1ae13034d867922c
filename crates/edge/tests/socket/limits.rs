//! Each limit answers with a reply that says so.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;

use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_long_line_is_refused_and_the_session_goes_on() -> Result<()> {
    let site = Site::start().await?;
    let mut client = site.client().await?;
    client.expect(500, &format!("NOOP {}", "x".repeat(600))).await?;
    client.expect(500, &"y".repeat(100_000)).await?;
    client.expect(250, "NOOP").await?;
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
    let site = Site::with(|limits| limits.max_sessions_per_client = 1).await?;
    let mut first = site.client().await?;
    let mut second = Client::open(site.mx).await?;
    second.expect_reply(421).await?;
    second.wait_for_close(PATIENCE).await?;
    first.expect(221, "QUIT").await?;
    first.wait_for_close(PATIENCE).await?;
    testkit::wait::until_true("the place to be free", PATIENCE, async || site.client().await.is_ok()).await
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
async fn an_old_session_is_ended_between_transactions() -> Result<()> {
    let site = Site::with(|limits| limits.session_timeout = Duration::from_millis(500)).await?;
    let mut client = site.client().await?;
    client.expect_reply(421).await?;
    client.wait_for_close(PATIENCE).await
}
