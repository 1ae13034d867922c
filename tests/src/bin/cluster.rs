//! `make cluster-test`: the chart on a real one-node cluster, as it is installed, used and shaken.
//!
//! Started by `scripts/cluster-node` in the network outside of the node. Every message of the load comes by a
//! connection of its own through the Service, and is tried until it is taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::outside::{NAMESPACE, NODE, Outside, WORLD, apply, dig, kubectl, run};
use testkit::bind::{KEY_NAME, SECRET};
use testkit::corpus::{self, Message};
use testkit::smtp::Client;
use testkit::{dkim, wait};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

const ALICE: &str = "alice@packetboat.test";
const PASSWORD: &str = "correct horse";
/// Messages a second.
const RATE: u64 = 50;
/// The load goes on for at least so long.
const AT_LEAST: Duration = Duration::from_secs(8);
/// Everything has arrived within this: leases have to end first.
const SETTLED: Duration = Duration::from_secs(120);

/// What happens under load: its name, whether two edges are ready all the time, and the commands of kubectl. Edges
/// that cannot accept, for want of any verifier or delivery service, are not ready, and the Service refuses.
type Event = (&'static str, bool, &'static [&'static str]);

const EVENTS: [Event; 13] = [
    ("quiet", true, &[]),
    (
        "restart-edge",
        true,
        &["rollout restart deploy/packetboat-edge", "rollout status deploy/packetboat-edge"],
    ),
    (
        "restart-verifier",
        true,
        &["rollout restart deploy/packetboat-verifier", "rollout status deploy/packetboat-verifier"],
    ),
    (
        "restart-delivery",
        true,
        &["rollout restart deploy/packetboat-delivery", "rollout status deploy/packetboat-delivery"],
    ),
    (
        "restart-operator",
        true,
        &["rollout restart deploy/packetboat-operator", "rollout status deploy/packetboat-operator"],
    ),
    (
        "scale-edge-2-4-2",
        true,
        &[
            "scale deploy/packetboat-edge --replicas=4",
            "rollout status deploy/packetboat-edge",
            "scale deploy/packetboat-edge --replicas=2",
            "rollout status deploy/packetboat-edge",
        ],
    ),
    (
        "scale-delivery-2-4-1",
        true,
        &[
            "scale deploy/packetboat-delivery --replicas=4",
            "rollout status deploy/packetboat-delivery",
            "scale deploy/packetboat-delivery --replicas=1",
            "rollout status deploy/packetboat-delivery",
        ],
    ),
    ("kill-a-verifier", true, &["kill-one verifier", "rollout status deploy/packetboat-verifier"]),
    (
        "kill-all-verifiers",
        false,
        &[
            "delete pod --grace-period=0 --force -l app.kubernetes.io/component=verifier",
            "rollout status deploy/packetboat-verifier",
        ],
    ),
    (
        "kill-all-delivery",
        false,
        &[
            "delete pod --grace-period=0 --force -l app.kubernetes.io/component=delivery",
            "rollout status deploy/packetboat-delivery",
        ],
    ),
    (
        "kill-all-edges",
        false,
        &[
            "delete pod --grace-period=0 --force -l app.kubernetes.io/component=edge",
            "rollout status deploy/packetboat-edge",
        ],
    ),
    (
        "restart-redis",
        true,
        &["delete pod packetboat-redis-0", "rollout status statefulset/packetboat-redis"],
    ),
    ("upgrade", true, &["helm"]),
];

#[tokio::main]
async fn main() -> ExitCode {
    match all().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("cluster: FAILED {error:#}");
            for about in [&["get", "pods", "-o", "wide"][..], &["get", "mdom"], &["get", "events"]] {
                println!("{}", kubectl(about, 20).await.unwrap_or_default());
            }
            ExitCode::FAILURE
        }
    }
}

async fn all() -> Result<bool> {
    let only = std::env::var("EVENT").ok().filter(|text| !text.is_empty());
    let outside = Arc::new(Outside::start().await?);
    install().await.context("installing the chart")?;
    println!("cluster: installed");
    make_domain().await.context("making the domain")?;
    println!("cluster: domain ready");
    mail_in(&outside).await.context("mail in")?;
    println!("cluster: mail in, spf=pass with the client's address");
    mail_out(&outside).await.context("mail out")?;
    println!("cluster: mail out, signed and verified");
    let mut good = true;
    for event in EVENTS {
        if only.as_deref().is_none_or(|only| only == event.0) {
            good &= under_load(event, &outside).await.with_context(|| event.0.to_owned())?;
        }
    }
    if only.is_none() {
        uninstall().await.context("uninstalling")?;
        println!("cluster: uninstalled, the domain and its keys stay");
    }
    Ok(good)
}

fn values() -> String {
    serde_json::json!({
        "hostname": "mx.packetboat.test",
        "edge": {"service": {"type": "NodePort"}, "preStopSeconds": 5},
        "operator": {"replicas": 1},
        "domains": {"usersSecrets": ["users"]},
        "redis": {"embedded": {"image": "packetboat-test-redis:7", "storage": "1Gi"}},
        "config": {"outbound": {"retry": {"initial": "1s", "max_interval": "2s", "max_age": "1h"}}},
    })
    .to_string()
}

