//! MailDomains come from a real Kubernetes API, and changes to them take effect without a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use packetboat_tests::world::{ARRIVAL, FRIEND, HOSTED, World, at, code_of_rcpt};
use testkit::corpus::Message;
use testkit::dkim;
use testkit::kubernetes::ApiServer;
use testkit::smtp::Client;
use testkit::wait;

const CRD: &str = include_str!("../../k8s/crds/maildomains.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_domain_is_followed() -> Result<()> {
    let world = World::new().await?;
    let mut api = ApiServer::start().await?;
    api.define(CRD).await?;
    let folder = world.site.path().join("domains");
    let folder = folder.to_string_lossy();
    let kubeconfig = api.kubeconfig()?;
    let (settings, process) = world.start_all(|settings| settings.kubeconfig = Some(kubeconfig)).await?;
    let rcpt = async |address: &str| code_of_rcpt(settings.mx, address).await;
    ensure!(rcpt("alice@packetboat.test").await != Some(250), "a domain that is not declared is hosted");

    api.kubectl(&["create", "namespace", "mail"], None).await?;
    api.kubectl(&["apply", "-f", &folder], None).await?;
    let hosted = async || rcpt("alice@packetboat.test").await == Some(250);
    wait::until_true("the MailDomain to take effect", ARRIVAL, hosted).await?;
    let message = Message::new(&at("dave", FRIEND), &at("alice", HOSTED), "watched").text();
    let message = dkim::sign(&message, FRIEND, &world.friend_key).await?;
    let reply = Client::deliver(settings.mx, &at("dave", FRIEND), &[&at("alice", HOSTED)], &message).await?;
    ensure!(reply.code == 250, "{reply}");
    world.mailbox("alice").wait_for("watched", ARRIVAL).await?;
    ensure!(rcpt("carol@packetboat.test").await == Some(550), "carol does not exist yet");

    let patch = r#"{"spec":{"inbound":{"recipients":{"mode":"List","addresses":["carol"]}}}}"#;
    let patching = ["-n", "mail", "patch", "maildomain", "packetboat-test", "--type=merge", "-p", patch];
    let patched = api.kubectl(&patching, None).await;
    ensure!(patched.is_ok(), "{patched:?}; {}", api.kubectl(&["get", "maildomains", "-A"], None).await?);
    let changed = async || rcpt("carol@packetboat.test").await == Some(250);
    wait::until_true("the change to take effect", ARRIVAL, changed).await?;

    // With the API server away, mail goes on; back again, it is followed again.
    api.stop().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(rcpt("carol@packetboat.test").await == Some(250), "mail stops with the Kubernetes API");
    api.restart().await?;
    api.kubectl(&["-n", "mail", "delete", "maildomain", "packetboat-test"], None).await?;
    let gone = async || rcpt("carol@packetboat.test").await.is_some_and(|code| code >= 500);
    wait::until_true("the deletion to take effect", Duration::from_secs(90), gone).await?;
    ensure!(!process.log().contains("panicked"), "{}", process.log());
    Ok(())
}
