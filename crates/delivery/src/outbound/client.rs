//! One SMTP or LMTP client connection: greeting, EHLO, STARTTLS; then one transaction after the other
//! ([`super::transaction`]).

use bytes::Buf;
use smtp::Reply;
use smtp::client::Capabilities;
use tls::{ClientTls, Security};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::config::{OutboundConfig, Timeouts};
use super::failure::{Class, GREETING, Stage, class};
use super::ledger::Obstacle;
use super::peer::{Peer, Protocol};
use super::wire::{Loss, Wire};

/// A connection that is ready for MAIL.
pub(super) struct Connection {
    pub(super) wire: Wire,
    pub(super) peer: Peer,
    pub(super) capabilities: Capabilities,
    /// `None` in clear.
    pub(super) security: Option<Security>,
    pub(super) opened: Instant,
    /// Transactions begun on it.
    pub(super) transactions: u32,
}

/// Why a connection did not come to be ready.
pub(super) enum Unready {
    /// STARTTLS was agreed on, and then the handshake failed: the peer may be had in clear.
    Handshake(std::io::Error),
    /// Anything else.
    Obstacle(Obstacle),
}

impl Connection {
    /// Greets a peer. With `tls`, the session is encrypted if the peer offers STARTTLS.
    pub(super) async fn greet(
        stream: TcpStream,
        peer: Peer,
        tls: Option<&ClientTls>,
        config: &OutboundConfig,
    ) -> Result<Self, Unready> {
        let mut connection = Self {
            wire: Wire::new(stream),
            peer,
            capabilities: Capabilities::default(),
            security: None,
            opened: Instant::now(),
            transactions: 0,
        };
        let timeouts = &config.timeouts;
        let greeting = connection.wire.reply(timeouts.greeting).await;
        connection.expect_positive(GREETING, greeting).map_err(Unready::Obstacle)?;
        connection.introduce(config).await.map_err(Unready::Obstacle)?;
        match tls {
            Some(tls) if connection.capabilities.starttls => connection.secure(tls, config).await,
            _ => Ok(connection),
        }
    }

    /// EHLO, then HELO for a peer that does not know it (RFC 5321 §3.2); or LHLO (RFC 2033 §4.1).
    async fn introduce(&mut self, config: &OutboundConfig) -> Result<(), Obstacle> {
        let timeouts = &config.timeouts;
        let source = self.peer.host.source.clone();
        let hostname = source.as_ref().and_then(|source| source.ehlo()).unwrap_or(&config.hostname);
        let (verb, stage) = match self.peer.host.protocol {
            Protocol::Smtp => ("EHLO", "EHLO"),
            Protocol::Lmtp => ("LHLO", "LHLO"),
        };
        let reply = self.command(&format!("{verb} {hostname}\r\n"), timeouts).await;
        let reply = reply.map_err(|loss| self.peer.lost(stage, &loss))?;
        if class(&reply) == Class::Permanent && self.peer.host.protocol == Protocol::Smtp {
            let reply = self.command(&format!("HELO {hostname}\r\n"), timeouts).await;
            self.expect_positive("HELO", reply)?;
            self.capabilities = Capabilities::default();
            return Ok(());
        }
        let reply = self.expect_positive(stage, Ok(reply))?;
        self.capabilities = Capabilities::from_ehlo(&reply);
        Ok(())
    }

    /// STARTTLS (RFC 3207). What was learnt in clear is forgotten; EHLO is said again.
    async fn secure(mut self, tls: &ClientTls, config: &OutboundConfig) -> Result<Self, Unready> {
        let timeouts = &config.timeouts;
        let stage = "STARTTLS";
        let reply = self.command("STARTTLS\r\n", timeouts).await;
        let reply = reply.map_err(|loss| Unready::Obstacle(self.peer.lost(stage, &loss)))?;
        if class(&reply) != Class::Positive {
            if reply.code == 421 {
                return Err(Unready::Obstacle(self.peer.refusal(stage, &reply)));
            }
            // Offered and then denied: with no policy that wants TLS, the session goes on in clear.
            tracing::info!(peer = %self.peer, "peer offers STARTTLS and denies it, going on in clear");
            return Ok(self);
        }
        if self.wire.has_leftover() {
            // Octets behind the 220 were sent in clear and would be read as if encrypted.
            let text = format!("{} sent more than its reply to STARTTLS in clear", self.peer);
            return Err(Unready::Obstacle(self.peer.obstacle("4.7.0", text)));
        }
        let span = info_span!(
            "tls",
            otel.kind = "client",
            otel.status_code = Empty,
            tls.protocol.version = Empty,
            tls.cipher = Empty,
            tls.verified = Empty,
        );
        let handshake = self.wire.encrypt(tls, &self.peer.host.name).instrument(span.clone()).await;
        let (wire, security) = handshake.map_err(|error| {
            span.record("otel.status_code", "error");
            Unready::Handshake(error)
        })?;
        if let Some(security) = &security {
            span.record("tls.protocol.version", security.protocol)
                .record("tls.cipher", security.cipher.as_str())
                .record("tls.verified", security.verified);
        }
        drop(span);
        let mut connection = Self { wire, security, capabilities: Capabilities::default(), ..self };
        connection.introduce(config).await.map_err(Unready::Obstacle)?;
        Ok(connection)
    }

    /// Sends one command and waits for its reply.
    pub(super) async fn command(&mut self, line: &str, timeouts: &Timeouts) -> Result<Reply, Loss> {
        self.send(&mut line.as_bytes(), timeouts).await?;
        self.wire.reply(timeouts.command).await
    }

    /// Sends commands.
    pub(super) async fn send(&mut self, octets: &mut impl Buf, timeouts: &Timeouts) -> Result<(), Loss> {
        self.wire.send(octets, timeouts.command).await
    }

    fn expect_positive(&self, stage: Stage, reply: Result<Reply, Loss>) -> Result<Reply, Obstacle> {
        match reply {
            Ok(reply) if class(&reply) == Class::Positive => Ok(reply),
            Ok(reply) => Err(self.peer.refusal(stage, &reply)),
            Err(loss) => Err(self.peer.lost(stage, &loss)),
        }
    }

    /// Brings the peer back to where MAIL may be said; false when the connection is of no use.
    pub(super) async fn reset(&mut self, timeouts: &Timeouts) -> bool {
        let reply = self.command("RSET\r\n", timeouts).await;
        reply.is_ok_and(|reply| class(&reply) == Class::Positive)
    }
}
