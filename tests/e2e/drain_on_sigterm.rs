//! SIGTERM in the middle of a transaction: it ends in order, new connections are turned away, exit code 0.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, World};
use testkit::smtp::Client;
use testkit::wait;

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_breaks_no_transaction() -> Result<()> {
    let world = World::new().await?;
    let (settings, mut process) = world.start_all(|_| {}).await?;
    let message = world.friendly_message("drain-1").await?;
    let (first, second) = message.split_at(message.len() / 2);

    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO mail.friend.test").await?;
    client.expect(250, "MAIL FROM:<dave@friend.test>").await?;
    client.expect(250, "RCPT TO:<alice@packetboat.test>").await?;
    client.expect(354, "DATA").await?;
    client.send_raw(first.as_bytes()).await?;
    process.signal_terminate()?;
    let refused = async || Client::connect(settings.mx).await.is_err();
    wait::until_true("new connections to be turned away", Duration::from_secs(10), refused).await?;
    ensure!(process.get("/readyz").await.map_or(503, |(status, _)| status) == 503, "not ready any more");

    let reply = client.content(second).await?;
    ensure!(reply.code == 250, "{reply}");
    client.wait_for_close(Duration::from_secs(20)).await?;
    let status = process.wait(Duration::from_secs(30)).await?;
    ensure!(status.success(), "{status}: {}", process.log());

    // It was delivered before the end or is in the queue: the next start finds it.
    let _process = world.site.start(&settings).await?;
    world.mailbox("alice").wait_for("drain-1", ARRIVAL).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_is_told_and_the_process_ends() -> Result<()> {
    let world = World::new().await?;
    let (settings, mut process) = world.start_all(|_| {}).await?;
    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO mail.friend.test").await?;
    process.signal_terminate()?;
    client.expect_reply(421).await?;
    let status = process.wait(Duration::from_secs(30)).await?;
    ensure!(status.success(), "{status}: {}", process.log());
    Ok(())
}
