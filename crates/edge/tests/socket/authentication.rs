//! AUTH, beyond right and wrong passwords.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;
use tokio::task::JoinSet;

use crate::site::{PASSWORD, Site};

async fn greeted(site: &Site) -> Result<Client> {
    let mut client = Client::connect(site.submission).await?;
    client.expect(250, "EHLO laptop.test").await?;
    client.starttls().await?;
    Ok(client)
}

#[tokio::test]
async fn broken_exchanges_are_answered() -> Result<()> {
    let site = Site::start().await?;
    let mut client = greeted(&site).await?;
    client.expect(530, "MAIL FROM:<alice@here.test>").await?;
    client.expect(504, "AUTH CRAM-MD5").await?;
    client.expect(501, "AUTH PLAIN !!!").await?;
    client.expect(501, "AUTH PLAIN =").await?;
    client.expect(334, "AUTH PLAIN").await?;
    client.expect(501, "*").await?;
    client.expect(334, "AUTH LOGIN").await?;
    client.expect(334, "YWxpY2VAaGVyZS50ZXN0").await?;
    client.expect(501, "not base64").await?;
    client.expect(334, "AUTH PLAIN").await?;
    // RFC 4954 §4: 12288 octets with the CRLF, and §6 on more.
    let longest = "A".repeat(12_286);
    client.expect(501, &longest).await?;
    client.expect(501, &format!("AUTH PLAIN {}", &longest["AUTH PLAIN ".len()..])).await?;
    client.expect(334, "AUTH PLAIN").await?;
    let refused = client.expect(500, &format!("{longest}A")).await?;
    ensure!(refused.text().starts_with("5.5.6 "), "{refused}");
    client.expect(500, &format!("AUTH PLAIN {longest}")).await?;
    client.expect(334, "AUTH LOGIN =").await?;
    client.expect(501, "*").await?;
    ensure!(client.auth_plain("alice@here.test", PASSWORD).await?.code == 235);
    client.expect(503, "AUTH PLAIN AAAA").await?;
    Ok(())
}

#[tokio::test]
async fn guessing_is_put_off() -> Result<()> {
    let site = Site::with(|limits| limits.max_auth_failures = 3).await?;
    let mut client = greeted(&site).await?;
    for user in ["alice@here.test", "nobody@here.test", "alice@here.test"] {
        let reply = client.auth_plain(user, "wrong").await?;
        ensure!(reply.code == 535, "{reply}");
    }
    let reply = greeted(&site).await?.auth_plain("alice@here.test", PASSWORD).await?;
    ensure!(reply.code == 454, "put off, even with the right password: {reply}");
    let reply = greeted(&site).await?.auth_login("alice@here.test", PASSWORD).await?;
    ensure!(reply.code == 454, "by either mechanism: {reply}");
    Ok(())
}

#[tokio::test]
async fn guessing_in_many_sessions_at_once_is_put_off_as_well() -> Result<()> {
    const GUESSES: usize = 16;
    let site = Site::with(|limits| limits.max_auth_failures = 1).await?;
    let mut clients = Vec::new();
    for _ in 0..GUESSES {
        clients.push(greeted(&site).await?);
    }
    let mut guesses = JoinSet::new();
    for mut client in clients {
        guesses.spawn(async move { client.auth_plain("alice@here.test", "wrong").await });
    }
    let mut tried = 0;
    while let Some(reply) = guesses.join_next().await {
        tried += usize::from(reply??.code == 535);
    }
    // So many are looked at together.
    let together = std::thread::available_parallelism()?.get();
    ensure!((1..=together).contains(&tried), "{tried} of {GUESSES} guesses were looked at");
    Ok(())
}

#[tokio::test]
async fn a_bare_line_feed_in_a_response_ends_the_session() -> Result<()> {
    let site = Site::start().await?;
    let mut client = greeted(&site).await?;
    client.expect(334, "AUTH PLAIN").await?;
    client.send_raw(b"AAAA\nNOOP\r\n").await?;
    client.expect_reply(500).await?;
    client.wait_for_close(Duration::from_secs(10)).await
}

#[tokio::test]
async fn what_a_user_sends_is_signed_with_our_trace_field_inside() -> Result<()> {
    let site = Site::start().await?;
    let mut client = greeted(&site).await?;
    ensure!(client.auth_plain("alice@here.test", PASSWORD).await?.code == 235);
    client.expect(553, "MAIL FROM:<bob@here.test>").await?;
    let message = "From: alice@here.test\r\n\r\nhi\r\n";
    let reply = client.transaction("alice@here.test", &["x@elsewhere.test"], message).await?;
    ensure!(reply.code == 250, "{reply}");
    let stored = site.only_stored()?;
    let prepend = String::from_utf8(stored.commit.prepend.to_vec())?;
    ensure!(prepend.starts_with("DKIM-Signature: x\r\nReceived: from "), "{prepend}");
    ensure!(prepend.contains("with ESMTPSA id") && prepend.matches("Received:").count() == 1, "{prepend}");
    let envelope = stored.begin.envelope.unwrap_or_default();
    ensure!(envelope.user == "alice@here.test" && envelope.origin == i32::from(proto::Origin::Submission));
    let signed = site.verifier.signed.lock().unwrap().clone();
    ensure!(signed[0].owned_addresses == ["alice@here.test"], "{signed:?}");
    Ok(())
}
