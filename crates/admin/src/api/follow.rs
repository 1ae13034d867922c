//! What happens in the queue, what operators did to it, and whether it agrees with itself.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use queue::{AuditPage, Events, VerbRecord};
use serde::{Deserialize, Serialize};

use super::{DEFAULT_LIMIT, Failure, Paging, Shared};

/// One page of the audit.
pub(super) async fn audit(
    State(shared): State<Shared>,
    Query(paging): Query<Paging>,
) -> Result<Json<AuditPage>, Failure> {
    Ok(Json(shared.queue.audit(paging.cursor.as_deref()).await?))
}

#[derive(Serialize)]
pub(super) struct Verbs {
    verbs: Vec<VerbRecord>,
}

pub(super) async fn verbs(
    State(shared): State<Shared>,
    Query(paging): Query<Paging>,
) -> Result<Json<Verbs>, Failure> {
    Ok(Json(Verbs { verbs: shared.queue.verbs(paging.limit.unwrap_or(DEFAULT_LIMIT)).await? }))
}

#[derive(Deserialize)]
pub(super) struct Reader {
    reader: String,
}

impl Reader {
    fn name(&self) -> Result<&str, Failure> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if (1..=64).contains(&self.reader.len()) && self.reader.chars().all(plain) {
            return Ok(&self.reader);
        }
        let text = "a reader's name has 1 to 64 letters, digits, or any of -_.".to_owned();
        Err(Failure(StatusCode::BAD_REQUEST, text))
    }
}

/// The events that the reader has not passed; the first call makes it known.
pub(super) async fn events(
    State(shared): State<Shared>,
    Query(reader): Query<Reader>,
    Query(paging): Query<Paging>,
) -> Result<Json<Events>, Failure> {
    let limit = paging.limit.unwrap_or(DEFAULT_LIMIT);
    Ok(Json(shared.queue.events(reader.name()?, limit).await?))
}

/// Nothing to tell.
#[derive(Serialize)]
pub(super) struct Done {}

pub(super) async fn passed(
    State(shared): State<Shared>,
    Query(reader): Query<Reader>,
    Query(paging): Query<Paging>,
) -> Result<Json<Done>, Failure> {
    let Some(cursor) = paging.cursor else {
        let text = "say up to where: cursor=, as the events came with".to_owned();
        return Err(Failure(StatusCode::BAD_REQUEST, text));
    };
    shared.queue.passed(reader.name()?, &cursor).await?;
    Ok(Json(Done {}))
}

pub(super) async fn forget(
    State(shared): State<Shared>,
    Query(reader): Query<Reader>,
) -> Result<Json<Done>, Failure> {
    shared.queue.forget_reader(reader.name()?).await?;
    Ok(Json(Done {}))
}
