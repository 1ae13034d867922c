//! When every client has a private address, as behind a Service that hides them, the edge says so: in its log and by a
//! metric; one client with a public address is proof of the contrary.

use anyhow::{Result, ensure};
use packetboat_tests::world::{FRIEND, HOSTED, World, at};
use testkit::smtp::Client;

const METRIC: &str = "packetboat_smtp_clients_all_private";

#[tokio::test(flavor = "multi_thread")]
async fn by_a_warning_and_a_metric() -> Result<()> {
    let world = World::new().await?;
    let (settings, process) = world
        .start_all(|settings| {
            settings.extra += "edge: {private_clients_window: 0s, private_clients_transactions: 3}\n";
        })
        .await?;
    let (dave, alice) = (at("dave", FRIEND), at("alice", HOSTED));
    let transaction = async |mut client: Client| -> Result<()> {
        client.expect(250, "EHLO mail.friend.test").await?;
        client.expect(250, &format!("MAIL FROM:<{dave}>")).await?;
        client.expect(250, &format!("RCPT TO:<{alice}>")).await?;
        client.expect(221, "QUIT").await.map(drop)
    };
    for _ in 0..2 {
        transaction(Client::connect(settings.mx).await?).await?;
    }
    ensure!(!process.log().contains("private address"), "two are too few: {}", process.log());
    // Who sends nothing is no client: a load balancer looks whether the port is open.
    for _ in 0..5 {
        Client::connect(settings.mx).await?.expect(221, "QUIT").await?;
    }
    ensure!(!process.log().contains("private address"), "{}", process.log());
    transaction(Client::connect(settings.mx).await?).await?;
    ensure!(process.log().contains("every client has a private address"), "{}", process.log());
    ensure!(process.metric(METRIC).await? == 1.0);

    let mut public = Client::open(settings.mx_proxied).await?;
    public.send_raw(b"PROXY TCP4 192.0.2.1 192.0.2.9 4242 25\r\n").await?;
    public.expect_reply(220).await?;
    transaction(public).await?;
    ensure!(process.metric(METRIC).await? == 0.0);
    Ok(())
}
