//! The queue API: what is in the queue, and an operator's verbs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use message::QueueId;
use queue::{Entry, EntryState, Ledger, ListFilter, MessageRecord, Page, Queue, QueueError, Verb};
use serde::{Deserialize, Serialize};

type Shared = Arc<dyn Queue>;

/// Entries on a page when the caller names no limit.
const DEFAULT_LIMIT: usize = 100;

pub(crate) fn router(queue: Shared) -> Router {
    Router::new()
        .route("/entries", get(entries))
        .route("/messages/{id}", get(show).delete(remove))
        .route("/messages/{id}/{verb}", post(operate))
        .route("/account", get(account))
        .layer(from_fn(refuse_strangers))
        .with_state(queue)
}

/// Lets callers on this machine through, and nobody else. The whole of 127.0.0.0/8 would be too much:
/// service meshes hand on what comes from afar from other addresses in it. The name asked for must not
/// be a stranger's either, or a web page could have a browser on this machine ask for it.
async fn refuse_strangers(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let address = peer.ip().to_canonical();
    let here = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&address);
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if here && is_address_or_localhost(host) {
        return next.run(request).await;
    }
    tracing::warn!(%peer, host, "queue API request from elsewhere refused");
    let text = "the queue API answers on its own machine only: run packetboat queue there";
    Failure(StatusCode::FORBIDDEN, text.to_owned()).into_response()
}

/// Whether a `Host` field names an address or `localhost`, with or without a port.
fn is_address_or_localhost(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// A failure as the caller sees it: `{"error": "one sentence"}`.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        tracing::warn!(error = &error as &dyn std::error::Error, "queue API request failed");
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

fn absent(id: QueueId) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("message {id} is not in the queue"))
}

fn parse(id: &str) -> Result<QueueId, Failure> {
    id.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{id:?} is {error}")))
}

#[derive(Deserialize)]
struct EntriesQuery {
    next_hop: Option<String>,
    state: Option<EntryState>,
    cursor: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct ListedEntry {
    #[serde(flatten)]
    entry: Entry,
    message: MessageRecord,
}

#[derive(Serialize)]
struct EntriesPage {
    entries: Vec<ListedEntry>,
    next: Option<String>,
}

async fn entries(
    State(queue): State<Shared>,
    Query(query): Query<EntriesQuery>,
) -> Result<Json<EntriesPage>, Failure> {
    let filter = ListFilter {
        next_hop: query.next_hop,
        state: query.state,
        cursor: query.cursor,
        limit: query.limit.unwrap_or(DEFAULT_LIMIT),
    };
    let Page { entries, next } = queue.list(filter).await?;
    let entries = entries.into_iter().map(|(entry, message)| ListedEntry { entry, message }).collect();
    Ok(Json(EntriesPage { entries, next }))
}

#[derive(Serialize)]
struct Shown {
    message: MessageRecord,
    entries: Vec<Entry>,
}

async fn show(State(queue): State<Shared>, Path(id): Path<String>) -> Result<Json<Shown>, Failure> {
    let id = parse(&id)?;
    let (message, entries) = queue.show(id).await?.ok_or_else(|| absent(id))?;
    Ok(Json(Shown { message, entries }))
}

/// How many entries a verb moved.
#[derive(Serialize)]
struct Moved {
    entries: u64,
}

#[derive(Deserialize)]
struct Reason {
    why: Option<String>,
}

/// A reason when the caller gives none.
const BY_OPERATOR: &str = "an operator asked for it";

async fn operate(
    State(queue): State<Shared>,
    Path((id, verb)): Path<(String, String)>,
    Query(reason): Query<Reason>,
) -> Result<Json<Moved>, Failure> {
    let why = reason.why.unwrap_or_else(|| BY_OPERATOR.to_owned());
    let verb = match verb.as_str() {
        "retry" => Verb::RetryNow,
        "hold" => Verb::Hold { why },
        "release" => Verb::Release,
        "bounce" => Verb::Bounce { why },
        other => {
            let text = format!("{other:?} is no verb: use retry, hold, release or bounce");
            return Err(Failure(StatusCode::NOT_FOUND, text));
        }
    };
    let id = parse(&id)?;
    if queue.show(id).await?.is_none() {
        return Err(absent(id));
    }
    apply(&queue, id, &verb).await
}

async fn remove(State(queue): State<Shared>, Path(id): Path<String>) -> Result<Json<Moved>, Failure> {
    let id = parse(&id)?;
    let moved = apply(&queue, id, &Verb::Remove).await?;
    if moved.entries == 0 { Err(absent(id)) } else { Ok(moved) }
}

async fn apply(queue: &Shared, id: QueueId, verb: &Verb) -> Result<Json<Moved>, Failure> {
    let entries = queue.operate(id, verb).await?;
    tracing::info!(queue_id = %id, ?verb, entries, "operator changed a message");
    Ok(Json(Moved { entries }))
}

#[derive(Serialize)]
struct Account {
    #[serde(flatten)]
    ledger: Ledger,
    unaccounted: i64,
}

async fn account(State(queue): State<Shared>) -> Result<Json<Account>, Failure> {
    let ledger = queue.ledger().await?;
    Ok(Json(Account { unaccounted: ledger.unaccounted(), ledger }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart() {
        for host in ["localhost", "localhost:8025", "127.0.0.1:8025", "[::1]:8025", "[::1]", "10.0.0.1"] {
            assert!(is_address_or_localhost(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8025", "localhost.evil.example"] {
            assert!(!is_address_or_localhost(host), "{host}");
        }
    }
}
