//! The octets of a session: in the clear or under TLS, buffered both ways.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use smtp::Reply;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// How long a client that is told the last word may take to close its end.
const LINGER: Duration = Duration::from_secs(1);
/// So much of what it still sends meanwhile is read.
const LINGER_OCTETS: u64 = 1024 * 1024;

enum Transport {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// A handshake failed.
    Gone,
}

/// A client's connection. Replies are gathered until [`Connection::flush`], so that a group of
/// pipelined commands is answered in one write (RFC 2920 §3.2).
pub(crate) struct Connection {
    transport: Transport,
    /// What has come and was not looked at yet.
    pub(crate) input: BytesMut,
    output: BytesMut,
    write_timeout: Duration,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, write_timeout: Duration) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { transport: Transport::Clear(stream), input, output, write_timeout }
    }

    /// Waits for octets, and takes up to about `most` of them into `input`.
    pub(crate) async fn read(&mut self, most: usize) -> io::Result<()> {
        self.input.reserve(most);
        let count = match &mut self.transport {
            Transport::Clear(stream) => read_some(stream, &mut self.input).await?,
            Transport::Tls(stream) => read_some(stream, &mut self.input).await?,
            Transport::Gone => 0,
        };
        if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Puts a reply behind those that wait for the next flush.
    pub(crate) fn queue(&mut self, reply: &Reply) {
        reply.encode(&mut self.output);
    }

    /// Sends the replies that wait.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let write = async {
            match &mut self.transport {
                Transport::Clear(stream) => write_out(stream, &mut self.output).await,
                Transport::Tls(stream) => write_out(stream, &mut self.output).await,
                Transport::Gone => Err(io::ErrorKind::NotConnected.into()),
            }
        };
        timeout(self.write_timeout, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Does the TLS handshake. What was read before it is gone: RFC 3207 §4.2, and nothing smuggled
    /// in front of the handshake is ever taken for something said under TLS.
    pub(crate) async fn start_tls(&mut self, tls: &tls::ServerTls) -> io::Result<()> {
        self.input.clear();
        let transport = std::mem::replace(&mut self.transport, Transport::Gone);
        let Transport::Clear(stream) = transport else {
            return Err(io::Error::other("TLS is active already"));
        };
        self.transport = Transport::Tls(Box::new(tls.accept(stream).await?));
        Ok(())
    }

    /// Ends the connection in order, as far as the client lets us. Octets that arrive at a closed socket are answered with
    /// a reset, which takes from the client the reply that it has not read yet: so what it still sends is read, for a
    /// moment.
    pub(crate) async fn close(&mut self) {
        let closing = async {
            let stream = match &mut self.transport {
                Transport::Clear(stream) => {
                    stream.shutdown().await?;
                    stream
                }
                Transport::Tls(stream) => {
                    stream.shutdown().await?;
                    stream.get_mut().0
                }
                Transport::Gone => return Ok(()),
            };
            let mut rest = stream.take(LINGER_OCTETS);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
        };
        // The client may be gone; there is nobody left to tell.
        let _: Result<io::Result<()>, _> = timeout(LINGER, closing).await;
    }
}

async fn read_some<S: AsyncRead + Unpin>(stream: &mut S, input: &mut BytesMut) -> io::Result<usize> {
    stream.read_buf(input).await
}

async fn write_out<S: AsyncWrite + Unpin>(stream: &mut S, output: &mut BytesMut) -> io::Result<()> {
    while output.has_remaining() {
        if stream.write_buf(output).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    stream.flush().await
}
