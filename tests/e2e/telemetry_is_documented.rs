//! Every metric and span of the sources with all its attributes, and every metric of a running process of each
//! role with its labels, is in `docs/telemetry.md`; and nothing is there that is not in the sources.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use packetboat_tests::cluster::Row;
use packetboat_tests::estate::{Estate, STEP};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use testkit::redis::RedisServer;
use testkit::smtp::Client;
use testkit::wait;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The names in the first column of the table under a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("docs/telemetry.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// What the sources of all crates say.
fn code() -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.ends_with("testkit") {
            sources(&folder.join("src"), &mut all);
        }
    }
    all
}

/// The first literal of each call of one of these macros.
fn named(code: &str, macros: &[&str]) -> BTreeSet<String> {
    let calls = macros.iter().flat_map(|name| code.split(name).skip(1));
    let literals = calls.filter_map(|rest| rest.split_once('"')?.1.split_once('"'));
    literals.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn metrics_of_the_sources_are_documented() {
    let mut found = named(&code(), &["counter!(", "gauge!(", "histogram!("]);
    // Of a test of the admin server.
    found.remove("packetboat_admin_test_total");
    assert_eq!(found, documented("Metrics"));
}

/// The spans of a text: their names, and the attributes of each.
fn spans(code: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for call in code.split("info_span!(").skip(1) {
        let mut depth = 1;
        let end = call.find(|letter| {
            depth += i32::from(letter == '(') - i32::from(letter == ')');
            depth == 0
        });
        let call = &call[..end.unwrap()];
        let fields = call.split(',').filter_map(|field| field.split_once('=').map(|(name, _)| name.trim()));
        let named = |name: &&str| {
            !name.starts_with("otel.") && name.chars().all(|c| c.is_alphanumeric() || "._".contains(c))
        };
        let name = call.split('"').nth(1).unwrap();
        found.entry(name.to_owned()).or_default().extend(fields.filter(named).map(str::to_owned));
    }
    found
}

/// The attributes that the table of spans tells of each.
fn documented_spans() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("docs/telemetry.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("Spans")).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, rest)| {
        let attributes = rest.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2);
        (name.to_owned(), attributes.map(str::to_owned).collect())
    })
    .collect()
}

#[test]
fn spans_of_the_sources_are_documented() {
    assert_eq!(spans(&code()), documented_spans());
}

/// Checks what a process tells: each metric, its kind and its labels. Gives the names.
fn check(text: &str) -> Result<BTreeSet<String>> {
    let page = std::fs::read_to_string(root().join("docs/telemetry.md"))?;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    for (name, kind) in types.clone() {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` | {kind} |")));
        let row = row.with_context(|| format!("{kind} {name} is not in docs/telemetry.md"))?;
        let told = row.split('|').nth(4).context("no labels")?;
        let series = text.lines().filter_map(|line| line.strip_prefix(name)?.split_once('{'));
        // Of a histogram; another metric may begin with the name of this one.
        let series = series.filter(|(suffix, _)| ["", "_bucket", "_sum", "_count"].contains(suffix));
        for label in series.filter_map(|(_, rest)| rest.split_once('}')).flat_map(|(all, _)| all.split(',')) {
            let label = label.split_once('=').map_or(label, |(label, _)| label);
            ensure!(label == "le" || told.contains(&format!("`{label}`")), "{name} has a label {label}");
        }
    }
    Ok(types.map(|(name, _)| name.to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_all_roles_are_documented() -> Result<()> {
    let world = World::new().await?;
    let (all, process) = world.start_all(|_| {}).await?;
    let redis = RedisServer::start().await?;
    let row = Row::start(&world, &redis, "a", &|_| {}).await?;
    let estate = Estate::new().await?;
    let (_, operator) = estate.operator().await?;
    estate.api.apply(&estate.mail_domain("")).await?;
    let reconciled = async || {
        operator.metric("packetboat_operator_reconcile_seconds_count").await.is_ok_and(|count| count > 0.0)
    };
    wait::until_true("a round of the operator", STEP, reconciled).await?;
    for (settings, id) in [(&all, "documented-1"), (&row.edge.0, "documented-2")] {
        let message = world.friendly_message(id).await?;
        Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
        world.mailbox("alice").wait_for(id, ARRIVAL).await?;
    }
    let roles = [
        ("all", &process),
        ("edge", &row.edge.1),
        ("verifier", &row.verifier.1),
        ("delivery", &row.delivery.1),
        ("operator", &operator),
    ];
    for (role, process) in roles {
        let (_, text) = process.get("/metrics").await?;
        let found = check(&text).with_context(|| role.to_owned())?;
        let least = if role == "operator" { 2 } else { 3 };
        ensure!(found.len() >= least, "{role} tells too little: {text}");
    }
    Ok(())
}
