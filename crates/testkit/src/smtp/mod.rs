//! Both ends of SMTP, scripted by a test: a client that may say anything, a server that may answer
//! anything. Neither shares code with Packetboat, so that both ends are not wrong together.

mod client;
mod sink;
mod tls;

pub use client::{Client, Reply};
pub use sink::{Received, Sink, Verb};
pub(crate) use tls::TrustAnybody;

/// A TCP or TLS stream.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// The dot-stuffed form of a message, with the ending dot (RFC 5321 §4.5.2).
fn stuff(message: &str) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(message.len() + 8);
    for line in message.split_inclusive("\r\n") {
        if line.starts_with('.') {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line.as_bytes());
    }
    if !message.ends_with("\r\n") {
        stuffed.extend_from_slice(b"\r\n");
    }
    stuffed.extend_from_slice(b".\r\n");
    stuffed
}

/// Takes the line end off and the dot-stuffing of one line of DATA; nothing at the ending dot.
fn unstuff(line: &[u8]) -> Option<&[u8]> {
    match line {
        b".\r\n" => None,
        _ => Some(line.strip_prefix(b".").unwrap_or(line)),
    }
}
