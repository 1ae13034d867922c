//! Carries the services over gRPC: the listening end.

use std::future::{Future, pending};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::context::FutureExt;
use tls::PeerRole::{Delivery as ByDelivery, Edge as ByEdge};
use tls::PeerTls;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};

use crate::generated::{delivery_server, verifier_server};
use crate::link::{Caller, accepted};
use crate::{
    AcceptRequest, AcceptResponse, CHUNK_SIZE, Delivery, FRAMES_IN_FLIGHT, ProbeRequest, ProbeResponse,
    ServiceError, SignRequest, SignResponse, TransportError, Verifier, VerifyRequest, VerifyResponse, trace,
};

/// A peer that answers no ping for so long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// HTTP/2 windows; the default of 64 KiB would stall a stream at each chunk.
const STREAM_WINDOW: u32 = 4 * CHUNK_SIZE as u32;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// A bound port, ready to serve.
pub struct GrpcServer {
    listener: TcpListener,
    tls: Option<PeerTls>,
    builder: Server,
}

impl GrpcServer {
    /// Binds `address`; with `tls`, only peers that prove a role are served, and each method only to the
    /// roles that may call it. Connections end after `age`, without breaking a call.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: &str, tls: Option<PeerTls>, age: Duration) -> Result<Self, TransportError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|cause| TransportError::Bind { address: address.to_owned(), cause })?;
        let builder = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_connection_age(age);
        Ok(Self { listener, tls, builder })
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the operating system does not tell it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves the verifier until `shutdown`, then finishes the calls in flight.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve_verifier(
        mut self,
        service: Arc<dyn Verifier>,
        shutdown: CancellationToken,
    ) -> Result<(), TransportError> {
        let router = self.builder.add_service(verifier_server::VerifierServer::new(VerifierEnd(service)));
        serve(router, self.listener, self.tls, shutdown).await
    }

    /// Serves delivery until `shutdown`, then finishes the calls in flight.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve_delivery(
        mut self,
        service: Arc<dyn Delivery>,
        shutdown: CancellationToken,
    ) -> Result<(), TransportError> {
        let router = self.builder.add_service(delivery_server::DeliveryServer::new(DeliveryEnd(service)));
        serve(router, self.listener, self.tls, shutdown).await
    }
}

async fn serve(
    router: Router,
    listener: TcpListener,
    tls: Option<PeerTls>,
    shutdown: CancellationToken,
) -> Result<(), TransportError> {
    router
        .serve_with_incoming_shutdown(accepted(listener, tls), shutdown.cancelled_owned())
        .await
        .map_err(TransportError::Serve)
}

struct VerifierEnd(Arc<dyn Verifier>);

#[tonic::async_trait]
impl verifier_server::Verifier for VerifierEnd {
    async fn verify(
        &self,
        request: Request<Streaming<VerifyRequest>>,
    ) -> Result<Response<VerifyResponse>, Status> {
        Caller::admit(&request, &[ByEdge])?;
        let caller = trace::caller(request.metadata());
        let (frames, received) = mpsc::channel(FRAMES_IN_FLIGHT);
        let pump = pump(request.into_inner(), frames, |message| message.frame);
        answer(self.0.verify(received), pump).with_context(caller).await
    }

    async fn sign(&self, request: Request<Streaming<SignRequest>>) -> Result<Response<SignResponse>, Status> {
        Caller::admit(&request, &[ByEdge, ByDelivery])?;
        let caller = trace::caller(request.metadata());
        let (frames, received) = mpsc::channel(FRAMES_IN_FLIGHT);
        let pump = pump(request.into_inner(), frames, |message| message.frame);
        answer(self.0.sign(received), pump).with_context(caller).await
    }
}

struct DeliveryEnd(Arc<dyn Delivery>);

#[tonic::async_trait]
impl delivery_server::Delivery for DeliveryEnd {
    async fn accept(
        &self,
        request: Request<Streaming<AcceptRequest>>,
    ) -> Result<Response<AcceptResponse>, Status> {
        Caller::admit(&request, &[ByEdge])?;
        let caller = trace::caller(request.metadata());
        let (frames, received) = mpsc::channel(FRAMES_IN_FLIGHT);
        let pump = pump(request.into_inner(), frames, |message| message.frame);
        answer(self.0.accept(received), pump).with_context(caller).await
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Caller::admit(&request, &[ByEdge])?;
        let caller = trace::caller(request.metadata());
        answer(self.0.probe(request.into_inner()), pending()).with_context(caller).await
    }
}

/// Hands frames on until the stream ends, breaks, or nobody wants them; then drops the sender, which
/// the service sees as the end. A broken stream thus never looks committed.
async fn pump<M, F>(mut stream: Streaming<M>, frames: mpsc::Sender<F>, frame_of: fn(M) -> Option<F>) {
    while let Ok(Some(message)) = stream.message().await {
        let Some(frame) = frame_of(message) else { return };
        if frames.send(frame).await.is_err() {
            return;
        }
    }
}

async fn answer<T>(
    call: impl Future<Output = Result<T, ServiceError>>,
    pump: impl Future<Output = ()>,
) -> Result<Response<T>, Status> {
    let pump = async {
        pump.await;
        pending::<()>().await;
    };
    tokio::select! {
        result = call => result.map(Response::new).map_err(Status::from),
        () = pump => Err(Status::internal("the frame pump ended the call")),
    }
}
