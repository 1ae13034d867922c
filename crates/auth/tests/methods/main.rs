//! The methods of authentication, each against a DNS server of the test and, where there is one,
//! against an independent implementation.

#![allow(clippy::unwrap_used, reason = "a test ends where something it needs is missing")]

mod arc;
mod dkim;
mod dmarc;
mod sign;
mod spf;
mod support;
