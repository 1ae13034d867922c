//! Accept, dispatch, attempt, outcome: from a durable queue to the next hop.
//!
//! A message comes in through [`DeliveryService`] (`service.rs`, `accept.rs`), is planned into queue
//! entries (`route.rs`), and is durable before the edge says `250`. The dispatcher (`dispatcher.rs`,
//! `slots.rs`) runs attempts (`attempt.rs`) into Maildirs (`maildir.rs`) and to other servers
//! ([`outbound`]); `outcome.rs` judges what came of them, `bounce.rs` tells the sender.
//!
//! What this crate deliberately does not do: parse header fields, hold a private key, or speak to a
//! store other than through [`queue::Queue`].

mod accept;
mod attempt;
mod auditor;
mod bounce;
pub mod config;
pub mod content;
mod dispatcher;
mod error;
mod maildir;
pub mod outbound;
mod outcome;
mod policy;
mod route;
mod service;
mod shares;
mod slots;
pub mod transfer;

pub use config::Config;
pub use error::DeliveryError;
pub use service::{DeliveryService, Deps, build};
