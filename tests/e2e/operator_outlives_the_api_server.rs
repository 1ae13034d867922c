//! The API server is away, first frozen and then gone: mail goes on and is signed, every process keeps what it knows,
//! and nobody hammers on the door, which is counted there. When it is back, all is followed again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::estate::{DOMAIN, Estate, STEP};
use packetboat_tests::world::{PASSWORD, REMOTE, at, submit_as};
use testkit::corpus::{Message, headers_of, password_hash};
use testkit::process::{Packetboat, Role, Settings};
use testkit::smtp::Sink;
use testkit::wait;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// How long it is frozen, and then how long it is gone.
const AWAY: Duration = Duration::from_secs(60);
/// Domains beside the one that sends.
const OTHERS: usize = 20;
/// Tries to connect, of two processes in a minute, that are no hammering.
const PATIENT: usize = 120;

const SPEC: &str = "\
\x20 inbound: {recipients: {mode: List, addresses: [alice]}, route: {maildir: {path: mail}}}
  submission: {usersSecretRef: {name: users}}
  dkim: {algorithms: [rsa-sha256], rotation: {interval: 1h, minPropagation: 1s, retireAfter: 3s, revokeFor: 3s}}";

async fn submit(settings: &Settings, id: &str) -> Result<()> {
    let (alice, carol) = (at("alice", DOMAIN), at("carol", REMOTE));
    let reply = submit_as(settings, &alice, &[&carol], &Message::new(&alice, &carol, id).text()).await?;
    ensure!(reply.code == 250, "{reply}");
    Ok(())
}

/// Mail goes through, signed, for so long.
async fn mail_goes_on(settings: &Settings, sink: &Sink, name: &str, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < limit {
        let id = format!("{name}-{sent}-");
        submit(settings, &id).await.with_context(|| id.clone())?;
        let arrived = sink.wait_for(&id, STEP).await?;
        ensure!(headers_of(&arrived.message, "DKIM-Signature").len() == 1, "{}", arrived.message);
        sent += 1;
        sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Counts who comes to the door of the API server that is gone.
async fn count(address: SocketAddr, came: Arc<AtomicUsize>) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let _ = listener.accept().await?;
        came.fetch_add(1, Ordering::Relaxed);
    }
}

fn lines(process: &Packetboat) -> usize {
    process.log().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_on_and_nobody_hammers() -> Result<()> {
    let mut estate = Estate::new().await?;
    let sink = Sink::smtp().await?;
    estate.dns.add("remote.test. 300 IN MX 10 mx.remote.test.\nmx.remote.test. 300 IN A 127.0.0.1\n")?;
    let user = format!("--from-literal=alice={}", password_hash(PASSWORD)?);
    estate.mail(&["create", "secret", "generic", "users", &user]).await?;
    let (_, operator) = estate.operator().await?;
    estate.api.apply(&estate.mail_domain(SPEC)).await?;
    let others: String = (0..OTHERS).map(|number| other(&estate, number)).collect();
    estate.api.apply(&others).await?;
    estate.wait_for("Ready", "True", "Ready").await?;
    let mut settings = estate.site.settings(Role::All)?;
    settings.kubeconfig = Some(estate.api.kubeconfig()?);
    settings.outbound_port = sink.address().port();
    let mail = estate.site.start(&settings).await?;
    let signs = async || submit(&settings, "before").await.is_ok();
    wait::until_true("mail to be taken", STEP, signs).await?;
    let signing = estate.active().await?;

    // Frozen: connections stand, and nothing comes over them.
    let before = lines(&operator) + lines(&mail);
    estate.api.child().context("an API server")?.freeze()?;
    mail_goes_on(&settings, &sink, "frozen", AWAY).await?;
    // Another may lead by now, for all it knows.
    ensure!(operator.metric("packetboat_operator_leads").await? == 0.0, "{}", operator.log());
    estate.api.child().context("an API server")?.thaw()?;
    let said = lines(&operator) + lines(&mail) - before;
    ensure!(said < 300, "{said} lines were logged within a minute");
    let leads = async || operator.metric("packetboat_operator_leads").await.is_ok_and(|leads| leads == 1.0);
    wait::until_true("the operator to lead again", STEP, leads).await?;
    estate.wait_for("Ready", "True", "Ready").await?;

    // Gone: whoever comes is counted, and turned away.
    let before = lines(&operator);
    estate.api.stop().await?;
    let came = Arc::new(AtomicUsize::new(0));
    let door = tokio::spawn(count(estate.api.address(), Arc::clone(&came)));
    mail_goes_on(&settings, &sink, "gone", AWAY).await?;
    door.abort();
    let _ = door.await;
    let (came, said) = (came.load(Ordering::Relaxed), lines(&operator) - before);
    println!("within {AWAY:?}: {came} connections, {said} lines of the operator's log");
    ensure!((1..=PATIENT).contains(&came), "{came} tries to connect within {AWAY:?}");
    ensure!(said < 300, "{said} lines were logged within a minute:\n{}", operator.log());

    // Back again, with what it had; what is asked for now is done.
    estate.api.restart().await?;
    estate.annotate("rotate-now=back").await?;
    let rotated = async || {
        let active = estate.active().await.unwrap_or_default();
        active.len() == 1 && active != signing
    };
    wait::until_true("a rotation", STEP * 3, rotated).await.with_context(|| operator.log())?;
    let selector = estate.active().await?.concat();
    let signed = async || {
        let id = format!("back-{}-", sink.count());
        let _ = submit(&settings, &id).await;
        let arrived = sink.wait_for(&id, STEP).await;
        arrived.is_ok_and(|arrived| arrived.message.contains(&format!("s={selector};")))
    };
    wait::until_true("mail that the new key signs", STEP * 2, signed).await?;
    for process in [&operator, &mail] {
        ensure!(!process.log().contains("panicked"), "{}", process.log());
    }
    Ok(())
}

/// Another domain, in the same zone, without keys of its own.
fn other(estate: &Estate, number: usize) -> String {
    let yaml = estate.mail_domain("\x20 dmarc: {policy: reject}");
    let yaml = yaml.replace("name: example,", &format!("name: other-{number},"));
    format!("{}---\n", yaml.replace(&format!("domain: {DOMAIN}\n"), &format!("domain: o{number}.{DOMAIN}\n")))
}
