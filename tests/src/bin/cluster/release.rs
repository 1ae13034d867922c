//! A release of the chart, and its MailDomains.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::corpus;

use crate::kube::{Namespace, kubectl, run};
use crate::place::Place;
use crate::world::{World, give_key};

/// The password of every user.
pub(crate) const PASSWORD: &str = "correct horse";
const NAME: &str = "packetboat";
const CHART: &str = "charts/packetboat";

/// A release called `packetboat` in a namespace.
pub(crate) struct Release {
    /// Its namespace.
    pub(crate) namespace: Namespace,
    values: Value,
}

impl Release {
    /// A release with two pods of every role; `more` is merged over its values.
    pub(crate) fn new(namespace: Namespace, place: &Place, world: &World, more: &Value) -> Self {
        let (repository, tag) = place.repository_and_tag();
        let mut values = json!({
            "hostname": "mx.packetboat.test",
            "image": {"repository": repository, "tag": tag},
            "edge": {
                "service": {"type": "NodePort"}, "preStopSeconds": 5, "nodeSelector": place.node_selector(),
            },
            "operator": {"replicas": 2},
            "mtaSts": {"enabled": true, "plain": true},
            "domains": {"usersSecrets": ["users"]},
            "dns": {"servers": world.dns_servers()},
            "redis": {"embedded": {"image": place.redis_image, "storage": "1Gi"}},
            "config": {
                // All of the load comes from one address.
                "edge": {"max_sessions_per_client": 1000},
                "outbound": {"retry": {"initial": "1s", "max_interval": "2s", "max_age": "1h"}},
            },
        });
        merge(&mut values, more);
        Self { namespace, values }
    }

    /// Makes the namespace and the Secrets, and installs the chart.
    pub(crate) async fn install(&self) -> Result<()> {
        self.namespace.create().await?;
        give_key(self.namespace).await?;
        self.namespace.secret("users", "alice", &corpus::password_hash(PASSWORD)?).await?;
        self.helm("install", &[]).await
    }

    /// Upgrades it with values that differ from now on.
    pub(crate) async fn upgrade(&mut self, more: &Value) -> Result<()> {
        merge(&mut self.values, more);
        self.helm("upgrade", &[]).await
    }

    /// Uninstalls it.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        let arguments = ["-n", self.namespace.0, "uninstall", NAME, "--wait", "--timeout=170s"];
        run("helm", &arguments, None, 180).await.map(drop)
    }

    /// What would be installed with these further settings.
    pub(crate) async fn template(&self, settings: &[&str]) -> Result<String> {
        // Without being told, helm takes the cluster for an old one.
        let version = kubectl(&["version", "-o", "json"], 20).await?;
        let version: Value = serde_json::from_str(&version).context("kubectl gives JSON")?;
        let version = version["serverVersion"]["gitVersion"].as_str().context("the server has a version")?;
        let base = ["-n", self.namespace.0, "template", NAME, CHART, "--kube-version", version, "-f", "-"];
        run("helm", &[&base, settings].concat(), Some(&self.values.to_string()), 30).await
    }

    async fn helm(&self, verb: &str, more: &[&str]) -> Result<()> {
        let base = ["-n", self.namespace.0, verb, NAME, CHART, "--wait", "--timeout=170s", "-f", "-"];
        run("helm", &[&base, more].concat(), Some(&self.values.to_string()), 180).await.map(drop)
    }

    /// Where the node takes connections for a port of the Service.
    pub(crate) async fn service(&self, place: &Place, port: &str) -> Result<SocketAddr> {
        Ok(place.at(self.namespace.node_port("packetboat-smtp", port).await?))
    }

    /// Declares a domain whose zone BIND holds, and waits until it is ready. `more` is merged over its spec.
    pub(crate) async fn declare(&self, world: &World, domain: &str, more: &Value) -> Result<()> {
        let mut spec = json!({
            "domain": domain,
            "dkim": {"rotation": {"minPropagation": "2s"}},
            "mx": [{"host": format!("mx.{domain}"), "preference": 10}],
            "spf": {"mechanisms": ["mx"], "all": "-all"},
            "dns": world.updates(),
        });
        merge(&mut spec, more);
        let name = domain.replace('.', "-");
        let object = json!({
            "apiVersion": "mail.packetboat.dev/v1alpha1", "kind": "MailDomain", "metadata": {"name": name}, "spec": spec,
        });
        self.namespace.apply(&object.to_string()).await?;
        let name = format!("mdom/{name}");
        let wait = ["wait", "--for=condition=Ready", &name, "--timeout=120s"];
        self.namespace.kubectl(&wait, 130).await.map(drop).with_context(|| format!("{domain} is not ready"))
    }
}

/// The label of a role's pods.
pub(crate) fn role(name: &str) -> String {
    format!("app.kubernetes.io/instance=packetboat,app.kubernetes.io/component={name}")
}

/// Puts `more` over `base`, object by object.
fn merge(base: &mut Value, more: &Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, more) => *base = more.clone(),
    }
}
