//! Where the test runs: the cluster that KUBECONFIG names, and this machine beside it.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kube::{Namespace, kubectl, run};

/// The release under test.
pub(crate) const MAIL: Namespace = Namespace("packetboat-test");
/// Another release.
pub(crate) const SECOND: Namespace = Namespace("packetboat-second");
/// What the cluster has beside Packetboat.
pub(crate) const WORLD: Namespace = Namespace("packetboat-world");
/// The namespace of docs/install.md.
pub(crate) const GUIDE: Namespace = Namespace("mail");
/// Where releases are.
const RELEASES: [Namespace; 3] = [MAIL, SECOND, GUIDE];

/// Of `kubectl get`: one line an object, with its name and uid.
pub(crate) const UIDS: &str = r#"jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}"#;
/// What a release may make that is in no namespace, beside the CRDs.
const OF_CLUSTER: &str = "clusterroles,clusterrolebindings,priorityclasses";

/// The addresses of both sides, and the images that the cluster has.
#[derive(Debug)]
pub(crate) struct Place {
    /// A node's address, where the ports of Services are reached from here.
    pub(crate) node: IpAddr,
    /// Where pods run that take connections at this address.
    at_node: Value,
    /// The address of this machine as pods reach it.
    pub(crate) world: IpAddr,
    /// Packetboat's image, with its tag.
    pub(crate) image: String,
    /// An image with `redis-server`.
    pub(crate) redis_image: String,
    /// An image with `named` and a shell.
    pub(crate) bind_image: String,
    /// An image with Dovecot.
    pub(crate) dovecot_image: String,
    /// An image with a shell and `nc`.
    pub(crate) tools_image: String,
}

impl Place {
    /// Finds out. Fails when something of Packetboat is in the cluster already.
    pub(crate) async fn find() -> Result<Self> {
        let nodes: Value = serde_json::from_str(&kubectl(&["get", "nodes", "-o", "json"], 20).await?)?;
        let nodes = nodes["items"].as_array().context("the cluster has no list of nodes")?;
        let (node, at_node) = choose_node(nodes, set("NODE").as_deref())?;
        let world = match set("WORLD") {
            Some(address) => address.parse().context("WORLD is not an address")?,
            None => towards(node)?,
        };
        ensure_unused().await?;
        let image = |name: &str| set(name).unwrap_or_else(|| "packetboat-test:1".to_owned());
        Ok(Self {
            node,
            at_node,
            world,
            image: set("IMAGE").context("IMAGE is not set: the image to test, with its tag")?,
            redis_image: image("REDIS_IMAGE"),
            bind_image: image("BIND_IMAGE"),
            dovecot_image: image("DOVECOT_IMAGE"),
            tools_image: image("TOOLS_IMAGE"),
        })
    }

    /// The `nodeSelector` of edges: connections to another node than theirs go nowhere, since their Service keeps the
    /// clients' addresses.
    pub(crate) fn node_selector(&self) -> &Value {
        &self.at_node
    }

    /// A port of the node.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.node, port)
    }

    /// The image as the chart wants it: repository and tag.
    pub(crate) fn repository_and_tag(&self) -> (&str, &str) {
        self.image.rsplit_once(':').unwrap_or((&self.image, "latest"))
    }
}

/// Lets go of all MailDomains: without an operator nobody does.
pub(crate) async fn let_go() {
    for namespace in RELEASES {
        let names = namespace.kubectl(&["get", "mdom", "-o", "name"], 20).await.unwrap_or_default();
        for name in names.lines() {
            let free = r#"{"metadata":{"finalizers":null}}"#;
            namespace.kubectl(&["patch", name, "--type=merge", "-p", free], 20).await.ok();
        }
    }
}

