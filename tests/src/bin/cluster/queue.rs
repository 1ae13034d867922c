//! What the queue of a release says of itself, asked in one of its delivery pods.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::kube::Namespace;

/// `packetboat queue account`: what came of every entry that was accepted.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Account {
    /// Handed over.
    pub(crate) delivered: u64,
    /// Given up, and the sender told.
    pub(crate) bounced: u64,
    /// Given up for their age.
    pub(crate) expired: u64,
    /// Removed by an operator.
    pub(crate) removed: u64,
    /// In the queue still, whatever they are doing.
    pub(crate) queued: u64,
    /// Accepted, and none of these.
    pub(crate) unaccounted: i64,
}

/// The account. Fails while the pod that was asked is ending, or Redis is away.
pub(crate) async fn account(namespace: Namespace) -> Result<Account> {
    let told = ask(namespace, "account").await?;
    serde_json::from_str(&told).with_context(|| format!("`queue account` says {told}"))
}

/// Goes through the whole queue. Fails when it does not agree with itself.
pub(crate) async fn audit(namespace: Namespace) -> Result<()> {
    ask(namespace, "audit").await.map(drop)
}

async fn ask(namespace: Namespace, verb: &str) -> Result<String> {
    let pod = ["exec", "deploy/packetboat-delivery", "--pod-running-timeout=5s", "--"];
    let command = ["/packetboat", "queue", verb, "--output", "json"];
    namespace.kubectl(&[&pod[..], &command].concat(), 40).await
}
