//! Resolver and MX plan: from a domain to the hosts that take its mail, and to their addresses.
//!
//! Delivery asks [`Resolver::mx_plan`] where mail for a domain goes (RFC 5321 §5.1, RFC 7505), then
//! [`Resolver::addresses`] for each host in turn. Errors tell what can be tried again from what
//! cannot. Answers are cached, and equal questions in flight are asked once, by the resolver below.
//!
//! What this crate deliberately does not do: it connects to nobody but name servers, and it never
//! turns a failed look-up into "there is none".

mod address;
mod config;
mod error;
mod mx;
mod resolver;
mod silence;
mod zone;

pub use address::AddressPolicy;
pub use config::DnsConfig;
pub use error::{AddressError, LookupError, MxError, ResolverError};
pub use mx::{MxHost, MxPlan};
pub use resolver::Resolver;
pub use silence::Silence;
pub use zone::Zone;
