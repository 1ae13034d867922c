//! A client that dribbles is ended by the limits, with a 421, and does not hold others up.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::world::{FRIEND, HOSTED, World, at};
use testkit::smtp::Client;
use testkit::wait;
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread")]
async fn one_octet_now_and_then_is_not_enough() -> Result<()> {
    let world = World::new().await?;
    // The clock of the real limits is minutes; the same limits are set to seconds here.
    let extra = "edge: {command_timeout: 3s, data_timeout: 3s}\n";
    let (settings, _process) = world.start_all(|settings| settings.extra.push_str(extra)).await?;

    let mut slow = Client::connect(settings.mx).await?;
    let begin = Instant::now();
    let ended = wait::until_true("the server to end the session", Duration::from_secs(30), async || {
        sleep(Duration::from_millis(500)).await;
        slow.send_raw(b"E").await.is_err()
    });
    ended.await?;
    ensure!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());

    let message = world.friendly_message("quick-1").await?;
    let reply = Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    Ok(())
}
