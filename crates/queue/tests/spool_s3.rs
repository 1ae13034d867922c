//! The spool on a real S3 server, from accept to rebuild.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use queue::redis::RedisQueue;
use queue::spool::{Config, Index, SpooledQueue, rebuild};
use queue::{LeaseRequest, PART_SIZE, Queue};
use testkit::child::Child;
use testkit::redis::RedisServer;
use testkit::{net, wait};
use tokio::process::Command;

const START: Duration = Duration::from_secs(30);
const BUILD: Duration = Duration::from_secs(900);

/// The path of the server's program, built when needed.
async fn program() -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/s3-server");
    let output = tokio::time::timeout(BUILD, Command::new(script).kill_on_drop(true).output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_on_s3_is_written_read_swept_and_rebuilt_from() -> Result<()> {
    let (redis, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    // A bucket is a folder to this server.
    std::fs::create_dir_all(folder.path().join("data/mail"))?;
    let address = net::free_address()?;
    let mut command = Command::new(program().await?);
    command.args(["--port", &address.to_string(), "--access", "test", "--secret", "testsecret"]);
    command.arg("posix").arg(folder.path().join("data"));
    let mut server = Child::spawn("versitygw", command, &folder.path().join("s3.log"))?;
    wait::until("the S3 server to listen", START, async || {
        if let Err(ended) = server.check_alive() {
            return Some(Err(ended));
        }
        tokio::net::TcpStream::connect(address).await.is_ok().then_some(Ok(()))
    })
    .await??;
    let options = [
        ("aws_endpoint", format!("http://{address}")),
        ("aws_region", "us-east-1".to_owned()),
        ("allow_http", "true".to_owned()),
    ];
    let secrets = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "testsecret")];
    let config = Config {
        url: "s3://mail/queue".to_owned(),
        options: options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        environment: secrets.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ..Config::default()
    };
    let index = || async {
        let config = queue::redis::Config { url: Some(redis.url()), ..queue::redis::Config::default() };
        Ok::<_, anyhow::Error>(Arc::new(RedisQueue::connect(&config).await?) as Arc<dyn Index>)
    };

    let queue = SpooledQueue::open(index().await?, &config).await?;
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
    let rebuilt = rebuild(&*index().await?, &config, false, |_| {}).await?;
    ensure!(rebuilt.restored == 1 && rebuilt.incomplete == 0 && rebuilt.unreadable == 0, "{rebuilt:?}");
    let queue = SpooledQueue::open(index().await?, &config).await?;
    let duration = Duration::from_secs(60);
    let request = LeaseRequest { worker: "test".to_owned(), max: 10, duration, except: Vec::new() };
    let leased = queue.lease(request).await?;
    ensure!(leased.len() == 1, "{leased:?}");
    let leased = leased.first().context("nothing leased")?;
    ensure!(leased.message.id == id && queue.part(id, 0).await? == part);
    ensure!(queue.inline_content(id).await?.starts_with(b"Subject"));
    queue.operate(queue::Target::Message(id), &queue::Verb::Remove, "test").await?;
    queue.sweep().await?;
    let packs = std::fs::read_dir(folder.path().join("data/mail/queue/packs")).map_or(0, Iterator::count);
    ensure!(packs == 0, "{packs} packs stayed");
    server.kill9().await
}
