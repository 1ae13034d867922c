//! The connections that calls go over: plain, or within TLS where certificates are set.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tls::{PeerRole, PeerTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::linger::Lingering;

/// Handshakes under way at a time; further connections wait.
const HANDSHAKES: usize = 256;
/// Connections that wait to be served.
const WAITING: usize = 16;
/// How long nothing is accepted after the system had no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

/// A connection between two services.
pub(crate) enum Link {
    Plain(TcpStream, Caller),
    Tls(Box<tokio_rustls::TlsStream<TcpStream>>, Caller),
}

/// Who has called.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Nobody was asked for a certificate.
    Anyone,
    /// The certificate names these roles.
    Proven(Arc<[PeerRole]>),
}

impl Link {
    /// Connects to a service. The TCP connection has the caller's time limit, the handshake its own.
    pub(crate) async fn dial(
        address: SocketAddr,
        service: PeerRole,
        tls: Option<&PeerTls>,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Self::Plain(stream, Caller::Anyone)) };
        let proven = Caller::Proven(Arc::new([service]));
        Ok(Self::Tls(Box::new(tls.connect(stream, service).await?.into()), proven))
    }

    async fn accept(stream: TcpStream, tls: Option<&PeerTls>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Self::Plain(stream, Caller::Anyone)) };
        let (stream, roles) = tls.accept(stream).await?;
        Ok(Self::Tls(Box::new(stream.into()), Caller::Proven(roles.into())))
    }
}

/// The connections of a listener whose callers may connect, until the stream is dropped.
pub(crate) fn accepted(
    listener: TcpListener,
    tls: Option<PeerTls>,
) -> ReceiverStream<io::Result<Lingering<Link>>> {
    let (links, stream) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
            let incoming = tokio::select! {
                () = links.closed() => return,
                incoming = listener.accept() => incoming,
            };
            match incoming {
                Ok((stream, peer)) => {
                    tokio::spawn(shake_hands(stream, peer, tls.clone(), links.clone(), permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    sleep(NO_ROOM).await;
                }
            }
        }
    });
    ReceiverStream::new(stream)
}

async fn shake_hands(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<PeerTls>,
    links: mpsc::Sender<io::Result<Lingering<Link>>>,
    _permit: OwnedSemaphorePermit,
) {
    match Link::accept(stream, tls.as_ref()).await {
        // The server has stopped when nobody takes it.
        Ok(link) => drop(links.send(Ok(Lingering::new(link))).await),
        // Whoever only looks whether the port is open has not been refused.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => {
            metrics::counter!("packetboat_peer_refused_total", "reason" => "handshake").increment(1);
            tracing::warn!(%peer, %error, "caller refused");
        }
    }
}

impl Caller {
    /// Lets a call go on that only these roles may make.
    pub(crate) fn admit<T>(request: &Request<T>, roles: &[PeerRole]) -> Result<(), Status> {
        match request.extensions().get() {
            Some(Self::Anyone) => Ok(()),
            Some(Self::Proven(proven)) if proven.iter().any(|role| roles.contains(role)) => Ok(()),
            refused => {
                metrics::counter!("packetboat_peer_refused_total", "reason" => "role").increment(1);
                tracing::warn!(caller = ?refused, "call refused");
                Err(Status::permission_denied("the role of your certificate may not make this call"))
            }
        }
    }
}

impl Connected for Link {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let (Self::Plain(_, caller) | Self::Tls(_, caller)) = self;
        caller.clone()
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write(context, octets),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(context, octets),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream, _) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