/// Takes away everything that the test has made.
pub(crate) async fn clean() -> Result<()> {
    for namespace in RELEASES {
        uninstall_all(namespace).await;
    }
    let_go().await;
    for namespace in [MAIL, SECOND, GUIDE, WORLD] {
        let gone = ["delete", "namespace", namespace.0, "--ignore-not-found", "--wait=false"];
        kubectl(&gone, 30).await?;
    }
    remove_crds().await?;
    for namespace in [MAIL, SECOND, GUIDE, WORLD] {
        let name = format!("namespace/{}", namespace.0);
        run("kubectl", &["wait", "--for=delete", &name, "--timeout=170s"], None, 180).await?;
    }
    let left = of_cluster().await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Uninstalls what is installed in a namespace: some of it is in none, and does not go with it. What comes of this is
/// looked at in the end.
async fn uninstall_all(namespace: Namespace) {
    let list = ["-n", namespace.0, "list", "--all", "--short"];
    for name in run("helm", &list, None, 30).await.unwrap_or_default().lines() {
        let uninstall = ["-n", namespace.0, "uninstall", name, "--ignore-not-found", "--timeout=60s"];
        if let Err(error) = run("helm", &uninstall, None, 70).await {
            println!("cluster: uninstalling {name} in {}: {error:#}", namespace.0);
        }
    }
}

/// What releases in our namespaces have made that is in no namespace; theirs stands in its name.
async fn of_cluster() -> Result<Vec<String>> {
    let names = kubectl(&["get", OF_CLUSTER, "-o", "name"], 30).await?;
    let ours = RELEASES.map(|namespace| format!("/{}-packetboat", namespace.0));
    Ok(names.lines().filter(|name| ours.iter().any(|our| name.contains(our))).map(str::to_owned).collect())
}

/// Packetboat's CRDs, with their uids.
pub(crate) async fn crds() -> Result<Vec<String>> {
    let lines = kubectl(&["get", "crds", "-o", UIDS], 20).await?;
    Ok(lines.lines().filter(|line| line.contains(".mail.packetboat.dev ")).map(str::to_owned).collect())
}

/// Takes away the CRDs, and with them every MailDomain.
pub(crate) async fn remove_crds() -> Result<()> {
    let names = kubectl(&["get", "crds", "-o", "name"], 20).await?;
    for name in names.lines().filter(|name| name.ends_with(".mail.packetboat.dev")) {
        kubectl(&["delete", name, "--timeout=60s"], 70).await?;
    }
    Ok(())
}

async fn ensure_unused() -> Result<()> {
    let crds = kubectl(&["get", "crds", "-o", "name"], 20).await?;
    ensure!(!crds.contains("mail.packetboat.dev"), "Packetboat's CRDs are in this cluster: it is in use");
    let present = kubectl(&["get", "namespaces", "-o", "name"], 20).await?;
    for namespace in [MAIL, SECOND, WORLD, GUIDE] {
        if present.lines().any(|name| name == format!("namespace/{}", namespace.0)) {
            bail!("the cluster has a namespace {} already", namespace.0);
        }
    }
    let left = of_cluster().await?;
    ensure!(left.is_empty(), "a release has left {left:?} in this cluster");
    Ok(())
}

/// The node whose ports are used, at the address that was asked for or its own, and how pods get there.
fn choose_node(nodes: &[Value], asked: Option<&str>) -> Result<(IpAddr, Value)> {
    let addresses = |node: &Value| -> Vec<(String, String)> {
        let all = node["status"]["addresses"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        all.map(|one| (text(&one["type"]), text(&one["address"]))).collect()
    };
    let selector = |node: &Value| {
        let name = &node["metadata"]["labels"]["kubernetes.io/hostname"];
        json!({"kubernetes.io/hostname": name})
    };
    if let Some(asked) = asked {
        let named = nodes.iter().find(|node| addresses(node).iter().any(|(_, address)| address == asked));
        // Behind an address that is no node's, somebody leads connections to where edges are.
        return Ok((asked.parse().context("NODE is not an address")?, named.map_or(json!({}), selector)));
    }
    let takes_pods = |node: &&Value| {
        let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
        !taints.any(|taint| taint["effect"] == "NoSchedule" || taint["effect"] == "NoExecute")
    };
    let node = nodes.iter().find(takes_pods).context("no node takes pods")?;
    let internal = addresses(node).into_iter().find(|(kind, _)| kind == "InternalIP");
    let (_, address) = internal.context("the node has no address")?;
    Ok((address.parse()?, selector(node)))
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The address of this machine on the way to `peer`.
fn towards(peer: IpAddr) -> Result<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((peer, 9)).with_context(|| format!("there is no way to the node {peer}"))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, taints: Value) -> Value {
        json!({
            "metadata": {"labels": {"kubernetes.io/hostname": name}},
            "spec": {"taints": taints},
            "status": {"addresses": [
                {"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address},
            ]},
        })
    }

    #[test]
    fn edges_run_where_connections_go() {
        let nodes = [
            node("control-plane", "10.0.0.1", json!([{"key": "control-plane", "effect": "NoSchedule"}])),
            node("worker", "10.0.0.2", json!([{"key": "busy", "effect": "PreferNoSchedule"}])),
            node("worker2", "10.0.0.3", Value::Null),
        ];
        let at = |name: &str| json!({"kubernetes.io/hostname": name});
        for (asked, address, selector) in [
            (None, "10.0.0.2", at("worker")),
            (Some("10.0.0.3"), "10.0.0.3", at("worker2")),
            (Some("192.0.2.1"), "192.0.2.1", json!({})),
        ] {
            let chosen = choose_node(&nodes, asked).unwrap();
            assert_eq!(chosen, (address.parse().unwrap(), selector), "{asked:?}");
        }
        assert!(choose_node(&nodes[..1], None).is_err());
    }
}
