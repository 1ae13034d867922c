//! The gRPC contracts between the services, and the two traits that stand for them.
//!
//! A service is written once, against [`Verifier`] or [`Delivery`]. Between processes the traits are
//! carried by gRPC ([`client`] and [`server`]); in one process the caller holds the service itself.
//! The frames are the same either way.

use async_trait::async_trait;
use tokio::sync::mpsc;

pub mod client;
mod error;
mod linger;
mod link;
pub mod server;
pub mod trace;
mod transport;
mod unsent;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("packetboat.v1");
}

pub use error::{ErrorCode, ServiceError};
pub use generated::*;
pub use transport::TransportError;

/// Frames of one call. The sender going away before the last frame abandons the call.
pub type Frames<T> = mpsc::Receiver<T>;

/// How many frames wait between two services of one call; with [`CHUNK_SIZE`] this bounds the
/// octets of one message held in between.
pub const FRAMES_IN_FLIGHT: usize = 8;

/// The most octets in a chunk.
pub const CHUNK_SIZE: usize = 64 * 1024;

/// Judges what a message claims, and signs what we claim.
#[async_trait]
pub trait Verifier: Send + Sync + 'static {
    /// Begin, Chunk…, End ⇒ the verdict. See `proto/packetboat/v1/verifier.proto`.
    async fn verify(&self, frames: Frames<verify_request::Frame>) -> Result<VerifyResponse, ServiceError>;

    /// Begin, Chunk…, End ⇒ the signatures.
    async fn sign(&self, frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError>;
}

/// Takes responsibility for messages, and answers for recipients behind a route.
#[async_trait]
pub trait Delivery: Send + Sync + 'static {
    /// Begin, Chunk…, Commit ⇒ the message is durable.
    async fn accept(&self, frames: Frames<accept_request::Frame>) -> Result<AcceptResponse, ServiceError>;

    /// Asks the mailbox store behind a `Callout` domain whether a recipient exists.
    async fn probe(&self, request: ProbeRequest) -> Result<ProbeResponse, ServiceError>;
}

/// Frames from a list: for callers that have the whole message at hand.
#[must_use]
pub fn frames_of<F>(list: Vec<F>) -> Frames<F> {
    let (sender, receiver) = mpsc::channel(list.len().max(1));
    for frame in list {
        // The channel was made with room for all of them.
        let _ = sender.try_send(frame);
    }
    receiver
}
