//! The chart's service accounts on a real API server, each with a token of its own.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;
use testkit::kubernetes::ApiServer;

use crate::chart;

/// The namespace of the release, and of the MailDomains.
pub const NAMESPACE: &str = "mail";
/// The name of the lease that the chart's operator may hold.
pub const LEASE: &str = "mail-packetboat-operator";
/// Kinds that say who may do what.
const KINDS: [&str; 5] = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];

/// The chart's objects of these kinds, with further values.
///
/// # Errors
/// When the chart cannot be rendered.
pub async fn objects(kinds: &[&str], values: &[&str]) -> Result<Vec<Value>> {
    let sets: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    let all = chart::objects(&chart::render("small-values.yaml", &sets).await?)?;
    let wanted = |object: &Value| object["kind"].as_str().is_some_and(|kind| kinds.contains(&kind));
    Ok(all.into_iter().filter(wanted).collect())
}

/// Makes the accounts of a release with these values, and what they may do. The namespace must exist.
///
/// # Errors
/// When the chart cannot be rendered, or the API server refuses it.
pub async fn make(api: &ApiServer, values: &[&str]) -> Result<()> {
    let list =
        serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects(&KINDS, values).await?});
    let apply = ["apply", "--server-side", "--force-conflicts", "-n", NAMESPACE, "-f", "-"];
    api.kubectl(&apply, Some(&list.to_string())).await.map(drop)
}

/// The kubeconfig of a role's account.
///
/// # Errors
/// When there is no such account.
pub async fn kubeconfig(api: &ApiServer, role: &str) -> Result<PathBuf> {
    api.kubeconfig_of(NAMESPACE, &format!("mail-packetboat-{role}")).await
}
