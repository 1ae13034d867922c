//! What is suspended: next hops, tenants and source pools.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use queue::{Scope, Suspension};
use serde::{Deserialize, Serialize};

use super::{Failure, Order, Shared};

/// What is meant: just one of them.
#[derive(Deserialize)]
pub(super) struct Which {
    next_hop: Option<String>,
    tenant: Option<String>,
    pool: Option<String>,
}

impl Which {
    fn scope(self) -> Result<Scope, Failure> {
        match (self.next_hop, self.tenant, self.pool) {
            (Some(next_hop), None, None) => Ok(Scope::NextHop(next_hop)),
            (None, Some(tenant), None) => Ok(Scope::Tenant(tenant)),
            (None, None, Some(pool)) => Ok(Scope::Pool(pool)),
            _ => {
                let text = "say one of next_hop, tenant and pool".to_owned();
                Err(Failure(StatusCode::BAD_REQUEST, text))
            }
        }
    }
}

#[derive(Serialize)]
pub(super) struct Suspensions {
    suspensions: Vec<Suspension>,
}

pub(super) async fn list(State(shared): State<Shared>) -> Result<Json<Suspensions>, Failure> {
    Ok(Json(Suspensions { suspensions: shared.queue.suspensions().await? }))
}

/// Whether anything has changed.
#[derive(Serialize)]
pub(super) struct Changed {
    changed: bool,
}

pub(super) async fn suspend(
    State(shared): State<Shared>,
    Query(which): Query<Which>,
    Query(order): Query<Order>,
) -> Result<Json<Changed>, Failure> {
    let scope = which.scope()?;
    shared.queue.suspend(&scope, &order.why(), order.by()).await?;
    tracing::info!(%scope, why = order.why(), by = order.by(), "suspended");
    Ok(Json(Changed { changed: true }))
}

pub(super) async fn resume(
    State(shared): State<Shared>,
    Query(which): Query<Which>,
    Query(order): Query<Order>,
) -> Result<Json<Changed>, Failure> {
    let scope = which.scope()?;
    let changed = shared.queue.resume(&scope, order.by()).await?;
    tracing::info!(%scope, by = order.by(), changed, "resumed");
    Ok(Json(Changed { changed }))
}
