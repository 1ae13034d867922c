//! What each role runs. A role's file reads from top to bottom: what it needs, its services, their order.

mod all;
mod delivery;
mod edge;
mod mta_sts;
mod operator;
mod parts;
mod reach;
mod verifier;

use anyhow::Result;

use crate::services::{Process, Services};
use crate::settings::{Role, Settings};

pub(crate) use parts::{connect_index, peer_tls, policy_tls};

/// Builds what a role runs, and starts it.
///
/// # Errors
/// When something it needs cannot be had.
pub(crate) async fn build(role: Role, settings: &Settings, process: &Process) -> Result<Services> {
    match role {
        Role::All => all::build(settings, process).await,
        Role::Edge => edge::build(settings, process).await,
        Role::Verifier => verifier::build(settings, process).await,
        Role::Delivery => delivery::build(settings, process).await,
        Role::Operator => operator::build(settings, process).await,
        Role::MtaSts => mta_sts::build(settings, process).await,
    }
}
