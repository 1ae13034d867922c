//! Where the test runs: the cluster that KUBECONFIG names, and this machine beside it.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};

use crate::kube::{Namespace, kubectl, run};

/// The release under test.
pub(crate) const MAIL: Namespace = Namespace("packetboat-test");
/// Another release.
pub(crate) const SECOND: Namespace = Namespace("packetboat-second");
/// What the cluster has beside Packetboat.
pub(crate) const WORLD: Namespace = Namespace("packetboat-world");
/// The namespace of docs/install.md.
pub(crate) const GUIDE: Namespace = Namespace("mail");

/// The addresses of both sides, and the images that the cluster has.
#[derive(Debug)]
pub(crate) struct Place {
    /// A node's address, where the ports of Services are reached from here.
    pub(crate) node: IpAddr,
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
        let path = "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}";
        let node = match set("NODE") {
            Some(address) => address,
            None => kubectl(&["get", "nodes", "-o", path], 20).await?,
        };
        let node: IpAddr = node.split_whitespace().next().context("no node has an address")?.parse()?;
        let world = match set("WORLD") {
            Some(address) => address.parse().context("WORLD is not an address")?,
            None => towards(node)?,
        };
        ensure_unused().await?;
        let image = |name: &str| set(name).unwrap_or_else(|| "packetboat-test:1".to_owned());
        Ok(Self {
            node,
            world,
            image: set("IMAGE").context("IMAGE is not set: the image to test, with its tag")?,
            redis_image: image("REDIS_IMAGE"),
            bind_image: image("BIND_IMAGE"),
            dovecot_image: image("DOVECOT_IMAGE"),
            tools_image: image("TOOLS_IMAGE"),
        })
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
    for namespace in [MAIL, SECOND, GUIDE] {
        let names = namespace.kubectl(&["get", "mdom", "-o", "name"], 20).await.unwrap_or_default();
        for name in names.lines() {
            let free = r#"{"metadata":{"finalizers":null}}"#;
            namespace.kubectl(&["patch", name, "--type=merge", "-p", free], 20).await.ok();
        }
    }
}

/// Takes away everything that the test has made.
pub(crate) async fn clean() -> Result<()> {
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
    Ok(())
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
    Ok(())
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
