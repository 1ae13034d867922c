//! With its collector away a process carries mail all the same, counts what it could not export, and says so once; when
//! the collector is there, it says that, too.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use testkit::net;
use testkit::otlp::Drain;
use testkit::smtp::Client;
use testkit::wait;

const TROUBLE: &str = "telemetry is not exported";

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_without_a_collector() -> Result<()> {
    let world = World::new().await?;
    let collector = net::free_address()?;
    let (settings, process) = world
        .start_all(|settings| {
            settings.extra.push_str(&format!("telemetry: {{otlp: \"http://{collector}\"}}\n"));
        })
        .await?;
    let carry = async |id: &str| -> Result<()> {
        let message = world.friendly_message(id).await?;
        let reply =
            Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
        ensure!(reply.code == 250, "{reply}");
        world.mailbox("alice").wait_for(id, ARRIVAL).await.map(drop)
    };
    for round in 1..=2 {
        carry(&format!("untold-{round}")).await?;
        let counted = async || {
            let failures = process.metric("packetboat_telemetry_export_failures_total").await;
            failures.is_ok_and(|failures| failures >= f64::from(round))
        };
        wait::until_true("a failure to be counted", ARRIVAL, counted).await?;
    }
    ensure!(process.log().matches(TROUBLE).count() == 1, "{}", process.log());

    let drain = Drain::start_at(collector).await?;
    carry("told").await?;
    let told = async || process.log().contains("telemetry is exported again");
    wait::until_true("the log to say that spans are taken", ARRIVAL, told).await?;
    ensure!(drain.taken() > 0);
    Ok(())
}
