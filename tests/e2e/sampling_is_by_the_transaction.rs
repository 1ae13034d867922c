//! The edge decides by `telemetry.sample_ratio` which transactions are traced; the other processes follow it,
//! whatever their own ratio is. So every trace is whole, or is not there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{ARRIVAL, HOSTED, PLAIN, World, at, queue_id};
use testkit::corpus::Message;
use testkit::otlp::{Collector, Span};
use testkit::process::Role;
use testkit::redis::RedisServer;
use testkit::smtp::Client;

/// How many messages are sent. That all of them, or none, are traced at one half has a chance of 2^-59.
const MESSAGES: usize = 60;
const EXPORTED: Duration = Duration::from_secs(60);

/// Sends the messages with this ratio at the edge, and gives the traces by their ids.
async fn traces(edge: f64, others: f64) -> Result<BTreeMap<Vec<u8>, Vec<Span>>> {
    let world = World::new().await?;
    let redis = RedisServer::start().await?;
    let collector = Collector::start().await?;
    let adjust = |settings: &mut testkit::process::Settings| {
        let ratio = if settings.role == Role::Edge { edge } else { others };
        let line = format!("telemetry: {{otlp: \"{}\", sample_ratio: {ratio}}}\n", collector.url());
        settings.extra.push_str(&line);
    };
    let mut row = Row::start(&world, &redis, "a", &adjust).await?;
    let (from, to) = (at("dave", PLAIN), at("alice", HOSTED));
    let mut client = Client::connect(row.edge.0.mx).await?;
    client.expect(250, "EHLO load.test").await?;
    for number in 0..MESSAGES {
        let message = Message::new(&from, &to, &format!("sampled-{number}")).text();
        queue_id(&client.transaction(&from, &[&to], &message).await?)?;
    }
    world.mailbox("alice").wait_for_count(MESSAGES, ARRIVAL).await?;
    // What is left is sent at the end.
    for process in [&mut row.edge.1, &mut row.verifier.1, &mut row.delivery.1] {
        process.terminate().await?;
    }
    let mut traces = BTreeMap::<Vec<u8>, Vec<Span>>::new();
    for span in collector.spans() {
        traces.entry(span.trace.clone()).or_default().push(span);
    }
    traces.retain(|_, spans| spans.iter().any(|span| span.name != "dns"));
    Ok(traces)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_whole_or_not_there() -> Result<()> {
    let traces = tokio::time::timeout(EXPORTED * 3, traces(0.5, 0.0)).await??;
    ensure!(!traces.is_empty() && traces.len() < MESSAGES, "{} of {MESSAGES} are traced", traces.len());
    for spans in traces.values() {
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        for part in ["smtp.transaction", "verify", "spf", "accept", "lease", "attempt"] {
            ensure!(names.contains(&part), "no {part} in {names:?}");
        }
        for span in spans.iter().filter(|span| !span.parent.is_empty()) {
            ensure!(spans.iter().any(|other| other.id == span.parent), "{} has lost its parent", span.name);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_traced_unless_the_edge_begins() -> Result<()> {
    let traces = traces(0.0, 1.0).await?;
    ensure!(traces.is_empty(), "{traces:?}");
    Ok(())
}
