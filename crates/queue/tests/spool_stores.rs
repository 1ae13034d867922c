//! The spool on real object stores, from accept to rebuild: one that speaks S3, and one that speaks Azure's protocol.
//! (Of Google's there is none: fake-gcs-server does not take the plain uploads that the client makes.)
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use queue::redis::RedisQueue;
use queue::spool::{Config, Index, SpooledQueue, rebuild};
use queue::{LeaseRequest, PART_SIZE, Queue, QueueError};
use testkit::child::Child;
use testkit::proxy::{Proxy, Weather};
use testkit::redis::RedisServer;
use testkit::{net, wait};
use tokio::process::Command;
use tokio::time::timeout;

const START: Duration = Duration::from_secs(30);
const BUILD: Duration = Duration::from_secs(900);

/// A script that prints the path of a server's program, and gets it when needed.
async fn program(script: &str) -> Result<String> {
    let script = format!("{}/../../scripts/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = timeout(BUILD, Command::new(script).kill_on_drop(true).output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Starts a server and waits until it listens.
async fn start(name: &str, command: Command, address: SocketAddr, folder: &Path) -> Result<Child> {
    let mut server = Child::spawn(name, command, &folder.join("store.log"))?;
    wait::until("the object store to listen", START, async || {
        if let Err(ended) = server.check_alive() {
            return Some(Err(ended));
        }
        tokio::net::TcpStream::connect(address).await.is_ok().then_some(Ok(()))
    })
    .await??;
    Ok(server)
}

fn config(url: &str, options: &[(&str, &str)], secrets: &[(&str, &str)]) -> Config {
    let owned = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    Config { url: url.to_owned(), options: owned(options), environment: owned(secrets), ..Config::default() }
}

/// Accepts, loses the index, rebuilds, reads, removes, sweeps.
async fn from_accept_to_rebuild(config: &Config) -> Result<()> {
    let redis = RedisServer::start().await?;
    let index = || async {
        let config = queue::redis::Config { url: Some(redis.url()), ..queue::redis::Config::default() };
        Ok::<_, anyhow::Error>(Arc::new(RedisQueue::connect(&config).await?) as Arc<dyn Index>)
    };
    let queue = SpooledQueue::open(index().await?, config).await?;
    queue.check().await?;
    let mut long = common::message("mx:long");
    let (id, part) = (long.record.id, Bytes::from(vec![b'x'; PART_SIZE]));
    queue.stage(id, 0, part.clone()).await?;
    (long.record.parts, long.record.size) = (1, long.record.size + PART_SIZE as u64);
    ensure!(queue.accept(long, None).await?.fresh);
    let removed = common::message("mx:removed");
    let gone = removed.record.id;
    queue.accept(removed, None).await?;
    queue.operate(queue::Target::Message(gone), &queue::Verb::Remove, "test").await?;
    drop(queue);

    let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    let rebuilt = rebuild(&*index().await?, config, false, |_| {}).await?;
    ensure!(rebuilt.restored == 1 && rebuilt.incomplete == 0 && rebuilt.unreadable == 0, "{rebuilt:?}");
    let queue = SpooledQueue::open(index().await?, config).await?;
    let duration = Duration::from_secs(60);
    let request = LeaseRequest {
        worker: "test".to_owned(),
        max: 10,
        duration,
        except: Vec::new(),
        except_pools: Vec::new(),
    };
    let leased = queue.lease(request).await?;
    ensure!(leased.len() == 1, "{leased:?}");
    let leased = leased.first().context("nothing leased")?;
    ensure!(leased.message.id == id && queue.part(id, 0).await? == part);
    ensure!(queue.inline_content(id).await?.starts_with(b"Subject"));
    queue.operate(queue::Target::Message(id), &queue::Verb::Remove, "test").await?;
    queue.sweep().await?;
    drop(queue);

    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    let rebuilt = rebuild(&*index().await?, config, false, |_| {}).await?;
    ensure!(rebuilt.restored == 0, "what was removed and swept is in the store: {rebuilt:?}");
    Ok(())
}

/// An S3 server with the bucket `mail`.
async fn s3(folder: &Path, address: SocketAddr) -> Result<Child> {
    // A bucket is a folder to this server.
    std::fs::create_dir_all(folder.join("data/mail"))?;
    let mut command = Command::new(program("s3-server").await?);
    command.args(["--port", &address.to_string(), "--access", "test", "--secret", "testsecret"]);
    command.arg("posix").arg(folder.join("data"));
    start("versitygw", command, address, folder).await
}

fn on_s3(address: SocketAddr) -> Config {
    let endpoint = format!("http://{address}");
    let options = [("aws_endpoint", endpoint.as_str()), ("aws_region", "us-east-1"), ("allow_http", "true")];
    let secrets = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "testsecret")];
    config("s3://mail/queue", &options, &secrets)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_told_and_nothing_is_lost() -> Result<()> {
    let (folder, address, redis) = (tempfile::tempdir()?, net::free_address()?, RedisServer::start().await?);
    let mut server = s3(folder.path(), address).await?;
    let proxy = Proxy::start(address).await?;
    let config = Config { request_timeout: Duration::from_secs(2), ..on_s3(proxy.address()) };
    let index = queue::redis::Config { url: Some(redis.url()), ..queue::redis::Config::default() };
    let queue = SpooledQueue::open(Arc::new(RedisQueue::connect(&index).await?), &config).await?;
    let before = common::message("mx:a");
    queue.accept(before.clone(), None).await?;
    let duration = Duration::from_secs(60);
    let request = LeaseRequest {
        worker: "test".to_owned(),
        max: 10,
        duration,
        except: Vec::new(),
        except_pools: Vec::new(),
    };
    let leased = queue.lease(request.clone()).await?.pop().context("nothing leased")?;
    let mut recipients = leased.entry.recipients.clone();
    recipients.iter_mut().for_each(|one| one.standing = message::Standing::Delivered);
    let next = queue::Next::Done(queue::Closing::Delivered);
    let settlement = queue::Settlement { lease: leased.lease, recipients, next, bounce: None };

    proxy.set(Weather::BlackHole);
    let during = common::message("mx:a");
    let told = timeout(START, queue.accept(during.clone(), None))
        .await?
        .err()
        .context("accepted without its store")?;
    ensure!(matches!(told, QueueError::Unavailable { .. }), "{told:?}");
    ensure!(queue.show(during.record.id).await?.is_none(), "what was refused is in the queue");
    let told =
        timeout(START, queue.settle(settlement.clone())).await?.err().context("settled without its note")?;
    ensure!(matches!(told, QueueError::Unavailable { .. }), "{told:?}");
    ensure!(queue.show(before.record.id).await?.is_some(), "what is not noted was settled");

    proxy.set(Weather::Fair);
    wait::until_true("the store to be reached again", START, async || {
        queue.accept(common::message("mx:a"), None).await.is_ok()
    })
    .await?;
    queue.settle(settlement).await?;
    ensure!(queue.show(before.record.id).await?.is_none());
    ensure!(queue.ledger().await?.unaccounted() == 0);
    server.kill9().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_on_s3_is_written_read_swept_and_rebuilt_from() -> Result<()> {
    let (folder, address) = (tempfile::tempdir()?, net::free_address()?);
    let mut server = s3(folder.path(), address).await?;
    from_accept_to_rebuild(&on_s3(address)).await?;
    let packs = std::fs::read_dir(folder.path().join("data/mail/queue/packs")).map_or(0, Iterator::count);
    ensure!(packs == 0, "{packs} packs stayed");
    server.kill9().await
}

/// The account that every Azurite has, with its key: both are in its documentation.
const ACCOUNT: (&str, &str) = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
);

/// Makes a container: a request signed with the account's key, which the spool itself never has to make.
const MAKE_CONTAINER: &str = r#"
import base64, email.utils, hashlib, hmac, sys, urllib.request
endpoint, account, key = sys.argv[1:]
date = email.utils.formatdate(usegmt=True)
to_sign = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n/{account}/{account}/mail\nrestype:container"
digest = hmac.new(base64.b64decode(key), to_sign.encode(), hashlib.sha256).digest()
request = urllib.request.Request(f"{endpoint}/mail?restype=container", method="PUT", headers={
    "x-ms-date": date, "x-ms-version": "2021-08-06", "Content-Length": "0",
    "Authorization": f"SharedKey {account}:{base64.b64encode(digest).decode()}"})
print(urllib.request.urlopen(request, timeout=20).status)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_on_azure_is_written_read_swept_and_rebuilt_from() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = net::free_address()?;
    let mut command = Command::new(program("azure-server").await?);
    command.args(["--blobHost", "127.0.0.1", "--blobPort", &address.port().to_string()]);
    command
        .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location"])
        .arg(folder.path());
    let mut server = start("azurite", command, address, folder.path()).await?;
    let (account, key) = ACCOUNT;
    let endpoint = format!("http://{address}/{account}");
    let mut python = Command::new("python3");
    python.args(["-c", MAKE_CONTAINER, &endpoint, account, key]).kill_on_drop(true);
    let made = timeout(START, python.output()).await??;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let options = [("azure_storage_endpoint", endpoint.as_str()), ("allow_http", "true")];
    let secrets = [("AZURE_STORAGE_ACCOUNT_NAME", account), ("AZURE_STORAGE_ACCOUNT_KEY", key)];
    from_accept_to_rebuild(&config("az://mail/queue", &options, &secrets)).await?;
    server.kill9().await
}
