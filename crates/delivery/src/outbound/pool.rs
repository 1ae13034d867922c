//! Idle connections, kept for a while for the next message to the same host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::client::Connection;
use super::config::PoolConfig;
use super::peer::Host;

/// The pool. While it holds connections, one background task closes those whose time has come.
pub(super) struct Pool {
    config: PoolConfig,
    farewell: Duration,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The longest idle first.
    hosts: HashMap<Host, Vec<Parked>>,
    count: usize,
    swept: bool,
}

struct Parked {
    connection: Connection,
    until: Instant,
}

impl Pool {
    /// `farewell` is how long a peer has to answer QUIT.
    pub(super) fn new(config: PoolConfig, farewell: Duration) -> Arc<Self> {
        Arc::new(Self { config, farewell, idle: Mutex::default() })
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Nothing panics while it holds the lock, and nothing is half done in between.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the host that may be used again, the latest idle first.
    pub(super) fn take(&self, host: &Host) -> Option<Connection> {
        // Each turn takes one away, and none is put back meanwhile by this call.
        loop {
            let mut parked = self.take_latest(host)?;
            if Instant::now() < parked.until && parked.connection.wire.is_quiet() {
                return Some(parked.connection);
            }
        }
    }

    fn take_latest(&self, host: &Host) -> Option<Parked> {
        let mut idle = self.idle();
        let parked = idle.hosts.get_mut(host)?.pop();
        idle.forget(host, usize::from(parked.is_some()));
        parked
    }

    /// Keeps a connection, or says farewell to it where the limits are reached.
    pub(super) fn put(self: &Arc<Self>, connection: Connection) {
        let until = (Instant::now() + self.config.idle_timeout).min(connection.opened + self.config.max_age);
        let worn = connection.transactions >= self.config.max_messages || until <= Instant::now();
        let mut idle = self.idle();
        let at_host = idle.hosts.get(&connection.peer.host).map_or(0, Vec::len);
        if worn || idle.count >= self.config.max_idle || at_host >= self.config.max_idle_per_host {
            drop(idle);
            tokio::spawn(connection.wire.quit(self.farewell));
            return;
        }
        idle.count += 1;
        let host = connection.peer.host.clone();
        idle.hosts.entry(host).or_default().push(Parked { connection, until });
        if !std::mem::replace(&mut idle.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Takes out what has been idle too long; says when to look again, `None` when nothing is left.
    fn expired(&self) -> (Vec<Connection>, Option<Instant>) {
        let mut idle = self.idle();
        let now = Instant::now();
        let mut expired = Vec::new();
        for parked in idle.hosts.values_mut() {
            expired.extend(parked.extract_if(.., |parked| parked.until <= now).map(|p| p.connection));
        }
        idle.count -= expired.len();
        idle.hosts.retain(|_, parked| !parked.is_empty());
        let next = idle.hosts.values().flatten().map(|parked| parked.until).min();
        idle.swept = next.is_some();
        metrics::gauge!("packetboat_outbound_idle_connections").set(idle.count as f64);
        (expired, next)
    }
}

impl Idle {
    fn forget(&mut self, host: &Host, taken: usize) {
        self.count -= taken;
        if self.hosts.get(host).is_some_and(Vec::is_empty) {
            self.hosts.remove(host);
        }
    }
}

/// Closes connections as their time comes, until the pool is empty or gone.
async fn sweep(pool: Weak<Pool>) {
    loop {
        let Some(alive) = pool.upgrade() else { return };
        let (expired, next) = alive.expired();
        for connection in expired {
            tokio::spawn(connection.wire.quit(alive.farewell));
        }
        drop(alive);
        let Some(next) = next else { return };
        sleep_until(next).await;
    }
}
