//! What a release does for its users, and how it goes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use packetboat_tests::world::log_in;
use serde_json::json;
use testkit::corpus::{self, Message};
use testkit::smtp::{Client, Reply};
use testkit::{dkim, wait};
use tokio::process::Command;

use crate::kube::{Namespace, kubectl};
use crate::load::Balance;
use crate::place::{MAIL, SECOND, WORLD};
use crate::release::{PASSWORD, Release, role};
use crate::test::Test;
use crate::world::mailbox;

const ALICE: &str = "alice@packetboat.test";
const DAVE: &str = "dave@friend.test";
/// How long one message may take.
const ARRIVAL: Duration = Duration::from_secs(30);
/// What a pod cannot export is lost, and a pod that has just come may reach nobody yet: so many messages may be traced.
const TRACED: usize = 3;

/// The domain whose mail Dovecot keeps, and that of the load.
pub(crate) async fn declare_domains(test: &Test) -> Result<()> {
    let more = json!({
        "inbound": {
            "recipients": {"addresses": ["alice"]},
            "route": {"lmtp": {"address": "dovecot.packetboat-world.svc.cluster.local:24"}},
        },
        "submission": {"usersSecretRef": {"name": "users"}},
    });
    test.release.declare(&test.world, "packetboat.test", &more).await?;
    test.release.declare(&test.world, "load.test", &to_the_store(test, "alice")).await
}

/// A domain with one recipient, whose mail goes to the store outside.
fn to_the_store(test: &Test, recipient: &str) -> serde_json::Value {
    json!({"inbound": {
        "recipients": {"addresses": [recipient]},
        "route": {"lmtp": {"address": test.world.store.address()}},
    }})
}

