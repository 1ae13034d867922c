//! A message of 50 MiB passes, and the edge never holds more than 64 MiB: 16 of its program, and 48 besides.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{FRIEND, HOSTED, World, at};
use testkit::corpus::Message;
use testkit::redis::RedisServer;
use testkit::smtp::Client;

const SIZE: usize = 50 << 20;
/// Besides the pages of its program.
const LIMIT: u64 = 48 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_streams_through_the_edge() -> Result<()> {
    let world = World::new().await?;
    let redis = RedisServer::start().await?;
    let row = Row::start(&world, &redis, "a", &|_| {}).await?;

    let (dave, alice) = (at("dave", FRIEND), at("alice", HOSTED));
    let message = Message::new(&dave, &alice, "large-1").padded_to(SIZE).text();
    let mut client = Client::connect(row.edge.0.mx).await?.patience(Duration::from_secs(120));
    client.expect(250, "EHLO mail.friend.test").await?;
    let reply = client.transaction(&dave, &[&alice], &message).await?;
    ensure!(reply.code == 250, "{reply}");

    let arrived = world.mailbox("alice").wait_for_count(1, Duration::from_secs(60)).await?;
    ensure!(
        arrived[0].ends_with(message.split_once("\r\n\r\n").map_or("", |(_, body)| body).as_bytes()),
        "the body is whole"
    );
    let peak = row.edge.1.child().peak_memory()?;
    println!("the edge had at most {} MiB resident", peak >> 20);
    ensure!(peak < LIMIT, "the edge had {} MiB resident", peak >> 20);
    Ok(())
}
