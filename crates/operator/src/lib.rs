//! The operator: makes a domain's DKIM keys, keeps them in Secrets, publishes its DNS records, and says in
//! the MailDomain's status what is so.
//!
//! A reconciliation observes (`observe.rs`, `store.rs`, `witness.rs`), plans (`keys.rs`, `policy.rs`, `record.rs`;
//! all pure) and applies (`store.rs`, `memory.rs`, and `publisher.rs` by `update.rs`, `endpoints.rs`, `cloudflare.rs`
//! or `route53.rs`).
//! `reconcile.rs` is one domain from top to bottom, `controller.rs` runs it for all. `peer` makes the certificates
//! between the services, where that is asked for.

pub mod cloudflare;
mod contests;
mod controller;
mod endpoints;
mod error;
pub mod exchange;
mod failures;
pub mod keypair;
pub mod keys;
mod leadership;
mod memory;
mod mirror;
pub mod observe;
mod password;
pub mod peer;
mod placement;
mod policy;
mod publisher;
mod publishing;
mod reconcile;
pub mod record;
pub mod route53;
pub mod signed;
mod status;
mod store;
mod tally;
mod telling;
pub mod tlsa;
pub mod update;
mod waits;
mod ways;
mod witness;

pub use controller::{Config, Operator, find};
pub use error::Error;
pub use witness::PolicyConfig;
