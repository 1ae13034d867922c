//! One trace holds the SMTP transaction, the verdict, the acceptance and the first attempt, over three
//! processes; a later attempt is a trace of its own, linked to it and to the attempt before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at, queue_id};
use testkit::otlp::{Collector, Span};
use testkit::process::Role;
use testkit::redis::RedisServer;
use testkit::smtp::{Client, Sink, Verb};
use testkit::wait;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_one_trace() -> Result<()> {
    let world = World::new().await?;
    let store = Sink::lmtp().await?;
    store.reply(Verb::Rcpt, "450 4.2.0 not now");
    let route = format!("{{lmtp: {{address: \"{}\"}}}}", store.address());
    world.host("recipients: {addresses: [alice]}", &route)?;
    let redis = RedisServer::start().await?;
    let collector = Collector::start().await?;
    // The edge decides what is traced, for later attempts, too.
    let adjust = |settings: &mut testkit::process::Settings| {
        let ratio = if settings.role == Role::Edge { 1.0 } else { 0.0 };
        let telemetry = format!("telemetry: {{otlp: \"{}\", sample_ratio: {ratio}}}\n", collector.url());
        settings.extra.push_str(&telemetry);
    };
    let row = Row::start(&world, &redis, "a", &adjust).await?;

    let message = world.friendly_message("traced-1").await?;
    let reply =
        Client::deliver(row.edge.0.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    let id = queue_id(&reply)?;
    wait::until_true("two attempts", ARRIVAL, async || store.transactions() > 1).await?;
    store.behave();
    store.wait_for("traced-1", ARRIVAL).await?;

    let attempts = |spans: &[Span]| -> Vec<Span> {
        spans.iter().filter(|span| span.name.contains("attempt")).cloned().collect()
    };
    wait::until_true("all attempts to be exported", Duration::from_secs(30), async || {
        let spans = collector.spans();
        attempts(&spans).len() >= 3 && spans.iter().any(|span| span.name == "smtp.transaction")
    })
    .await?;
    let spans = collector.spans();
    let transaction = spans.iter().find(|span| span.name == "smtp.transaction").context("no transaction")?;
    ensure!(
        transaction.parent.is_empty() && transaction.attributes["mail.queue_id"] == id,
        "{transaction:?}"
    );
    for name in ["verify", "accept"] {
        let call = spans.iter().find(|span| span.name == name).with_context(|| format!("no {name}"))?;
        ensure!(call.parent == transaction.id, "{name} is not part of the transaction: {call:?}");
        ensure!(call.service != transaction.service || call.id != transaction.id, "{call:?}");
    }
    let attempts = attempts(&spans);
    let first = attempts.iter().filter(|span| span.trace == transaction.trace).count();
    ensure!(first == 1, "one attempt belongs to the trace: {attempts:?}");
    let later: Vec<&Span> = attempts.iter().filter(|span| span.trace != transaction.trace).collect();
    ensure!(later.len() >= 2 && later[0].trace != later[1].trace, "each is a trace of its own: {later:?}");
    ensure!(later.iter().all(|span| span.links.contains(&transaction.trace)), "they are linked: {later:?}");
    let leases: Vec<&Span> = spans.iter().filter(|span| span.name == "lease").collect();
    let after = |before: &Span| leases.iter().any(|lease| lease.links.contains(&before.trace));
    ensure!(after(later[0]), "the one after it is linked to {:?}: {leases:?}", later[0]);
    let told = format!("{spans:?}");
    ensure!(!told.contains("alice") && !told.contains("traced-1"), "addresses and subjects are not told");
    Ok(())
}
