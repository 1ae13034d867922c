//! RFC 5321 grammar and the state machines of both ends, sans-IO.
//!
//! Nothing here opens a socket or reads a clock: bytes go in, events and bytes come out. The same
//! code runs under tokio in `edge` and `delivery`, and under the fuzzer.

pub mod address;
pub mod client;
pub mod command;
pub mod data;
pub mod line;
pub mod reply;
pub mod sasl;
pub mod server;

pub use address::{AddressError, Domain, ForwardPath, Mailbox, ReversePath};
pub use client::{Capabilities, ReplyDecoder, ReplyError};
pub use command::{Body, Command};
pub use data::{DataDecoder, DataEncoder, DataError, DataEvent};
pub use line::{LineDecoder, LineError};
pub use reply::{EnhancedCode, Reply};
pub use server::{Offer, Session};
