//! Mail that fails a policy of `p=quarantine` is taken and filed under Junk.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, HOSTED, SHOP, World, at};
use testkit::corpus::{Message, header_of};
use testkit::smtp::Client;

#[tokio::test(flavor = "multi_thread")]
async fn quarantined_mail_goes_to_junk() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;

    let (sender, alice) = (at("offers", SHOP), at("alice", HOSTED));
    let message = Message::new(&sender, &alice, "junk-1").text();
    let reply = Client::deliver(settings.mx, &sender, &[&alice], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = world.mailbox("alice").junk().wait_for("junk-1", ARRIVAL).await?;
    let results = header_of(&arrived, "Authentication-Results").unwrap_or_default();
    ensure!(results.contains("dmarc=fail"), "{results}");
    ensure!(world.mailbox("alice").messages()?.is_empty(), "nothing is in the inbox");
    Ok(())
}
