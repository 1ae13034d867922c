//! What both ends of the transport share.

use std::fmt;

/// Mutual TLS between services: both sides show a certificate of one authority. All PEM.
#[derive(Clone)]
pub struct PeerTls {
    /// Our certificate, with its chain.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// The authority whose certificates are trusted.
    pub authority: Vec<u8>,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerTls { .. }")
    }
}

/// Why the transport cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The endpoint is not usable.
    #[error("endpoint {0:?} is not a URL with host and port, such as http://verifier:9091")]
    Endpoint(String),
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// The operating system's word.
        #[source]
        cause: std::io::Error,
    },
    /// The certificates are unusable.
    #[error("the certificates between services cannot be used")]
    Tls(#[source] tonic::transport::Error),
    /// The server broke.
    #[error("the gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
}
