//! Changes that come together share calls, and each stands for itself.

mod common;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use queue::redis::{Config, RedisQueue};
use queue::{Closing, LeaseRequest, Next, Queue, QueueError, Settlement};
use testkit::redis::RedisServer;

async fn ask<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> Result<T> {
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd(words[0]);
    Ok(command.arg(&words[1..]).query_async(&mut connection).await?)
}

/// How often a script was called.
async fn calls(server: &RedisServer) -> Result<u64> {
    let stats: String = ask(server, &["INFO", "commandstats"]).await?;
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap_or("0,");
    Ok(line.split(',').next().context("a number")?.parse()?)
}

fn request() -> LeaseRequest {
    LeaseRequest {
        worker: "test".to_owned(),
        max: 1,
        duration: Duration::from_secs(60),
        except: Vec::new(),
        except_pools: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_share_few_calls_over_all_shards() -> Result<()> {
    const SESSIONS: u64 = 40;
    const EACH: u64 = 20;
    let server = RedisServer::start().await?;
    let config = Config { url: Some(server.url()), shards: 8, ..Config::default() };
    let queue = Arc::new(RedisQueue::connect(&config).await?);
    let before = calls(&server).await?;
    queue.accept(common::message("mx:a"), None).await?;
    let alone = calls(&server).await? - before;
    ensure!(alone <= 2, "one change took {alone} calls");

    let before = calls(&server).await?;
    let session = |queue: Arc<RedisQueue>| async move {
        for _ in 0..EACH {
            for leased in queue.accept(common::message("mx:a"), Some(request())).await?.leased {
                let recipients = leased.entry.recipients.clone();
                let next = Next::Done(Closing::Delivered);
                queue.settle(Settlement { lease: leased.lease, recipients, next, bounce: None }).await?;
            }
        }
        anyhow::Ok(())
    };
    let sessions: Vec<_> = (0..SESSIONS).map(|_| tokio::spawn(session(Arc::clone(&queue)))).collect();
    for session in sessions {
        session.await??;
    }
    let (changes, calls) = (2 * SESSIONS * EACH, calls(&server).await? - before);
    ensure!(calls < changes / 4, "{changes} changes took {calls} calls");
    let ledger = queue.ledger().await?;
    ensure!((ledger.accepted, ledger.delivered) == (SESSIONS * EACH + 1, SESSIONS * EACH), "{ledger:?}");
    ensure!(ledger.unaccounted() == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_stops_no_other() -> Result<()> {
    let server = RedisServer::start().await?;
    let config = Config { url: Some(server.url()), shards: 1, calls_at_a_time: 1, ..Config::default() };
    let queue = Arc::new(RedisQueue::connect(&config).await?);
    let messages: Vec<_> = (0..60).map(|_| common::message("mx:a")).collect();
    // Something else stands where the entry of one of them is to be written.
    let poisoned = messages[30].record.id;
    ask::<()>(&server, &["SET", &format!("{{q:0}}:e:{poisoned}.0"), "no hash"]).await?;
    let accept = |message: queue::NewMessage, queue: Arc<RedisQueue>| async move {
        (message.record.id, queue.accept(message, None).await)
    };
    let tasks: Vec<_> =
        messages.into_iter().map(|message| tokio::spawn(accept(message, Arc::clone(&queue)))).collect();
    for task in tasks {
        match task.await? {
            (id, Ok(accepted)) => ensure!(id != poisoned && accepted.fresh, "{id}"),
            (id, Err(QueueError::Unavailable { .. })) => ensure!(id == poisoned, "{id} was refused"),
            (id, Err(other)) => anyhow::bail!("{id}: {other}"),
        }
    }
    let ledger = queue.ledger().await?;
    ensure!((ledger.accepted, ledger.queued) == (59, 59), "{ledger:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answered_for_is_withdrawn() -> Result<()> {
    const SENT: u64 = 100;
    let server = RedisServer::start().await?;
    let patience = Duration::from_millis(500);
    let config = Config {
        url: Some(server.url()),
        connect_timeout: patience,
        response_timeout: patience,
        ..Config::default()
    };
    let queue = Arc::new(RedisQueue::connect(&config).await?);
    queue.accept(common::message("mx:a"), None).await?;
    // The server is given changes, and says nothing until everybody has given up.
    let process = server.child().context("the server runs")?;
    process.freeze()?;
    let accept = |queue: Arc<RedisQueue>| async move { queue.accept(common::message("mx:a"), None).await };
    let tasks: Vec<_> = (0..SENT).map(|_| tokio::spawn(accept(Arc::clone(&queue)))).collect();
    for task in tasks {
        ensure!(task.await?.is_err(), "a server that stands still answered");
    }
    process.thaw()?;
    testkit::wait::until_true("the queue to accept again", Duration::from_secs(20), async || {
        queue.accept(common::message("mx:a"), None).await.is_ok()
    })
    .await?;
    let gone = async || {
        queue.ledger().await.is_ok_and(|ledger| ledger.queued == 2 && ledger.accepted == 2 + ledger.removed)
    };
    testkit::wait::until_true("the rest to be withdrawn", Duration::from_secs(20), gone).await?;
    ensure!(queue.ledger().await?.unaccounted() == 0);
    Ok(())
}
