//! Whether a mail exchanger keeps what a policy promises: STARTTLS, and a certificate that a sender trusts.

use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use dns::AddressPolicy;
use smtp::client::{Capabilities, ReplyDecoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fetch::{Fetcher, is_certificate};

/// Octets of one reply at most.
const MAX_REPLY: usize = 64 * 1024;

/// What a look at a mail exchanger found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its certificate is trusted, and holds its name.
    Good,
    /// A sender with a policy would not deliver there: why.
    Bad(String),
    /// It could not be looked at, which says nothing about what others see: why.
    Unknown(String),
}

impl Fetcher {
    /// Looks at a mail exchanger as a sender would (RFC 8461 §4.2), by the first of its addresses that can be
    /// connected to.
    pub async fn exchanger(&self, host: &str) -> Standing {
        match timeout(self.config.timeout, self.look(host)).await {
            Ok(Ok(standing)) => standing,
            Ok(Err(error)) => Standing::Unknown(format!("{host}: {error}")),
            Err(_) => Standing::Unknown(format!("{host} has not answered in time")),
        }
    }

    async fn look(&self, host: &str) -> io::Result<Standing> {
        let policy = AddressPolicy { allow_loopback: self.config.allow_loopback };
        let addresses = self.resolver.addresses(host, policy).await.map_err(io::Error::other)?;
        let mut failure = io::Error::other("it has no address");
        for address in addresses {
            let address = SocketAddr::new(address, self.config.smtp_port);
            match TcpStream::connect(address).await {
                Ok(stream) => return self.judge(host, stream).await,
                Err(error) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(failure)
    }

    async fn judge(&self, host: &str, stream: TcpStream) -> io::Result<Standing> {
        let mut peer = Peer { stream, decoder: ReplyDecoder::default(), buffer: BytesMut::new() };
        peer.expect(220).await?;
        peer.say(&format!("EHLO {}", self.config.ehlo)).await?;
        let greeting = peer.reply().await?;
        if !greeting.is_positive() {
            return Err(refused(&greeting));
        }
        if !Capabilities::from_ehlo(&greeting).starttls {
            return Ok(Standing::Bad(format!("{host} does not offer STARTTLS")));
        }
        peer.say("STARTTLS").await?;
        peer.expect(220).await?;
        if !peer.buffer.is_empty() {
            return Err(io::Error::other("it speaks before TLS begins"));
        }
        match self.tls.connect(host, peer.stream).await {
            Ok(mut stream) => {
                // It is told that nothing follows; whether it hears is all the same.
                let _ = stream.write_all(b"QUIT\r\n").await;
                Ok(Standing::Good)
            }
            Err(error) if is_certificate(&error) => {
                Ok(Standing::Bad(format!("the certificate of {host} is not trusted: {error}")))
            }
            Err(error) => Err(error),
        }
    }
}

fn refused(reply: &smtp::Reply) -> io::Error {
    io::Error::other(format!("it answers {}", reply.code))
}

struct Peer {
    stream: TcpStream,
    decoder: ReplyDecoder,
    buffer: BytesMut,
}

impl Peer {
    async fn say(&mut self, command: &str) -> io::Result<()> {
        self.stream.write_all(format!("{command}\r\n").as_bytes()).await
    }

    async fn expect(&mut self, code: u16) -> io::Result<()> {
        let reply = self.reply().await?;
        if reply.code == code { Ok(()) } else { Err(refused(&reply)) }
    }

    async fn reply(&mut self) -> io::Result<smtp::Reply> {
        let mut read = 0;
        loop {
            if let Some(reply) = self.decoder.decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(reply);
            }
            let more = self.stream.read_buf(&mut self.buffer).await?;
            read += more;
            if more == 0 || read > MAX_REPLY {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
