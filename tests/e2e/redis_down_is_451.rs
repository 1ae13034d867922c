//! While Redis is down mail is put off with 451, and taken again when it is back, without a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use testkit::redis::RedisServer;
use testkit::smtp::Client;
use testkit::wait;

#[tokio::test(flavor = "multi_thread")]
async fn no_store_no_250() -> Result<()> {
    let world = World::new().await?;
    let mut redis = RedisServer::start().await?;
    let row = Row::start(&world, &redis, "a", &|_| {}).await?;
    let (dave, alice) = (at("dave", FRIEND), at("alice", HOSTED));

    redis.stop().await?;
    let message = world.friendly_message("down-1").await?;
    let reply = Client::deliver(row.edge.0.mx, &dave, &[&alice], &message).await?;
    ensure!(reply.code == 451 && reply.text().starts_with("4."), "{reply}");

    redis.restart().await?;
    let taken = async || {
        let reply = Client::deliver(row.edge.0.mx, &dave, &[&alice], &message).await;
        reply.is_ok_and(|reply| reply.code == 250)
    };
    wait::until_true("mail to be taken again", Duration::from_secs(30), taken).await?;
    world.mailbox("alice").wait_for("down-1", ARRIVAL).await?;
    Ok(())
}
