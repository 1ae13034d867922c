//! Serves policies over HTTPS, or over HTTP behind something that has the certificates: one small text for each
//! host `mta-sts.<domain>`, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tls::ServerTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerConfig;
use crate::doors::Doors;
use crate::{POLICY_PATH, policy_host};

/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Header fields of a request at most.
const MAX_FIELDS: usize = 64;
/// What a buffer of hyper holds at least, in octets.
const LEAST_BUFFER: usize = 8192;

/// The policy of a domain, as it is served; nothing where it has none.
pub type Policies = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Why policies cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// `mta_sts.listen` is absent.
    #[error("mta_sts.listen is missing")]
    NoAddress,
    /// The address cannot be bound.
    #[error("cannot listen on mta_sts.listen {address}: choose another address, or stop what holds it")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// A bound server of policies.
pub struct PolicyServer {
    socket: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    config: ServerConfig,
    policies: Policies,
    /// Nothing for plain HTTP.
    tls: Option<ServerTls>,
    doors: Doors,
}

impl PolicyServer {
    /// Binds the address of the settings. `tls` is nothing for plain HTTP.
    ///
    /// # Errors
    /// When there is none, or it cannot be bound.
    pub async fn bind(
        config: ServerConfig,
        policies: Policies,
        tls: Option<ServerTls>,
    ) -> Result<Self, ServerError> {
        let address = config.listen.ok_or(ServerError::NoAddress)?;
        let socket =
            TcpListener::bind(address).await.map_err(|cause| ServerError::Bind { address, cause })?;
        let doors = Doors::new(config.max_connections, config.max_connections_per_client);
        Ok(Self { socket, shared: Arc::new(Shared { config, policies, tls, doors }) })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `shutdown`; then no new connections, and up to `drain` for those that are open.
    pub async fn serve(self, shutdown: CancellationToken) {
        let (connections, hard_stop) = (TaskTracker::new(), CancellationToken::new());
        while let Some(accepted) = shutdown.run_until_cancelled(self.socket.accept()).await {
            let (stream, peer) = match accepted {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (shared, shutdown, hard_stop) =
                (Arc::clone(&self.shared), shutdown.clone(), hard_stop.clone());
            connections.spawn(async move {
                hard_stop.run_until_cancelled(shared.welcome(stream, peer, shutdown)).await;
            });
        }
        drop(self.socket);
        connections.close();
        if timeout(self.shared.config.drain, connections.wait()).await.is_err() {
            hard_stop.cancel();
            connections.wait().await;
        }
    }
}

impl Shared {
    async fn welcome(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, shutdown: CancellationToken) {
        let place = match self.doors.enter(peer.ip().to_canonical()) {
            Ok(place) => place,
            Err(limit) => {
                tracing::info!(client = %peer.ip(), limit, "connection refused");
                metrics::counter!("packetboat_mta_sts_connections_refused_total", "reason" => limit)
                    .increment(1);
                return;
            }
        };
        let limit = self.config.connection_timeout;
        let talk = async {
            match &self.tls {
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => self.talk(stream, shutdown).await,
                    Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                },
                None => self.talk(stream, shutdown).await,
            }
        };
        if timeout(limit, talk).await.is_err() {
            tracing::debug!(%peer, ?limit, "connection ended after its time");
        }
        drop(place);
    }

    /// Answers requests of one connection.
    async fn talk<S>(&self, stream: S, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let answer = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request)) });
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_headers(MAX_FIELDS)
            .max_buf_size(self.config.max_header_bytes.max(LEAST_BUFFER));
        let mut connection = pin!(server.serve_connection(TokioIo::new(stream), answer));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended with an error");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = self.find(request);
        let status = answer.as_ref().map_or_else(|status| *status, |_| StatusCode::OK);
        metrics::counter!("packetboat_mta_sts_requests_total", "status" => status.as_u16().to_string())
            .increment(1);
        let (mut response, body) = match answer {
            Ok(policy) => (Response::new(Full::default()), policy),
            Err(status) => {
                let reason = status.canonical_reason().unwrap_or_default();
                (Response::new(Full::default()), format!("{reason}\n"))
            }
        };
        *response.status_mut() = status;
        // RFC 8461 §3.2 and §3.3: senders look at the type, and nothing between may keep an old policy.
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        // To HEAD hyper tells the length, and leaves the text out.
        *response.body_mut() = Full::from(body);
        response
    }

    /// The policy that is asked for, or why there is none.
    fn find(&self, request: &Request<Incoming>) -> Result<String, StatusCode> {
        let host = host_of(request)?;
        if request.uri().path() != POLICY_PATH {
            return Err(StatusCode::NOT_FOUND);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let domain = host.strip_prefix(&policy_host("")).ok_or(StatusCode::NOT_FOUND)?;
        (self.policies)(domain).ok_or(StatusCode::NOT_FOUND)
    }
}

/// The host that a request is for, in lower case and without a port (RFC 9112 §3.2).
fn host_of(request: &Request<Incoming>) -> Result<String, StatusCode> {
    let mut fields = request.headers().get_all(HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (Some(field), None) => field.to_str().map_err(|_| StatusCode::BAD_REQUEST)?,
        (None, _) if request.version() < Version::HTTP_11 => "",
        _ => return Err(StatusCode::BAD_REQUEST),
    };
    // A target in absolute form wins over the field.
    let authority = request.uri().authority().map_or(field, |authority| authority.as_str());
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|octet| octet.is_ascii_digit()) => host,
        _ => authority,
    };
    Ok(host.trim_end_matches('.').to_ascii_lowercase())
}
