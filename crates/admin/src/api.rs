//! The queue API: what is in the queue, and an operator's verbs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use message::QueueId;
use queue::{Entry, EntryState, Ledger, ListFilter, MessageRecord, Page, Queue, QueueError, Target, Verb};
use serde::{Deserialize, Serialize};

mod follow;
mod jobs;
mod suspensions;

use jobs::Jobs;

/// What the handlers work with.
#[derive(Clone)]
struct Shared {
    queue: Arc<dyn Queue>,
    jobs: Arc<Jobs>,
}

/// Entries on a page when the caller names no limit.
const DEFAULT_LIMIT: usize = 100;

pub(crate) fn router(queue: Arc<dyn Queue>) -> Router {
    let shared = Shared { jobs: Arc::new(Jobs::new(Arc::clone(&queue))), queue };
    Router::new()
        .route("/entries", get(entries))
        .route("/messages/{id}", get(show).delete(remove))
        .route("/messages/{id}/{verb}", post(operate))
        .route("/account", get(account))
        .route("/audit", get(follow::audit))
        .route("/verbs", get(follow::verbs))
        .route("/events", get(follow::events).delete(follow::forget))
        .route("/events/passed", post(follow::passed))
        .route("/suspensions", get(suspensions::list).post(suspensions::suspend).delete(suspensions::resume))
        .route("/jobs", get(jobs::list).post(jobs::start))
        .route("/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .layer(from_fn(refuse_strangers))
        .with_state(shared)
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
        if matches!(error, QueueError::TooManyReaders(_)) {
            return Self(StatusCode::CONFLICT, error.to_string());
        }
        tracing::warn!(error = &error as &dyn std::error::Error, "queue API request failed");
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

fn absent(target: Target) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("message {target} is not in the queue"))
}

fn parse_message(id: &str) -> Result<QueueId, Failure> {
    id.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{id:?} is {error}")))
}

/// A message, or one of its entries (`ID.N`).
fn parse(id: &str) -> Result<Target, Failure> {
    match id.contains('.') {
        true => id
            .parse()
            .map(Target::Entry)
            .map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{id:?} is {error}"))),
        false => parse_message(id).map(Target::Message),
    }
}

/// Which entries; every condition must hold.
#[derive(Debug, Clone, Default, Deserialize)]
struct Conditions {
    next_hop: Option<String>,
    tenant: Option<String>,
    pool: Option<String>,
    domain: Option<String>,
    state: Option<EntryState>,
    /// Seconds since accept, at least.
    older_than: Option<u64>,
}

impl Conditions {
    fn filter(self, cursor: Option<String>, limit: usize) -> ListFilter {
        ListFilter {
            next_hop: self.next_hop,
            tenant: self.tenant,
            pool: self.pool,
            domain: self.domain,
            state: self.state,
            older_than: self.older_than.map(Duration::from_secs),
            cursor,
            limit,
        }
    }
}

#[derive(Deserialize)]
struct Paging {
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
    State(shared): State<Shared>,
    Query(conditions): Query<Conditions>,
    Query(paging): Query<Paging>,
) -> Result<Json<EntriesPage>, Failure> {
    let filter = conditions.filter(paging.cursor, paging.limit.unwrap_or(DEFAULT_LIMIT));
    let Page { entries, next } = shared.queue.list(filter).await?;
    let entries = entries.into_iter().map(|(entry, message)| ListedEntry { entry, message }).collect();
    Ok(Json(EntriesPage { entries, next }))
}

#[derive(Serialize)]
struct Shown {
    message: MessageRecord,
    entries: Vec<Entry>,
}

async fn show(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Json<Shown>, Failure> {
    let id = parse_message(&id)?;
    let shown = shared.queue.show(id).await?;
    let (message, entries) = shown.ok_or_else(|| absent(Target::Message(id)))?;
    Ok(Json(Shown { message, entries }))
}

/// How many entries a verb moved.
#[derive(Serialize)]
struct Moved {
    entries: u64,
}

/// Why something is asked for, and by whom.
#[derive(Debug, Clone, Default, Deserialize)]
struct Order {
    why: Option<String>,
    by: Option<String>,
}

/// A reason when the caller gives none.
const BY_OPERATOR: &str = "an operator asked for it";

impl Order {
    fn why(&self) -> String {
        self.why.clone().unwrap_or_else(|| BY_OPERATOR.to_owned())
    }

    fn by(&self) -> &str {
        self.by.as_deref().filter(|by| !by.is_empty()).unwrap_or("an operator")
    }

    fn verb(&self, name: &str) -> Result<Verb, Failure> {
        Ok(match name {
            "retry" => Verb::RetryNow,
            "hold" => Verb::Hold { why: self.why() },
            "release" => Verb::Release,
            "bounce" => Verb::Bounce { why: self.why() },
            "remove" => Verb::Remove,
            other => {
                let text = format!("{other:?} is no verb: use retry, hold, release, bounce or remove");
                return Err(Failure(StatusCode::NOT_FOUND, text));
            }
        })
    }
}

async fn operate(
    State(shared): State<Shared>,
    Path((id, verb)): Path<(String, String)>,
    Query(order): Query<Order>,
) -> Result<Json<Moved>, Failure> {
    let (verb, target) = (order.verb(&verb)?, parse(&id)?);
    if shared.queue.show(target.message()).await?.is_none() {
        return Err(absent(target));
    }
    apply(&shared, target, &verb, order.by()).await
}

async fn remove(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(order): Query<Order>,
) -> Result<Json<Moved>, Failure> {
    let target = parse(&id)?;
    let moved = apply(&shared, target, &Verb::Remove, order.by()).await?;
    if moved.entries == 0 { Err(absent(target)) } else { Ok(moved) }
}

async fn apply(shared: &Shared, target: Target, verb: &Verb, by: &str) -> Result<Json<Moved>, Failure> {
    let entries = shared.queue.operate(target, verb, by).await?;
    tracing::info!(queue_id = %target, ?verb, by, entries, "operator changed a message");
    Ok(Json(Moved { entries }))
}

#[derive(Serialize)]
struct Account {
    #[serde(flatten)]
    ledger: Ledger,
    unaccounted: i64,
}

async fn account(State(shared): State<Shared>) -> Result<Json<Account>, Failure> {
    let ledger = shared.queue.ledger().await?;
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
