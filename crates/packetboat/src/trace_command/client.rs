//! A client of Jaeger's query API.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value as Json;
use tokio::time::timeout;

use super::tree::Trace;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long an answer may be, in octets.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// The most traces of one message that a service is asked for: retries for days are fewer.
const MAX_TRACES: usize = 200;

/// Speaks to one Jaeger.
pub(super) struct Client {
    base: String,
    http: HttpClient<HttpConnector, Empty<Bytes>>,
}

impl Client {
    pub(super) fn new(endpoint: &str) -> Result<Self> {
        let base = endpoint.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().with_context(|| format!("{base:?} is no URL"))?;
        ensure!(
            uri.scheme_str() == Some("http") && uri.host().is_some(),
            "{base:?} cannot be asked: write http://HOST:PORT, as in http://jaeger:16686"
        );
        Ok(Self { base, http: HttpClient::builder(TokioExecutor::new()).build_http() })
    }

    /// The names of all services that have sent spans.
    pub(super) async fn services(&self) -> Result<Vec<String>> {
        let answer = self.get("/api/services").await?;
        let names = answer["data"].as_array().cloned().unwrap_or_default();
        Ok(names.iter().filter_map(Json::as_str).map(str::to_owned).collect())
    }

    /// The traces of a service since then that tell of a message.
    pub(super) async fn traces(&self, service: &str, id: &str, since: u64) -> Result<Vec<Trace>> {
        // What is put into the query is made of letters, digits and hyphens; the rest is {"mail.queue_id":"…"}.
        let tags = format!("%7B%22mail.queue_id%22%3A%22{id}%22%7D");
        let end = jiff::Timestamp::now().as_microsecond();
        let path =
            format!("/api/traces?service={service}&start={since}&end={end}&limit={MAX_TRACES}&tags={tags}");
        let answer = self.get(&path).await?;
        answer["data"].as_array().into_iter().flatten().map(Trace::read).collect()
    }

    async fn get(&self, path: &str) -> Result<Json> {
        let answer = timeout(DEADLINE, self.exchange(path)).await;
        answer.map_err(|_| anyhow!("no answer from {} within {} s", self.base, DEADLINE.as_secs()))?
    }

    async fn exchange(&self, path: &str) -> Result<Json> {
        let url = format!("{}{path}", self.base);
        let request = Request::builder().method(Method::GET).uri(url).body(Empty::new())?;
        let response = self.http.request(request).await.map_err(|error| {
            anyhow!(error)
                .context(format!("nothing answers at {}: is that Jaeger's query address?", self.base))
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!(error)).context("the answer broke off, or is too long")?;
        if !status.is_success() {
            bail!("{} answered {status}", self.base);
        }
        serde_json::from_slice(&body.to_bytes())
            .with_context(|| format!("{} is no Jaeger: its answer is no JSON", self.base))
    }
}
