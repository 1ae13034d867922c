//! The rules of submission: authentication only under TLS, own addresses only, and nothing without it.

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, HOSTED, LOGIN, PASSWORD, World, at, submission_session};
use testkit::corpus::Message;
use testkit::smtp::Client;

#[tokio::test(flavor = "multi_thread")]
async fn authentication_needs_tls() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;

    let mut client = Client::connect(settings.submission).await?;
    let hello = client.expect(250, "EHLO laptop.test").await?;
    ensure!(hello.lines.iter().any(|line| line == "STARTTLS"), "{hello}");
    ensure!(
        !hello.lines.iter().any(|line| line.starts_with("AUTH")),
        "AUTH is not offered in the clear: {hello}"
    );
    let reply = client.auth_plain(LOGIN, PASSWORD).await?;
    ensure!((500..=538).contains(&reply.code), "{reply}");
    let reply = client.command("MAIL FROM:<alice@packetboat.test>").await?;
    ensure!((530..=538).contains(&reply.code), "mail needs authentication: {reply}");

    client.starttls().await?;
    let wrong = client.auth_plain(LOGIN, "wrong").await?;
    ensure!(wrong.code == 535 && wrong.text().starts_with("5.7.8 "), "{wrong}");
    let reply = client.auth_login(LOGIN, PASSWORD).await?;
    ensure!(reply.code == 235, "{reply}");

    let mut implicit = Client::connect_tls(settings.submissions).await?;
    implicit.expect(250, "EHLO laptop.test").await?;
    let reply = implicit.auth_plain(LOGIN, PASSWORD).await?;
    ensure!(reply.code == 235, "{reply}");
    let (alice, bob) = (at("alice", HOSTED), at("bob", HOSTED));
    let reply =
        implicit.transaction(&alice, &[&bob], &Message::new(&alice, &bob, "implicit-1").text()).await?;
    ensure!(reply.code == 250, "{reply}");
    world.mailbox("bob").wait_for("implicit-1", ARRIVAL).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_sends_only_as_an_own_address() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    let (alice, bob) = (at("alice", HOSTED), at("bob", HOSTED));

    let mut client = submission_session(&settings).await?;
    let reply = client.transaction(&bob, &[&alice], &Message::new(&bob, &alice, "spoof-1").text()).await?;
    ensure!(reply.code == 553 || reply.code == 550, "the reverse-path is not hers: {reply}");
    let reply = client.transaction(&alice, &[&bob], &Message::new(&bob, &alice, "spoof-2").text()).await?;
    ensure!(reply.code == 550 && reply.text().starts_with("5.7.1 "), "the From field is not hers: {reply}");
    let reply = client.transaction(&alice, &[&bob], &Message::new(&alice, &bob, "own-1").text()).await?;
    ensure!(reply.code == 250, "{reply}");
    world.mailbox("bob").wait_for("own-1", ARRIVAL).await?;
    ensure!(world.mailbox("bob").messages()?.len() == 1 && world.mailbox("alice").messages()?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_said_before_starttls_counts_after_it() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    let mut client = Client::connect(settings.mx).await?;
    client.expect(250, "EHLO mail.friend.test").await?;
    // A command smuggled in the same packet as STARTTLS must not be answered inside TLS.
    client.send_raw(b"STARTTLS\r\nMAIL FROM:<evil@plain.test>\r\n").await?;
    let reply = client.reply().await?;
    ensure!(
        reply.code >= 500 || client.wait_for_close(std::time::Duration::from_secs(10)).await.is_ok(),
        "{reply}"
    );
    Ok(())
}
