//! Every metric and label that an alert or a dashboard of the chart names is in `docs/telemetry.md`, and is asked for as
//! what it is: rates of counters, values of gauges, quantiles of histograms.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use packetboat_tests::chart::{chart, root, run};
use serde_json::Value;
use testkit::kubernetes::program;

/// Labels that Prometheus gives by itself.
const GIVEN: [&str; 3] = ["namespace", "pod", "le"];

/// What is documented of a metric.
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

fn documented() -> Result<BTreeMap<String, Metric>> {
    let text = std::fs::read_to_string(root().join("docs/telemetry.md"))?;
    let section = text.split("\n## ").find(|section| section.starts_with("Metrics")).context("no metrics")?;
    let mut metrics = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[4].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        metrics.insert(cells[1].trim_matches('`').to_owned(), Metric { kind: cells[2].to_owned(), labels });
    }
    Ok(metrics)
}

/// The words of an expression.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// What is between the name and `)` behind it, for each place.
fn inside<'a>(expression: &'a str, before: &str) -> Vec<&'a str> {
    expression
        .split(before)
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(inside, _)| inside))
        .collect()
}

fn check(expression: &str, metrics: &BTreeMap<String, Metric>) -> Result<()> {
    let mut labels: BTreeSet<&str> = GIVEN.into();
    let mut named = 0;
    for word in words(expression).filter(|word| word.starts_with("packetboat_") || word.starts_with("mail_"))
    {
        let name = word.strip_suffix("_bucket").unwrap_or(word);
        let metric = metrics.get(name).with_context(|| format!("{name} is not in docs/telemetry.md"))?;
        labels.extend(metric.labels.iter().map(String::as_str));
        let rated =
            ["rate(", "increase("].iter().any(|function| expression.contains(&format!("{function}{word}")));
        let wanted = match metric.kind.as_str() {
            "counter" => rated && word == name,
            "gauge" => !rated && word == name,
            _ => rated && word != name,
        };
        ensure!(wanted, "{name} is a {}", metric.kind);
        named += 1;
    }
    ensure!(named > 0, "no metric is named");
    let by = inside(expression, "by (").into_iter().flat_map(words);
    let selected = expression.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    let selectors =
        selected.flat_map(|(inside, _)| inside.split(',')).filter_map(|one| one.split(['=', '!']).next());
    for label in by.chain(selectors.map(str::trim)) {
        ensure!(labels.contains(label), "there is no label {label}");
    }
    Ok(())
}

#[test]
fn alerts() -> Result<()> {
    let (metrics, text) = (documented()?, std::fs::read_to_string(chart().join("files/alerts.yaml"))?);
    let rules: Value = serde_saphyr::from_str(&text)?;
    let rules = rules["groups"][0]["rules"].as_array().context("no rules")?.clone();
    ensure!(rules.len() >= 10);
    for rule in &rules {
        let expression = rule["expr"].as_str().context("no expression")?;
        check(expression, &metrics).with_context(|| rule["alert"].to_string())?;
        for key in ["summary", "description"] {
            ensure!(rule["annotations"][key].is_string(), "{}: no {key}", rule["alert"]);
        }
        ensure!(
            ["critical", "warning", "info"].iter().any(|severity| rule["labels"]["severity"] == *severity)
        );
    }
    Ok(())
}

/// On series as the processes tell them each alert fires when it should, and only then.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_when_they_should() -> Result<()> {
    let promtool = program("promtool").await?;
    let (rules, tests) = (chart().join("files/alerts.yaml"), chart().join("tests/alerts.promtool.yaml"));
    run(&promtool, &["check", "rules", &rules.to_string_lossy()]).await?;
    let told = run(&promtool, &["test", "rules", &tests.to_string_lossy()]).await?;
    ensure!(told.contains("SUCCESS"), "{told}");
    let (tests, rules) = (std::fs::read_to_string(tests)?, std::fs::read_to_string(rules)?);
    for name in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        ensure!(tests.contains(&format!("alertname=\"{name}\"")), "no test lets {name} fire");
    }
    Ok(())
}

#[test]
fn dashboards() -> Result<()> {
    let metrics = documented()?;
    let mut panels = 0;
    for entry in std::fs::read_dir(chart().join("files/dashboards"))? {
        let path = entry?.path();
        let board: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().context("no panels")? {
            ensure!(ids.insert(panel["id"].as_u64()), "{}: an id is given twice", path.display());
            for target in panel["targets"].as_array().context("no targets")? {
                let expression = target["expr"].as_str().context("no expression")?;
                check(expression, &metrics)
                    .with_context(|| format!("{}: {}", path.display(), panel["title"]))?;
            }
            panels += 1;
        }
    }
    ensure!(panels > 20, "{panels} panels");
    Ok(())
}

#[test]
fn a_wrong_name_is_found() -> Result<()> {
    let metrics = documented()?;
    for wrong in [
        "max(packetboat_queue_oldest_seconds)",
        "rate(packetboat_smtp_sessions[5m])",
        "max(packetboat_accepted_messages_total)",
        "sum by (listner) (rate(packetboat_smtp_sessions_total[5m]))",
        "max(packetboat_queue_entries{stat=\"held\"})",
        "vector(1)",
    ] {
        ensure!(check(wrong, &metrics).is_err(), "{wrong}");
    }
    Ok(())
}
