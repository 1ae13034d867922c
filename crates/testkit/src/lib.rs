//! What tests stand on: DNS with zones, SMTP peers, Redis and Postfix processes, a ledger.
//!
//! Everything here is real: a DNS server that answers on a socket, the `redis-server` and `postfix`
//! of the system run in folders of their own, the built `packetboat` binary. A test starts what it
//! needs, breaks it, and asks the [`ledger`] whether any accepted message is missing.
//!
//! All of it binds to loopback only, on ports the system chooses, so tests run side by side. A value
//! that stands for a process ends that process when it is dropped.

pub mod authority;
pub mod bind;
pub mod certificate;
pub mod child;
pub mod cloudflare;
pub mod corpus;
pub mod dkim;
pub mod dns;
pub mod jaeger;
pub mod keys;
pub mod kubernetes;
pub mod ledger;
pub mod maildir;
pub mod net;
pub mod otlp;
pub mod postfix;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod redis_groups;
pub mod rotel;
pub mod route53;
pub mod smtp;
pub mod stranger;
pub mod volatile_disk;
pub mod wait;
pub mod zones;
