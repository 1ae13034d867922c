//! Carries the services over gRPC: the dialling end.
//!
//! An endpoint's host name may stand for many pods (a headless Service). Its addresses are looked up
//! again and again; calls go round over those that answer, and one that fails rests for a moment.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::lookup_host;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Request, Response, Status};

use crate::generated::{delivery_client, verifier_client};
use crate::{
    AcceptRequest, AcceptResponse, CHUNK_SIZE, Delivery, ErrorCode, Frames, PeerTls, ProbeRequest,
    ProbeResponse, ServiceError, SignRequest, SignResponse, TransportError, Verifier, VerifyRequest,
    VerifyResponse, accept_request, sign_request, trace, verify_request,
};

/// How often the endpoints' names are looked up again.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long an address that failed is passed over, while others are left.
const REST: Duration = Duration::from_secs(1);
const STREAM_WINDOW: u32 = 4 * CHUNK_SIZE as u32;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

#[derive(Clone)]
struct Member {
    address: SocketAddr,
    channel: Channel,
    resting_until: Option<Instant>,
}

/// The addresses behind a service, and whose turn it is. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    endpoints: Arc<[Uri]>,
    tls: Option<ClientTlsConfig>,
    members: Arc<Mutex<Vec<Member>>>,
    turn: Arc<AtomicUsize>,
}

impl Peers {
    /// Looks the endpoints (`http://host:port`, `https://` with `tls`) up and keeps them fresh until
    /// `shutdown`. Nothing is dialled before the first call; a name that does not resolve yet is no error.
    ///
    /// # Errors
    /// When an endpoint is not a URL with host and port, or the certificates are unusable.
    pub async fn watch(
        endpoints: &[String],
        tls: Option<&PeerTls>,
        shutdown: CancellationToken,
    ) -> Result<Self, TransportError> {
        let endpoints =
            endpoints.iter().map(|text| parse_endpoint(text)).collect::<Result<Arc<[Uri]>, _>>()?;
        let tls = tls.map(|tls| {
            ClientTlsConfig::new()
                .identity(Identity::from_pem(&tls.certificate, &tls.key))
                .ca_certificate(Certificate::from_pem(&tls.authority))
        });
        let peers = Self { endpoints, tls, members: Arc::default(), turn: Arc::default() };
        peers.look_up().await?;
        let watcher = peers.clone();
        tokio::spawn(async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_UP_EVERY)).await.is_some() {
                if let Err(error) = watcher.look_up().await {
                    tracing::warn!(%error, "service endpoints cannot be used");
                }
            }
        });
        Ok(peers)
    }

    /// Brings the members in line with what the names stand for now. A failed look-up changes
    /// nothing: what answered a moment ago is better than nothing.
    async fn look_up(&self) -> Result<(), TransportError> {
        let mut found = Vec::new();
        for endpoint in self.endpoints.iter() {
            let (host, port) = (endpoint.host().unwrap_or_default(), endpoint.port_u16().unwrap_or_default());
            match lookup_host((host.trim_matches(['[', ']']), port)).await {
                Ok(addresses) => found.extend(addresses.map(|address| (address, endpoint))),
                Err(error) => {
                    tracing::warn!(%endpoint, %error, "service endpoint does not resolve");
                    return Ok(());
                }
            }
        }
        let wanted: HashSet<SocketAddr> = found.iter().map(|(address, _)| *address).collect();
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| wanted.contains(&member.address));
        for (address, endpoint) in found {
            if members.iter().all(|member| member.address != address) {
                let channel = self.dial(address, endpoint)?;
                members.push(Member { address, channel, resting_until: None });
            }
        }
        Ok(())
    }

    fn dial(&self, address: SocketAddr, endpoint: &Uri) -> Result<Channel, TransportError> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{address}");
        let mut dialled = Endpoint::from_shared(url)
            .map_err(TransportError::Tls)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        if let Some(tls) = &self.tls {
            let tls = tls.clone().domain_name(endpoint.host().unwrap_or_default());
            dialled = dialled.tls_config(tls).map_err(TransportError::Tls)?;
        }
        Ok(dialled.connect_lazy())
    }

    /// The next member in turn; one that rests only when all do.
    fn pick(&self) -> Result<Member, ServiceError> {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let rested = |member: &&Member| member.resting_until.is_none_or(|until| until <= now);
        let count = members.len().max(1);
        let in_turn = || members.iter().cycle().skip(turn % count).take(members.len());
        in_turn().find(rested).or_else(|| in_turn().next()).cloned().ok_or_else(|| {
            let names: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
            ServiceError::new(ErrorCode::Unavailable, format!("no address is known for {}", names.join(", ")))
        })
    }

    fn note(&self, address: SocketAddr, status: &Status) {
        if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled) {
            let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(member) = members.iter_mut().find(|member| member.address == address) {
                member.resting_until = Some(Instant::now() + REST);
            }
        }
    }

    /// Turns an answer into a result, and lets a peer that failed rest.
    fn judge<T>(&self, address: SocketAddr, answer: Result<Response<T>, Status>) -> Result<T, ServiceError> {
        answer.map(Response::into_inner).map_err(|status| {
            self.note(address, &status);
            let error = ServiceError::from(status);
            ServiceError::new(error.code, format!("{address}: {error}"))
        })
    }
}

fn parse_endpoint(text: &str) -> Result<Uri, TransportError> {
    let uri: Uri = text.parse().map_err(|_| TransportError::Endpoint(text.to_owned()))?;
    if uri.host().is_some() && uri.port_u16().is_some() {
        Ok(uri)
    } else {
        Err(TransportError::Endpoint(text.to_owned()))
    }
}

fn traced<T>(body: T) -> Request<T> {
    let mut request = Request::new(body);
    trace::inject(request.metadata_mut());
    request
}

/// A verifier in other processes.
pub struct VerifierClient(pub Peers);

#[async_trait]
impl Verifier for VerifierClient {
    async fn verify(&self, frames: Frames<verify_request::Frame>) -> Result<VerifyResponse, ServiceError> {
        let member = self.0.pick()?;
        let stream = ReceiverStream::new(frames).map(|frame| VerifyRequest { frame: Some(frame) });
        let answer = verifier_client::VerifierClient::new(member.channel).verify(traced(stream)).await;
        self.0.judge(member.address, answer)
    }

    async fn sign(&self, frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError> {
        let member = self.0.pick()?;
        let stream = ReceiverStream::new(frames).map(|frame| SignRequest { frame: Some(frame) });
        let answer = verifier_client::VerifierClient::new(member.channel).sign(traced(stream)).await;
        self.0.judge(member.address, answer)
    }
}

/// A delivery service in other processes.
pub struct DeliveryClient(pub Peers);

#[async_trait]
impl Delivery for DeliveryClient {
    async fn accept(&self, frames: Frames<accept_request::Frame>) -> Result<AcceptResponse, ServiceError> {
        let member = self.0.pick()?;
        let stream = ReceiverStream::new(frames).map(|frame| AcceptRequest { frame: Some(frame) });
        let answer = delivery_client::DeliveryClient::new(member.channel).accept(traced(stream)).await;
        self.0.judge(member.address, answer)
    }

    async fn probe(&self, request: ProbeRequest) -> Result<ProbeResponse, ServiceError> {
        let member = self.0.pick()?;
        let answer = delivery_client::DeliveryClient::new(member.channel).probe(traced(request)).await;
        self.0.judge(member.address, answer)
    }
}
