//! A real Jaeger: it takes spans by OTLP, keeps them in memory, and is asked over its query API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::child::Child;
use crate::{kubernetes, net, wait};

const START: Duration = Duration::from_secs(60);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(20);
/// It keeps the latest.
const MOST_TRACES: &str = "--memory.max-traces=20000";

/// A running Jaeger; it ends when this is dropped.
pub struct Jaeger {
    otlp: SocketAddr,
    query: SocketAddr,
    _child: Child,
    _folder: TempDir,
}

/// One span as Jaeger shows it.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its trace.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// The span it is a part of; empty for a root.
    pub parent: String,
    /// The traces it is linked to.
    pub links: Vec<String>,
    /// What it is about.
    pub name: String,
    /// The process it happened in, by its service name.
    pub service: String,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// All of it as JSON.
    pub text: String,
    /// How long it took, in microseconds.
    pub duration: u64,
}

/// The spans of one trace.
#[derive(Debug, Clone, Default)]
pub struct Trace(pub Vec<Span>);

impl Jaeger {
    /// Starts it on ports of its own, and waits until it answers.
    pub async fn start() -> Result<Self> {
        Self::start_at(net::free_address()?).await
    }

    /// The same, taking spans at this address.
    pub async fn start_at(otlp: SocketAddr) -> Result<Self> {
        let program = kubernetes::program("jaeger").await?;
        let folder = tempfile::Builder::new().prefix("packetboat-jaeger-").tempdir()?;
        let query = net::free_address()?;
        let mut command = Command::new(program);
        command.env("SPAN_STORAGE_TYPE", "memory").args(["--log-level=warn", MOST_TRACES]);
        command.arg(format!("--collector.otlp.grpc.host-port={otlp}"));
        command.arg(format!("--query.http-server.host-port={query}"));
        for unused in [
            "admin.http",
            "collector.grpc-server",
            "collector.http-server",
            "collector.otlp.http",
            "query.grpc-server",
        ] {
            command.arg(format!("--{unused}.host-port={}", net::free_address()?));
        }
        let mut child = Child::spawn("jaeger", command, &folder.path().join("jaeger.log"))?;
        wait::until("Jaeger to answer", START, async || {
            if let Err(ended) = child.check_alive() {
                return Some(Err(ended));
            }
            let ready = get(query, "/api/services").await.is_ok() && TcpStream::connect(otlp).await.is_ok();
            ready.then_some(Ok(()))
        })
        .await??;
        Ok(Self { otlp, query, _child: child, _folder: folder })
    }

    /// `http://…` to send spans to.
    pub fn otlp(&self) -> String {
        format!("http://{}", self.otlp)
    }

    /// `http://…` to ask.
    pub fn query(&self) -> String {
        format!("http://{}", self.query)
    }

    /// The services that have sent spans.
    pub async fn services(&self) -> Result<Vec<String>> {
        let answer = get(self.query, "/api/services").await?;
        let names = answer["data"].as_array().cloned().unwrap_or_default();
        Ok(names.iter().filter_map(Json::as_str).map(str::to_owned).collect())
    }

    /// The traces of a service with a span that has this attribute.
    pub async fn find(&self, service: &str, attribute: &str, value: &str) -> Result<Vec<Trace>> {
        let tags = format!("%7B%22{attribute}%22%3A%22{value}%22%7D");
        self.traces(&format!("/api/traces?service={service}&limit=100&lookback=1h&tags={tags}")).await
    }

    /// All traces that a service has a part in.
    pub async fn all(&self, service: &str) -> Result<Vec<Trace>> {
        self.traces(&format!("/api/traces?service={service}&limit=1000&lookback=1h")).await
    }

    /// One trace; `None` while nothing of it has come.
    pub async fn trace(&self, id: &str) -> Result<Option<Trace>> {
        Ok(self.traces(&format!("/api/traces/{id}")).await?.pop())
    }

    async fn traces(&self, path: &str) -> Result<Vec<Trace>> {
        let answer = get(self.query, path).await?;
        let traces = answer["data"].as_array().cloned().unwrap_or_default();
        traces.iter().map(Trace::read).collect()
    }
}

impl Trace {
    fn read(json: &Json) -> Result<Self> {
        let processes = &json["processes"];
        let spans = json["spans"].as_array().context("a trace without spans")?;
        Ok(Self(spans.iter().map(|span| Span::read(span, processes)).collect()))
    }

    /// The first span of this name.
    pub fn span(&self, name: &str) -> Option<&Span> {
        self.0.iter().find(|span| span.name == name)
    }

    /// The names of all spans.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|span| span.name.as_str()).collect()
    }

    /// Whether `inner` is a part of `outer`, at any depth.
    pub fn is_within(&self, inner: &Span, outer: &Span) -> bool {
        let mut at = inner;
        while let Some(parent) = self.0.iter().find(|span| span.id == at.parent) {
            if parent.id == outer.id {
                return true;
            }
            at = parent;
        }
        false
    }
}

impl Span {
    fn read(json: &Json, processes: &Json) -> Self {
        let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let trace = text(&json["traceID"]);
        let references = json["references"].as_array().cloned().unwrap_or_default();
        let (parents, links): (Vec<&Json>, Vec<&Json>) = references.iter().partition(|reference| {
            reference["refType"] == "CHILD_OF" && reference["traceID"] == json["traceID"]
        });
        let attributes = json["tags"].as_array().cloned().unwrap_or_default();
        let shown = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Self {
            id: text(&json["spanID"]),
            parent: parents.first().map(|parent| text(&parent["spanID"])).unwrap_or_default(),
            links: links.iter().map(|link| text(&link["traceID"])).collect(),
            name: text(&json["operationName"]),
            service: json["processID"]
                .as_str()
                .map(|id| text(&processes[id]["serviceName"]))
                .unwrap_or_default(),
            attributes: attributes.iter().map(|tag| (text(&tag["key"]), shown(&tag["value"]))).collect(),
            text: json.to_string(),
            duration: json["duration"].as_u64().unwrap_or_default(),
            trace,
        }
    }
}

/// Asks the query API; the connection ends with the answer.
async fn get(address: SocketAddr, path: &str) -> Result<Json> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(ANSWER, exchange).await.context("Jaeger did not answer in time")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    // What it does not know yet is no failure.
    ensure!(status == "200" || status == "404", "Jaeger answered {status} to {path}: {body}");
    Ok(serde_json::from_str(body).unwrap_or(Json::Null))
}
