//! Mail of an honest sender comes in, passes every check, and lies in the Maildir with our findings.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at, queue_id};
use testkit::corpus::{header_of, headers_of};
use testkit::smtp::Client;

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_passes_is_delivered_with_results() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;

    let forged = "Authentication-Results: mx.packetboat.test; dkim=pass header.d=bank.test\r\n";
    let message = forged.to_owned() + &world.friendly_message("hello-1").await?;
    let reply = Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("sales", HOSTED)], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let id = queue_id(&reply)?;

    let arrived = world.mailbox("alice").wait_for("hello-1", ARRIVAL).await?;
    let results = headers_of(&arrived, "Authentication-Results");
    ensure!(results.len() == 1, "one Authentication-Results of ours, none forged: {results:?}");
    ensure!(results[0].starts_with("mx.packetboat.test;"), "{results:?}");
    for method in ["spf=pass", "dkim=pass", "dmarc=pass", "iprev=pass"] {
        ensure!(results[0].contains(method), "{method} is missing: {results:?}");
    }
    let return_path = header_of(&arrived, "Return-Path");
    ensure!(return_path.as_deref() == Some("<dave@friend.test>"), "{return_path:?}");
    let received = headers_of(&arrived, "Received");
    ensure!(received.len() == 1 && received[0].contains(&id), "one Received with {id}: {received:?}");
    ensure!(arrived.contains("\r\n.\r\n..a line that begins with dots"), "dots are as sent: {arrived}");
    Ok(())
}
