//! A recipient who does not exist is refused at RCPT, and so is relaying.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use testkit::smtp::Client;

#[tokio::test(flavor = "multi_thread")]
async fn only_known_recipients_are_taken() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;

    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO mail.friend.test").await?;
    client.expect(250, "MAIL FROM:<dave@friend.test>").await?;
    let unknown = client.expect(550, "RCPT TO:<nobody@packetboat.test>").await?;
    ensure!(unknown.text().starts_with("5.1.1 "), "{unknown}");
    let relay = client.command("RCPT TO:<somebody@remote.test>").await?;
    ensure!(
        (550..=554).contains(&relay.code) && relay.text().starts_with("5.7.1 "),
        "no open relay: {relay}"
    );
    client.expect(250, "RCPT TO:<alice@packetboat.test>").await?;
    client.expect(354, "DATA").await?;
    let reply = client.content(&world.friendly_message("known-1").await?).await?;
    ensure!(reply.code == 250, "{reply}");
    world.mailbox("alice").wait_for("known-1", ARRIVAL).await?;

    let nobody = Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("nobody", HOSTED)], "").await?;
    ensure!(nobody.code == 550, "{nobody}");
    Ok(())
}
