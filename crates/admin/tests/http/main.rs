//! The admin server over HTTP, with the embedded queue behind it.

mod probes;
mod queue_api;
mod support;
