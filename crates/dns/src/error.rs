//! Why a look-up gave no host to go to, and whether trying again can help.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hickory_resolver::net::NetError;

/// Why the resolver could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// No `dns.servers`, and the system's cannot be read.
    #[error("cannot read the system's name servers from /etc/resolv.conf: repair it, or set dns.servers")]
    System(#[source] NetError),
    /// The trust anchor cannot be read.
    #[error("{} set as dns.trust_anchor holds no DNSKEY records that can be read", path.display())]
    TrustAnchor {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The resolver refused its settings.
    #[error("the resolver cannot be set up")]
    Setup(#[source] NetError),
}

/// A look-up that got no usable answer. It says nothing about the name: try again later.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookupError {
    /// No name server answered in time.
    #[error("no name server answered within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// The name servers answered with an error, or could not be reached.
    #[error("{0}")]
    Server(#[source] NetError),
}

/// Why there is no mail exchanger to go to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MxError {
    /// The name does not exist.
    #[error("the domain {domain} does not exist")]
    NoSuchDomain {
        /// The domain asked for.
        domain: String,
    },
    /// A null MX: the domain takes no mail (RFC 7505).
    #[error("the domain {domain} accepts no mail (null MX)")]
    NullMx {
        /// The domain asked for.
        domain: String,
    },
    /// The most preferred exchanger is this host itself (RFC 5321 §5.1): mail would loop.
    #[error("the MX records of {domain} lead back to this server, which does not host the domain")]
    OnlySelf {
        /// The domain asked for.
        domain: String,
    },
    /// The look-up failed.
    #[error("the MX records of {domain} cannot be looked up: {source}")]
    Temporary {
        /// The domain asked for.
        domain: String,
        /// The cause.
        source: LookupError,
    },
}

impl MxError {
    /// Whether trying again cannot help.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Temporary { .. })
    }

    /// The enhanced status code (RFC 3463, RFC 7505 §4.2).
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::NoSuchDomain { .. } => "5.1.2",
            Self::NullMx { .. } => "5.1.10",
            Self::OnlySelf { .. } => "5.4.6",
            Self::Temporary { .. } => "4.4.3",
        }
    }
}

/// Why a host has no address to connect to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AddressError {
    /// The name does not exist, or has neither A nor AAAA records.
    #[error("{host} has no address")]
    NoAddress {
        /// The host asked for.
        host: String,
    },
    /// Every address of the host is one that mail must not be sent to.
    #[error("{host} has only addresses that mail is not sent to, such as {address}")]
    Refused {
        /// The host asked for.
        host: String,
        /// One of them.
        address: IpAddr,
    },
    /// The look-up failed.
    #[error("the address of {host} cannot be looked up: {source}")]
    Temporary {
        /// The host asked for.
        host: String,
        /// The cause.
        source: LookupError,
    },
}

impl AddressError {
    /// Whether trying again cannot help.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Temporary { .. })
    }

    /// The enhanced status code (RFC 3463).
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::NoAddress { .. } | Self::Refused { .. } => "5.4.4",
            Self::Temporary { .. } => "4.4.3",
        }
    }
}
