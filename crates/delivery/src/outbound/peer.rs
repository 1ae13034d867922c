//! Whom we speak to, and how it is named in failures, traces and for people.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::source::Source;

/// The protocol spoken to a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: as SMTP, with LHLO, and a reply for each recipient at the end.
    Lmtp,
}

impl Protocol {
    /// The name, as a metrics label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Lmtp => "lmtp",
        }
    }
}

/// A host to deliver to, before its address is known; the key of the connection pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Host {
    /// A DNS name or an address.
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// From where it is reached; `None` where that is left to the system.
    pub(super) source: Option<Arc<Source>>,
}

impl Host {
    /// Reads `host:port`, `192.0.2.1:port` or `[2001:db8::1]:port`.
    pub(super) fn parse(address: &str, protocol: Protocol) -> Option<Self> {
        let (name, port) = address.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if name.is_empty() || (bare.is_none() && name.contains(':')) {
            return None;
        }
        Some(Self { name: bare.unwrap_or(name).to_owned(), port, protocol, source: None })
    }

    /// The name for a DSN's Remote-MTA: a DNS name, or an address in brackets.
    pub(super) fn mta_name(&self) -> String {
        match self.name.parse::<IpAddr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => self.name.clone(),
        }
    }
}

/// One address of a host. Shown as `mx.example.org [192.0.2.1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) host: Host,
    pub(super) address: SocketAddr,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.address.ip();
        if self.host.name.parse() != Ok(ip) {
            write!(f, "{} ", self.host.name)?;
        }
        write!(f, "[{ip}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_are_host_and_port() {
        let name = |text| Host::parse(text, Protocol::Lmtp).map(|host| (host.name, host.port));
        assert_eq!(name("dovecot.mail.svc:24"), Some(("dovecot.mail.svc".to_owned(), 24)));
        assert_eq!(name("[2001:db8::1]:24"), Some(("2001:db8::1".to_owned(), 24)));
        for bad in ["dovecot", ":24", "dovecot:lmtp", "2001:db8::1:24", "dovecot:70000"] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn peers_are_named_for_people() {
        let peer = |text: &str| {
            let host = Host::parse(text, Protocol::Smtp).unwrap();
            Peer { host, address: "192.0.2.1:25".parse().unwrap() }.to_string()
        };
        assert_eq!(peer("mx.example.org:25"), "mx.example.org [192.0.2.1]");
        assert_eq!(peer("192.0.2.1:25"), "[192.0.2.1]");
    }
}
