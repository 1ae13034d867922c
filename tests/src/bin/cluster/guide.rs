//! docs/install.md, followed line by line.
//!
//! The commands of its first day are run as they stand, one block after the other, in a copy of the chart and the
//! samples. Changed is what the page says is a placeholder or to be edited, and what a cluster without the Internet
//! lacks: its values are added to each of Helm's commands. Every line is printed as it is run.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use packetboat_tests::world::admitted;
use serde_json::json;
use tempfile::TempDir;
use testkit::bind::{KEY_NAME, SECRET};
use testkit::corpus::Message;
use testkit::smtp::Client;
use testkit::wait;
use tokio::process::Command;

use crate::kube::kubectl;
use crate::load::Balance;
use crate::place::{self, GUIDE};
use crate::release::PASSWORD;
use crate::test::Test;
use crate::world::mailbox;

const PAGE: &str = "docs/install.md";
const SECTION: &str = "## The first day";
/// One block may take so long.
const BLOCK: Duration = Duration::from_secs(240);
/// The edges find out so late that the user's Secret is theirs to read.
const KNOWN: Duration = Duration::from_secs(60);
const USER: &str = "alice@example.org";
/// The key of the sample, as it stands there.
const SAMPLE_SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTEyMzQ=";
const DAVE: &str = "dave@friend.test";

/// Follows the page on a cluster without Packetboat, and uses what it gives.
pub(crate) async fn follow(test: &Test) -> Result<()> {
    place::let_go().await;
    place::remove_crds().await?;
    let balancer = has_load_balancer().await?;
    let folder = tempfile::Builder::new().prefix("packetboat-guide-").tempdir()?;
    prepare(folder.path(), test, balancer).await?;
    let page = std::fs::read_to_string(PAGE).with_context(|| format!("reading {PAGE}"))?;
    let blocks = blocks(&page);
    ensure!(blocks.len() > 5, "{PAGE} has no commands for its first day: {blocks:?}");
    // The image is on the node already.
    for block in blocks.iter().filter(|block| !block.contains("make image")) {
        follow_block(&folder, &adapt(block, test)).await?;
    }
    use_it(test).await.context("what the page installed does not work")?;
    Balance::of(2).print("install-guide");
    Ok(())
}

/// The copy of the repository's files that the page speaks of, and the edits that it asks for.
async fn prepare(folder: &Path, test: &Test, balancer: bool) -> Result<()> {
    for name in ["charts", "k8s"] {
        let copied = Command::new("cp").arg("-r").arg(name).arg(folder).status().await?;
        ensure!(copied.success(), "copying {name}");
    }
    let server = format!("{}:53", test.world.bind);
    // The name server of the values completes no names.
    let store = ("dovecot.mail.svc:24", "dovecot.mail.svc.cluster.local:24");
    let at_once = ("dkim: {}", "dkim: {rotation: {minPropagation: 2s}}");
    edit(&folder.join("k8s/samples/maildomain.yaml"), &[at_once, store])?;
    let key = format!("keyName: {KEY_NAME}");
    let publishing = [
        at_once,
        store,
        ("ns1.example.org:53", &server),
        ("keyName: packetboat", &key),
        (SAMPLE_SECRET, SECRET),
    ];
    edit(&folder.join("k8s/samples/rfc2136.yaml"), &publishing)?;
    let dovecot = [("dovecot/dovecot:2.3.21.1", test.place.dovecot_image.as_str())];
    edit(&folder.join("k8s/samples/dovecot.yaml"), &dovecot)?;
    let (_, tag) = test.place.repository_and_tag();
    let mut site = json!({
        "image": {"tag": tag},
        "dns": {"servers": test.world.dns_servers()},
        "redis": {"embedded": {"image": test.place.redis_image}},
    });
    if !balancer {
        site["edge"] = json!({"service": {"type": "NodePort"}, "nodeSelector": test.place.node_selector()});
    }
    std::fs::write(folder.join("site.yaml"), site.to_string()).context("writing the values")
}

