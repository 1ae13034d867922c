//! Stands in for the service of the crate `edge` until it is there.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(super) struct Deps {
    pub(super) domains: domains::Domains,
    pub(super) verifier: Arc<dyn proto::Verifier>,
    pub(super) delivery: Arc<dyn proto::Delivery>,
    pub(super) tls: tls::ServerTls,
}

pub(super) struct Edge(Deps);

pub(super) async fn build(config: edge::Config, deps: Deps) -> anyhow::Result<Edge> {
    for listener in config.listeners {
        tracing::error!(listener = listener.name, "this build has no edge and takes no mail");
    }
    Ok(Edge(deps))
}

impl Edge {
    pub(super) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        Vec::new()
    }

    pub(super) async fn run(self, shutdown: CancellationToken) {
        let Deps { domains: _domains, verifier: _verifier, delivery: _delivery, tls: _tls } = self.0;
        shutdown.cancelled().await;
    }
}
