//! Traces as trees, for people and for programs.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};

/// What a span is told with, in this order; all else is for programs.
const TOLD: [&str; 25] = [
    "mail.listener",
    "client.address",
    "mail.next_hop",
    "mail.attempt",
    "mail.domain",
    "mail.auth.spf.result",
    "mail.auth.iprev.result",
    "mail.auth.dkim.result",
    "mail.auth.arc.result",
    "mail.auth.dmarc.result",
    "mail.disposition",
    "mail.signatures",
    "mail.size",
    "mail.route",
    "mail.delivered",
    "mail.deferred",
    "mail.failed",
    "dns.question.type",
    "dns.question.name",
    "server.address",
    "network.peer.address",
    "tls.protocol.version",
    "smtp.status_code",
    "smtp.enhanced_status_code",
    "error.type",
];

/// One trace.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    pub(super) id: String,
    spans: Vec<Span>,
}

#[derive(Debug, Clone)]
struct Span {
    id: String,
    parent: Option<String>,
    links: Vec<String>,
    name: String,
    service: String,
    /// Since 1970, in microseconds.
    started: u64,
    /// In microseconds.
    took: u64,
    attributes: BTreeMap<String, Json>,
}

impl Trace {
    /// Reads a trace as the query API gives it.
    pub(super) fn read(json: &Json) -> Result<Self> {
        let id = json["traceID"].as_str().context("a trace without an id")?.to_owned();
        let spans = json["spans"].as_array().context("a trace without spans")?;
        let mut spans: Vec<Span> =
            spans.iter().map(|span| Span::read(span, &id, &json["processes"])).collect();
        spans.sort_by_key(|span| span.started);
        Ok(Self { id, spans })
    }

    /// When its first span began.
    pub(super) fn started(&self) -> u64 {
        self.spans.first().map_or(0, |span| span.started)
    }

    /// The spans with their depths, each behind the one it is a part of. A span whose parent has not arrived
    /// is shown at the top.
    fn walk(&self) -> Vec<(usize, &Span)> {
        let known: HashSet<&str> = self.spans.iter().map(|span| span.id.as_str()).collect();
        let is_top = |span: &&Span| span.parent.as_deref().is_none_or(|parent| !known.contains(parent));
        let mut waiting: Vec<(usize, &Span)> =
            self.spans.iter().rev().filter(is_top).map(|span| (0, span)).collect();
        let mut walked = Vec::with_capacity(self.spans.len());
        while let Some((depth, span)) = waiting.pop() {
            walked.push((depth, span));
            let parts = self.spans.iter().rev().filter(|part| part.parent.as_deref() == Some(&span.id));
            waiting.extend(parts.map(|part| (depth + 1, part)));
        }
        walked
    }

    fn links(&self) -> Vec<&str> {
        let mut links: Vec<&str> =
            self.spans.iter().flat_map(|span| &span.links).map(String::as_str).collect();
        links.sort_unstable();
        links.dedup();
        links
    }
}

impl Span {
    fn read(json: &Json, trace: &str, processes: &Json) -> Self {
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let (mut parent, mut links) = (None, Vec::new());
        for reference in json["references"].as_array().into_iter().flatten() {
            if reference["traceID"] == trace && reference["refType"] == "CHILD_OF" {
                parent = Some(text(&reference["spanID"]));
            } else {
                links.push(text(&reference["traceID"]));
            }
        }
        let service = &processes[text(&json["processID"])]["serviceName"];
        let tags = json["tags"].as_array().into_iter().flatten();
        Self {
            id: text(&json["spanID"]),
            parent,
            links,
            name: text(&json["operationName"]),
            service: text(service).trim_start_matches(super::OURS).to_owned(),
            started: json["startTime"].as_u64().unwrap_or_default(),
            took: json["duration"].as_u64().unwrap_or_default(),
            attributes: tags.map(|tag| (text(&tag["key"]), tag["value"].clone())).collect(),
        }
    }

    fn failed(&self) -> bool {
        self.attributes.get("error") == Some(&Json::Bool(true))
    }

