//! Every reason of a condition is in the closed list of the sources and in the table of `docs/maildomain.md`, and
//! each row of that table is produced by a test: `wait_for(CONDITION, STATUS, REASON)` stands in one of these files.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table: condition, status, reason.
fn documented() -> BTreeSet<(String, String, String)> {
    let text = read("docs/maildomain.md");
    let section = text.split("\n## ").find(|section| section.starts_with("Conditions")).unwrap();
    let mut rows = BTreeSet::new();
    let mut condition = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if cells[1].contains('`') {
            condition = quoted(cells[1]);
        }
        let status = cells[2].split(' ').next().unwrap_or_default();
        for reason in quoted(cells[2]) {
            for condition in condition.iter().filter(|_| ["True", "False", "Unknown"].contains(&status)) {
                rows.insert((condition.clone(), status.to_owned(), reason.clone()));
            }
        }
    }
    assert!(rows.len() > 25, "{rows:?}");
    rows
}

/// The closed list.
fn listed() -> BTreeSet<String> {
    let text = read("crates/operator/src/status.rs");
    let list = text.split_once("enum Reason {").unwrap().1.split_once("\n}").unwrap().0;
    let names = list.lines().map(|line| line.trim().trim_end_matches(','));
    names.filter(|name| !name.is_empty() && !name.starts_with('/')).map(str::to_owned).collect()
}

/// All that the scenarios wait for.
fn shown() -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("tests/e2e")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            for call in text.split(".wait_for(").skip(1) {
                let call = call.split(')').next().unwrap_or_default();
                let words: Vec<&str> = call.split('"').skip(1).step_by(2).collect();
                if let [condition, status, reason] = words[..] {
                    found.insert((condition.to_owned(), status.to_owned(), reason.to_owned()));
                }
            }
        }
    }
    found
}

#[test]
fn the_list_and_the_table_agree() {
    let told: BTreeSet<String> = documented().into_iter().map(|(_, _, reason)| reason).collect();
    assert_eq!(listed(), told);
}

#[test]
fn each_row_is_produced_by_a_test() {
    let shown = shown();
    let missing: Vec<_> = documented().into_iter().filter(|row| !shown.contains(row)).collect();
    assert!(missing.is_empty(), "no test waits for {missing:#?}");
}

#[test]
fn nothing_is_waited_for_that_is_not_documented() {
    let told: BTreeSet<String> = documented().into_iter().map(|(_, _, reason)| reason).collect();
    let strange: Vec<_> = shown().into_iter().filter(|(_, _, reason)| !told.contains(reason)).collect();
    assert!(strange.is_empty(), "{strange:#?}");
}
