//! With recipients asked from the mailbox store: known ones are taken, unknown ones refused, and when the
//! store does not answer the sender is told to come back.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use testkit::smtp::{Client, Sink, Verb};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_asked() -> Result<()> {
    let world = World::new().await?;
    let store = Sink::lmtp().await?;
    store.reply_to_recipient("nobody@packetboat.test", "550 5.1.1 unknown");
    world.host("recipients: {mode: Callout}", &format!("{{lmtp: {{address: \"{}\"}}}}", store.address()))?;
    let (settings, _process) = world.start_all(|_| {}).await?;

    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO mail.friend.test").await?;
    client.expect(250, "MAIL FROM:<dave@friend.test>").await?;
    client.expect(250, "RCPT TO:<alice@packetboat.test>").await?;
    let refused = client.expect(550, "RCPT TO:<nobody@packetboat.test>").await?;
    ensure!(refused.text().starts_with("5.1.1 "), "{refused}");
    client.expect(250, "RSET").await?;

    let message = world.friendly_message("callout-1").await?;
    let reply = client.transaction(&at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    store.wait_for("callout-1", ARRIVAL).await?;

    store.reply(Verb::Rcpt, "421 4.3.2 closed");
    client.expect(250, "MAIL FROM:<dave@friend.test>").await?;
    let later = client.expect(451, "RCPT TO:<another@packetboat.test>").await?;
    ensure!(later.text().starts_with("4."), "{later}");
    Ok(())
}