/// Replaces these words, all of which the file has.
fn edit(file: &Path, words: &[(&str, &str)]) -> Result<()> {
    let mut text = std::fs::read_to_string(file).with_context(|| format!("reading {file:?}"))?;
    for (from, to) in words {
        ensure!(text.contains(from), "{file:?} has no {from}");
        text = text.replace(from, to);
    }
    std::fs::write(file, text).with_context(|| format!("writing {file:?}"))
}

/// The command blocks of the section, without the indentation of the list that they stand in.
fn blocks(page: &str) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<(usize, String)>) = (Vec::new(), None);
    let section = page.lines().skip_while(|line| *line != SECTION).skip(1);
    for line in section.take_while(|line| !line.starts_with("## ")) {
        let text = line.trim_start();
        match &mut open {
            None if text == "```" => open = Some((line.len() - text.len(), String::new())),
            Some((_, block)) if text == "```" => {
                blocks.push(std::mem::take(block));
                open = None;
            }
            Some((indent, block)) => {
                block.push_str(line.get(*indent..).unwrap_or_default());
                block.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// A block for this cluster: placeholders filled in, and the values of the site added to Helm's commands.
fn adapt(block: &str, test: &Test) -> String {
    let (repository, _) = test.place.repository_and_tag();
    let filled =
        block.replace("REGISTRY/packetboat", repository).replace("'PASSWORD'", &format!("'{PASSWORD}'"));
    let mut lines = Vec::new();
    for line in filled.replace("\\\n", " ").lines() {
        let helm = line.starts_with("helm install") || line.starts_with("helm upgrade");
        lines.push(if helm { format!("{line} -f site.yaml") } else { line.to_owned() });
    }
    lines.join("\n")
}

async fn follow_block(folder: &TempDir, block: &str) -> Result<()> {
    for line in block.lines() {
        println!("cluster: guide: {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let mut command = Command::new("bash");
    command.args(["-e", "-u", "-o", "pipefail", "-c", block]).current_dir(folder.path()).kill_on_drop(true);
    let ended = tokio::time::timeout(BLOCK, command.output()).await;
    let output = ended.with_context(|| format!("takes longer than {BLOCK:?}:\n{block}"))??;
    let (told, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "does not work:\n{block}\n{told}\n{error}");
    Ok(())
}

/// Mail comes in at port 25 of the Service's address, and a user's goes out signed.
async fn use_it(test: &Test) -> Result<()> {
    let (smtp, submission) = (address(test, "smtp", 25).await?, address(test, "submission", 587).await?);
    let message = Message::new(DAVE, USER, "guide-in").text();
    let reply = Client::deliver(smtp, DAVE, &[USER], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = mailbox(GUIDE, USER, "guide-in").await?;
    ensure!(arrived.contains("spf=pass"), "{arrived}");
    let mut client = admitted(submission, USER, PASSWORD, KNOWN).await?;
    let message = Message::new(USER, "carol@remote.test", "guide-out").text();
    let reply = client.transaction(USER, &["carol@remote.test"], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    let arrived = test.world.remote.wait_for("guide-out", Duration::from_secs(30)).await?.message;
    ensure!(arrived.contains("DKIM-Signature:"), "{arrived}");
    Ok(())
}

/// Where a port of the Service is reached: the load balancer's address, or else a port of the node.
async fn address(test: &Test, name: &str, port: u16) -> Result<std::net::SocketAddr> {
    let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    let balanced = GUIDE.kubectl(&["get", "service", "packetboat-smtp", "-o", path], 20).await?;
    match balanced.trim().parse() {
        Ok(address) => Ok(std::net::SocketAddr::new(address, port)),
        Err(_) => Ok(test.place.at(GUIDE.node_port("packetboat-smtp", name).await?)),
    }
}

/// Whether Services of type LoadBalancer get an address here.
async fn has_load_balancer() -> Result<bool> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "probe"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 9}]},
    });
    place::WORLD.apply(&service.to_string()).await?;
    let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    let given = async || {
        let text = place::WORLD.kubectl(&["get", "service", "probe", "-o", path], 20).await;
        text.is_ok_and(|text| !text.trim().is_empty())
    };
    let found = wait::until_true("an address", Duration::from_secs(20), given).await.is_ok();
    kubectl(&["-n", place::WORLD.0, "delete", "service", "probe"], 30).await?;
    Ok(found)
}
