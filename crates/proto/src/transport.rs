//! What can go wrong with the transport.

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
    /// The server broke.
    #[error("the gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
}
