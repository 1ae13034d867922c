//! What can go wrong here. What is wrong with a message is no error: it is a result.

use hickory_resolver::net::NetError;

/// Why authentication could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No name servers are set, and the system's cannot be read.
    #[error("cannot read the system's name servers from /etc/resolv.conf: repair it, or set dns.servers")]
    SystemServers(#[source] NetError),
    /// The resolver refused its settings.
    #[error("the resolver cannot be set up")]
    Resolver(#[source] NetError),
}

/// Why a private key cannot be used to sign.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The text is no PEM of a private key in PKCS#8, nor of an RSA key in PKCS#1.
    #[error("the private key is not PEM in PKCS#8 or PKCS#1")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The key cannot be read, is not of the algorithm it is declared for, or is too short.
    #[error("the private key does not serve for {algorithm}, which wants {wanted}: {reason}")]
    Key {
        /// The algorithm it was to be used for.
        algorithm: &'static str,
        /// What keys serve for it.
        wanted: &'static str,
        /// What the cryptographic library says.
        reason: String,
    },
}

/// Why a message could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The message has no `From`, which a signature must cover (RFC 6376 §5.4).
    #[error("there is no From field to sign")]
    NoFrom,
    /// The scan was not made for signing.
    #[error("the body was not hashed for signing")]
    NotHashed,
    /// The cryptographic library failed.
    #[error("the signature could not be made: {0}")]
    Crypto(String),
}
