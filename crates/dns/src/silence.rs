//! Tells operators that the name servers are silent, and does not tell it a thousand times.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::net::NetError;
use tokio::time::Instant;

/// Between two warnings.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Watches look-ups for name servers that do not answer at all.
#[derive(Debug)]
pub struct Silence {
    servers: String,
    told: Mutex<Option<Instant>>,
}

impl Silence {
    /// For these servers; without any, those of the system.
    #[must_use]
    pub fn of(servers: &[SocketAddr]) -> Self {
        let servers = match servers {
            [] => "those of /etc/resolv.conf".to_owned(),
            some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        Self { servers, told: Mutex::new(None) }
    }

    /// A look-up failed; `error` is `None` when its deadline passed. An answer that says no, or that
    /// the server could not find out, is no silence.
    pub fn note(&self, error: Option<&NetError>) {
        if matches!(error, Some(NetError::Dns(_))) {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(
                servers = self.servers,
                cause = error.map(tracing::field::display),
                "the name servers do not answer: mail that needs them is put off; check dns.servers and the way there"
            );
        }
    }
}
