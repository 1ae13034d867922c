//! What is carried: ids, envelope, header scan, trace headers and DSN text. No I/O.

pub mod author;
pub mod content;
pub mod dsn;
pub mod envelope;
pub mod header;
pub mod id;

pub use content::{Content, Cut};
pub use envelope::{Envelope, Failure, Origin, Recipient, Standing};
pub use header::{Field, Header};
pub use id::QueueId;
