//! The Packetboat binary.

fn main() {}
