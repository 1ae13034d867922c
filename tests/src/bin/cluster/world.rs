//! The world around a release: BIND and Dovecot as pods; a mail store and a remote MX outside of the cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::bind::{KEY_NAME, SECRET};
use testkit::smtp::Sink;
use testkit::wait;

use crate::kube::{Namespace, kubectl, run};
use crate::place::{Place, WORLD};

const PODS: &str = include_str!("../../../cluster/world.yaml");
/// The domains whose zones take updates.
const DOMAINS: [&str; 6] =
    ["packetboat.test", "load.test", "second.test", "retained.test", "deleted.test", "example.org"];
/// The domains of others.
const PEERS: [&str; 2] = ["friend.test", "remote.test"];

/// Name server, mail stores and remote MX.
pub(crate) struct World {
    /// Where the load is handed over, outside of the cluster: its LMTP counts.
    pub(crate) store: Sink,
    /// The MX of `remote.test`, outside of the cluster.
    pub(crate) remote: Sink,
    /// The name server within the cluster.
    pub(crate) bind: IpAddr,
    /// The same from here, by TCP.
    bind_from_here: SocketAddr,
}

impl World {
    /// Starts all of it.
    pub(crate) async fn start(place: &Place) -> Result<Self> {
        let at = |port: u16| SocketAddr::new(place.world, port);
        let store = Sink::lmtp_at(at(24)).await.context("port 24 of this machine is needed")?;
        let remote = Sink::smtp_at(at(25)).await.context("port 25 of this machine is needed")?;
        WORLD.create().await?;
        let service = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "bind"},
            "spec": {"type": "NodePort", "selector": {"app": "bind"}, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ]},
        });
        WORLD.apply(&service.to_string()).await?;
        let bind = WORLD.cluster_address("bind").await?;
        let bind_from_here = place.at(WORLD.node_port("bind", "dns-tcp").await?);
        WORLD.apply(&pods(place, bind).await?).await?;
        for name in ["deploy/bind", "deploy/dovecot"] {
            WORLD.rolled_out(name).await?;
        }
        let world = Self { store, remote, bind, bind_from_here };
        let answers =
            async || world.dig("SOA", "packetboat.test").await.is_ok_and(|answer| !answer.is_empty());
        wait::until_true("BIND to answer", Duration::from_secs(30), answers).await?;
        Ok(world)
    }

    /// What the name server answers, one line a record.
    pub(crate) async fn dig(&self, kind: &str, name: &str) -> Result<String> {
        let (server, port) =
            (format!("@{}", self.bind_from_here.ip()), self.bind_from_here.port().to_string());
        let options = [&server, "-p", &port, "+tcp", "+short", "+time=2", "+tries=2", kind, name];
        Ok(run("dig", &options, None, 10).await?.trim().to_owned())
    }

    /// The DNS of the chart's values.
    pub(crate) fn dns_servers(&self) -> Vec<String> {
        vec![format!("{}:53", self.bind)]
    }

    /// The `dns` of a MailDomain whose zone BIND holds.
    pub(crate) fn updates(&self) -> serde_json::Value {
        serde_json::json!({
            "mode": "RFC2136",
            "records": {"mx": "Manage", "spf": "Manage"},
            "rfc2136": {
                "server": format!("{}:53", self.bind),
                "tsig": {"keyName": KEY_NAME, "algorithm": "hmac-sha256", "secretRef": {"name": "tsig"}},
            },
        })
    }
}

/// The message with this id in a mailbox of a namespace's Dovecot.
pub(crate) async fn mailbox(namespace: Namespace, user: &str, id: &str) -> Result<String> {
    let fetch = ["exec", "deploy/dovecot", "--", "doveadm", "-c", "/etc/dovecot/dovecot.conf", "fetch", "-u"];
    let search = [user, "text", "mailbox", "INBOX", "HEADER", testkit::corpus::ID_HEADER, id];
    let command = [&fetch[..], &search].concat();
    let look = async || namespace.kubectl(&command, 20).await.ok().filter(|text| text.contains(id));
    let text = wait::until("the message in Dovecot", Duration::from_secs(60), look).await?;
    Ok(text.strip_prefix("text:\n").unwrap_or(&text).to_owned())
}

/// Gives a namespace the key that updates zones.
pub(crate) async fn give_key(namespace: Namespace) -> Result<()> {
    namespace.secret("tsig", "secret", SECRET).await
}

async fn pods(place: &Place, bind: IpAddr) -> Result<String> {
    let address = "jsonpath={.spec.clusterIP}";
    let cluster_dns =
        kubectl(&["-n", "kube-system", "get", "service", "kube-dns", "-o", address], 20).await?;
    let own = DOMAINS.iter().map(|name| {
        format!(
            "zone \"{name}\" {{ type primary; file \"/data/{name}\"; allow-update {{ key {KEY_NAME}; }}; }};"
        )
    });
    let peers =
        PEERS.iter().map(|name| format!("zone \"{name}\" {{ type primary; file \"/zones/peer\"; }};"));
    let root = "zone \".\" { type primary; file \"/zones/root\"; };".to_owned();
    let zones: Vec<String> = own.chain(peers).chain([root]).collect();
    let text = [
        ("{KEY}", KEY_NAME),
        ("{SECRET}", SECRET),
        ("{ZONES}", &zones.join("\n    ")),
        ("{DOMAINS}", &DOMAINS.join(" ")),
        ("{CLUSTER_DNS}", cluster_dns.trim()),
        ("{BIND}", &bind.to_string()),
        ("{NODE}", &place.node.to_string()),
        ("{WORLD}", &place.world.to_string()),
        ("{BIND_IMAGE}", &place.bind_image),
        ("{DOVECOT_IMAGE}", &place.dovecot_image),
    ];
    Ok(text.iter().fold(PODS.to_owned(), |text, (word, value)| text.replace(word, value)))
}
