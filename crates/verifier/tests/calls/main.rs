//! Both calls of the verifier, frame by frame, with a DNS server and a folder of domains of the test.

#![allow(clippy::unwrap_used, reason = "a test ends where something it needs is missing")]

mod limits;
mod sign;
mod speed;
mod support;
mod verify;
