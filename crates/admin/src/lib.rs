//! Health, readiness, metrics and the queue API, on a port apart from mail.
//!
//! `/healthz`, `/readyz` and `/metrics` are for probes and scrapers. `/api/v1/queue/…` is what
//! `packetboat queue` speaks to; it knows no passwords, so it answers callers on this machine alone.

mod api;
mod readiness;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use queue::Queue;
use telemetry::Metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use readiness::{QueueCheck, Readiness};

pub use readiness::Check;

/// What a process shows of itself.
#[derive(Clone)]
pub struct Deps {
    /// The process's role, as its metrics name it.
    pub role: &'static str,
    /// Its metrics.
    pub metrics: Metrics,
    /// Its queue, where the role has one. It must answer before the process is ready.
    pub queue: Option<Arc<dyn Queue>>,
    /// What else must be well before the process is ready, by name.
    pub checks: Vec<(String, Arc<dyn Check>)>,
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
    readiness: Arc<Readiness>,
}

impl Admin {
    /// Binds `address`. Whatever that is, the queue API refuses callers on other machines.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, deps: Deps) -> Result<Self, AdminError> {
        let listener =
            TcpListener::bind(address).await.map_err(|cause| AdminError::Bind { address, cause })?;
        let (router, readiness) = router(deps);
        Ok(Self { listener, router, readiness })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, and tells meanwhile as a metric whether the process is ready.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), AdminError> {
        let service = self.router.into_make_service_with_connect_info::<SocketAddr>();
        let serving = axum::serve(self.listener, service).with_graceful_shutdown(shutdown.cancelled_owned());
        tokio::select! {
            outcome = serving => outcome.map_err(AdminError::Serve),
            never = self.readiness.tell() => match never {},
        }
    }
}

fn router(deps: Deps) -> (Router, Arc<Readiness>) {
    let Deps { role, metrics, queue, mut checks, draining } = deps;
    if let Some(queue) = &queue {
        checks.insert(0, ("queue".to_owned(), Arc::new(QueueCheck(Arc::clone(queue)))));
    }
    let readiness = Arc::new(Readiness::new(role, checks, draining));
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness::answer).with_state(Arc::clone(&readiness)))
        .route("/metrics", get(|State(metrics): State<Metrics>| async move { metrics.render() }))
        .with_state(metrics);
    let router = match queue {
        Some(queue) => router.nest("/api/v1/queue", api::router(queue)),
        None => router,
    };
    (router, readiness)
}
