//! How a server closes a connection: not before its client has read the last word.
//!
//! Octets that arrive at a closed socket are answered with a reset, and a reset takes from the client what it has not
//! read yet: which calls this end has not looked at (GOAWAY, RFC 9113 §6.8), or even an answer. So this end only says
//! that it will write no more, and reads on for a moment (RFC 9112 §9.6 tells the same of HTTP/1.1).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

/// How long a client may take to close its end.
const LINGER: Duration = Duration::from_secs(2);

/// A connection that is closed with patience.
pub(crate) struct Lingering<S> {
    stream: S,
    /// Until when, once this end has said its last.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Lingering<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, until: None }
    }
}

impl<S: Connected> Connected for Lingering<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, octets)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let until = this.until.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut room = [0; 4096];
        while until.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // It has closed its end, or is gone.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn it_closes_when_the_client_has() {
        let (near, mut far) = duplex(64);
        let closing = tokio::spawn(async move { Lingering::new(near).shutdown().await });
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        far.write_all(&[b'x'; 1000]).await.unwrap();
        assert!(!closing.is_finished());
        drop(far);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_on_a_client_that_does_not() {
        let (near, far) = duplex(64);
        let begun = tokio::time::Instant::now();
        Lingering::new(near).shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), LINGER);
        drop(far);
    }
}
