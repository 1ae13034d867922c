//! SMTP in: what a connection begins with, and the trace header field of this hop.
//!
//! What this crate deliberately does not do: it never sees the queue.

pub mod config;
pub mod proxy;
pub mod received;

pub use config::Config;
