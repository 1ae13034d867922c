//! Where mail comes in: accept, who is behind the proxy, and how many at a time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Shared;
use crate::config::Listener;
use crate::network::network_of;
use crate::proxy::{self, Header};
use crate::session::Session;

/// Most octets looked at for a PROXY header at a time.
const PEEK: usize = 512;
/// A proxy speaks at once.
const PROXY_TIMEOUT: Duration = Duration::from_secs(5);
/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many sessions there are, in all and of each client.
pub(crate) struct Doors {
    free: Arc<Semaphore>,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max_per_client: usize,
}

/// A session's place; given back when dropped.
pub(crate) struct Place {
    client: IpAddr,
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Doors {
    pub(crate) fn new(max_sessions: usize, max_per_client: usize) -> Self {
        let free = Arc::new(Semaphore::new(max_sessions.min(Semaphore::MAX_PERMITS)));
        Self { free, clients: Arc::default(), max_per_client }
    }

    fn enter(&self, client: IpAddr) -> Result<Place, &'static str> {
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| "max_sessions")?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= self.max_per_client {
            return Err("max_sessions_per_client");
        }
        *count += 1;
        metrics::gauge!("packetboat_smtp_sessions").increment(1.0);
        Ok(Place { client, clients: Arc::clone(&self.clients), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
        metrics::gauge!("packetboat_smtp_sessions").decrement(1.0);
    }
}

/// Takes connections until `shutdown`; the sessions go on in `sessions`, and end at `hard_stop` at last.
pub(crate) async fn serve(
    socket: TcpListener,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
    sessions: TaskTracker,
    shutdown: CancellationToken,
    hard_stop: CancellationToken,
) {
    while let Some(accepted) = shutdown.run_until_cancelled(socket.accept()).await {
        let (stream, peer) = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(listener = listener.name, %error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
        let (shutdown, hard_stop) = (shutdown.clone(), hard_stop.clone());
        sessions.spawn(async move {
            hard_stop.run_until_cancelled(welcome(stream, peer, listener, shared, shutdown)).await;
        });
    }
}

async fn welcome(
    mut stream: TcpStream,
    peer: SocketAddr,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let name = listener.name.clone();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(listener = name, %peer, %error, "connection was gone at once");
        return;
    }
    let client = if listener.proxies.is_empty() {
        peer
    } else {
        match behind_proxy(&mut stream, peer, &listener).await {
            Ok(client) => client,
            Err(error) => {
                tracing::info!(listener = name, %peer, %error, "connection without a proxy's word refused");
                metrics::counter!("packetboat_smtp_sessions_refused_total", "listener" => name, "reason" => "proxy")
                    .increment(1);
                return;
            }
        }
    };
    match shared.doors.enter(network_of(client.ip())) {
        Ok(place) => {
            metrics::counter!("packetboat_smtp_sessions_total", "listener" => name).increment(1);
            Session::new(shared, listener, client, stream, shutdown).run().await;
            drop(place);
        }
        Err(limit) => {
            tracing::info!(listener = name, client = %client.ip(), limit, "session refused");
            metrics::counter!("packetboat_smtp_sessions_refused_total", "listener" => name, "reason" => limit)
                .increment(1);
            if !listener.implicit_tls {
                let line =
                    format!("421 4.3.2 {} Too many sessions, try again later\r\n", shared.config.hostname);
                // The client may not wait for it.
                let _ = timeout(PROXY_TIMEOUT, stream.write_all(line.as_bytes())).await;
            }
        }
    }
}

/// Reads the PROXY header, and not one octet more: what follows may be a TLS handshake.
async fn behind_proxy(
    stream: &mut TcpStream,
    peer: SocketAddr,
    listener: &Listener,
) -> io::Result<SocketAddr> {
    if !listener.proxies.iter().any(|network| network.contains(peer.ip())) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not from a trusted proxy"));
    }
    let read = async {
        let mut header = Vec::new();
        loop {
            let before = header.len();
            header.resize(before + PEEK, 0);
            let seen = stream.peek(&mut header[before..]).await?;
            header.truncate(before + seen);
            if seen == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match proxy::parse(&header).map_err(io::Error::other)? {
                // All of it belongs to the header.
                Header::Partial => stream.read_exact(&mut header[before..]).await?,
                Header::Whole { length, client } => {
                    stream.read_exact(&mut header[before..length]).await?;
                    return Ok(client.unwrap_or(peer));
                }
            };
        }
    };
    timeout(PROXY_TIMEOUT, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
