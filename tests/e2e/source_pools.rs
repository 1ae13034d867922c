//! Two hosted domains leave from two addresses, each within the limits of its source pool; a pool that is not there,
//! or is suspended, keeps mail waiting.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::{ARRIVAL, HOSTED, REMOTE, World, at, submit_as};
use testkit::corpus::Message;
use testkit::process::Settings;
use testkit::smtp::{Sink, Verb};
use testkit::wait;
use tokio::time::Instant;

const OTHER: &str = "other.test";
/// Attempts a minute by the second pool: one each five seconds, and no two at once.
const RATE: u32 = 12;

async fn submit(settings: &Settings, domain: &str, name: &str) -> Result<()> {
    let (from, to) = (at("alice", domain), at("carol", REMOTE));
    let reply = submit_as(settings, &from, &[&to], &Message::new(&from, &to, name).text()).await?;
    ensure!(reply.code == 250, "{reply}");
    Ok(())
}

async fn queue(world: &World, settings: &Settings, arguments: &[&str]) -> Result<String> {
    let output = world.site.run(settings, &[&["queue"], arguments].concat()).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "queue {arguments:?}: {error}");
    String::from_utf8(output.stdout).context("reading what queue printed")
}

fn host(world: &World, domain: &str, pool: &str) -> Result<()> {
    let spec = format!("submission: {{usersSecretRef: {{name: users}}}}\noutbound: {{pool: {pool}}}\n");
    world.site.domain(domain, &spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_leave_by_their_pools() -> Result<()> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    sink.delay(Verb::Dot, Duration::from_millis(200));
    let port = sink.address().port();
    host(&world, HOSTED, "one")?;
    host(&world, OTHER, "two")?;
    let adjust = |settings: &mut Settings| {
        settings.outbound_port = port;
        let pools = "PACKETBOAT_OUTBOUND__POOLS";
        settings.environment = vec![
            ("PACKETBOAT_VERIFIER__UNSIGNED".to_owned(), "allow".to_owned()),
            (format!("{pools}__ONE__ADDRESSES"), "[127.0.0.2]".to_owned()),
            (format!("{pools}__ONE__EHLO"), "one.packetboat.test".to_owned()),
            (format!("{pools}__ONE__CONNECTIONS"), "1".to_owned()),
            (format!("{pools}__TWO__ADDRESSES"), "[127.0.0.3]".to_owned()),
            (format!("{pools}__TWO__RATE_PER_MINUTE"), RATE.to_string()),
        ];
    };
    let (settings, _process) = world.start_all(adjust).await?;
    let (one, two): (IpAddr, IpAddr) = ("127.0.0.2".parse()?, "127.0.0.3".parse()?);

    let started = Instant::now();
    for at in 0..6 {
        submit(&settings, HOSTED, &format!("one-{at}")).await?;
    }
    for at in 0..3 {
        submit(&settings, OTHER, &format!("two-{at}")).await?;
    }
    wait::until_true("all to arrive", ARRIVAL, async || sink.count() == 9).await?;
    // One token is there at the beginning.
    let least = Duration::from_secs(60) / RATE * 2 - Duration::from_millis(300);
    ensure!(started.elapsed() >= least, "three within {:?}: the rate was not kept", started.elapsed());
    for received in sink.received() {
        let (peer, name) = if received.from.ends_with(HOSTED) {
            (one, "one.packetboat.test")
        } else {
            (two, "mx.packetboat.test")
        };
        ensure!((received.peer, received.hello.as_str()) == (peer, name), "{received:?}");
    }
    ensure!(sink.at_once(one) == 1, "one connection is allowed, there were {}", sink.at_once(one));

    // What is suspended stays, and is found by its pool.
    queue(&world, &settings, &["suspend", "--pool", "one", "--why", "it is on a list"]).await?;
    submit(&settings, HOSTED, "suspended").await?;
    let listed =
        async |pool: &str| queue(&world, &settings, &["list", "--pool", pool]).await.unwrap_or_default();
    wait::until_true("it to wait", ARRIVAL, async || listed("one").await.contains("mx:remote.test")).await?;
    let settled = async || !listed("two").await.contains("mx:remote.test");
    wait::until_true("what left by the other pool to be settled", ARRIVAL, settled).await?;

    // Another pool takes what waits; one that is not there keeps it waiting, and says so.
    host(&world, HOSTED, "nowhere")?;
    let check = world.site.run(&settings, &["check"]).await?;
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(!check.status.success() && told.contains("outbound.pool is nowhere"), "{told}");
    let deferred = async || listed("nowhere").await.contains("the source pool nowhere");
    wait::until_true("the missing pool to be told", ARRIVAL, deferred).await?;
    host(&world, HOSTED, "two")?;
    let received = sink.wait_for("suspended", ARRIVAL).await?;
    ensure!(received.peer == two, "{received:?}");
    queue(&world, &settings, &["resume", "--pool", "one"]).await?;
    Ok(())
}
