//! The command line, run as people run it.

#![allow(clippy::unwrap_used)]

mod check;
mod crds;
mod queue;
mod roles;
mod support;
