//! The Redis backend: it conforms, asks for durability, and survives the death of the server.

mod common;
#[path = "common/valkey.rs"]
mod valkey;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use queue::conformance::{self, Subject};
use queue::redis::{Config, RedisQueue};
use queue::{Queue, QueueError};
use testkit::redis::RedisServer;

fn config(server: &RedisServer) -> Config {
    Config { url: Some(server.url()), response_timeout: Duration::from_secs(2), ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::unwrap_used)]
async fn the_redis_backend_conforms() {
    let server = RedisServer::start().await.unwrap();
    conformance::run(|| async {
        let client = redis::Client::open(server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
        Arc::new(RedisQueue::connect(&config(&server)).await.unwrap()) as Subject
    })
    .await;
}

async fn set(server: &RedisServer, name: &str, value: &str) -> Result<()> {
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async::<()>(&mut connection).await?)
}

#[tokio::test]
async fn a_server_that_may_lose_mail_is_refused() -> Result<()> {
    for (name, value) in
        [("appendfsync", "everysec"), ("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]
    {
        let server = RedisServer::start().await?;
        set(&server, name, value).await?;
        let refused = RedisQueue::connect(&config(&server)).await.err().context("it was not refused")?;
        let QueueError::NotDurable(why) = &refused else { anyhow::bail!("{refused}") };
        ensure!(why.contains(&format!("{name} is {value}")) && why.contains("require_durable"), "{why}");
        let lax = Config { require_durable: false, ..config(&server) };
        RedisQueue::connect(&lax).await.context("a warning was asked for, not a refusal")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_told_in_time_and_found_again() -> Result<()> {
    let mut server = RedisServer::start().await?;
    let queue = RedisQueue::connect(&config(&server)).await?;
    server.kill9().await?;
    let begin = Instant::now();
    let told =
        queue.accept(common::message("mx:a"), None).await.err().context("accepted without a server")?;
    ensure!(matches!(told, QueueError::Unavailable { .. }), "{told}");
    ensure!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    ensure!(queue.check().await.is_err());

    server.restart().await?;
    testkit::wait::until_true("the queue to answer again", Duration::from_secs(20), async || {
        queue.check().await.is_ok()
    })
    .await?;
    ensure!(queue.accept(common::message("mx:a"), None).await?.fresh);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_survives_the_death_of_the_server() -> Result<()> {
    let mut server = RedisServer::start().await?;
    let queue = Arc::new(RedisQueue::connect(&config(&server)).await?);
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for _ in 0..2000 {
                    let message = common::message("mx:a");
                    let id = message.record.id;
                    match queue.accept(message, None).await {
                        Ok(_) => accepted.push(id),
                        Err(_) => break,
                    }
                }
                accepted
            })
        })
        .collect();
    testkit::wait::until_true("some messages", Duration::from_secs(20), async || {
        queue.depth().await.is_ok_and(|depth| depth.queued > 200)
    })
    .await?;
    server.kill9().await?;
    let mut accepted = Vec::new();
    for sender in senders {
        accepted.extend(sender.await?);
    }
    server.restart().await?;
    testkit::wait::until_true("the queue to answer again", Duration::from_secs(20), async || {
        queue.check().await.is_ok()
    })
    .await?;
    ensure!(!accepted.is_empty());
    for id in accepted {
        ensure!(queue.show(id).await?.is_some(), "{id} was accepted and is lost");
    }
    Ok(())
}

async fn replicate(replica: &RedisServer, of: &RedisServer) -> Result<()> {
    let mut connection = redis::Client::open(replica.url())?.get_multiplexed_async_connection().await?;
    let (host, port) = (of.address().ip().to_string(), of.address().port());
    Ok(redis::cmd("REPLICAOF").arg(host).arg(port).query_async::<()>(&mut connection).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_too_few_replicas_have_is_withdrawn() -> Result<()> {
    let (primary, mut replica) = (RedisServer::start().await?, RedisServer::start().await?);
    replicate(&replica, &primary).await?;
    let queue = RedisQueue::connect(&Config { replicas: 1, ..config(&primary) }).await?;
    testkit::wait::until_true("the replica to follow", Duration::from_secs(20), async || {
        queue.accept(common::message("mx:a"), None).await.is_ok()
    })
    .await?;
    ensure!(queue.depth().await?.queued == 1, "attempts before that were withdrawn");

    replica.kill9().await?;
    let message = common::message("mx:a");
    let told = queue.accept(message.clone(), None).await.err().context("accepted without a replica")?;
    ensure!(
        told.to_string().contains("accepting") && matches!(told, QueueError::Unavailable { .. }),
        "{told}"
    );
    ensure!(queue.show(message.record.id).await?.is_none(), "it stayed, and would be delivered twice");
    let ledger = queue.ledger().await?;
    ensure!(ledger.unaccounted() == 0 && ledger.queued == 1, "{ledger:?}");
    Ok(())
}

/// The replica stops in the middle of its work: what is accepted then is refused, taken back, and fresh when it
/// comes again; the replica, once it goes on, has it once.
async fn a_replica_that_stands_still(program: &str) -> Result<()> {
    let (primary, replica) =
        (RedisServer::start_as([program], &[]).await?, RedisServer::start_as([program], &[]).await?);
    replicate(&replica, &primary).await?;
    let queue = RedisQueue::connect(&Config { replicas: 1, ..config(&primary) }).await?;
    let mut accepted = 0;
    testkit::wait::until_true("the replica to follow", Duration::from_secs(20), async || {
        queue.accept(common::message("mx:a"), None).await.is_ok()
    })
    .await?;
    accepted += 1;
    let child = replica.child().context("the replica runs")?;
    child.freeze()?;
    let message = common::message("mx:a");
    for _ in 0..2 {
        let told = queue.accept(message.clone(), None).await.err().context("accepted without a replica")?;
        ensure!(format!("{told:?}").contains("0 of 1 replicas"), "{told:?}");
        ensure!(queue.show(message.record.id).await?.is_none(), "it stayed, and would be delivered twice");
    }
    child.thaw()?;
    testkit::wait::until_true("the replica to follow again", Duration::from_secs(20), async || {
        queue.accept(message.clone(), None).await.is_ok()
    })
    .await?;
    accepted += 1;
    ensure!(!queue.accept(message.clone(), None).await?.fresh, "it was accepted twice");
    let ledger = queue.ledger().await?;
    ensure!(ledger.unaccounted() == 0 && ledger.queued == accepted, "{ledger:?}");
    let on_replica = replica.command(&["KEYS", &format!("*:e:{}.*", message.record.id)]).await?;
    ensure!(on_replica.lines().count() == 1, "the replica has {on_replica:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_still_is_no_replica() -> Result<()> {
    a_replica_that_stands_still("redis-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_disk_stands_still_is_no_replica() -> Result<()> {
    a_replica_that_stands_still(&valkey::program().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_does_not_sync_is_no_replica() -> Result<()> {
    let valkey = valkey::program().await?;
    let primary = RedisServer::start_as([&valkey], &[]).await?;
    let replica = RedisServer::start_as([&valkey], &[]).await?;
    replicate(&replica, &primary).await?;
    let queue = RedisQueue::connect(&Config { replicas: 1, ..config(&primary) }).await?;
    testkit::wait::until_true("the replica to follow", Duration::from_secs(20), async || {
        queue.accept(common::message("mx:a"), None).await.is_ok()
    })
    .await?;
    // It still receives every change, and keeps it in memory.
    set(&replica, "appendonly", "no").await?;
    let told = queue.accept(common::message("mx:a"), None).await.err().context("it was accepted")?;
    ensure!(format!("{told:?}").contains("have synced it"), "{told:?}");
    let lax = Config { replicas: 1, replicas_sync: false, ..config(&primary) };
    RedisQueue::connect(&lax).await?.accept(common::message("mx:a"), None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_set_otherwise_later_gets_no_more_mail() -> Result<()> {
    let server = RedisServer::start().await?;
    let queue = RedisQueue::connect(&config(&server)).await?;
    queue.accept(common::message("mx:a"), None).await?;
    set(&server, "appendfsync", "everysec").await?;
    let refused = async || matches!(queue.check().await, Err(QueueError::NotDurable(_)));
    testkit::wait::until_true("the queue to be unready", Duration::from_secs(20), refused).await?;
    let told = queue.accept(common::message("mx:a"), None).await.err().context("it was accepted")?;
    ensure!(told.to_string().contains("appendfsync is everysec"), "{told}");
    ensure!(queue.depth().await?.queued == 1, "what is there goes on");
    set(&server, "appendfsync", "always").await?;
    let ready = async || queue.accept(common::message("mx:a"), None).await.is_ok();
    testkit::wait::until_true("the queue to accept again", Duration::from_secs(20), ready).await
}

/// Runs a command on the server, behind the queue's back.
async fn tamper(server: &RedisServer, words: &[&str]) -> Result<()> {
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async::<redis::Value>(&mut connection).await?;
    Ok(())
}

#[tokio::test]
async fn an_audit_names_what_does_not_fit() -> Result<()> {
    let server = RedisServer::start().await?;
    let queue = RedisQueue::connect(&Config { shards: 1, ..config(&server) }).await?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let message = common::message("mx:a");
        ids.push(message.record.id.to_string());
        queue.accept(message, None).await?;
    }
    assert_eq!(queue.audit(None).await?.odd, []);
    tamper(&server, &["DEL", &format!("{{q:0}}:e:{}.0", ids[0])]).await?;
    tamper(&server, &["ZREM", "{q:0}:due:|mx:a", &format!("{}.0", ids[1])]).await?;
    tamper(&server, &["ZADD", "{q:0}:held", "1", &format!("{}.0", ids[2])]).await?;
    tamper(&server, &["DEL", &format!("{{q:0}}:m:{}", ids[3])]).await?;
    let odd = queue.audit(None).await?.odd;
    for (id, why) in [
        (format!("{}.0", ids[0]), "its record is gone"),
        (format!("{}.0", ids[1]), "neither waits"),
        (format!("{}.0", ids[2]), "in 2 places"),
        (ids[3].clone(), "its record and content are gone"),
    ] {
        assert!(odd.iter().any(|one| one.what == id && one.why.contains(why)), "{why}: {odd:?}");
    }
    Ok(())
}

#[tokio::test]
async fn rows_of_other_versions_are_read() -> Result<()> {
    let server = RedisServer::start().await?;
    let queue = RedisQueue::connect(&Config { shards: 1, ..config(&server) }).await?;
    let message = common::message("mx:a");
    let (id, entry) = (message.record.id, format!("{{q:0}}:e:{}.0", message.record.id));
    queue.accept(message, None).await?;
    // As a version before there were tenants wrote it, and as a later one may, with fields not known here.
    tamper(&server, &["HDEL", &entry, "tenant"]).await?;
    tamper(&server, &["HSET", &entry, "priority", "high"]).await?;
    let body = format!("{{q:0}}:m:{id}");
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let record: String = redis::cmd("HGET").arg(&body).arg("record").query_async(&mut connection).await?;
    let later = record.replacen('{', "{\"not_known_here\":{\"a\":[1]},", 1);
    tamper(&server, &["HSET", &body, "record", &later, "colour", "blue"]).await?;

    let request = queue::LeaseRequest {
        worker: "test".to_owned(),
        max: 10,
        duration: Duration::from_secs(60),
        except: Vec::new(),
        except_pools: Vec::new(),
    };
    let leased = queue.lease(request).await?;
    ensure!(leased.len() == 1 && leased[0].message.id == id && leased[0].entry.tenant.0.is_empty());
    let recipients = leased[0].entry.recipients.clone();
    let next = queue::Next::Done(queue::Closing::Delivered);
    queue.settle(queue::Settlement { lease: leased[0].lease, recipients, next, bounce: None }).await?;
    ensure!(queue.show(id).await?.is_none() && queue.ledger().await?.unaccounted() == 0);
    Ok(())
}