/// From outside through the Service to Dovecot: SPF sees the address of the client.
pub(crate) async fn mail_in(test: &Test) -> Result<()> {
    let address = test.release.service(&test.place, "smtp").await?;
    let message = Message::new(DAVE, ALICE, "in-1").text();
    let reply = Client::deliver(address, DAVE, &[ALICE], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = mailbox(WORLD, ALICE, "in-1").await?;
    let results = corpus::header_of(&arrived, "Authentication-Results").context("no results")?;
    let client = test.place.world.to_string();
    let ours = corpus::headers_of(&arrived, "Received").into_iter().any(|one| one.contains(&client));
    ensure!(results.contains("spf=pass") && ours, "{results}\n{arrived}");
    Balance::of(1).print("mail-in");
    Ok(())
}

/// Submitted, signed with every key, and delivered to a remote MX, which verifies the signatures by DNS.
pub(crate) async fn mail_out(test: &Test) -> Result<()> {
    let submission = test.release.service(&test.place, "submission").await?;
    let mut client = log_in(submission, ALICE, PASSWORD).await?;
    let message = Message::new(ALICE, "carol@remote.test", "out-1").text();
    let reply = client.transaction(ALICE, &["carol@remote.test"], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = test.world.remote.wait_for("out-1", ARRIVAL).await?.message;
    let mut keys = Vec::new();
    for signature in dkim::verify(arrived.as_bytes(), &[]).await? {
        let name = format!("{}._domainkey.packetboat.test", signature.selector);
        let record = test.world.dig("TXT", &name).await?.replace("\" \"", "").replace('"', "");
        keys.push((name, record));
    }
    let signatures = dkim::verify(arrived.as_bytes(), &keys).await?;
    ensure!(signatures.len() == 2 && signatures.iter().all(|one| one.valid), "{signatures:?}");
    Balance::of(1).print("mail-out");
    Ok(())
}

/// Another release of the same name in another namespace serves its own domain, and only that.
pub(crate) async fn second_release(test: &Test) -> Result<()> {
    let one = json!({"replicas": 1});
    let more = json!({
        "hostname": "mx.second.test", "crds": {"enabled": false},
        "edge": one, "verifier": one, "delivery": one, "operator": one, "mtaSts": one,
    });
    let second = Release::new(SECOND, &test.place, &test.world, &more);
    second.install().await?;
    second.declare(&test.world, "second.test", &to_the_store(test, "bob")).await?;
    let (ours, theirs) = (&test.release, &second);
    let deliver = async |release: &Release, to: &str, id: &str| -> Result<Reply> {
        let address = release.service(&test.place, "smtp").await?;
        Client::deliver(address, DAVE, &[to], &Message::new(DAVE, to, id).text()).await
    };
    ensure!(
        deliver(theirs, "bob@second.test", "second-1").await?.code == 250,
        "the second release does not serve"
    );
    test.world.store.wait_for("second-1", ARRIVAL).await?;
    for (release, to) in [(ours, "bob@second.test"), (theirs, ALICE)] {
        let reply = deliver(release, to, "astray").await?;
        ensure!(reply.code == 550, "{to} is not of this release: {reply}");
    }
    let names = async |release: &Release| -> Result<BTreeSet<String>> {
        let text = release.template(&["--set=domains.clusterWide=true,crds.enabled=false"]).await?;
        Ok(cluster_scoped(&text))
    };
    let (ours, theirs) = (names(ours).await?, names(theirs).await?);
    ensure!(!ours.is_empty() && ours.is_disjoint(&theirs), "both would make {ours:?}");
    second.uninstall().await?;
    let key = ["get", "mdom", "second-test", "-o", "jsonpath={.status.dkim.activeSelectors[0]}"];
    ensure!(!SECOND.kubectl(&key, 20).await?.is_empty(), "the MailDomain of the second release is gone");
    Ok(())
}

/// The names of objects that are in no namespace, in the output of `helm template`.
fn cluster_scoped(manifests: &str) -> BTreeSet<String> {
    let of_cluster = |object: &&str| object.lines().any(|line| line.starts_with("kind: Cluster"));
    let name = |object: &str| {
        let line = object
            .lines()
            .skip_while(|line| !line.starts_with("metadata:"))
            .find_map(|line| line.trim_start().strip_prefix("name: ").map(str::to_owned));
        let kind = object.lines().find(|line| line.starts_with("kind: ")).unwrap_or_default();
        format!("{kind} {}", line.unwrap_or_default())
    };
    manifests.split("\n---").filter(of_cluster).map(name).collect()
}

/// A pod that no policy lists reaches SMTP, and neither Redis nor the services behind; once it is listed for
/// Redis, it reaches that.
pub(crate) async fn policies(test: &Test) -> Result<()> {
    let image = &test.place.tools_image;
    for namespace in [MAIL, WORLD] {
        namespace.apply(&stranger(image).to_string()).await?;
    }
    for namespace in [MAIL, WORLD] {
        namespace.kubectl(&["wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s"], 70).await?;
        let open = async || knock(namespace, "smtp", 25).await;
        wait::until_true("SMTP to be reached by a pod", Duration::from_secs(20), open).await?;
        for (service, port) in [("redis", 6379), ("verifier", 9091), ("delivery", 9092)] {
            ensure!(!knock(namespace, service, port).await, "a pod of {} reaches {service}", namespace.0);
        }
    }
    MAIL.apply(&invitation().to_string()).await?;
    let invited = async || knock(MAIL, "redis", 6379).await;
    wait::until_true("Redis to be reached by a listed pod", Duration::from_secs(30), invited).await?;
    MAIL.kubectl(&["delete", "networkpolicy", "invitation"], 20).await?;
    let shut_out = async || !knock(MAIL, "redis", 6379).await;
    wait::until_true("Redis to be closed again", Duration::from_secs(30), shut_out).await?;
    for namespace in [MAIL, WORLD] {
        namespace.kubectl(&["delete", "pod", "stranger", "--grace-period=0", "--force"], 30).await?;
    }
    Ok(())
}

/// Whether the stranger of this namespace gets a connection.
async fn knock(namespace: Namespace, service: &str, port: u16) -> bool {
    let (host, port) = (format!("packetboat-{service}.{}.svc.cluster.local", MAIL.0), port.to_string());
    let command = ["exec", "stranger", "--", "nc", "-w", "2", &host, &port, "-e", "true"];
    namespace.kubectl(&command, 20).await.is_ok()
}

fn stranger(image: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger", "labels": {"app": "stranger"}},
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "stranger", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

fn invitation() -> serde_json::Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "invitation"},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "redis"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "stranger"}}}]}],
        },
    })
}

/// The id in the 250 finds the way of a message over the pods.
pub(crate) async fn trace(test: &Test) -> Result<()> {
    let mut told = String::new();
    for number in 1..=TRACED {
        let id = send_traced(test, number).await?;
        match spans_of(test, &id).await {
            Ok(()) => {
                Balance::of(number).print("trace");
                return Ok(());
            }
            Err(error) => told = format!("{error:#}"),
        }
        println!("cluster: no trace of {id} over three pods");
        for component in ["edge", "verifier", "delivery"] {
            let logs = ["logs", "--prefix", "--tail=-1", "-l", &role(component)];
            let logs = test.release.namespace.kubectl(&logs, 20).await.unwrap_or_default();
            let wrong = logs.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
            wrong.take(20).for_each(|line| println!("cluster: {line}"));
        }
    }
    bail!("no trace of {TRACED} messages is whole: {told}")
}

