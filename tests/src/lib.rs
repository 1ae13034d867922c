//! Packetboat seen from outside.
