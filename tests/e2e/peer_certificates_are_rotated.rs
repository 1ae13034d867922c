//! Certificates between the services are replaced, and then their authority, while mail comes in: every
//! message is taken at the first try.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::{Row, over_tls};
use packetboat_tests::steady::Steady;
use packetboat_tests::world::{HOSTED, PLAIN, World, at};
use testkit::authority::{Authority, Identity, Validity};
use testkit::redis::RedisServer;
use testkit::stranger::knock;
use testkit::wait;

const ROLES: [&str; 3] = ["edge", "verifier", "delivery"];
/// How long services may take to show a new certificate, on a machine under load.
const SHOWN: Duration = Duration::from_secs(30);
/// Messages that are taken between two steps: connections are renewed many times over them.
const BETWEEN: usize = 150;

/// New certificates for all roles; gives that of the edge.
fn renew(world: &World, issuer: &Authority, trusted: &[&Authority]) -> Result<Identity> {
    let mut edge = None;
    for role in ROLES {
        let identity = issuer.issue(&[&format!("{role}.packetboat.internal")], Validity::Good)?;
        identity.mount(&world.site.path().join(format!("peer-{role}")), trusted)?;
        edge.get_or_insert(identity);
    }
    edge.context("no role")
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_fails_no_call() -> Result<()> {
    let world = World::new().await?;
    let redis = RedisServer::start().await?;
    let (old, new) = (Authority::new()?, Authority::new()?);
    renew(&world, &old, &[&old])?;
    let row = Row::start(&world, &redis, "a", &over_tls).await?;
    let doors = [row.verifier.0.verifier, row.delivery.0.delivery];
    let mut mail = Steady::start(row.edge.0.mx, &at("dave", PLAIN), &at("alice", HOSTED), 8);
    mail.go_on(BETWEEN).await.with_context(|| row.edge.1.log())?;

    // Each step begins when all services show what the one before has made, and mail has gone over it.
    let steps: [(&str, &Authority, &[&Authority]); 4] = [
        ("new certificates", &old, &[&old]),
        ("both authorities are trusted", &old, &[&old, &new]),
        ("certificates of the new authority", &new, &[&old, &new]),
        ("the old authority is forgotten", &new, &[&new]),
    ];
    for (step, issuer, trusted) in steps {
        let mut before = Vec::new();
        for door in doors {
            let edge = issuer.issue(&["edge.packetboat.internal"], Validity::Good)?;
            before.push(knock(door, Some(&edge)).await.with_context(|| format!("before: {step}"))?);
        }
        let edge = renew(&world, issuer, trusted)?;
        for (door, before) in doors.iter().zip(before) {
            wait::until_true(step, SHOWN, async || {
                knock(*door, Some(&edge)).await.is_ok_and(|shown| shown != before)
            })
            .await?;
        }
        let going = mail.go_on(BETWEEN).await;
        going.with_context(|| format!("a call failed: {step}\n{}", row.edge.1.log()))?;
    }
    let taken = mail.finish().await?;
    for (what, process) in
        [("edge", &row.edge.1), ("verifier", &row.verifier.1), ("delivery", &row.delivery.1)]
    {
        let log = process.log();
        ensure!(log.contains("certificate reloaded"), "{what} has reloaded nothing:\n{log}");
        ensure!(!log.contains("caller refused"), "{what} has refused somebody:\n{log}");
    }
    println!("{taken} messages, none refused");
    Ok(())
}
