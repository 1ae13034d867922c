//! Behind a proxy that speaks the PROXY protocol the client is the one the proxy names, in both versions.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, BANK, HOSTED, World, at};
use testkit::corpus::{Message, header_of};
use testkit::smtp::Client;

/// A version 2 header for TCP over IPv4 from 192.0.2.1:4242 to 192.0.2.9:25.
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x09\x10\x92\0\x19";
const VERSION_1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.9 4242 25\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_proxied_client_is_judged() -> Result<()> {
    let world = World::new().await?;
    let (settings, _process) = world.start_all(|_| {}).await?;
    // The bank's SPF allows 192.0.2.1 alone.
    let (bank, alice) = (at("support", BANK), at("alice", HOSTED));
    for (id, header) in [("proxy-v1", VERSION_1), ("proxy-v2", VERSION_2)] {
        let mut client = Client::open(settings.mx_proxied).await?;
        client.send_raw(header).await?;
        client.expect_reply(220).await?;
        client.expect(250, "EHLO mail.bank.test").await?;
        let reply = client.transaction(&bank, &[&alice], &Message::new(&bank, &alice, id).text()).await?;
        ensure!(reply.code == 250, "{id}: {reply}");
        let arrived = world.mailbox("alice").wait_for(id, ARRIVAL).await?;
        let results = header_of(&arrived, "Authentication-Results").unwrap_or_default();
        ensure!(results.contains("spf=pass"), "{id}: {results}");
        let received = header_of(&arrived, "Received").unwrap_or_default();
        ensure!(received.contains("[192.0.2.1]"), "{id}: {received}");
    }

    // Without the header there is no conversation on this listener.
    let mut bare = Client::open(settings.mx_proxied).await?;
    bare.send_raw(b"EHLO mail.bank.test\r\n").await?;
    bare.wait_for_close(Duration::from_secs(30)).await?;
    Ok(())
}
