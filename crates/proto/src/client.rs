//! Carries the services over gRPC: the dialling end.
//!
//! An endpoint's host name may stand for many pods (a headless Service). Its addresses are looked up
//! again and again; calls go round over those that answer, and one that fails rests for a moment.
//!
//! No call fails because its connection has ended: a connection is given up for a new one when half of the age is
//! over at which the server ends it, and closes when the calls on it are done. What a server refuses that stops
//! all the same, unseen, is begun again at the next.

use std::collections::HashSet;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tls::{PeerRole, PeerTls};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tower::service_fn;

use crate::generated::{delivery_client, verifier_client};
use crate::link::Link;
use crate::unsent::{Sending, Unsent};
use crate::{
    AcceptRequest, AcceptResponse, CHUNK_SIZE, Delivery, ErrorCode, Frames, ProbeRequest, ProbeResponse,
    ServiceError, SignRequest, SignResponse, TransportError, Verifier, VerifyRequest, VerifyResponse,
    accept_request, sign_request, trace, verify_request,
};

/// How often the endpoints' names are looked up again.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that vanished without a word, as a killed pod does, is asked so often during calls, and given up after so
/// long: together well within the time that a client's patience lasts.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an address that failed is passed over, while others are left.
const REST: Duration = Duration::from_secs(1);
/// How often a call is begun of which nobody can have seen anything.
const TRIES: u32 = 3;
const STREAM_WINDOW: u32 = 4 * CHUNK_SIZE as u32;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

#[derive(Clone)]
struct Member {
    address: SocketAddr,
    channel: Channel,
    /// New calls go over another connection from then on.
    renew_at: Instant,
    resting_until: Option<Instant>,
}

/// The addresses behind a service, and whose turn it is. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    endpoints: Arc<[Uri]>,
    service: PeerRole,
    tls: Option<PeerTls>,
    age: Duration,
    members: Arc<Mutex<Vec<Member>>>,
    turn: Arc<AtomicUsize>,
}

impl Peers {
    /// Looks the endpoints (`http://host:port`, `https://` with `tls`) up and keeps them fresh until
    /// `shutdown`. Nothing is dialled before the first call; a name that does not resolve yet is no error.
    /// With `tls`, what is dialled has to prove that it is `service`. Connections are renewed before `age`, at
    /// which the servers end them.
    ///
    /// # Errors
    /// When an endpoint is not a URL with host and port.
    pub async fn watch(
        endpoints: &[String],
        service: PeerRole,
        tls: Option<PeerTls>,
        age: Duration,
        shutdown: CancellationToken,
    ) -> Result<Self, TransportError> {
        let endpoints =
            endpoints.iter().map(|text| parse_endpoint(text)).collect::<Result<Arc<[Uri]>, _>>()?;
        let peers = Self { endpoints, service, tls, age, members: Arc::default(), turn: Arc::default() };
        peers.look_up().await;
        let watcher = peers.clone();
        tokio::spawn(async move {
            while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_UP_EVERY)).await.is_some() {
                watcher.look_up().await;
            }
        });
        Ok(peers)
    }

    /// Brings the members in line with what the names stand for now. A failed look-up changes
    /// nothing: what answered a moment ago is better than nothing.
    async fn look_up(&self) {
        let mut found = Vec::new();
        for endpoint in self.endpoints.iter() {
            let (host, port) = (endpoint.host().unwrap_or_default(), endpoint.port_u16().unwrap_or_default());
            match lookup_host((host.trim_matches(['[', ']']), port)).await {
                Ok(addresses) => found.extend(addresses),
                Err(error) => {
                    tracing::warn!(%endpoint, %error, "service endpoint does not resolve");
                    return;
                }
            }
        }
        let wanted: HashSet<SocketAddr> = found.iter().copied().collect();
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.retain(|member| wanted.contains(&member.address));
        for address in found {
            if members.iter().all(|member| member.address != address) {
                members.push(self.member(address));
            }
        }
    }

    fn member(&self, address: SocketAddr) -> Member {
        // It connects later than now, if ever: it is no older than this.
        let renew_at = Instant::now() + self.age / 2;
        Member { address, channel: self.dial(address), renew_at, resting_until: None }
    }

    /// A channel that connects when it is first used, and again when its connection has ended.
    fn dial(&self, address: SocketAddr) -> Channel {
        let (service, tls) = (self.service, self.tls.clone());
        let failed = Arc::new(Mutex::new(None));
        let connector = service_fn(move |_| {
            let (tls, failed) = (tls.clone(), Arc::clone(&failed));
            async move { connect(address, service, tls.as_ref(), &failed).await.map(TokioIo::new) }
        });
        // The connector knows where to, and whether by TLS; this names the service in requests.
        Endpoint::from_static("http://packetboat")
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector_lazy(connector)
    }

    /// The next member in turn; one that rests only when all do.
    fn pick(&self) -> Result<Member, ServiceError> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        for member in members.iter_mut().filter(|member| member.renew_at <= now) {
            // Calls under way hold the channel that they began with, and it ends with the last of them.
            *member = Member { resting_until: member.resting_until, ..self.member(member.address) };
        }
        let rested = |member: &&Member| member.resting_until.is_none_or(|until| until <= now);
        let count = members.len().max(1);
        let in_turn = || members.iter().cycle().skip(turn % count).take(members.len());
        in_turn().find(rested).or_else(|| in_turn().next()).cloned().ok_or_else(|| {
            let names: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
            ServiceError::new(ErrorCode::Unavailable, format!("no address is known for {}", names.join(", ")))
        })
    }

    /// Lets a peer that failed rest. What its connection has to do with it is not used again.
    fn rest(&self, failed: &Member, status: &Status) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(member) = members.iter_mut().find(|member| member.address == failed.address) else { return };
        let now = Instant::now();
        // What the peer itself says has no cause here. Another call may have renewed the connection already.
        if status.source().is_some() && member.renew_at == failed.renew_at {
            member.renew_at = now;
        }
        member.resting_until = Some(now + REST);
    }

    /// Makes a call with frames; again, at the next member, when the connection broke before any of them left, or
    /// the peer says that it has not looked at the call.
    async fn stream<F, T, C>(
        &self,
        frames: Frames<F>,
        call: impl Fn(Channel, Sending<F>) -> C + Send + Sync,
    ) -> Result<T, ServiceError>
    where
        F: Clone + Send,
        T: Send,
        C: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let unsent = Unsent::new(frames);
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let member = self.pick()?;
            let answer = call(member.channel.clone(), unsent.send()).await;
            match answer {
                Err(status) if tries > 0 && is_broken(&status) && unsent.may_go_again(is_unseen(&status)) => {
                    self.rest(&member, &status);
                }
                answer => return self.judge(&member, answer),
            }
        }
    }

    /// Turns an answer into a result, and lets a peer that failed rest.
    fn judge<T>(&self, member: &Member, answer: Result<Response<T>, Status>) -> Result<T, ServiceError> {
        answer.map(Response::into_inner).map_err(|status| {
            if is_broken(&status) {
                self.rest(member, &status);
            }
            let error = ServiceError::from(status);
            ServiceError::new(error.code, format!("{}: {error}", member.address))
        })
    }
}

