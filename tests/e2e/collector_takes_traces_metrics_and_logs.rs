//! Traces, metrics and logs of three processes go through a real collector. They belong together by the id
//! of the trace, they have no mail address, and what a process has not yet sent it sends when it ends.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, REMOTE, World, at, queue_id, submit};
use serde_json::Value;
use testkit::corpus::Message;
use testkit::otlp::Collector;
use testkit::redis::RedisServer;
use testkit::rotel::Rotel;
use testkit::smtp::{Client, Sink};
use testkit::wait;

/// Everything is exported each second; a machine under load takes its time.
const EXPORTED: Duration = Duration::from_secs(60);
const ROLES: [&str; 3] = ["packetboat-edge", "packetboat-verifier", "packetboat-delivery"];

struct Scene {
    world: World,
    _redis: RedisServer,
    sink: Sink,
    collector: Collector,
    rotel: Rotel,
    row: Row,
}

/// Three processes that send all they tell to the collector.
async fn scene(interval: &str) -> Result<Scene> {
    let world = World::new().await?;
    let sink = Sink::smtp().await?;
    let redis = RedisServer::start().await?;
    let collector = Collector::start().await?;
    let rotel = Rotel::start(&collector.url()).await?;
    let telemetry = format!(
        "telemetry: {{otlp: \"{}\", metrics: true, metrics_interval: {interval}, logs: true}}\n",
        rotel.url()
    );
    let port = sink.address().port();
    let adjust = |settings: &mut testkit::process::Settings| {
        settings.extra.push_str(&telemetry);
        settings.outbound_port = port;
    };
    let row = Row::start(&world, &redis, "a", &adjust).await?;
    Ok(Scene { world, _redis: redis, sink, collector, rotel, row })
}

