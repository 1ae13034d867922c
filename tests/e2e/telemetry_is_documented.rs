//! Every metric and span of the sources, and every metric of a running process, is in `docs/telemetry.md`; and
//! nothing is there that is not in the sources.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at};
use testkit::smtp::Client;

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

#[test]
fn spans_of_the_sources_are_documented() {
    let mut told = documented("Spans");
    assert!(told.remove("packetboat.v1.SERVICE/METHOD"));
    let mut found = named(&code(), &["info_span!("]);
    // The macro of calls takes its name from where it is used.
    found.retain(|name| name != "server");
    assert_eq!(found, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_a_process_are_documented() -> Result<()> {
    let world = World::new().await?;
    let (settings, process) = world.start_all(|_| {}).await?;
    let message = world.friendly_message("documented-1").await?;
    Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    world.mailbox("alice").wait_for("documented-1", ARRIVAL).await?;
    let (_, text) = process.get("/metrics").await?;
    let told = documented("Metrics");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let found: Vec<&str> = types.collect();
    ensure!(found.len() > 10, "{text}");
    for name in found {
        ensure!(told.contains(name), "{name} is not in docs/telemetry.md");
    }
    Ok(())
}
