//! A running admin server, a client for it, and messages for its queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::{Admin, Check, Deps};
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use message::{Content, Envelope, Origin, QueueId, Recipient, Standing};
use queue::embedded::EmbeddedQueue;
use queue::{MessageRecord, NewEntry, NewMessage, NextHop, Queue};
use serde_json::Value as Json;
use telemetry::{Metrics, Telemetry};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The metrics of this process, which can be set up once.
pub(crate) async fn metrics() -> Result<Metrics> {
    static METRICS: OnceCell<Metrics> = OnceCell::const_new();
    let install = async || Ok(Telemetry::install(&telemetry::Config::default(), "test")?.metrics);
    METRICS.get_or_try_init(install).await.cloned()
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) draining: CancellationToken,
    _stop: DropGuard,
}

impl Server {
    pub(crate) async fn start(
        address: &str,
        queue: Option<Arc<dyn Queue>>,
        checks: Vec<(String, Arc<dyn Check>)>,
    ) -> Result<Self> {
        let draining = CancellationToken::new();
        let deps =
            Deps { role: "delivery", metrics: metrics().await?, queue, checks, draining: draining.clone() };
        let admin = Admin::bind(address.parse()?, deps).await?;
        let address = admin.address()?;
        let stop = CancellationToken::new();
        tokio::spawn(admin.serve(stop.clone()));
        Ok(Self { address, draining, _stop: stop.drop_guard() })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<(StatusCode, String)> {
        request(Method::GET, self.address, path, None).await
    }

    /// The JSON that a successful request gives.
    pub(crate) async fn json(&self, method: Method, path: &str) -> Result<Json> {
        let (status, body) = request(method, self.address, path, None).await?;
        anyhow::ensure!(status == StatusCode::OK, "{path}: {status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Status and `error` of a request that is refused.
    pub(crate) async fn refusal(&self, method: Method, path: &str) -> Result<(StatusCode, String)> {
        let (status, body) = request(method, self.address, path, None).await?;
        let json: Json = serde_json::from_str(&body).with_context(|| format!("{status} {body}"))?;
        Ok((status, json["error"].as_str().context("no error is told")?.to_owned()))
    }
}

/// One request; `host` stands in the place of the address in its Host field.
pub(crate) async fn request(
    method: Method,
    address: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Result<(StatusCode, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let response = client.request(request.body(Empty::new())?).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}

/// An embedded queue and the folder it lies in.
pub(crate) fn empty_queue() -> Result<(TempDir, Arc<dyn Queue>)> {
    let folder = tempfile::tempdir()?;
    let queue = Arc::new(EmbeddedQueue::open(&folder.path().join("queue"))?);
    Ok((folder, queue))
}

/// Puts a message for one recipient into a queue.
pub(crate) async fn put(queue: &Arc<dyn Queue>, to: &str, next_hop: &str) -> Result<QueueId> {
    let id = QueueId::generate();
    let inline = Content::from(Bytes::from_static(b"Subject: a test\r\n\r\n"));
    let envelope = Envelope {
        reverse_path: "alice@packetboat.test".parse()?,
        recipients: vec![to.parse()?],
        smtputf8: false,
        eight_bit: false,
        user: None,
        origin: Origin::Mx,
    };
    let record = MessageRecord {
        id,
        envelope,
        size: 19,
        inline_size: 19,
        parts: 0,
        traceparent: None,
        quarantine: false,
        accepted_at: Default::default(),
    };
    let recipient =
        Recipient { address: to.parse()?, original: None, standing: Standing::Pending, attempt: None };
    let entry = NewEntry {
        next_hop: NextHop(next_hop.to_owned()),
        tenant: queue::Tenant::default(),
        recipients: vec![recipient],
        max_age: Duration::from_secs(3600),
    };
    queue.accept(NewMessage { record, inline, entries: vec![entry] }, None).await?;
    Ok(id)
}
