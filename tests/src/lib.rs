//! Packetboat seen from outside: processes, sockets, real peers.
//!
//! Each file of `e2e/` is one scenario named by the behaviour it shows. They share the [`world`]: a
//! small Internet in DNS, a hosted domain, and the settings of processes.

pub mod accounts;
pub mod chaos;
pub mod chart;
pub mod cluster;
pub mod estate;
pub mod load;
pub mod policies;
pub mod senders;
pub mod source;
pub mod steady;
pub mod witness;
pub mod world;
