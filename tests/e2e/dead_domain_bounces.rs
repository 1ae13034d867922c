//! Mail to a domain that does not exist comes back to its sender as a signed RFC 3464 bounce, and a
//! bounce that cannot be delivered ends there.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, DEAD, HOSTED, REMOTE, World, at, submit};
use testkit::corpus::{Message, header_of};
use testkit::dkim;
use testkit::smtp::{Sink, Verb};

#[tokio::test(flavor = "multi_thread")]
async fn mail_to_a_dead_domain_bounces() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    let nobody = at("nobody", DEAD);
    let reply =
        submit(&settings, &[&nobody], &Message::new(&at("alice", HOSTED), &nobody, "dead-1").text()).await?;
    ensure!(reply.code == 250, "{reply}");

    let bounce = world.mailbox("alice").wait_for("dead-1", ARRIVAL).await?;
    ensure!(header_of(&bounce, "Return-Path").as_deref() == Some("<>"), "{bounce}");
    let content_type = header_of(&bounce, "Content-Type").unwrap_or_default();
    ensure!(
        content_type.contains("multipart/report") && content_type.contains("delivery-status"),
        "{content_type}"
    );
    for part in ["Final-Recipient: rfc822;", "nobody@dead.test", "Action: failed", "Status: 5.1.2"] {
        ensure!(bounce.contains(part), "{part:?} is missing:\n{bounce}");
    }
    let signatures = dkim::verify(bounce.as_bytes(), &world.our_answers()).await?;
    ensure!(
        !signatures.is_empty() && signatures.iter().all(|signature| signature.valid),
        "{signatures:?}\n{bounce}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_one_recipient_does_not_harm_the_other() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    sink.reply_to_recipient("gone@remote.test", "550 5.1.1 no such user");
    let port = sink.address().port();
    let (settings, _process) = world.start_all(|settings| settings.outbound_port = port).await?;
    let (gone, carol) = (at("gone", REMOTE), at("carol", REMOTE));
    let message = Message::new(&at("alice", HOSTED), &carol, "half-1").text();
    let reply = submit(&settings, &[&gone, &carol], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let received = sink.wait_for("half-1", ARRIVAL).await?;
    ensure!(received.to == ["carol@remote.test"], "{received:?}");
    let bounce = world.mailbox("alice").wait_for("half-1", ARRIVAL).await?;
    ensure!(bounce.contains("gone@remote.test") && bounce.contains("5.1.1"), "{bounce}");
    ensure!(!bounce.contains("rfc822; carol@") && !bounce.contains("rfc822;carol@"), "{bounce}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_off_too_long_bounces() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "450 4.2.0 not now");
    let port = sink.address().port();
    let adjust = |settings: &mut testkit::process::Settings| {
        settings.outbound_port = port;
        settings.retry_max_age = "4s";
    };
    let (settings, _process) = world.start_all(adjust).await?;
    let carol = at("carol", REMOTE);
    let reply =
        submit(&settings, &[&carol], &Message::new(&at("alice", HOSTED), &carol, "late-1").text()).await?;
    ensure!(reply.code == 250, "{reply}");
    let bounce = world.mailbox("alice").wait_for("late-1", ARRIVAL).await?;
    ensure!(bounce.contains("Action: failed") && bounce.contains("not now"), "{bounce}");
    ensure!(sink.transactions() > 1, "it was tried more than once");
    Ok(())
}
