//! Octets to and from one peer: deadlines, gathered writes, whole replies.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::FutureExt;
use smtp::Reply;
use smtp::client::ReplyDecoder;
use tls::{ClientTls, Security};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Octets read at once; replies are short.
const READ_SIZE: usize = 2048;

/// Why nothing more can be had from a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Loss {
    /// Nothing came, or nothing more could be sent, in the time allowed.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// The peer closed the connection.
    #[error("connection closed")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// What came is no SMTP reply, or one over the limits.
    #[error("{0}")]
    Garbled(String),
}

fn begins_with_good_reply(received: &[u8]) -> bool {
    matches!(received, [b'2' | b'3', _, _, b' ', rest @ ..] if rest.contains(&b'\n'))
}

/// The connection, in clear or encrypted.
enum Stream {
    Clear(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// One connection to a peer.
pub(super) struct Wire {
    stream: Stream,
    received: BytesMut,
    decoder: ReplyDecoder,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream: Stream::Clear(stream), received: BytesMut::new(), decoder: ReplyDecoder::default() }
    }

    /// Sends all octets, then flushes.
    pub(super) async fn send(&mut self, octets: &mut impl Buf, limit: Duration) -> Result<(), Loss> {
        let send = async {
            self.stream.write_all_buf(octets).await?;
            self.stream.flush().await
        };
        match timeout(limit, send).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Loss::Deadline(limit)),
        }
    }

    /// The next reply, whole.
    pub(super) async fn reply(&mut self, limit: Duration) -> Result<Reply, Loss> {
        timeout(limit, self.read_reply()).await.unwrap_or(Err(Loss::Deadline(limit)))
    }

    async fn read_reply(&mut self) -> Result<Reply, Loss> {
        loop {
            let decoded = self.decoder.decode(&mut self.received);
            if let Some(reply) = decoded.map_err(|error| Loss::Garbled(error.to_string()))? {
                return Ok(reply);
            }
            self.received.reserve(READ_SIZE);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(Loss::Closed);
            }
        }
    }

    /// Whether the next reply is here already, and a good one of one line.
    pub(super) fn has_good_reply(&self) -> bool {
        begins_with_good_reply(&self.received)
    }

    /// Whether an idle connection is still of use: open, and nothing has come unasked (a farewell, say).
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut octet = [0];
        self.received.is_empty() && self.stream.read(&mut octet).now_or_never().is_none()
    }

    /// Whether octets have come that no reply has been made of yet.
    pub(super) fn has_leftover(&self) -> bool {
        !self.received.is_empty()
    }

    /// Does the TLS handshake over a connection in clear; what is encrypted stays as it is.
    pub(super) async fn encrypt(self, tls: &ClientTls, host: &str) -> io::Result<(Self, Option<Security>)> {
        match self.stream {
            Stream::Clear(stream) => {
                let (stream, security) = tls.connect(host, stream).await?;
                let stream = Stream::Encrypted(Box::new(stream));
                let decoder = ReplyDecoder::default();
                Ok((Self { stream, received: BytesMut::new(), decoder }, Some(security)))
            }
            Stream::Encrypted(_) => Ok((self, None)),
        }
    }

    /// Says farewell and waits for the peer's, or for `limit`.
    pub(super) async fn quit(mut self, limit: Duration) {
        let farewell = async {
            self.stream.write_all(b"QUIT\r\n").await?;
            self.stream.flush().await?;
            // RFC 5321 §4.1.1.10: the connection is closed after the 221; whatever else comes, too.
            let _octets = self.stream.read(&mut [0; 512]).await?;
            self.stream.shutdown().await
        };
        if let Ok(Err(error)) = timeout(limit, farewell).await {
            tracing::debug!(%error, "connection was lost before its end");
        }
    }
}

/// Octets in pieces, sent without being joined.
#[derive(Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slots: &mut [IoSlice<'a>]) -> usize {
        let filled = slots.iter_mut().zip(&self.pieces);
        filled.map(|(slot, piece)| *slot = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.length = self.length.saturating_sub(count);
        while let Some(front) = self.pieces.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Clear(stream) => stream.is_write_vectored(),
            Self::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::begins_with_good_reply;

    #[test]
    fn only_a_whole_reply_of_one_line_that_is_no_refusal_is_good() {
        for good in ["250 ok\r\n", "354 go on\r\n550 no", "250 2.1.5 ok\r\n250 2.1.5 ok\r\n"] {
            assert!(begins_with_good_reply(good.as_bytes()), "{good:?}");
        }
        for other in ["", "250", "250 ok", "250-ok\r\n250 ok\r\n", "450 later\r\n", "550 no\r\n250 ok\r\n"] {
            assert!(!begins_with_good_reply(other.as_bytes()), "{other:?}");
        }
    }
}
