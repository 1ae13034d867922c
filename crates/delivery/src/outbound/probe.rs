//! Asks a next hop whether a recipient exists, without sending it anything.

use std::net::SocketAddr;

use smtp::Mailbox;
use smtp::Reply;

use super::client::Connection;
use super::failure::{Class, MAIL, RCPT, Stage, class, reply_text};
use super::peer::{Host, Peer, Protocol};
use super::wire::Loss;
use super::{Lookup, Outbound, connect, no_address, not_an_address};

/// What a next hop says of a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// It would take mail for it.
    Exists,
    /// It refuses it for good, with this reply.
    Unknown(String),
    /// It cannot be asked now, for this reason.
    Unavailable(String),
}

/// How asking over one connection ended.
enum Asked {
    Answered(Probe),
    /// The connection had been lost since its last use.
    Stale,
}

impl Outbound {
    /// Asks a next hop, `host:port`, by `MAIL FROM:<>` and RCPT, whether it would take mail for a
    /// recipient. Nothing is delivered.
    pub async fn probe(&self, address: &str, protocol: Protocol, recipient: &Mailbox) -> Probe {
        let Some(host) = Host::parse(address, protocol) else {
            return Probe::Unavailable(not_an_address(address).failure.text);
        };
        if let Some(connection) = self.inner.pool.take(&host)
            && let Asked::Answered(probe) = self.ask_over(connection, recipient).await
        {
            return probe;
        }
        let addresses = match self.addresses(&host, Lookup::Configured).await {
            Ok(addresses) => addresses,
            Err(error) => {
                return Probe::Unavailable(no_address(&host, Lookup::Configured, &error).failure.text);
            }
        };
        let mut reason = format!("{} has no address", host.name);
        for address in addresses.into_iter().take(self.inner.config.max_connects) {
            let peer = Peer { host: host.clone(), address: SocketAddr::new(address, host.port) };
            match connect::connect(&peer, &self.inner.tls, &self.inner.config).await {
                Err(obstacle) => reason = obstacle.failure.text,
                Ok(connection) => match self.ask_over(connection, recipient).await {
                    Asked::Answered(probe) => return probe,
                    Asked::Stale => {}
                },
            }
        }
        Probe::Unavailable(reason)
    }

    async fn ask_over(&self, mut connection: Connection, recipient: &Mailbox) -> Asked {
        let may_be_stale = connection.transactions > 0;
        connection.transactions += 1;
        let timeouts = &self.inner.config.timeouts;
        let utf8 = if recipient.needs_smtputf8() { " SMTPUTF8" } else { "" };
        let mail = connection.command(&format!("MAIL FROM:<>{utf8}\r\n"), timeouts).await;
        match &mail {
            Err(Loss::Deadline(_)) => {}
            Err(_) if may_be_stale => return Asked::Stale,
            Ok(reply) if may_be_stale && reply.code == 421 => return Asked::Stale,
            Ok(reply) if class(reply) == Class::Positive => {
                let rcpt = connection.command(&format!("RCPT TO:<{recipient}>\r\n"), timeouts).await;
                return Asked::Answered(self.conclude(connection, RCPT, rcpt).await);
            }
            _ => {}
        }
        // A refused sender says nothing of the recipient.
        Asked::Answered(match self.conclude(connection, MAIL, mail).await {
            Probe::Exists => Probe::Exists,
            Probe::Unknown(reason) | Probe::Unavailable(reason) => Probe::Unavailable(reason),
        })
    }

    /// Judges the last reply, and gives the connection back where it can be used again.
    async fn conclude(&self, mut connection: Connection, stage: Stage, reply: Result<Reply, Loss>) -> Probe {
        let reply = match reply {
            Ok(reply) => reply,
            Err(loss) => return Probe::Unavailable(connection.peer.lost(stage, &loss).failure.text),
        };
        let probe = match class(&reply) {
            Class::Positive => Probe::Exists,
            Class::Permanent => Probe::Unknown(reply_text(&reply)),
            _ => Probe::Unavailable(connection.peer.refusal(stage, &reply).failure.text),
        };
        if reply.code != 421 && connection.reset(&self.inner.config.timeouts).await {
            self.inner.pool.put(connection);
        }
        probe
    }
}
