//! MTA-STS (RFC 8461): what a domain promises to senders about TLS, and how they learn of it.
//!
//! [`Policy`] and [`record`] are the two texts, pure. [`PolicyServer`] serves the policies of hosted domains over
//! HTTPS; [`Fetcher`] reads that of any domain as a sender does, and looks whether a mail exchanger keeps what a
//! policy promises.
//!
//! What this crate deliberately does not do: it decides neither which policy a domain has (the operator does)
//! nor what becomes of mail (a sender does).

mod config;
mod doors;
mod exchanger;
mod fetch;
mod policy;
pub mod record;
mod server;

pub use config::ServerConfig;
pub use exchanger::Standing;
pub use fetch::{FetchConfig, FetchError, Fetcher};
pub use policy::{MAX_AGE_LIMIT, Mode, Policy, PolicyError};
pub use server::{Policies, PolicyServer, ServerError};

/// Where a policy lies on its host (RFC 8461 §3.2).
pub const POLICY_PATH: &str = "/.well-known/mta-sts.txt";

/// The host that serves the policy of a domain (RFC 8461 §3.2).
#[must_use]
pub fn policy_host(domain: &str) -> String {
    format!("mta-sts.{domain}")
}
