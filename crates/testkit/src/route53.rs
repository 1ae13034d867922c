//! A server that speaks the API of Amazon Route 53: moto. Before it stands a gate that takes requests with one access
//! key only, counts them, and fails them where a test wants it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::child::Child;
use crate::{net, wait};

const START: Duration = Duration::from_secs(60);
/// The first installation takes a minute or two.
const INSTALL: Duration = Duration::from_secs(12 * 60);
/// The id of the access key that it takes.
pub const KEY_ID: &str = "AKIAOFATEST";
/// The access key.
pub const SECRET: &str = "access-key-of-a-test";
const BY_HAND: &str = include_str!("route53_by_hand.py");
#[derive(Default)]
struct Gate {
    server: String,
    faults: VecDeque<u16>,
    requests: usize,
}

type Shared = Arc<Mutex<Gate>>;

fn lock(gate: &Shared) -> MutexGuard<'_, Gate> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server and the gate; both end when this is dropped.
pub struct Route53Server {
    python: PathBuf,
    server: SocketAddr,
    address: SocketAddr,
    gate: Shared,
    serving: JoinHandle<()>,
    zone: String,
    _child: Child,
    _folder: TempDir,
}

impl Drop for Route53Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Route53Server {
    /// Starts with an empty hosted zone.
    pub async fn start(zone: &str) -> Result<Self> {
        let python = python().await?;
        let folder = tempfile::Builder::new().prefix("packetboat-route53-").tempdir()?;
        let server = net::free_address()?;
        let mut command = Command::new(&python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &server.port().to_string()]);
        let mut child = Child::spawn("moto_server", command, &folder.path().join("moto.log"))?;
        wait::until("moto to listen", START, async || {
            if let Err(ended) = child.check_alive() {
                return Some(Err(ended));
            }
            tokio::net::TcpStream::connect(server).await.is_ok().then_some(Ok(()))
        })
        .await??;
        let gate = Arc::new(Mutex::new(Gate { server: server.to_string(), ..Gate::default() }));
        let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let routes = Router::new().fallback(pass).with_state((Arc::clone(&gate), client));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        let zone = zone.to_owned();
        let this = Self { python, server, address, gate, serving, zone, _child: child, _folder: folder };
        this.by_hand("create", &[]).await?;
        Ok(this)
    }

    /// Its address, as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests are answered with these codes.
    pub fn fail_next(&self, codes: &[u16]) {
        lock(&self.gate).faults.extend(codes);
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        lock(&self.gate).requests
    }

    /// Writes a record set, as somebody else would.
    pub async fn write(&self, kind: &str, name: &str, values: &[&str]) -> Result<()> {
        self.by_hand("write", &[&[kind, name], values].concat()).await.map(drop)
    }

    /// The values at a name, sorted.
    pub async fn values(&self, kind: &str, name: &str) -> Result<Vec<String>> {
        let printed = self.by_hand("show", &[kind, name]).await?;
        serde_json::from_str(&printed).context("reading what boto3 printed")
    }

    async fn by_hand(&self, action: &str, more: &[&str]) -> Result<String> {
        let endpoint = format!("http://{}", self.server);
        let output = Command::new(&self.python)
            .args(["-c", BY_HAND, &endpoint, KEY_ID, SECRET, action, &self.zone])
            .args(more)
            .output();
        let output = tokio::time::timeout(START, output).await.context("boto3 hangs")??;
        ensure!(output.status.success(), "boto3: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The Python that has moto and boto3; both are installed when they are not there.
async fn python() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/route53-server");
    let install = Command::new(script).stderr(std::process::Stdio::inherit()).output();
    let output = tokio::time::timeout(INSTALL, install).await.context("installing moto")??;
    ensure!(output.status.success(), "scripts/route53-server failed");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

fn refuse(status: StatusCode, code: &str) -> Response {
    let body = format!(
        "<ErrorResponse xmlns=\"https://route53.amazonaws.com/doc/2013-04-01/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>as the test wants it</Message></Error></ErrorResponse>"
    );
    (status, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
}

/// Hands a request on, but where it is to fail.
async fn pass(
    State((gate, client)): State<(Shared, Client<HttpConnector, Body>)>,
    mut request: Request,
) -> Response {
    let (server, fault) = {
        let mut gate = lock(&gate);
        gate.requests += 1;
        (gate.server.clone(), gate.faults.pop_front())
    };
    if let Some(status) = fault.and_then(|code| StatusCode::from_u16(code).ok()) {
        let code = if status == StatusCode::BAD_REQUEST { "Throttling" } else { "ServiceUnavailable" };
        return refuse(status, code);
    }
    let signed = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if !signed.is_some_and(|signed| signed.contains(&format!("Credential={KEY_ID}/"))) {
        return refuse(StatusCode::FORBIDDEN, "InvalidClientTokenId");
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Ok(uri) = format!("http://{server}{path}").parse::<Uri>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    *request.uri_mut() = uri;
    match client.request(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