/// Connects within [`CONNECT_TIMEOUT`]. A channel's calls wait in a line, and each that finds no connection asks for
/// one: for a moment after one has `failed` the others behind it fail at once, or the last would wait that often.
async fn connect(
    address: SocketAddr,
    service: PeerRole,
    tls: Option<&PeerTls>,
    failed: &Mutex<Option<Instant>>,
) -> io::Result<Link> {
    let last = *failed.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_some_and(|last| last.elapsed() < REST) {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "it could not be reached a moment ago"));
    }
    let connected = timeout(CONNECT_TIMEOUT, Link::dial(address, service, tls)).await;
    let connected = connected.unwrap_or_else(|late| Err(io::Error::new(io::ErrorKind::TimedOut, late)));
    if connected.is_err() {
        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
    connected
}

/// Whether a status is about the connection or the peer, not about the call.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled)
        || is_unseen(status)
}

/// Whether the peer says that it has not acted on the call: it is beyond the last one that the peer takes from this
/// connection (RFC 9113 §6.8), or was refused as a whole (§8.7).
fn is_unseen(status: &Status) -> bool {
    let causes = std::iter::successors(status.source(), |cause| (*cause).source());
    causes.filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
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
        self.0
            .stream(frames, |channel, frames| async move {
                let stream = frames.map(|frame| VerifyRequest { frame: Some(frame) });
                verifier_client::VerifierClient::new(channel).verify(traced(stream)).await
            })
            .await
    }

    async fn sign(&self, frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError> {
        self.0
            .stream(frames, |channel, frames| async move {
                let stream = frames.map(|frame| SignRequest { frame: Some(frame) });
                verifier_client::VerifierClient::new(channel).sign(traced(stream)).await
            })
            .await
    }
}

/// A delivery service in other processes.
pub struct DeliveryClient(pub Peers);

#[async_trait]
impl Delivery for DeliveryClient {
    async fn accept(&self, frames: Frames<accept_request::Frame>) -> Result<AcceptResponse, ServiceError> {
        self.0
            .stream(frames, |channel, frames| async move {
                let stream = frames.map(|frame| AcceptRequest { frame: Some(frame) });
                delivery_client::DeliveryClient::new(channel).accept(traced(stream)).await
            })
            .await
    }

    async fn probe(&self, request: ProbeRequest) -> Result<ProbeResponse, ServiceError> {
        // A question changes nothing: it can be asked again.
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let member = self.0.pick()?;
            let question = traced(request.clone());
            let answer = delivery_client::DeliveryClient::new(member.channel.clone()).probe(question).await;
            match answer {
                Err(status) if tries > 0 && is_broken(&status) => self.0.rest(&member, &status),
                answer => return self.0.judge(&member, answer),
            }
        }
    }
}
