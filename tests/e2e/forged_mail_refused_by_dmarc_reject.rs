//! Mail that claims to be from a domain with `p=reject` is refused at the end of DATA.

use anyhow::{Result, ensure};
use packetboat_tests::world::{BANK, HOSTED, World, at};
use testkit::corpus::Message;
use testkit::smtp::Client;

#[tokio::test(flavor = "multi_thread")]
async fn forged_mail_is_refused() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;

    let (forged, alice) = (at("support", BANK), at("alice", HOSTED));
    let message = Message::new(&forged, &alice, "forged-1").text();
    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO attacker.test").await?;
    let reply = client.transaction(&forged, &[&alice], &message).await?;
    ensure!(reply.code == 550 && reply.text().starts_with("5.7.1 "), "{reply}");
    ensure!(reply.text().to_lowercase().contains("dmarc"), "the reply says why: {reply}");

    // The same session goes on with honest mail, and only that arrives.
    let message = world.friendly_message("honest-1").await?;
    let reply = client.transaction(&at("dave", "friend.test"), &[&alice], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    world.mailbox("alice").wait_for("honest-1", packetboat_tests::world::ARRIVAL).await?;
    ensure!(world.mailbox("alice").messages()?.len() == 1, "the forged message is stored nowhere");
    Ok(())
}
