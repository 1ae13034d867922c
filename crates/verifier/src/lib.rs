//! Verify and Sign: what a message claims, judged; what we claim, signed.
//!
//! [`service`] takes the frames of a call; `collect` gathers the message, of which only the header
//! section is kept; `evaluate` has it authenticated, `disposition` says what becomes of it. `submission`
//! looks after what a user sends, and `signers` holds the keys it is signed with.
//!
//! The private DKIM keys are read here and nowhere else. Nothing here knows of the queue.

mod collect;
mod config;
mod disposition;
mod evaluate;
mod service;
mod signers;
mod submission;

pub use config::{Config, MalformedFrom, OnTempError, Unsigned};
pub use service::{BuildError, Deps, VerifierService, build};
