//! The edge over real sockets, between a client and services that say what a test tells them to.
#![allow(clippy::unwrap_used)]

mod authentication;
mod content;
mod draining;
mod limits;
mod order;
mod proxy;
mod recipients;
mod services;
mod site;
mod smuggling;
