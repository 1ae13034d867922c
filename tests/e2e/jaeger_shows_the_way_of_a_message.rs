//! What a real Jaeger shows of a message: one trace from the SMTP transaction to the peer's reply, a trace
//! for the retry with a link to the first, log records with the id of the trace, and no mail addresses
//! unless they are asked for.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at, queue_id};
use testkit::jaeger::{Jaeger, Trace};
use testkit::redis::RedisServer;
use testkit::smtp::{Client, Sink, Verb};
use testkit::wait;

/// Spans are exported each second; a machine under load takes its time.
const EXPORTED: Duration = Duration::from_secs(60);

struct Scene {
    world: World,
    _redis: RedisServer,
    jaeger: Jaeger,
    row: Row,
    id: String,
}

/// A message that its next hop defers once, and then takes.
async fn play(settings: &str) -> Result<Scene> {
    let world = World::new().await?;
    let store = Sink::smtp().await?;
    store.reply(Verb::Rcpt, "450 4.2.0 alice@packetboat.test has no time");
    let route = format!("{{smtp: {{address: \"mx.remote.test:{}\"}}}}", store.address().port());
    world.host("recipients: {addresses: [alice]}", &route)?;
    let redis = RedisServer::start().await?;
    let jaeger = Jaeger::start().await?;
    let telemetry = format!("telemetry: {{otlp: \"{}\", log_format: json{settings}}}\n", jaeger.otlp());
    let row = Row::start(&world, &redis, "a", &|settings| settings.extra.push_str(&telemetry)).await?;
    let message = world.friendly_message("traced-1").await?;
    let reply =
        Client::deliver(row.edge.0.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    let id = queue_id(&reply)?;
    wait::until_true("a first attempt", ARRIVAL, async || store.transactions() > 0).await?;
    store.behave();
    store.wait_for("traced-1", ARRIVAL).await?;
    Ok(Scene { world, _redis: redis, jaeger, row, id })
}

impl Scene {
    /// The trace of the transaction, and that of the retry, when both are whole.
    async fn traces(&self) -> Result<(Trace, Trace)> {
        wait::until("both traces to be whole", EXPORTED, async || {
            let of_edge = self.jaeger.find("packetboat-edge", "mail.queue_id", &self.id).await.ok()?;
            let first = of_edge.into_iter().next()?;
            let of_delivery =
                self.jaeger.find("packetboat-delivery", "mail.queue_id", &self.id).await.ok()?;
            let whole = |trace: &Trace| trace.span("lease").is_some() && trace.span("attempt").is_some();
            let first_id = first.0.first()?.trace.clone();
            let delivered = |trace: &Trace| {
                trace.span("attempt").is_some_and(|span| span.attributes["mail.delivered"] == "1")
            };
            let later =
                of_delivery.into_iter().find(|t| t.0[0].trace != first_id && whole(t) && delivered(t))?;
            (whole(&first) && first.span("verify").is_some()).then_some((first, later))
        })
        .await
    }
}

fn holds(trace: &Trace, inner: &str, outer: &str) -> Result<()> {
    let outer_spans: Vec<_> = trace.0.iter().filter(|span| span.name == outer).collect();
    ensure!(!outer_spans.is_empty(), "no {outer} in {:?}", trace.names());
    let mut inner_spans = trace.0.iter().filter(|span| span.name == inner);
    let found = inner_spans.any(|span| outer_spans.iter().any(|outer| trace.is_within(span, outer)));
    ensure!(found, "no {inner} within {outer} in {:?}", trace.names());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn jaeger_shows_the_way_of_a_message() -> Result<()> {
    let scene = play("").await?;
    let (first, later) = scene.traces().await?;

    let transaction = first.span("smtp.transaction").context("no transaction")?;
    ensure!(transaction.parent.is_empty() && transaction.service == "packetboat-edge", "{transaction:?}");
    ensure!(transaction.attributes["smtp.status_code"] == "250", "{transaction:?}");
    for (inner, outer) in [
        ("verify", "smtp.transaction"),
        ("spf", "verify"),
        ("dns", "spf"),
        ("dkim", "verify"),
        ("dns", "dkim"),
        ("dmarc", "verify"),
        ("accept", "smtp.transaction"),
        ("accepting a message", "accept"),
        ("lease", "accept"),
        ("attempt", "lease"),
        ("dns", "attempt"),
        ("connect", "attempt"),
        ("tls", "attempt"),
        ("transaction", "attempt"),
        ("MAIL", "transaction"),
        ("RCPT", "transaction"),
        ("settling an entry", "lease"),
    ] {
        holds(&first, inner, outer)?;
    }
    for (span, attribute, value) in [
        ("spf", "mail.auth.spf.result", "pass"),
        ("dkim", "mail.auth.dkim.result", "pass"),
        ("dmarc", "mail.auth.dmarc.result", "pass"),
        ("verify", "mail.disposition", "deliver"),
        ("verify", "rpc.method", "packetboat.v1.Verifier/Verify"),
        ("RCPT", "smtp.status_code", "450"),
        ("attempt", "mail.deferred", "1"),
        ("accepting a message", "db.system.name", "redis"),
    ] {
        let span = first.span(span).with_context(|| format!("no {span}"))?;
        ensure!(span.attributes.get(attribute).is_some_and(|told| told == value), "{attribute}: {span:?}");
    }

    // The retry: a trace of its own, of which the first can be found.
    let root = later.span("lease").context("no lease")?;
    ensure!(root.parent.is_empty() && root.links.contains(&transaction.trace), "{root:?}");
    ensure!(later.span("smtp.transaction").is_none(), "{:?}", later.names());
    for inner in ["attempt", "content", "writing down a doubt", "settling an entry"] {
        holds(&later, inner, "lease")?;
    }

    for (name, log) in [
        ("edge", scene.row.edge.1.log()),
        ("verifier", scene.row.verifier.1.log()),
        ("delivery", scene.row.delivery.1.log()),
    ] {
        let of_message = log.lines().filter(|line| line.contains(&scene.id)).collect::<Vec<_>>();
        ensure!(!of_message.is_empty(), "{name} says nothing of the message:\n{log}");
        for line in of_message {
            let record: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let trace = record["trace_id"].as_str().unwrap_or_default().trim_start_matches('0');
            let known = [&first, &later].iter().any(|t| t.0[0].trace.trim_start_matches('0') == trace);
            ensure!(known, "{name} names no trace of the message: {line}");
        }
        ensure!(!log.contains("alice@"), "{name} tells addresses:\n{log}");
    }
    for span in first.0.iter().chain(&later.0) {
        let told = &span.text;
        ensure!(!told.contains("alice") && !told.contains("dave"), "an address is told: {told}");
        ensure!(!told.contains("traced-1"), "the message is told: {told}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_the_reply_finds_the_way() -> Result<()> {
    let scene = play("").await?;
    let (first, later) = scene.traces().await?;
    let binary = testkit::process::binary().await?;
    let ask = async |arguments: &[&str]| -> Result<(bool, String, String)> {
        let output = tokio::process::Command::new(binary).arg("trace").args(arguments).output().await?;
        let text = |octets| String::from_utf8_lossy(octets).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    };
    let query = scene.jaeger.query();
    let (_, text, _) = ask(&[&scene.id, "--endpoint", &query]).await?;
    let begin = |name: &str| {
        let line = text.lines().find(|line| line.contains(name));
        line.and_then(|line| line.split_once(" ms  ")).map(|(_, rest)| rest.len() - rest.trim_start().len())
    };
    ensure!(begin("smtp.transaction").is_some_and(|depth| begin(" spf ").unwrap() > depth), "{text}");
    ensure!(text.contains(&format!("trace {} of ", first.0[0].trace)), "{text}");
    let followed = format!("follows {}", first.0[0].trace);
    let retry = text.lines().find(|line| line.starts_with(&format!("trace {} of ", later.0[0].trace)));
    ensure!(retry.is_some_and(|line| line.ends_with(&followed)), "{text}");

    // The address of Jaeger may stand in the configuration.
    let file = scene.world.site.write("trace.yaml", &format!("telemetry: {{query: \"{query}\"}}\n"))?;
    let file = file.to_string_lossy();
    let (success, text, told) = ask(&[&scene.id, "--config", &file, "-o", "json"]).await?;
    ensure!(success, "{told}");
    let json: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(json["queue_id"] == scene.id && json["traces"].as_array().unwrap().len() >= 2, "{text}");
    ensure!(json["traces"][0]["spans"][0]["name"] == "smtp.transaction", "{text}");

    let (success, _, told) = ask(&["00000000000000000000000000", "--endpoint", &query]).await?;
    ensure!(!success && told.contains("no trace of"), "{told}");
    let (success, _, told) = ask(&["nonsense", "--endpoint", &query]).await?;
    ensure!(!success && told.contains("250 reply"), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_told_when_they_are_asked_for() -> Result<()> {
    let scene = play(", addresses: true").await?;
    let (first, _) = scene.traces().await?;
    let transaction = first.span("smtp.transaction").context("no transaction")?;
    ensure!(transaction.text.contains("alice@packetboat.test"), "{}", transaction.text);
    ensure!(transaction.text.contains("dave@friend.test"), "{}", transaction.text);
    let step = first.span("RCPT").context("no RCPT")?;
    ensure!(step.text.contains("alice@packetboat.test has no time"), "{}", step.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_is_not_sent() -> Result<()> {
    let scene = play(", sample_ratio: 0.0").await?;
    // All that was to be exported has been when the processes have ended.
    let Scene { jaeger, row, .. } = scene;
    for (_, mut process) in [row.edge, row.delivery, row.verifier] {
        process.terminate().await?;
    }
    let services = jaeger.services().await?;
    ensure!(services.iter().all(|name| !name.starts_with("packetboat")), "{services:?}");
    Ok(())
}
