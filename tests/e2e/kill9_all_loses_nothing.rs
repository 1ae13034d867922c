//! The one process of a small site dies in the middle of 500 messages and is started again: what was
//! answered 250 is in its embedded queue.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::load::{Load, wait_for_balance};
use packetboat_tests::world::{HOSTED, PLAIN, World, at};
use testkit::ledger::Ledger;

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_only_process_loses_nothing() -> Result<()> {
    let world = World::new().await?;
    let (settings, mut process) = world.start_all(|_| {}).await?;

    let ledger = Arc::new(Ledger::new());
    let load = Load::of_500(&[settings.mx], &at("dave", PLAIN), &at("alice", HOSTED)).start(&ledger);
    load.wait_until_accepted(100).await?;
    process.kill9().await?;
    ensure!(load.accepted() < 500, "the kill was to come in the middle");
    let _process = world.site.start(&settings).await?;
    load.finish().await?;

    let limit = Duration::from_secs(120);
    let balance = wait_for_balance(&ledger, &world.mailbox("alice"), &world.mailbox("dave"), limit).await?;
    println!("{balance}");
    ensure!(balance.accepted == 500, "{balance}");
    Ok(())
}
