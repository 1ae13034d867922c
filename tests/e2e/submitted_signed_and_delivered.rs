//! A user's mail is signed with both keys and delivered to a real Postfix over TLS; dkimpy verifies it.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, HOSTED, REMOTE, World, at, submit};
use testkit::corpus::{Message, header_of};
use testkit::dkim;
use testkit::postfix::{Postfix, Settings};

#[tokio::test(flavor = "multi_thread")]
async fn submitted_mail_arrives_signed() -> Result<()> {
    let world = World::new().await?;
    let carol = at("carol", REMOTE);
    let postfix = Postfix::start(&Settings::receiver("mx.remote.test", &[&carol])).await?;
    let port = postfix.address().port();
    let (settings, _process) = world.start_all(|settings| settings.outbound_port = port).await?;

    let message =
        Message::new(&at("alice", HOSTED), &carol, "signed-1").header("Bcc", "secret@remote.test").text();
    let reply = submit(&settings, &[&carol], &message).await?;
    ensure!(reply.code == 250, "{reply}");

    let arrived = postfix.mailbox(&carol).wait_for("signed-1", ARRIVAL).await?;
    ensure!(header_of(&arrived, "Bcc").is_none(), "Bcc is removed:\n{arrived}");
    let received = header_of(&arrived, "Received").unwrap_or_default();
    ensure!(received.contains("TLS"), "it went over TLS: {received}");
    // Postfix stores lines that end in LF; DKIM is about the CRLF form.
    let wire = arrived.replace("\r\n", "\n").replace('\n', "\r\n");
    let signatures = dkim::verify(wire.as_bytes(), &world.our_answers()).await?;
    let algorithms: Vec<&str> = signatures.iter().map(|signature| signature.algorithm.as_str()).collect();
    ensure!(algorithms.contains(&"rsa-sha256") && algorithms.contains(&"ed25519-sha256"), "{signatures:?}");
    for signature in &signatures {
        ensure!(signature.valid && signature.domain == HOSTED && !signature.has_length, "{signature:?}");
        let from = signature.headers.iter().filter(|name| *name == "from").count();
        ensure!(from == 2, "From is oversigned: {signature:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_date_and_message_id_are_added() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    let message =
        "From: alice@packetboat.test\r\nTo: bob@packetboat.test\r\nSubject: bare-1\r\n\r\nhello\r\n";
    let reply = submit(&settings, &[&at("bob", HOSTED)], message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = world.mailbox("bob").wait_for("bare-1", ARRIVAL).await?;
    ensure!(
        header_of(&arrived, "Date").is_some() && header_of(&arrived, "Message-ID").is_some(),
        "{arrived}"
    );
    let signatures = dkim::verify(
        arrived.split_once("DKIM-Signature").map_or("", |_| arrived.as_str()).as_bytes(),
        &world.our_answers(),
    )
    .await?;
    ensure!(
        signatures.len() == 2 && signatures.iter().all(|signature| signature.valid),
        "{signatures:?}\n{arrived}"
    );
    Ok(())
}
