//! Accept, dispatch, attempt, outcome: from a durable queue to the next hop.

pub mod content;
pub mod outbound;
pub mod transfer;