async fn helm(verb: &str, more: &[&str]) -> Result<String> {
    let base =
        ["-n", NAMESPACE, verb, "packetboat", "charts/packetboat", "--wait", "--timeout=170s", "-f", "-"];
    run("helm", &[&base, more].concat(), Some(&values()), 180).await
}

async fn install() -> Result<()> {
    run("kubectl", &["create", "namespace", NAMESPACE], None, 30).await?;
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    run("kubectl", &["label", "namespace", NAMESPACE, enforce], None, 30).await?;
    let folder = std::path::PathBuf::from(std::env::var("NODE_FOLDER")?).join("volume");
    std::fs::create_dir_all(&folder)?;
    std::os::unix::fs::chown(&folder, Some(65532), Some(65532))?;
    let volume = serde_json::json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "redis"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": folder}},
    });
    run("kubectl", &["apply", "-f", "-"], Some(&volume.to_string()), 30).await?;
    let hash = corpus::password_hash(PASSWORD)?;
    for (name, key, value) in [("tsig", "secret", SECRET), ("users", "alice", hash.as_str())] {
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {key: value},
        });
        apply(&secret.to_string()).await?;
    }
    helm("install", &[]).await.map(drop)
}

async fn make_domain() -> Result<()> {
    let domain = serde_json::json!({
        "apiVersion": "mail.packetboat.dev/v1alpha1", "kind": "MailDomain", "metadata": {"name": "packetboat-test"},
        "spec": {
            "domain": "packetboat.test",
            "inbound": {"recipients": {"addresses": ["alice"]}, "route": {"lmtp": {"address": format!("{WORLD}:24")}}},
            "submission": {"usersSecretRef": {"name": "users"}},
            "dkim": {"rotation": {"minPropagation": "2s"}},
            "mx": [{"host": "mx.packetboat.test", "preference": 10}],
            "spf": {"mechanisms": ["mx"], "all": "-all"},
            "dns": {
                "mode": "RFC2136",
                "records": {"mx": "Manage", "spf": "Manage"},
                "rfc2136": {
                    "server": format!("{WORLD}:53"),
                    "tsig": {"keyName": KEY_NAME, "algorithm": "hmac-sha256", "secretRef": {"name": "tsig"}},
                },
            },
        },
    });
    apply(&domain.to_string()).await?;
    kubectl(&["wait", "--for=condition=Ready", "mdom/packetboat-test", "--timeout=120s"], 130).await.map(drop)
}

/// Where the node takes connections for a port of the Service.
async fn service(port: &str) -> Result<SocketAddr> {
    let path = format!("jsonpath={{.spec.ports[?(@.name==\"{port}\")].nodePort}}");
    let number = kubectl(&["get", "service", "packetboat-smtp", "-o", &path], 20).await?;
    Ok(SocketAddr::new(NODE.parse()?, number.trim().parse().context("reading a node port")?))
}

