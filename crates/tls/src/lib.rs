//! rustls set-up for both ends of SMTP and between the services, and certificate reload.
//!
//! [`ServerTls`] is what the edge's listeners present; [`ClientTls`] is what delivery uses towards
//! remote servers, and [`TrustedTls`] whoever must know whom it speaks to. All speak TLS 1.2 and 1.3 only
//! (RFC 8996, RFC 9325), with the aws-lc-rs provider.
//! [`PeerTls`] is for the connections between the services: TLS 1.3, and both sides prove their role.
//!
//! What this crate deliberately does not do: it decides nothing about mail. Whether a session must
//! be encrypted, and what happens when it is not, is for its callers.

mod client;
mod error;
mod files;
mod peer;
mod reload;
mod self_signed;
mod server;
mod trusted;

pub use client::{ClientTls, ClientTlsConfig, Security};
pub use error::TlsError;
pub use files::IdentityFiles;
pub use peer::{PeerRole, PeerTls, PeerTlsConfig};
pub use server::{ServerTls, ServerTlsConfig};
pub use trusted::TrustedTls;
