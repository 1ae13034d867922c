//! The chart as Helm renders it, and a cluster's API that knows all kinds it may use.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::kubernetes::{ApiServer, program};
use tokio::process::Command;

/// The values that come with the chart.
pub const VALUES: [&str; 3] = ["small-values.yaml", "ha-values.yaml", "multi-tenant-values.yaml"];
/// The Kubernetes that is rendered for.
const KUBERNETES: &str = "1.34";

/// The folder of the repository.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The chart's folder.
#[must_use]
pub fn chart() -> PathBuf {
    root().join("charts/packetboat")
}

/// One of [`VALUES`], as a file.
#[must_use]
pub fn values(name: &str) -> String {
    chart().join("ci").join(name).to_string_lossy().into_owned()
}

/// Runs a program to its end; what it printed.
///
/// # Errors
/// When it fails: with what it said.
pub async fn run(program: &Path, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {arguments:?}: {told}{error}", program.display());
    Ok(told)
}

/// Runs Helm.
///
/// # Errors
/// When it fails: with what it said.
pub async fn helm(arguments: &[&str]) -> Result<String> {
    run(&program("helm").await?, arguments).await
}

/// The chart as the release `mail` in the namespace `mail`, with one of [`VALUES`] and further arguments.
///
/// # Errors
/// When Helm refuses it.
pub async fn render(values_name: &str, more: &[&str]) -> Result<String> {
    let (chart, file) = (chart(), values(values_name));
    let chart = chart.to_string_lossy();
    let base = ["template", "mail", &chart, "-n", "mail", "-f", &file, "--kube-version", KUBERNETES];
    helm(&[&base, more].concat()).await
}

/// The objects of a stream of YAML.
///
/// # Errors
/// When it is no YAML.
pub fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents = yaml.split("\n---").filter(|text| {
        text.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#') && line != "---")
    });
    documents.map(|text| serde_saphyr::from_str(text).with_context(|| text.to_owned())).collect()
}

/// The pod that an object makes, or is: its metadata and spec.
#[must_use]
pub fn pod(object: &Value) -> Option<(&Value, &Value)> {
    let pod = match object["kind"].as_str()? {
        "Pod" => object,
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => &object["spec"]["template"],
        _ => return None,
    };
    Some((&pod["metadata"], &pod["spec"]))
}

/// An API server with the namespace `mail`, where pods are restricted, and the kinds of others that the chart may use.
///
/// # Errors
/// When it cannot be had.
pub async fn api_with_all_kinds() -> Result<ApiServer> {
    let api = ApiServer::start().await?;
    let script = root().join("scripts/kube-crds");
    let mut established = Vec::new();
    for file in run(&script, &[]).await?.lines() {
        let told = api.kubectl(&["apply", "--server-side", "-f", file, "-o", "name"], None).await?;
        established.push(told.trim().to_owned());
    }
    established.push(
        api.apply(include_str!("../e2e/external_dns.yaml"))
            .await
            .map(|_| "crd/dnsendpoints.externaldns.k8s.io".to_owned())?,
    );
    for kind in &established {
        api.kubectl(&["wait", "--for=condition=Established", kind, "--timeout=20s"], None).await?;
    }
    restricted_namespace(&api, "mail").await?;
    Ok(api)
}

/// A namespace that refuses pods which are not restricted, with the account that pods get.
///
/// # Errors
/// When it cannot be made.
pub async fn restricted_namespace(api: &ApiServer, name: &str) -> Result<()> {
    api.kubectl(&["create", "namespace", name], None).await?;
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    let warn = "pod-security.kubernetes.io/warn=restricted";
    api.kubectl(&["label", "namespace", name, enforce, warn], None).await?;
    api.kubectl(&["-n", name, "create", "serviceaccount", "default"], None).await.map(drop)
}

/// Applies YAML in the namespace `mail`, where the API server takes no field that it does not know; what it said.
///
/// # Errors
/// When anything is refused.
pub async fn apply(api: &ApiServer, yaml: &str) -> Result<String> {
    let arguments =
        ["-n", "mail", "apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-"];
    let told = api.kubectl(&arguments, Some(yaml)).await?;
    ensure!(!told.contains("violate"), "{told}");
    Ok(told)
}

/// Writes the schemas of all kinds that the API server knows, as kubeconform reads them: a file a kind, in which an
/// object has no fields but those it is known to have. The template of their names.
///
/// # Errors
/// When the API server does not tell them.
pub async fn schemas(api: &ApiServer, folder: &Path) -> Result<String> {
    let text = api.kubectl(&["get", "--raw", "/openapi/v2"], None).await?;
    let mut told: Value = serde_json::from_str(&text).context("reading the API's description")?;
    let mut definitions = told["definitions"].take();
    strict(&mut definitions);
    let known = definitions.as_object().context("no definitions")?;
    for (name, definition) in known {
        for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let text = |key: &str| kind[key].as_str().unwrap_or_default().to_owned();
            let mut needed = serde_json::Map::new();
            gather(definition, known, &mut needed);
            needed.insert(name.clone(), definition.clone());
            let schema = serde_json::json!({"$ref": format!("#/definitions/{name}"), "definitions": needed});
            // kubeconform takes all before the slash of `apps/v1` for the group, and all of `v1`.
            let group =
                Some(text("group")).filter(|group| !group.is_empty()).unwrap_or_else(|| text("version"));
            let file = format!("{group}_{}_{}.json", text("version"), text("kind").to_lowercase());
            std::fs::write(folder.join(file), schema.to_string())?;
        }
    }
    Ok(format!("{}/{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}_{{{{.ResourceKind}}}}.json", folder.display()))
}

/// What a definition refers to, and what that refers to.
fn gather(
    value: &Value,
    known: &serde_json::Map<String, Value>,
    needed: &mut serde_json::Map<String, Value>,
) {
    match value {
        Value::Object(map) => {
            let name =
                map.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix("#/definitions/"));
            if let Some((name, definition)) = name.and_then(|name| known.get_key_value(name))
                && !needed.contains_key(name)
            {
                needed.insert(name.clone(), definition.clone());
                gather(definition, known, needed);
            }
            map.values().for_each(|value| gather(value, known, needed));
        }
        Value::Array(list) => list.iter().for_each(|value| gather(value, known, needed)),
        _ => {}
    }
}

/// Objects with fields have no others; what may be a number or text may be both.
fn strict(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").is_some_and(|format| format == "int-or-string") {
                map.remove("type");
            }
            let free = map.get("x-kubernetes-preserve-unknown-fields").is_some_and(|free| free == true);
            if map.get("properties").is_some_and(Value::is_object)
                && !map.contains_key("additionalProperties")
                && !free
            {
                map.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            map.values_mut().for_each(strict);
        }
        Value::Array(list) => list.iter_mut().for_each(strict),
        _ => {}
    }
}
