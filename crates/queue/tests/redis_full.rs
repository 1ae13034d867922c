//! A server whose memory is full takes no new mail, and lets go what it has.

mod common;
#[path = "common/valkey.rs"]
mod valkey;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use queue::redis::{Config, RedisQueue};
use queue::{
    Closing, Lease, LeaseRequest, Leased, Next, Queue, QueueError, Scope, Settlement, Target, Tenant, Verb,
};
use testkit::redis::RedisServer;

/// Messages that wait when the memory is full.
const QUEUED: usize = 40;
/// Whom they leave for.
const TENANTS: usize = 3;
const LONG: Duration = Duration::from_secs(60);

fn config(server: &RedisServer) -> Config {
    Config { url: Some(server.url()), shards: 2, ..Config::default() }
}

fn request(max: usize) -> LeaseRequest {
    LeaseRequest {
        worker: "test".to_owned(),
        max,
        duration: LONG,
        except: Vec::new(),
        except_pools: Vec::new(),
    }
}

async fn settle(queue: &RedisQueue, leased: &Leased, next: Next) -> Result<()> {
    let recipients = leased.entry.recipients.clone();
    Ok(queue.settle(Settlement { lease: leased.lease, recipients, next, bounce: None }).await?)
}

/// That a message is refused for want of memory.
async fn refused(queue: &RedisQueue) -> Result<()> {
    let told = queue.accept(common::message("mx:new"), None).await.err().context("it was accepted")?;
    ensure!(
        matches!(told, QueueError::Unavailable { .. }) && format!("{told:?}").contains("OOM"),
        "{told:?}"
    );
    Ok(())
}

/// What an attempt writes before it may end its message: each step in a call of its own, behind nothing that frees
/// memory.
async fn go_ahead(queue: &RedisQueue, lease: &Lease) -> Result<()> {
    queue.renew(lease, LONG).await.context("renewing")?;
    queue.doubt(lease, "mx.example").await.context("writing down a doubt")
}

/// Leases until there is something.
async fn lease(queue: &RedisQueue, max: usize) -> Result<Vec<Leased>> {
    let some = async || match queue.lease(request(max)).await {
        Ok(leased) if leased.is_empty() => None,
        other => Some(other),
    };
    testkit::wait::until("mail to be leased", Duration::from_secs(20), some).await?.context("leasing")
}

/// What operators and workers do beside attempts.
async fn others_work(queue: &RedisQueue) -> Result<()> {
    let scopes: Vec<Scope> = (0..TENANTS).map(|number| Scope::Tenant(format!("{number}.example"))).collect();
    for scope in &scopes {
        queue.suspend(scope, "a test", "me").await.context("suspending")?;
    }
    // That its tenants are passed over is all that this lease writes.
    ensure!(queue.lease(request(4)).await.context("passing over")?.is_empty());
    for scope in &scopes {
        ensure!(queue.resume(scope, "me").await.context("resuming")?);
    }
    queue.sharers(&Scope::NextHop("mx:0".to_owned()), "test", LONG).await.context("sharing a limit")?;
    let held = lease(queue, 1).await?.remove(0);
    let target = Target::Entry(held.lease.entry);
    queue.operate(target, &Verb::Hold { why: "a test".to_owned() }, "me").await.context("holding")?;
    queue.hand_back(&held.lease).await.context("handing back")?;
    queue.operate(target, &Verb::Release, "me").await.context("releasing")?;
    let events = queue.events("reader", 10).await.context("reading events")?;
    queue.passed("reader", &events.cursor).await.context("passing events")
}

async fn drains(program: &str) -> Result<()> {
    let server = RedisServer::start_as([program], &[]).await?;
    let before = RedisQueue::connect(&config(&server)).await?;
    before.events("reader", 1).await?;
    for number in 0..QUEUED {
        let mut message = common::message(&format!("mx:{}", number % 5));
        message.entries[0].tenant = Tenant(format!("{}.example", number % TENANTS));
        before.accept(message, None).await?;
    }
    server.set("maxmemory", "1").await?;
    // Who comes up now can work, too.
    let queue = Arc::new(RedisQueue::connect(&config(&server)).await.context("connecting")?);
    refused(&queue).await?;
    others_work(&queue).await?;
    let first = lease(&queue, 1).await?.remove(0);
    go_ahead(&queue, &first.lease).await?;
    let retry = Next::Retry { after: Duration::from_millis(1), error: "later".to_owned() };
    settle(&queue, &first, retry).await.context("settling with a retry")?;

    let mut delivered = 0;
    while delivered < QUEUED {
        let leased = lease(&queue, 8).await?;
        delivered += leased.len();
        // New mail is refused in whatever company it comes.
        let attempts = join_all(leased.iter().map(async |one| {
            go_ahead(&queue, &one.lease).await?;
            settle(&queue, one, Next::Done(Closing::Delivered)).await.context("settling")
        }));
        let (attempts, accepts) = tokio::join!(attempts, join_all((0..32).map(|_| refused(&queue))));
        attempts.into_iter().chain(accepts).collect::<Result<()>>()?;
    }
    let ledger = queue.ledger().await?;
    ensure!(ledger.queued == 0 && ledger.unaccounted() == 0, "{ledger:?}");
    ensure!(ledger.accepted == QUEUED as u64, "{ledger:?}");
    ensure!(queue.audit(None).await?.odd.is_empty());
    server.set("maxmemory", "0").await?;
    ensure!(queue.accept(common::message("mx:new"), None).await?.fresh);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_refuses_new_mail_and_drains() -> Result<()> {
    drains("redis-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valkey_that_is_full_refuses_new_mail_and_drains() -> Result<()> {
    drains(&valkey::program().await?).await
}
