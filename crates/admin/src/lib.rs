//! Health, readiness, metrics and the queue API, on a port apart from mail.
//!
//! `/healthz`, `/readyz` and `/metrics` are for probes and scrapers. `/api/v1/queue/…` is what
//! `packetboat queue` speaks to; it is served on loopback addresses alone, for it knows no passwords.

mod api;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use queue::Queue;
use telemetry::Metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a process shows of itself.
#[derive(Clone)]
pub struct Deps {
    /// Its metrics.
    pub metrics: Metrics,
    /// Its queue, where the role has one.
    pub queue: Option<Arc<dyn Queue>>,
    /// Cancelled when the process begins to drain: it is no longer ready.
    pub draining: CancellationToken,
}

/// Why the admin server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be bound.
    #[error("cannot listen on admin.address {address}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// The operating system's word.
        #[source]
        cause: std::io::Error,
    },
    /// The server broke.
    #[error("the admin server failed")]
    Serve(#[source] std::io::Error),
}

/// A bound admin server.
pub struct Admin {
    listener: TcpListener,
    router: Router,
}

impl Admin {
    /// Binds `address`. The queue API is left out when it is not a loopback address.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, deps: Deps) -> Result<Self, AdminError> {
        let listener =
            TcpListener::bind(address).await.map_err(|cause| AdminError::Bind { address, cause })?;
        let mut router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(|State(deps): State<Deps>| async move { deps.metrics.render() }))
            .with_state(deps.clone());
        match deps.queue {
            Some(queue) if address.ip().is_loopback() => {
                router = router.nest("/api/v1/queue", api::router(queue));
            }
            Some(_) => {
                tracing::info!(%address, "queue API left out: the admin address is not a loopback address")
            }
            None => {}
        }
        Ok(Self { listener, router })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), AdminError> {
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
            .map_err(AdminError::Serve)
    }
}

/// Ready means: mail can be taken now. A process that drains is not, nor one whose store is away.
async fn ready(State(deps): State<Deps>) -> (StatusCode, String) {
    if deps.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    match &deps.queue {
        Some(queue) => match queue.check().await {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        None => (StatusCode::OK, "ready\n".to_owned()),
    }
}
