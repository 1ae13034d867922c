//! Logins, rights and TLS of the Redis backend, against a real server.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use queue::Queue;
use queue::conformance::{self, Subject};
use queue::redis::{Config, RedisQueue, TlsConfig, USERS_ACL};
use testkit::net;
use testkit::redis::RedisServer;

async fn admin(server: &RedisServer) -> redis::aio::MultiplexedConnection {
    redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// A server with the user that the rules give, and a configuration that logs in as that user.
async fn with_rights() -> (RedisServer, Config) {
    let server = RedisServer::start().await.unwrap();
    let line = USERS_ACL.lines().find_map(|line| line.strip_prefix("user delivery ")).unwrap();
    let rules = line.replace(">PASSWORD", ">sesame");
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("delivery").arg(rules.split(' ').collect::<Vec<_>>());
    command.query_async::<()>(&mut admin(&server).await).await.unwrap();
    let url = server.url().replace("redis://", "redis://delivery:sesame@");
    let config = Config { url: Some(url), response_timeout: Duration::from_secs(2), ..Config::default() };
    (server, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_give_what_the_backend_needs() {
    let (server, config) = with_rights().await;
    conformance::run(|| async {
        redis::cmd("FLUSHALL").query_async::<()>(&mut admin(&server).await).await.unwrap();
        Arc::new(RedisQueue::connect(&config).await.unwrap()) as Subject
    })
    .await;
}

#[tokio::test]
async fn the_rules_give_no_more() {
    let (_server, config) = with_rights().await;
    let client = redis::Client::open(config.url.unwrap()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for words in [
        &["FLUSHALL"][..],
        &["KEYS", "*"],
        &["CONFIG", "SET", "appendfsync", "no"],
        &["SHUTDOWN"],
        &["ACL", "LIST"],
        &["CLIENT", "LIST"],
        &["EVAL", "return 1", "0"],
        &["GET", "session:of:another"],
        &["SET", "other", "1"],
        &["MONITOR"],
    ] {
        let mut command = redis::cmd(words[0]);
        let told = command.arg(&words[1..]).query_async::<redis::Value>(&mut connection).await;
        let error = told.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.to_lowercase().contains("perm"), "{words:?}: {error:?}");
    }
}

/// A server that has the rules from its start, as it is run.
async fn with_rules(rules: &str) -> Result<(RedisServer, Config, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("users.acl");
    std::fs::write(&file, rules.replace("PASSWORD", "sesame"))?;
    let arguments = ["--aclfile".to_owned(), file.display().to_string()];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = RedisServer::start_as(["redis-server"], &arguments).await?;
    let url = server.url().replace("redis://", "redis://delivery:sesame@");
    let config = Config { url: Some(url), response_timeout: Duration::from_secs(2), ..Config::default() };
    Ok((server, config, folder))
}

/// The lines of the rules that Redis takes: it knows no remarks.
fn lines(rules: &str) -> String {
    rules.lines().filter(|line| line.starts_with("user ")).fold(String::new(), |all, line| all + line + "\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_under_the_rules_survives_a_restart() -> Result<()> {
    let (mut server, config, _folder) = with_rules(&lines(USERS_ACL)).await?;
    {
        let queue = RedisQueue::connect(&config).await?;
        for _ in 0..20 {
            queue.accept(common::message("mx:a"), None).await?;
        }
    }
    server.kill9().await?;
    server.restart().await?;
    let queue = RedisQueue::connect(&config).await?;
    ensure!(queue.depth().await?.queued == 20, "{:?}", queue.depth().await?);
    let anonymous = RedisQueue::connect(&Config { url: Some(server.url()), ..config }).await;
    ensure!(anonymous.is_err(), "the user default logged in");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_under_which_a_restart_loses_mail_are_refused() -> Result<()> {
    let rules = lines(USERS_ACL).replace("user default off resetpass ~* &* +@all", "user default off");
    let (_server, config, _folder) = with_rules(&rules).await?;
    let told = RedisQueue::connect(&config).await.err().context("they were not refused")?.to_string();
    ensure!(told.contains("user default off ~* &* +@all"), "{told}");
    Ok(())
}

fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output()?;
    ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// An authority, and certificates of it for the server and for us.
fn certificates(folder: &Path) -> Result<()> {
    std::fs::write(folder.join("san"), "subjectAltName=IP:127.0.0.1\n")?;
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
    )?;
    for name in ["server", "client"] {
        openssl(
            folder,
            &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"),
        )?;
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile san"
            ),
        )?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_certificates_of_both_sides() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir()?;
    certificates(folder.path())?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls = net::free_address()?;
    let port = tls.port().to_string();
    let (certificate, key, authority) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let arguments = ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let arguments = [&arguments[..], &["--tls-ca-cert-file", &authority]].concat();
    let _server = RedisServer::start_as(["redis-server"], &arguments).await?;

    let config = |tls_config: Option<TlsConfig>| Config {
        url: Some(format!("rediss://{tls}")),
        tls: tls_config,
        ..Config::default()
    };
    let ours = TlsConfig {
        ca_file: Some(PathBuf::from(&authority)),
        certificate_file: Some(folder.path().join("client.pem")),
        key_file: Some(folder.path().join("client.key")),
    };
    let queue = RedisQueue::connect(&config(Some(ours.clone()))).await?;
    queue.accept(common::message("mx:a"), None).await?;
    ensure!(queue.depth().await?.queued == 1);

    let anonymous = TlsConfig { certificate_file: None, key_file: None, ..ours.clone() };
    ensure!(RedisQueue::connect(&config(Some(anonymous))).await.is_err(), "it must show a certificate");
    let stranger = TlsConfig { ca_file: None, ..ours.clone() };
    ensure!(RedisQueue::connect(&config(Some(stranger))).await.is_err(), "the server's authority is unknown");
    let half = TlsConfig { key_file: None, ..ours };
    let told = RedisQueue::connect(&config(Some(half))).await.err().context("half a pair of files")?;
    ensure!(format!("{told:?}").contains("go together"), "{told:?}");
    Ok(())
}