async fn mail_in(outside: &Outside) -> Result<()> {
    let address = service("smtp").await?;
    let message = Message::new("dave@friend.test", ALICE, "in-1").text();
    let reply = Client::deliver(address, "dave@friend.test", &[ALICE], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = outside.store.wait_for("in-1", Duration::from_secs(30)).await?.message;
    let results = corpus::header_of(&arrived, "Authentication-Results").context("no results")?;
    let received = corpus::header_of(&arrived, "Received").context("no Received")?;
    ensure!(results.contains("spf=pass") && received.contains(WORLD), "{results}\n{received}");
    Ok(())
}

async fn mail_out(outside: &Outside) -> Result<()> {
    let mut client = Client::connect(service("submission").await?).await?;
    client.expect(250, "EHLO laptop.test").await?;
    client.starttls().await?;
    let reply = client.auth_plain(ALICE, PASSWORD).await?;
    ensure!(reply.code == 235, "{reply}");
    let message = Message::new(ALICE, "carol@remote.test", "out-1").text();
    let reply = client.transaction(ALICE, &["carol@remote.test"], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = outside.remote.wait_for("out-1", Duration::from_secs(30)).await?.message;
    let mut keys = Vec::new();
    for signature in dkim::verify(arrived.as_bytes(), &[]).await? {
        let name = format!("{}._domainkey.packetboat.test", signature.selector);
        let record = dig("TXT", &name).await?.trim().replace("\" \"", "").replace('"', "");
        keys.push((name, record));
    }
    let signatures = dkim::verify(arrived.as_bytes(), &keys).await?;
    ensure!(!signatures.is_empty() && signatures.iter().all(|one| one.valid), "{signatures:?}");
    Ok(())
}

/// Counts of one load.
#[derive(Default)]
struct Counts {
    sent: AtomicUsize,
    refused: AtomicUsize,
    stop: AtomicBool,
}

/// The event under load, then the balance; whether it is as it should be.
async fn under_load((name, strict, commands): Event, outside: &Outside) -> Result<bool> {
    let address = service("smtp").await?;
    let counts = Arc::new(Counts::default());
    let load = tokio::spawn(send(name, address, counts.clone()));
    let begun = Instant::now();
    let outcome = shake(commands).await;
    tokio::time::sleep_until(begun + AT_LEAST).await;
    counts.stop.store(true, Ordering::Relaxed);
    let taken = load.await??;
    outcome?;
    let deadline = Instant::now() + SETTLED;
    let (delivered, doubled) = loop {
        let arrived = arrivals(outside, name);
        let delivered = taken.iter().filter(|id| arrived.contains_key(*id)).count();
        if delivered == taken.len() || Instant::now() >= deadline {
            break (delivered, arrived.values().map(|copies| copies - 1).sum::<usize>());
        }
        sleep(Duration::from_millis(500)).await;
    };
    let (lost, refused) = (taken.len() - delivered, counts.refused.load(Ordering::Relaxed));
    println!(
        "cluster: {name} sent={} delivered={delivered} lost={lost} doubled={doubled} refused={refused}",
        taken.len()
    );
    Ok(lost == 0 && (!strict || refused == 0))
}

/// The ids of this event at the mail store, with the number of copies.
fn arrivals(outside: &Outside, event: &str) -> HashMap<String, usize> {
    let mut arrived = HashMap::new();
    for received in outside.store.received() {
        if let Some(id) = corpus::id_of(&received.message).filter(|id| id.starts_with(&format!("{event}:"))) {
            *arrived.entry(id.to_owned()).or_default() += 1;
        }
    }
    arrived
}

async fn shake(commands: &[&str]) -> Result<()> {
    for command in commands {
        if *command == "helm" {
            helm("upgrade", &["--set", "telemetry.logFormat=text"]).await?;
            let keep = run("kubectl", &["get", "crd", "maildomains.mail.packetboat.dev"], None, 20).await;
            keep.context("the upgrade took the CRD away")?;
            continue;
        }
        if let Some(component) = command.strip_prefix("kill-one ") {
            let label = format!("app.kubernetes.io/component={component}");
            let pods = kubectl(&["get", "pods", "-l", &label, "-o", "name"], 20).await?;
            let first = pods.lines().next().context("there is no such pod")?;
            kubectl(&["delete", first, "--grace-period=0", "--force"], 60).await?;
            continue;
        }
        let arguments: Vec<&str> = command.split(' ').collect();
        kubectl(&arguments, 170).await?;
    }
    Ok(())
}

/// Sends at the rate until told to stop, then waits until everything begun is taken: these ids.
async fn send(event: &'static str, address: SocketAddr, counts: Arc<Counts>) -> Result<Vec<String>> {
    let mut ticks = interval(Duration::from_millis(1000 / RATE));
    let (mut under_way, mut taken) = (JoinSet::new(), Vec::new());
    while !counts.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let id = format!("{event}:{:05}", counts.sent.fetch_add(1, Ordering::Relaxed));
        under_way.spawn(insist(address, id, counts.clone()));
        while let Some(ended) = under_way.try_join_next() {
            taken.push(ended??);
        }
    }
    while let Some(ended) = under_way.join_next().await {
        taken.push(ended??);
    }
    Ok(taken)
}

/// Tries one message until it is taken.
async fn insist(address: SocketAddr, id: String, counts: Arc<Counts>) -> Result<String> {
    let message = Message::new("dave@friend.test", ALICE, &id).text();
    let deadline = Instant::now() + SETTLED;
    loop {
        match Client::connect(address).await {
            Err(_) => drop(counts.refused.fetch_add(1, Ordering::Relaxed)),
            Ok(client) => match attempt(client.patience(Duration::from_secs(20)), &message).await {
                Ok(250) => return Ok(id),
                Ok(code) => ensure!(code < 500, "{id} was refused for good: {code}"),
                // A broken connection says nothing about the message.
                Err(_) => {}
            },
        }
        ensure!(Instant::now() < deadline, "{id} was not taken within {SETTLED:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn attempt(mut client: Client, message: &str) -> Result<u16> {
    client.expect(250, "EHLO mail.friend.test").await?;
    let reply = client.transaction("dave@friend.test", &[ALICE], message).await?;
    if reply.code == 250 {
        client.send_raw(b"QUIT\r\n").await.ok();
    }
    Ok(reply.code)
}

/// The release goes; the domain, its keys and its records stay.
async fn uninstall() -> Result<()> {
    let keys = async || kubectl(&["get", "secrets", "-o", "name"], 20).await;
    let before = keys().await?;
    run("helm", &["-n", NAMESPACE, "uninstall", "packetboat", "--wait", "--timeout=170s"], None, 180).await?;
    kubectl(&["get", "mdom", "packetboat-test"], 20).await?;
    let gone =
        async || kubectl(&["get", "deploy", "-o", "name"], 20).await.is_ok_and(|left| left.trim().is_empty());
    wait::until_true("the Deployments to go", Duration::from_secs(60), gone).await?;
    let after = keys().await?;
    let lost: Vec<&str> =
        before.lines().filter(|name| !name.contains("sh.helm.release") && !after.contains(*name)).collect();
    ensure!(lost.is_empty(), "Secrets are gone: {lost:?}");
    Ok(())
}
