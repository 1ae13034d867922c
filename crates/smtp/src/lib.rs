//! RFC 5321 grammar and the state machines of both ends, sans-IO.
//!
//! Nothing here opens a socket or reads a clock: bytes go in, events and bytes come out. The same
//! code runs under tokio in `edge` and `delivery`, and under the fuzzer.

pub mod address;

pub use address::{AddressError, Domain, Mailbox, ReversePath};
