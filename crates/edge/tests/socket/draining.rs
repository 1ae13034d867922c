//! Shutting down: who is idle is sent away, who is in a transaction may finish it.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;
use testkit::wait;

use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_transaction_is_finished_before_the_end() -> Result<()> {
    let site = Site::start().await?;
    let mut idle = site.client().await?;
    let mut busy = site.client().await?;
    busy.expect(250, "MAIL FROM:<a@there.test>").await?;
    let mut halfway = site.in_data().await?;
    halfway.send_raw(b"Subject: x\r\n").await?;
    site.stop.cancel();
    let reply = idle.expect_reply(421).await?;
    ensure!(reply.text().starts_with("4.3.2 "), "{reply}");
    idle.wait_for_close(PATIENCE).await?;
    busy.expect(250, "RCPT TO:<alice@here.test>").await?;
    busy.expect(354, "DATA").await?;
    for mut client in [busy, halfway] {
        let reply = client.content("\r\nend\r\n").await?;
        ensure!(reply.code == 250, "{reply}");
        client.expect_reply(421).await?;
        client.wait_for_close(PATIENCE).await?;
    }
    ensure!(site.stored().len() == 2);
    wait::until_true("the port to be closed", PATIENCE, async || Client::open(site.mx).await.is_err()).await
}

#[tokio::test]
async fn a_transaction_that_does_not_end_is_cut_off() -> Result<()> {
    let site = Site::with(|limits| limits.drain = Duration::from_millis(200)).await?;
    let mut client = site.in_data().await?;
    client.send_raw(b"Subject: x\r\n").await?;
    site.stop.cancel();
    client.wait_for_close(PATIENCE).await?;
    wait::until_true("the stream to be abandoned", PATIENCE, async || {
        *site.delivery.abandoned.lock().unwrap() == 1
    })
    .await?;
    ensure!(site.stored().is_empty());
    Ok(())
}
