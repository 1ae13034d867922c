//! A delivery service dies in the middle of 500 messages; the other takes over what it had leased.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Cluster;
use packetboat_tests::load::{Load, wait_for_balance};
use packetboat_tests::world::{HOSTED, PLAIN, World, at};
use testkit::ledger::Ledger;

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_delivery_service_loses_nothing() -> Result<()> {
    let world = World::new().await?;
    let mut cluster = Cluster::start(&world, |_| {}).await?;
    let targets = [cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx];

    let ledger = Arc::new(Ledger::new());
    let load = Load::of_500(&targets, &at("dave", PLAIN), &at("alice", HOSTED)).start(&ledger);
    load.wait_until_accepted(100).await?;
    cluster.rows[0].delivery.1.kill9().await?;
    ensure!(load.accepted() < 500, "the kill was to come in the middle");
    load.finish().await?;

    let limit = Duration::from_secs(120);
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), limit).await?;
    println!("{balance}");
    ensure!(balance.accepted == 500, "{balance}");
    Ok(())
}