    fn told(&self) -> String {
        let mut told = String::new();
        for key in TOLD {
            let Some(value) = self.attributes.get(key) else { continue };
            let short = key.strip_prefix("mail.auth.").or(key.strip_prefix("mail.")).unwrap_or(key);
            // Writing to a String cannot fail, here and below.
            let _ = match value.as_str() {
                Some(text) => write!(told, " {short}={text}"),
                None => write!(told, " {short}={value}"),
            };
        }
        told
    }
}

/// The traces for people: when each step began, counted from the first, how long it took, and what it was.
pub(super) fn text(traces: &[Trace]) -> String {
    let mut text = String::new();
    let zero = traces.first().map_or(0, Trace::started);
    for trace in traces {
        let _ = write!(text, "trace {} of {}", trace.id, moment(trace.started()));
        for link in trace.links() {
            let _ = write!(text, ", follows {link}");
        }
        text.push('\n');
        for (depth, span) in trace.walk() {
            let (begin, took) = (millis(span.started.saturating_sub(zero)), millis(span.took));
            let (indent, mark) = ("  ".repeat(depth), if span.failed() { " !" } else { "" });
            let _ = write!(text, "{begin:>12} {took:>11}  {indent}{}{mark}", span.name);
            let _ = writeln!(text, " [{}]{}", span.service, span.told());
        }
    }
    text
}

/// The traces for programs.
pub(super) fn json(id: &str, traces: &[Trace]) -> Json {
    let traces = traces.iter().map(|trace| {
        let spans = trace.walk().into_iter().map(|(depth, span)| {
            json!({
                "id": span.id,
                "parent": span.parent,
                "depth": depth,
                "name": span.name,
                "service": span.service,
                "started": moment(span.started),
                "started_us": span.started,
                "took_us": span.took,
                "failed": span.failed(),
                "attributes": span.attributes,
            })
        });
        json!({"trace": trace.id, "follows": trace.links(), "spans": spans.collect::<Vec<_>>()})
    });
    json!({"queue_id": id, "traces": traces.collect::<Vec<_>>()})
}

fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

fn moment(micros: u64) -> String {
    let known = i64::try_from(micros).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
    known.map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_behind_the_whole_in_the_order_of_time() {
        let child = |of: &str| json!([{"refType": "CHILD_OF", "traceID": "t", "spanID": of}]);
        let link = json!([{"refType": "FOLLOWS_FROM", "traceID": "u", "spanID": "x"}]);
        let trace = Trace::read(&json!({
            "traceID": "t",
            "processes": {"p": {"serviceName": "packetboat-edge"}},
            "spans": [
                {"spanID": "c", "operationName": "later", "processID": "p", "startTime": 3_000, "duration": 1,
                 "references": child("a")},
                {"spanID": "b", "operationName": "sooner", "processID": "p", "startTime": 2_000, "duration": 500,
                 "references": child("a"), "tags": [{"key": "error", "value": true}]},
                {"spanID": "d", "operationName": "inner", "processID": "p", "startTime": 2_100, "duration": 1,
                 "references": child("b"), "tags": [{"key": "mail.auth.spf.result", "value": "pass"}]},
                {"spanID": "a", "operationName": "whole", "processID": "p", "startTime": 1_000, "duration": 9_001,
                 "references": link},
                {"spanID": "e", "operationName": "orphan", "processID": "p", "startTime": 4_000, "duration": 1,
                 "references": child("z")},
            ],
        }))
        .unwrap();
        let text = text(&[trace]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("trace t of 1970-01-01T00:00:00.001Z, follows u"), "{text}");
        assert_eq!(lines[1].trim(), "0.000 ms    9.001 ms  whole [edge]");
        assert_eq!(lines[2].trim(), "1.000 ms    0.500 ms    sooner ! [edge]");
        assert_eq!(lines[3].trim(), "1.100 ms    0.001 ms      inner [edge] spf.result=pass");
        assert_eq!(lines[4].trim(), "2.000 ms    0.001 ms    later [edge]");
        assert_eq!(lines[5].trim(), "3.000 ms    0.001 ms  orphan [edge]");
    }
}
