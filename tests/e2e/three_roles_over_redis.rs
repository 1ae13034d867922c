//! Two edges, two verifiers and two delivery services over a real Redis carry mail in and out.

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Cluster;
use packetboat_tests::world::{ARRIVAL, BANK, FRIEND, HOSTED, REMOTE, World, at, submit};
use testkit::corpus::Message;
use testkit::dkim;
use testkit::smtp::{Client, Sink};

#[tokio::test(flavor = "multi_thread")]
async fn separate_processes_carry_mail() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    let port = sink.address().port();
    let mut cluster = Cluster::start(&world, |settings| settings.outbound_port = port).await?;

    let (alice, carol) = (at("alice", HOSTED), at("carol", REMOTE));
    for (number, row) in cluster.rows.iter().enumerate() {
        let settings = &row.edge.0;
        let id = format!("in-{number}");
        let message = world.friendly_message(&id).await?;
        let reply = Client::deliver(settings.mx, &at("dave", FRIEND), &[&alice], &message).await?;
        ensure!(reply.code == 250, "{reply}");
        let arrived = world.mailbox("alice").wait_for(&id, ARRIVAL).await?;
        ensure!(arrived.contains("dkim=pass") && arrived.contains("dmarc=pass"), "{arrived}");

        let forged = at("support", BANK);
        let message = Message::new(&forged, &alice, "forged").text();
        let reply = Client::deliver(settings.mx, &forged, &[&alice], &message).await?;
        ensure!(reply.code == 550, "{reply}");

        let id = format!("out-{number}");
        let reply = submit(settings, &[&carol], &Message::new(&alice, &carol, &id).text()).await?;
        ensure!(reply.code == 250, "{reply}");
        let received = sink.wait_for(&id, ARRIVAL).await?;
        let signatures = dkim::verify(received.message.as_bytes(), &world.our_answers()).await?;
        ensure!(
            signatures.len() == 2 && signatures.iter().all(|signature| signature.valid),
            "{signatures:?}"
        );
    }

    for row in &mut cluster.rows {
        for process in [&mut row.edge.1, &mut row.verifier.1, &mut row.delivery.1] {
            let status = process.terminate().await?;
            ensure!(status.success(), "SIGTERM ends with {status}: {}", process.log());
        }
    }
    Ok(())
}
