//! The operator makes the password of an installation's own Redis, once, with no more rights than the chart gives it.

use anyhow::{Context, Result, ensure};
use packetboat_tests::chart::{apply, render, restricted_namespace};
use packetboat_tests::estate::STEP;
use serde_json::Value;
use sha2::{Digest, Sha256};
use testkit::dns::DnsServer;
use testkit::kubernetes::ApiServer;
use testkit::process::{Role, Site};
use testkit::wait;

const NAME: &str = "mail-packetboat-redis-password";

#[tokio::test(flavor = "multi_thread")]
async fn once_and_for_good() -> Result<()> {
    let dns = DnsServer::start("ns1.example.test. 300 IN A 127.0.0.1\n").await?;
    let site = Site::new(dns.address())?;
    let api = ApiServer::start().await?;
    restricted_namespace(&api, "mail").await?;
    for template in ["definitions", "rbac", "redis"] {
        let only = format!("templates/{template}.yaml");
        apply(&api, &render("small-values.yaml", &["--show-only", &only]).await?).await?;
    }
    let crd = "crd/maildomains.mail.packetboat.dev";
    api.kubectl(&["wait", "--for=condition=Established", crd], None).await?;

    let mut settings = site.settings(Role::Operator)?;
    settings.kubeconfig = Some(api.kubeconfig_of("mail", "mail-packetboat-operator").await?);
    settings.environment.push(("PACKETBOAT_DOMAINS__KUBERNETES__NAMESPACE".to_owned(), "mail".to_owned()));
    settings.extra = format!(
        "operator: {{lease_namespace: mail, lease_name: mail-packetboat-operator, lease_duration: 5s, redis_password_secret: {NAME}}}\n"
    );
    let mut process = site.start(&settings).await?;
    let read = async || -> Result<Value> {
        let text = api.kubectl(&["-n", "mail", "get", "secret", NAME, "-o", "json"], None).await?;
        Ok(serde_json::from_str(&text)?)
    };
    let filled = async || read().await.is_ok_and(|secret| secret["data"]["password"].is_string());
    let made = wait::until_true("the password", STEP, filled).await;
    ensure!(made.is_ok(), "{made:?}: {}", process.log());
    let first = read().await?;
    let value = async |key: &str| -> Result<String> {
        let path = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
        api.kubectl(&["-n", "mail", "get", "secret", NAME, "-o", &path], None).await
    };
    let password = value("password").await?;
    ensure!(password.len() == 64 && password.bytes().all(|octet| octet.is_ascii_hexdigit()), "it is weak");
    let hash: String = Sha256::digest(&password).iter().map(|octet| format!("{octet:02x}")).collect();
    ensure!(value("sha256").await? == hash, "Redis would not know it");
    ensure!(!process.log().contains(&password), "it is in the log");

    // Another term, another process: it stays.
    process.terminate().await?;
    let process = site.start(&settings).await?;
    let leads = async || process.metric("packetboat_operator_leads").await.is_ok_and(|value| value > 0.0);
    wait::until_true("the operator to lead", STEP, leads).await?;
    // An upgrade of the release leaves it as it is.
    apply(&api, &render("small-values.yaml", &["--show-only", "templates/redis.yaml"]).await?).await?;
    let again = read().await.context("it is gone")?;
    ensure!(again["data"] == first["data"], "it was written again");
    Ok(())
}
