//! The cluster by its tools: `kubectl`, `helm` and `dig`, each with a deadline.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A namespace of the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespace(pub(crate) &'static str);

impl Namespace {
    /// Makes it, for restricted pods only.
    pub(crate) async fn create(self) -> Result<()> {
        kubectl(&["create", "namespace", self.0], 30).await?;
        let enforce = "pod-security.kubernetes.io/enforce=restricted";
        kubectl(&["label", "namespace", self.0, enforce], 30).await.map(drop)
    }

    /// Runs `kubectl` in it.
    pub(crate) async fn kubectl(self, arguments: &[&str], seconds: u64) -> Result<String> {
        kubectl(&[&["-n", self.0], arguments].concat(), seconds).await
    }

    /// Applies YAML or JSON to it.
    pub(crate) async fn apply(self, text: &str) -> Result<()> {
        run("kubectl", &["-n", self.0, "apply", "-f", "-"], Some(text), 30).await.map(drop)
    }

    /// Applies a Secret with one key.
    pub(crate) async fn secret(self, name: &str, key: &str, value: &str) -> Result<()> {
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value},
        });
        self.apply(&secret.to_string()).await
    }

    /// The names of the pods with this label that are not about to end.
    pub(crate) async fn pods(self, label: &str) -> Result<Vec<String>> {
        let text = self.kubectl(&["get", "pods", "-l", label, "-o", "json"], 20).await?;
        let list: serde_json::Value = serde_json::from_str(&text).context("reading the list of pods")?;
        let items = list["items"].as_array().context("a list without items")?;
        let staying = items.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(staying.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
    }

    /// Waits until there are so many pods with this label: none is about to end.
    pub(crate) async fn has_pods(self, label: &str, count: usize) -> Result<()> {
        let there = async || {
            let names = self.kubectl(&["get", "pods", "-l", label, "-o", "name"], 20).await;
            names.is_ok_and(|names| names.lines().count() == count)
        };
        testkit::wait::until_true(&format!("{count} pods"), Duration::from_secs(150), there).await
    }

    /// Waits until a Deployment or StatefulSet is as it should be.
    pub(crate) async fn rolled_out(self, what: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", what, "--timeout=170s"], 180).await.map(drop)
    }

    /// The node port of a Service's port.
    pub(crate) async fn node_port(self, service: &str, port: &str) -> Result<u16> {
        let path = format!("jsonpath={{.spec.ports[?(@.name==\"{port}\")].nodePort}}");
        let number = self.kubectl(&["get", "service", service, "-o", &path], 20).await?;
        number.trim().parse().with_context(|| format!("{service} has no node port for {port}"))
    }

    /// The address of a Service within the cluster.
    pub(crate) async fn cluster_address(self, service: &str) -> Result<IpAddr> {
        let address =
            self.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"], 20).await?;
        address.trim().parse().with_context(|| format!("{service} has no address"))
    }
}

/// Runs `kubectl`; what it printed.
pub(crate) async fn kubectl(arguments: &[&str], seconds: u64) -> Result<String> {
    run("kubectl", arguments, None, seconds).await
}

/// Runs a program with a deadline; what it printed.
pub(crate) async fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&str>,
    seconds: u64,
) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("the program has no input")?;
    let input = input.unwrap_or_default().to_owned();
    // A program that does not read all of it says itself what is wrong.
    tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let ended = tokio::time::timeout(Duration::from_secs(seconds), child.wait_with_output()).await;
    let output = ended.with_context(|| format!("{program} {arguments:?} hangs"))??;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
