//! From an address to a connection that is ready for MAIL.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tls::ClientTls;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::client::{Connection, Unready};
use super::config::OutboundConfig;
use super::failure::seconds;
use super::ledger::Obstacle;
use super::peer::Peer;

/// A connection on which nothing has passed for so long is probed (RFC 9293 §3.8.4): long enough that one in use never
/// is, and that the probes cost nothing.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How long after that a probe that went unanswered is followed by the next.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// So many unanswered probes in a row end the connection. With the above, a peer that vanished without a word is known to
/// have after two minutes, and not after those that RFC 5321 §4.5.3.2 gives to one that thinks; four, for on a path
/// that loses one packet in three two in a row are often lost.
const KEEPALIVE_PROBES: u32 = 4;

/// Connects and greets. Where the peer's TLS turns out not to work, it is had in clear, over a
/// fresh connection: nothing here demands TLS, and mail in clear is better than none (RFC 7435).
pub(super) async fn connect(
    peer: &Peer,
    tls: &ClientTls,
    config: &OutboundConfig,
) -> Result<Connection, Obstacle> {
    let protocol = peer.host.protocol.as_str();
    let started = Instant::now();
    let connected = match attempt(peer, Some(tls), config).await {
        Err(Unready::Handshake(error)) => {
            tracing::warn!(%peer, %error, "TLS handshake failed, connecting in clear");
            attempt(peer, None, config).await
        }
        connected => connected,
    };
    let (result, security) = match &connected {
        Ok(Connection { security: Some(security), .. }) => ("ready", security.protocol),
        Ok(_) => ("ready", "none"),
        Err(_) => ("failed", "none"),
    };
    metrics::counter!("packetboat_outbound_connections_total",
        "protocol" => protocol, "result" => result, "tls" => security)
    .increment(1);
    metrics::histogram!("packetboat_outbound_connect_duration_seconds", "protocol" => protocol)
        .record(started.elapsed());
    connected.map_err(|unready| match unready {
        Unready::Obstacle(obstacle) => obstacle,
        Unready::Handshake(error) => {
            peer.obstacle("4.7.5", format!("the TLS handshake with {peer} failed: {error}"))
        }
    })
}

async fn attempt(
    peer: &Peer,
    tls: Option<&ClientTls>,
    config: &OutboundConfig,
) -> Result<Connection, Unready> {
    let span = info_span!(
        "connect",
        otel.kind = "client",
        otel.status_code = Empty,
        server.address = peer.host.name,
        server.port = peer.address.port(),
        network.peer.address = %peer.address.ip(),
    );
    let stream = open(peer, config).instrument(span.clone()).await.map_err(|obstacle| {
        span.record("otel.status_code", "error");
        Unready::Obstacle(obstacle)
    })?;
    drop(span);
    let span = info_span!("greet", otel.kind = "client", otel.status_code = Empty);
    let greeted = Connection::greet(stream, peer.clone(), tls, config).instrument(span.clone()).await;
    if greeted.is_err() {
        span.record("otel.status_code", "error");
    }
    greeted
}

async fn open(peer: &Peer, config: &OutboundConfig) -> Result<TcpStream, Obstacle> {
    let (limit, port) = (config.timeouts.connect, peer.address.port());
    let from = peer.host.source.as_ref().and_then(|source| source.address_for(peer.address.ip()));
    let socket = socket(peer, from.map(|address| SocketAddr::new(address, 0)))?;
    let error = match timeout(limit, socket.connect(peer.address)).await {
        Ok(Ok(stream)) => match tune(&stream) {
            Ok(()) => return Ok(stream),
            Err(error) => error,
        },
        Ok(Err(error)) => error,
        Err(_) => {
            let text = format!("{peer} did not answer within {} on port {port}", seconds(limit));
            return Err(peer.obstacle("4.4.1", text));
        }
    };
    let text = match error.kind() {
        io::ErrorKind::ConnectionRefused => format!("{peer} refused the connection on port {port}"),
        _ => format!("{peer} could not be reached on port {port}: {error}"),
    };
    Err(peer.obstacle("4.4.1", text))
}

/// Commands go out at once, and a peer that is gone is found out.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// A socket that leaves from an address of the source pool.
fn socket(peer: &Peer, from: Option<SocketAddr>) -> Result<TcpSocket, Obstacle> {
    let made = if peer.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = made.map_err(|error| peer.obstacle("4.3.0", format!("no socket can be made: {error}")))?;
    let Some(from) = from else { return Ok(socket) };
    match socket.bind(from) {
        Ok(()) => Ok(socket),
        Err(error) => {
            let pool = peer.host.source.as_ref().map_or("", |source| source.name.as_str());
            let address = from.ip();
            tracing::error!(pool, %address, %error, "source address cannot be used (outbound.pools)");
            let text = format!("{address} of the source pool {pool} cannot be sent from: {error}");
            Err(peer.obstacle("4.3.5", text))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::outbound::peer::{Host, Protocol};

    #[tokio::test]
    async fn a_peer_that_vanishes_is_found_out_within_two_minutes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = Host::parse(&address.to_string(), Protocol::Smtp).unwrap();
        let stream = open(&Peer { host, address }, &OutboundConfig::default()).await;
        let stream = stream.unwrap_or_else(|obstacle| panic!("{obstacle:?}"));
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let (idle, interval) =
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        let found_out = idle + interval * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(found_out, Duration::from_secs(120));
    }
}
