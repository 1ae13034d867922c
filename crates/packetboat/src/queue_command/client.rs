//! A client of the admin API.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value as Json;
use tokio::time::timeout;

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long an answer may be, in octets: a thousand entries with many recipients.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Speaks to the process at one address.
pub(super) struct Client {
    address: SocketAddr,
    http: HttpClient<HttpConnector, Empty<Bytes>>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, http: HttpClient::builder(TokioExecutor::new()).build_http() }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Json> {
        self.ask(Method::GET, path).await
    }

    pub(super) async fn post(&self, path: &str) -> Result<Json> {
        self.ask(Method::POST, path).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Json> {
        self.ask(Method::DELETE, path).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Json> {
        let answer = timeout(DEADLINE, self.exchange(method, path)).await;
        let (status, body) = answer.map_err(|_| {
            anyhow!("no answer from http://{} within {} s", self.address, DEADLINE.as_secs())
        })??;
        let json = serde_json::from_slice::<Json>(&body);
        if status.is_success() {
            return json
                .with_context(|| format!("http://{} is no Packetboat: its answer is no JSON", self.address));
        }
        let told = json.ok().and_then(|json| json.get("error").and_then(Json::as_str).map(str::to_owned));
        match told {
            Some(text) => bail!("{text}"),
            None if status == StatusCode::NOT_FOUND => bail!(
                "the process at http://{} has no queue: ask one with the role delivery or all",
                self.address
            ),
            None => {
                bail!("http://{} answered {status}: {}", self.address, String::from_utf8_lossy(&body).trim())
            }
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes)> {
        let url = format!("http://{}/api/v1/queue/{path}", self.address);
        let request = Request::builder().method(method).uri(url).body(Empty::new())?;
        let response = self.http.request(request).await.map_err(|error| {
            let text = if error.is_connect() {
                format!(
                    "nothing answers at http://{}: is the process running, and is that its admin.address?",
                    self.address
                )
            } else {
                format!("the process at http://{} broke the connection", self.address)
            };
            anyhow!(error).context(text)
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow!(error)).context("the answer broke off, or is too long")?;
        Ok((status, body.to_bytes()))
    }
}
