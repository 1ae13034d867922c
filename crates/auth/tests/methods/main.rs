//! The methods of authentication, each against a DNS server of the test and, where there is one,
//! against an independent implementation.

mod arc;
mod dkim;
mod dmarc;
mod sign;
mod spf;
mod support;
