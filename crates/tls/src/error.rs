//! What can go wrong while TLS is set up. Each message names the file and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `tls.certificate` without `tls.key`, or the other way round.
    #[error("tls.certificate and tls.key go together: set both, or neither for a self-signed certificate")]
    HalfConfigured,
    /// A configured file cannot be read.
    #[error("cannot read {}, set as {setting}: check that it exists and may be read", path.display())]
    Read {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} holds no usable {wanted}: {reason}; {setting} must name a PEM file", path.display())]
    Content {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The key does not belong to the certificate, or cannot be used.
    #[error(
        "the key in {} cannot serve the certificate in {}: give the key that the certificate was issued for, \
         and put the server's own certificate first in the file",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
    /// The certificate between services is for another part.
    #[error(
        "the certificate in {} does not name {name}: give one whose DNS names (subject alternative name) include it",
        certificate.display()
    )]
    Role {
        /// The certificate file.
        certificate: PathBuf,
        /// The name that was looked for.
        name: String,
    },
    /// `tls.peer.domain` is no domain.
    #[error("tls.peer.domain {0:?} is not a DNS name such as packetboat.internal")]
    Domain(String),
    /// The authorities cannot be used to judge peers.
    #[error("the authorities in {} cannot be used", authority.display())]
    Authority {
        /// The file.
        authority: PathBuf,
        /// The cause.
        source: rustls::server::VerifierBuilderError,
    },
    /// The self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate for {hostname}: check that the hostname is a DNS name")]
    Generate {
        /// The name it was to be made for.
        hostname: String,
        /// The cause.
        source: rcgen::Error,
    },
    /// The self-signed certificate could not be stored.
    #[error("cannot write {}: check that data_dir exists, has room and may be written", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// rustls refused the settings.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}