impl Scene {
    /// One message in, one out; the queue id of the first.
    async fn carry(&self) -> Result<String> {
        let settings = &self.row.edge.0;
        let (alice, carol) = (at("alice", HOSTED), at("carol", REMOTE));
        let message = self.world.friendly_message("told-1").await?;
        let reply = Client::deliver(settings.mx, &at("dave", FRIEND), &[&alice], &message).await?;
        self.world.mailbox("alice").wait_for("told-1", ARRIVAL).await?;
        let sent = Message::new(&alice, &carol, "told-2").text();
        queue_id(&submit(settings, &[&carol], &sent).await?)?;
        self.sink.wait_for("told-2", ARRIVAL).await?;
        let nobody = at("zoe", HOSTED);
        let refused = Client::deliver(settings.mx, &at("dave", FRIEND), &[&nobody], &message).await?;
        ensure!(refused.code == 550, "{refused}");
        queue_id(&reply)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_through_a_collector() -> Result<()> {
    let scene = scene("1s").await?;
    let id = scene.carry().await?;
    let collector = &scene.collector;
    let metrics = [
        "packetboat_smtp_messages_total",
        "packetboat_verifier_messages_total",
        "packetboat_delivery_attempts_total",
    ];
    let whole = async || {
        let traced: BTreeSet<String> = collector.spans().into_iter().map(|span| span.service).collect();
        let records = collector.records().into_iter().filter(|record| !record.trace.is_empty());
        let logged: BTreeSet<String> = records.map(|record| record.service).collect();
        ROLES.iter().all(|role| traced.contains(*role) && logged.contains(*role))
            && metrics.iter().all(|name| !collector.points(name).is_empty())
    };
    let came = wait::until_true("all three kinds from all three roles", EXPORTED, whole).await;
    ensure!(came.is_ok(), "{came:?}: {:?} {}", collector.metrics(), scene.rotel.log());

    // What the log says of a message is in the trace of the message.
    let spans = collector.spans();
    let is_it = |span: &&testkit::otlp::Span| {
        span.name == "smtp.transaction" && span.attributes.get("mail.queue_id") == Some(&id)
    };
    let transaction = spans.iter().find(is_it).context("no transaction")?;
    let records = collector.records();
    for role in ROLES {
        let of_message = |record: &&testkit::otlp::Record| {
            record.service == role && record.attributes.get("queue_id") == Some(&id)
        };
        let mut said = records.iter().filter(of_message);
        ensure!(said.clone().count() > 0, "{role} has no record of {id}");
        ensure!(said.all(|record| record.trace == transaction.trace), "{role}: another trace");
    }

    // The same metrics as for a scraper, with the same values.
    for (process, role) in
        [(&scene.row.edge.1, ROLES[0]), (&scene.row.verifier.1, ROLES[1]), (&scene.row.delivery.1, ROLES[2])]
    {
        let (_, text) = process.get("/metrics").await?;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').context("a metric has a kind")?;
            let sent = async || collector.points(name).into_iter().rfind(|point| point.service == role);
            let point = wait::until(&format!("{role} {name}"), EXPORTED, sent).await?;
            ensure!((kind == "histogram") != point.bounds.is_empty(), "{kind}: {point:?}");
            ensure!((point.unit == "s") == name.ends_with("_seconds"), "{point:?}");
        }
    }
    let accepted = |point: &&testkit::otlp::Point| point.attributes["outcome"] == "accepted";
    let told = collector.points("packetboat_smtp_messages_total");
    ensure!(told.iter().filter(accepted).any(|point| point.value == 1.0), "{told:?}");

    // No addresses, no subjects: the local parts are nowhere in what was sent.
    let text = collector.text();
    ensure!(text.len() > 10_000, "too little was sent: {text}");
    for secret in ["alice", "dave", "carol", "zoe", "told-1", "told-2"] {
        let around = text.find(secret).map(|at| text.get(at.saturating_sub(200)..at + 50));
        ensure!(around.is_none(), "{secret} is told: {around:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_sent_at_the_end() -> Result<()> {
    let mut scene = scene("10m").await?;
    scene.carry().await?;
    for process in [&mut scene.row.edge.1, &mut scene.row.verifier.1, &mut scene.row.delivery.1] {
        let status = process.terminate().await?;
        ensure!(status.success(), "{status}: {}", process.log());
    }
    let collector = &scene.collector;
    let names = [
        "packetboat_smtp_messages_total",
        "packetboat_verifier_messages_total",
        "packetboat_delivery_attempts_total",
    ];
    wait::until_true("what was left", EXPORTED, async || {
        names.iter().all(|name| !collector.points(name).is_empty())
            && ROLES.iter().all(|role| {
                collector.records().iter().any(|one| one.service == *role && one.body == "ended in order")
            })
    })
    .await
}

/// The sample configuration of a collector: what its pipelines name is there, all of it is used, and traces are
/// chosen before they are batched.
#[test]
fn the_sample_configuration_is_sound() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/samples/otel-collector.yaml");
    let sample: Value = serde_saphyr::from_str(&std::fs::read_to_string(path)?)?;
    let names = |section: &Value| -> BTreeSet<String> {
        section.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let pipelines = sample["service"]["pipelines"].as_object().context("no pipelines")?;
    ensure!(pipelines.keys().map(String::as_str).eq(["logs", "metrics", "traces"]), "{pipelines:?}");
    for kind in ["receivers", "processors", "exporters"] {
        let lists = pipelines.values().filter_map(|pipeline| pipeline[kind].as_array()).flatten();
        let used = lists.filter_map(Value::as_str).map(str::to_owned).collect();
        ensure!(names(&sample[kind]) == used, "{kind}: {:?} and {used:?}", names(&sample[kind]));
    }
    let order: Vec<_> = pipelines["traces"]["processors"].as_array().into_iter().flatten().collect();
    ensure!(order == ["k8sattributes", "tail_sampling", "batch"], "{order:?}");
    for policy in sample["processors"]["tail_sampling"]["policies"].as_array().context("no policies")? {
        let kind = policy["type"].as_str().unwrap_or_default();
        let known = ["status_code", "latency", "probabilistic", "string_attribute", "and", "always_sample"];
        ensure!(known.contains(&kind) && policy[kind].is_object(), "{policy}");
    }
    Ok(())
}
