//! Redis dies with its disk in the middle of 500 messages whose contents lie in a folder: what was answered 250
//! is in the folder, and `packetboat queue rebuild` brings it back while the services go on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Cluster;
use packetboat_tests::load::{Load, wait_for_balance};
use packetboat_tests::world::{HOSTED, PLAIN, World, at};
use testkit::ledger::Ledger;

#[tokio::test(flavor = "multi_thread")]
async fn losing_redis_with_its_disk_loses_nothing() -> Result<()> {
    let world = World::new().await?;
    let spool = world.site.path().join("spool");
    let url = format!("file://{}", spool.display());
    let mut cluster = Cluster::start(&world, |settings| settings.spool = Some(url.clone())).await?;
    let targets = [cluster.rows[0].edge.0.mx, cluster.rows[1].edge.0.mx];

    let ledger = Arc::new(Ledger::new());
    let load = Load::of_500(&targets, &at("dave", PLAIN), &at("alice", HOSTED)).start(&ledger);
    load.wait_until_accepted(100).await?;
    cluster.redis.kill9().await?;
    ensure!(load.accepted() < 500, "the loss was to come in the middle");
    cluster.redis.lose_data()?;
    cluster.redis.restart().await?;
    load.finish().await?;

    let settings = &cluster.rows[0].delivery.0;
    let rebuilt = world.site.run(settings, &["queue", "rebuild", "--merge"]).await?;
    let (told, failed) = (String::from_utf8_lossy(&rebuilt.stdout), String::from_utf8_lossy(&rebuilt.stderr));
    ensure!(rebuilt.status.success(), "{told}{failed}");
    println!("{told}");

    let limit = Duration::from_secs(120);
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), limit).await?;
    println!("{balance}");
    ensure!(balance.accepted == 500, "{balance}");
    Ok(())
}
