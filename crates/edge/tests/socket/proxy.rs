//! Who is behind a proxy is believed from the proxies that are listed, and from nobody else.

use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::smtp::Client;

use crate::site::Site;

const PATIENCE: Duration = Duration::from_secs(10);

async fn from(site: &Site, address: &str) -> Result<Client> {
    let mut client = Client::open(site.proxied).await?;
    client.send_raw(format!("PROXY TCP4 {address} 192.0.2.200 4321 25\r\n").as_bytes()).await?;
    Ok(client)
}

#[tokio::test]
async fn the_client_is_the_one_behind_the_proxy() -> Result<()> {
    let site = Site::start().await?;
    let mut client = from(&site, "192.0.2.7").await?;
    client.expect_reply(220).await?;
    client.expect(250, "EHLO client.test").await?;
    let reply = client.transaction("a@there.test", &["alice@here.test"], "Subject: x\r\n\r\ny\r\n").await?;
    ensure!(reply.code == 250, "{reply}");
    let prepend = String::from_utf8(site.only_stored()?.commit.prepend.to_vec())?;
    ensure!(prepend.contains("Received: from client.test ([192.0.2.7])"), "{prepend}");
    Ok(())
}

#[tokio::test]
async fn clients_behind_a_proxy_are_counted_each() -> Result<()> {
    let site = Site::with(|limits| limits.max_sessions_per_client = 1).await?;
    let mut first = from(&site, "192.0.2.7").await?;
    first.expect_reply(220).await?;
    from(&site, "192.0.2.8").await?.expect_reply(220).await?;
    from(&site, "192.0.2.7").await?.expect_reply(421).await?;
    Ok(())
}

#[tokio::test]
async fn whoever_sends_no_header_is_not_spoken_to() -> Result<()> {
    let site = Site::start().await?;
    for octets in [
        "EHLO client.test\r\n",
        "PROXY TCP4 192.0.2.7\r\n",
        "PROXY TCP4 a b c d\r\n",
        "\r\n\r\n\0\r\nQUIT\n\x7f",
    ] {
        let mut client = Client::open(site.proxied).await?;
        client.send_raw(octets.as_bytes()).await?;
        ensure!(client.reply().await.is_err(), "{octets:?}");
    }
    let mut client = Client::open(site.proxied_elsewhere).await?;
    // It may be closed before this is sent.
    let _ = client.send_raw(b"PROXY TCP4 192.0.2.7 192.0.2.200 4321 25\r\n").await;
    ensure!(client.reply().await.is_err(), "this machine is not a proxy of that listener");
    Ok(())
}

#[tokio::test]
async fn who_talks_right_behind_the_header_is_early() -> Result<()> {
    let site = Site::with(|limits| limits.greet_pause = PATIENCE).await?;
    let mut client = Client::open(site.proxied).await?;
    client.send_raw(b"PROXY UNKNOWN\r\nEHLO early.test\r\n").await?;
    client.expect_reply(554).await?;
    client.wait_for_close(PATIENCE).await
}
