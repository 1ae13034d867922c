//! Between the services nobody is served in plain text, without a certificate, or with one of another
//! authority, out of its time, or for another role; and each method answers the roles that may call it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::{Row, over_tls};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at, queue_id};
use proto::client::{DeliveryClient, Peers, VerifierClient};
use proto::{Delivery, ErrorCode, ProbeRequest, ServiceError, Verifier, frames_of};
use testkit::authority::{Authority, Identity, Validity};
use testkit::process::Role;
use testkit::redis::RedisServer;
use testkit::smtp::Client;
use testkit::stranger::{knock, knock_in_plain_text};
use tls::{PeerRole, PeerTls, PeerTlsConfig};
use tokio_util::sync::CancellationToken;

/// When the services end connections.
const AGE: std::time::Duration = std::time::Duration::from_millis(500);

/// The certificate of a role.
fn identity(authority: &Authority, role: &str) -> Result<Identity> {
    authority.issue(&[&format!("{role}.packetboat.internal")], Validity::Good)
}

/// The way to a service for who shows this identity.
async fn peers(
    world: &World,
    authority: &Authority,
    (caller, called): (PeerRole, PeerRole),
    address: SocketAddr,
) -> Result<Peers> {
    let folder = world.site.path().join(format!("caller-{}", caller.name()));
    identity(authority, caller.name())?.mount(&folder, &[authority])?;
    let config = PeerTlsConfig {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        authority: folder.join("ca.crt"),
        ..PeerTlsConfig::default()
    };
    let tls = PeerTls::load(&config, caller)?;
    Ok(Peers::watch(&[format!("https://{address}")], called, Some(tls), AGE, CancellationToken::new())
        .await?)
}

/// Whether the service itself has answered: no frames are an abandoned call to it.
fn answered(outcome: Result<impl Sized, ServiceError>) -> bool {
    outcome.is_err_and(|error| error.code == ErrorCode::Aborted)
}

#[tokio::test(flavor = "multi_thread")]
async fn services_serve_who_may_call() -> Result<()> {
    let world = World::new().await?;
    let redis = RedisServer::start().await?;
    let (ours, theirs) = (Authority::new()?, Authority::new()?);
    for role in ["edge", "verifier", "delivery"] {
        identity(&ours, role)?.mount(&world.site.path().join(format!("peer-{role}")), &[&ours])?;
    }
    let row = Row::start(&world, &redis, "a", &over_tls).await?;

    // Mail goes over all of them.
    let message = world.friendly_message("closed-1").await?;
    let reply =
        Client::deliver(row.edge.0.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    queue_id(&reply)?;
    world.mailbox("alice").wait_for("closed-1", ARRIVAL).await?;

    let (verifier, delivery) = (row.verifier.0.verifier, row.delivery.0.delivery);
    for (address, callers) in [(verifier, &["edge", "delivery"][..]), (delivery, &["edge"][..])] {
        ensure!(knock_in_plain_text(address).await.is_err(), "plain text is served");
        ensure!(knock(address, None).await.is_err(), "nobody in particular is served");
        for role in ["edge", "verifier", "delivery", "operator"] {
            let opened = knock(address, Some(&identity(&ours, role)?)).await;
            ensure!(opened.is_ok() == callers.contains(&role), "{role}: {opened:?}");
            let opened = knock(address, Some(&identity(&theirs, role)?)).await;
            ensure!(opened.is_err(), "{role} of another authority is served");
        }
        let edge = "edge.packetboat.internal";
        for (names, validity) in [
            (&[edge][..], Validity::Expired),
            (&[edge], Validity::Future),
            (&["edge.packetboat.example"], Validity::Good),
            (&["packetboat.internal"], Validity::Good),
            (&["edge"], Validity::Good),
        ] {
            let opened = knock(address, Some(&ours.issue(names, validity)?)).await;
            ensure!(opened.is_err(), "{names:?} {validity:?} is served");
        }
    }

    let edge = peers(&world, &ours, (PeerRole::Edge, PeerRole::Verifier), verifier).await?;
    let bouncer = peers(&world, &ours, (PeerRole::Delivery, PeerRole::Verifier), verifier).await?;
    ensure!(answered(VerifierClient(edge.clone()).verify(frames_of(Vec::new())).await));
    ensure!(answered(VerifierClient(edge).sign(frames_of(Vec::new())).await));
    ensure!(answered(VerifierClient(bouncer.clone()).sign(frames_of(Vec::new())).await));
    let refused = VerifierClient(bouncer).verify(frames_of(Vec::new())).await;
    ensure!(refused.is_err_and(|error| error.message.contains("may not make this call")));

    let edge = peers(&world, &ours, (PeerRole::Edge, PeerRole::Delivery), delivery).await?;
    ensure!(answered(DeliveryClient(edge).accept(frames_of(Vec::new())).await));
    // What is dialled must be what was meant.
    let astray = peers(&world, &ours, (PeerRole::Edge, PeerRole::Delivery), verifier).await?;
    let refused = DeliveryClient(astray).probe(ProbeRequest::default()).await;
    ensure!(refused.is_err_and(|error| error.code == ErrorCode::Unavailable));

    for (process, least) in [(&row.verifier.1, 14.0), (&row.delivery.1, 14.0)] {
        let refused = process.metric("packetboat_peer_refused_total").await?;
        ensure!(refused >= least, "{refused} refusals are counted");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_role_is_explained() -> Result<()> {
    let world = World::new().await?;
    let ours = Authority::new()?;
    identity(&ours, "edge")?.mount(&world.site.path().join("peer"), &[&ours])?;
    let mut settings = world.site.settings(Role::Verifier)?;
    settings.peer = Some("peer".to_owned());
    for arguments in [&["check", "--role", "verifier"][..], &["verifier"]] {
        let output = world.site.run(&settings, arguments).await?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!output.status.success(), "{said}");
        ensure!(said.contains("tls.crt does not name verifier.packetboat.internal"), "{said}");
    }
    Ok(())
}
