//! A server that speaks the part of Cloudflare's API that is about zones and DNS records.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The token that it takes.
pub const TOKEN: &str = "token-of-a-test-zone";
/// The zone's id.
const ZONE_ID: &str = "023e105f4ecef8ad9ca31a8372d0c353";
/// It never gives more at a time, so that whoever asks has to turn pages.
const PAGE: usize = 2;

#[derive(Default)]
struct Zone {
    name: String,
    records: Vec<Value>,
    made: usize,
    faults: VecDeque<u16>,
    requests: usize,
}

type Shared = Arc<Mutex<Zone>>;

/// The server; it ends when this is dropped.
pub struct CloudflareServer {
    address: SocketAddr,
    zone: Shared,
    serving: JoinHandle<()>,
}

impl Drop for CloudflareServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock(zone: &Shared) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CloudflareServer {
    /// Starts with an empty zone.
    pub async fn start(zone: &str) -> Result<Self> {
        let shared: Shared = Arc::new(Mutex::new(Zone { name: zone.to_owned(), ..Zone::default() }));
        let routes = Router::new()
            .route("/client/v4/zones", get(zones))
            .route("/client/v4/zones/{zone}/dns_records", get(records))
            .route("/client/v4/zones/{zone}/dns_records/batch", post(batch))
            .layer(middleware::from_fn_with_state(Arc::clone(&shared), gate))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { address, zone: shared, serving })
    }

    /// Its address, as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests are answered with these codes.
    pub fn fail_next(&self, codes: &[u16]) {
        lock(&self.zone).faults.extend(codes);
    }

    /// Adds a record, as somebody else would.
    pub fn add(&self, mut record: Value) {
        let mut zone = lock(&self.zone);
        zone.made += 1;
        record["id"] = json!(format!("r{}", zone.made));
        zone.records.push(record);
    }

    /// The contents at a name, sorted.
    #[must_use]
    pub fn contents(&self, kind: &str, name: &str) -> Vec<String> {
        let zone = lock(&self.zone);
        let own = zone.records.iter().filter(|one| one["type"] == kind && one["name"] == name);
        let mut all: Vec<String> = own.filter_map(|one| one["content"].as_str().map(str::to_owned)).collect();
        all.sort();
        all
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        lock(&self.zone).requests
    }
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let body = json!({"success": false, "errors": [{"code": 10000, "message": message}], "result": null});
    (status, Json(body)).into_response()
}

/// Faults, and who may ask at all.
async fn gate(State(zone): State<Shared>, request: Request, next: Next) -> Response {
    let fault = {
        let mut zone = lock(&zone);
        zone.requests += 1;
        zone.faults.pop_front()
    };
    if let Some(status) = fault.and_then(|code| StatusCode::from_u16(code).ok()) {
        return refuse(status, "as the test wants it");
    }
    let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if given != Some(&format!("Bearer {TOKEN}")) {
        return refuse(StatusCode::FORBIDDEN, "Authentication error");
    }
    next.run(request).await
}

async fn zones(State(zone): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Response {
    let zone = lock(&zone);
    let found: Vec<Value> = (query.get("name") == Some(&zone.name))
        .then(|| json!({"id": ZONE_ID, "name": zone.name}))
        .into_iter()
        .collect();
    Json(json!({"success": true, "errors": [], "result": found})).into_response()
}

async fn records(
    State(zone): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    if id != ZONE_ID {
        return refuse(StatusCode::NOT_FOUND, "no such zone");
    }
    let zone = lock(&zone);
    let is = |one: &&Value, key: &str| query.get(key).is_none_or(|wanted| one[key] == *wanted);
    let found: Vec<&Value> = zone.records.iter().filter(|one| is(one, "type") && is(one, "name")).collect();
    let page: usize = query.get("page").and_then(|text| text.parse().ok()).unwrap_or(1);
    let some: Vec<&&Value> = found.iter().skip((page - 1) * PAGE).take(PAGE).collect();
    let info = json!({"page": page, "per_page": PAGE, "total_pages": found.len().div_ceil(PAGE)});
    Json(json!({"success": true, "errors": [], "result": some, "result_info": info})).into_response()
}

async fn batch(State(zone): State<Shared>, Path(_): Path<String>, Json(batch): Json<Value>) -> Response {
    let mut zone = lock(&zone);
    let list = |key: &str| batch[key].as_array().cloned().unwrap_or_default();
    let (deletes, posts) = (list("deletes"), list("posts"));
    if deletes.iter().any(|gone| !zone.records.iter().any(|one| one["id"] == gone["id"])) {
        return refuse(StatusCode::NOT_FOUND, "Record does not exist.");
    }
    zone.records.retain(|one| !deletes.iter().any(|gone| one["id"] == gone["id"]));
    for mut record in posts {
        zone.made += 1;
        record["id"] = json!(format!("r{}", zone.made));
        zone.records.push(record);
    }
    Json(json!({"success": true, "errors": [], "result": {}})).into_response()
}