/// The id of a message that has arrived.
async fn send_traced(test: &Test, number: usize) -> Result<String> {
    let address = test.release.service(&test.place, "smtp").await?;
    let name = format!("traced-{number}");
    let message = Message::new(DAVE, ALICE, &name).text();
    let reply = Client::deliver(address, DAVE, &[ALICE], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    mailbox(WORLD, ALICE, &name).await?;
    let text = reply.text();
    text.split_whitespace().last().map(str::to_owned).context("a reply without an id")
}

/// `packetboat trace` tells of three services, and Jaeger has one trace that spans them.
async fn spans_of(test: &Test, id: &str) -> Result<()> {
    let binary = testkit::process::binary().await?;
    let endpoint = test.jaeger.query();
    let mut told = String::new();
    let tell = async || {
        let mut command = Command::new(binary);
        command.args(["trace", id, "--endpoint", &endpoint, "--output", "json"]).kill_on_drop(true);
        let printed = command.output().await.ok()?;
        told = String::from_utf8_lossy(&[printed.stdout, printed.stderr].concat()).into_owned();
        let services = ["edge", "verifier", "delivery"].map(|name| format!("\"service\": \"{name}\""));
        services.iter().all(|service| told.contains(service.as_str())).then_some(())
    };
    let found = wait::until(&format!("a trace of {id} over three pods"), ARRIVAL, tell).await;
    found.with_context(|| format!("packetboat trace says: {told}"))?;
    let traces = test.jaeger.all("packetboat-edge").await?;
    let whole = traces.iter().find(|trace| trace.0.iter().any(|span| span.text.contains(id)));
    let services: BTreeSet<&str> =
        whole.context("Jaeger has no such trace")?.0.iter().map(|span| span.service.as_str()).collect();
    ensure!(services.len() >= 3, "one trace should span three services: {services:?}");
    Ok(())
}

/// With Retain a domain's keys and records outlive it; with Delete they go with it.
pub(crate) async fn deletion_policies(test: &Test) -> Result<()> {
    for (domain, policy) in [("retained.test", "Retain"), ("deleted.test", "Delete")] {
        test.release.declare(&test.world, domain, &json!({"deletionPolicy": policy})).await?;
    }
    let namespace = test.release.namespace;
    let keys = async |domain: &str| -> Result<Vec<String>> {
        // Of a domain, which may be longer than a label, an annotation tells.
        let keys = ["get", "secrets", "-l", "mail.packetboat.dev/dkim-selector", "-o", "json"];
        let keys: serde_json::Value = serde_json::from_str(&namespace.kubectl(&keys, 20).await?)?;
        let of = |key: &&serde_json::Value| {
            key["metadata"]["annotations"]["mail.packetboat.dev/domain"].as_str() == Some(domain)
        };
        let keys = keys["items"].as_array().into_iter().flatten().filter(of);
        Ok(keys.filter_map(|key| key["metadata"]["name"].as_str().map(str::to_owned)).collect())
    };
    let before = keys("retained.test").await?;
    ensure!(before.len() == 2 && keys("deleted.test").await?.len() == 2, "two keys a domain: {before:?}");
    for name in ["mdom/retained-test", "mdom/deleted-test"] {
        namespace.kubectl(&["delete", name, "--timeout=100s"], 110).await?;
    }
    ensure!(keys("retained.test").await? == before, "Retain has not kept the keys");
    ensure!(test.world.dig("MX", "retained.test").await?.contains("mx."), "Retain has not kept the MX");
    let gone = async || keys("deleted.test").await.is_ok_and(|left| left.is_empty());
    wait::until_true("the keys of deleted.test to go", Duration::from_secs(60), gone).await?;
    ensure!(test.world.dig("MX", "deleted.test").await?.is_empty(), "Delete has left the MX");
    Balance::default().print("deletion-policies");
    Ok(())
}

/// The release goes; the domains, their keys and the CRDs stay.
pub(crate) async fn uninstall(test: &Test) -> Result<()> {
    let namespace = test.release.namespace;
    let keys = async || {
        namespace
            .kubectl(&["get", "secrets", "-l", "mail.packetboat.dev/dkim-selector", "-o", "name"], 20)
            .await
    };
    let before = keys().await?;
    ensure!(before.lines().count() >= 4, "there should be keys: {before}");
    test.release.uninstall().await?;
    kubectl(&["get", "crd", "maildomains.mail.packetboat.dev"], 20).await?;
    namespace.kubectl(&["get", "mdom", "packetboat-test", "load-test"], 20).await?;
    let gone = async || {
        namespace.kubectl(&["get", "deploy", "-o", "name"], 20).await.is_ok_and(|left| left.trim().is_empty())
    };
    wait::until_true("the Deployments to go", Duration::from_secs(60), gone).await?;
    ensure!(keys().await? == before, "keys are gone");
    Balance::default().print("uninstall");
    Ok(())
}
