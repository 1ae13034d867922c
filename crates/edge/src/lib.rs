//! SMTP in: listeners, sessions, policy by stage, and the stream to verifier and delivery.
//!
//! A message goes `listener` → `session` → `commands/*` → `relay`. What this crate deliberately does
//! not do: it never sees the queue, never holds a whole message, and knows no private key.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use domains::Domains;
use proto::{Delivery, Verifier};
use tls::ServerTls;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod commands;
pub mod config;
mod connection;
mod hops;
mod listener;
mod network;
mod origins;
mod passwords;
pub mod proxy;
pub mod received;
mod recipients;
mod relay;
mod session;
mod transaction;

pub use config::Config;

/// What the edge needs.
pub struct Deps {
    /// Who is hosted, who exists, who may submit. Loaded with submission users.
    pub domains: Domains,
    /// Judges and signs.
    pub verifier: Arc<dyn Verifier>,
    /// Takes responsibility for messages.
    pub delivery: Arc<dyn Delivery>,
    /// The identity under TLS.
    pub tls: ServerTls,
}

/// Why the edge could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An address cannot be listened on.
    #[error("listener {name:?} cannot listen on {address}: choose another address, or stop what holds it")]
    Bind {
        /// The listener's name.
        name: String,
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What all sessions share.
pub(crate) struct Shared {
    config: Config,
    domains: Domains,
    recipients: recipients::Recipients,
    passwords: passwords::Passwords,
    verifier: Arc<dyn Verifier>,
    delivery: Arc<dyn Delivery>,
    tls: ServerTls,
    doors: listener::Doors,
    origins: origins::Origins,
}

/// The edge, its listeners bound.
pub struct Edge {
    shared: Arc<Shared>,
    sockets: Vec<(TcpListener, Arc<config::Listener>)>,
}

/// Binds the listeners. Connections wait in their backlogs until [`Edge::run`].
///
/// # Errors
/// When a listener cannot be bound.
pub async fn build(config: Config, deps: Deps) -> Result<Edge, BuildError> {
    let mut sockets = Vec::new();
    for listener in &config.listeners {
        let (name, address) = (&listener.name, listener.address);
        let bind = |source| BuildError::Bind { name: name.clone(), address, source };
        sockets.push((TcpListener::bind(address).await.map_err(bind)?, Arc::new(listener.clone())));
    }
    let Deps { domains, verifier, delivery, tls } = deps;
    let limits = &config.limits;
    let shared = Shared {
        recipients: recipients::Recipients::new(domains.clone(), delivery.clone(), limits.service_timeout),
        passwords: passwords::Passwords::new(domains.clone(), limits.max_auth_failures, limits.auth_window),
        doors: listener::Doors::new(limits.max_sessions, limits.max_sessions_per_client),
        origins: origins::Origins::new(limits.private_clients_window, limits.private_clients_transactions),
        domains,
        verifier,
        delivery,
        tls,
        config,
    };
    Ok(Edge { shared: Arc::new(shared), sockets })
}

impl Edge {
    /// Where each listener listens, by name.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let bound = |(socket, listener): &(TcpListener, Arc<config::Listener>)| {
            (listener.name.clone(), socket.local_addr().unwrap_or(listener.address))
        };
        self.sockets.iter().map(bound).collect()
    }

    /// Takes mail until `shutdown`; then no new connections, `421` to sessions between transactions,
    /// and up to `limits.drain` for the transactions that are open.
    pub async fn run(self, shutdown: CancellationToken) {
        metrics::gauge!("packetboat_smtp_sessions").set(0.0);
        let (sessions, hard_stop) = (TaskTracker::new(), CancellationToken::new());
        let listeners = TaskTracker::new();
        for (socket, listener) in self.sockets {
            let (shared, sessions) = (Arc::clone(&self.shared), sessions.clone());
            let (shutdown, hard_stop) = (shutdown.clone(), hard_stop.clone());
            listeners.spawn(listener::serve(socket, listener, shared, sessions, shutdown, hard_stop));
        }
        listeners.close();
        listeners.wait().await;
        sessions.close();
        if timeout(self.shared.config.limits.drain, sessions.wait()).await.is_err() {
            tracing::warn!(
                sessions = sessions.len(),
                "sessions were cut off when the time to drain was over"
            );
            hard_stop.cancel();
            sessions.wait().await;
        }
    }
}
