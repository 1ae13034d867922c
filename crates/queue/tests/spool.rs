//! The object-store spool over real Redis: it conforms, on a folder; what is settled goes from the store; a
//! lost index is made again from the store, and nothing settled comes back.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use message::{QueueId, Standing};
use queue::conformance::{self, Subject};
use queue::redis::RedisQueue;
use queue::spool::{Config, Index, SpooledQueue, rebuild};
use queue::{
    Closing, LeaseRequest, Leased, NewEntry, NewMessage, Next, NextHop, PART_SIZE, Queue, QueueError,
    Settlement, Target, Verb,
};
use testkit::proxy::{Proxy, Weather};
use testkit::redis::RedisServer;
use testkit::wait;

const SOON: Duration = Duration::from_secs(20);

fn folder_spool(folder: &Path) -> Config {
    Config { url: format!("file://{}", folder.display()), ..Config::default() }
}

async fn index(server: &RedisServer) -> Result<Arc<dyn Index>> {
    let config = queue::redis::Config { url: Some(server.url()), ..queue::redis::Config::default() };
    Ok(Arc::new(RedisQueue::connect(&config).await?))
}

async fn flush(server: &RedisServer) -> Result<()> {
    let mut connection = redis::Client::open(server.url())?.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?)
}

/// The names of the files in a folder of the spool, of any depth, that are there as a whole: what is being written
/// has a `#` in its name.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => names.extend(files(&path)),
            false if path.to_string_lossy().contains('#') => {}
            false => names.push(path.display().to_string()),
        }
    }
    names
}

async fn lease(queue: &dyn Queue, max: usize) -> Result<Vec<Leased>> {
    let duration = Duration::from_secs(60);
    Ok(queue
        .lease(LeaseRequest {
            worker: "test".to_owned(),
            max,
            duration,
            except: Vec::new(),
            except_pools: Vec::new(),
        })
        .await?)
}

fn delivered(leased: &Leased) -> Settlement {
    let mut recipients = leased.entry.recipients.clone();
    recipients.iter_mut().for_each(|one| one.standing = Standing::Delivered);
    Settlement { lease: leased.lease, recipients, next: Next::Done(Closing::Delivered), bounce: None }
}

/// A message for two next hops with a recipient each.
fn two_hops() -> NewMessage {
    let mut message = common::message("mx:a");
    let mut second: NewEntry = message.entries[0].clone();
    second.next_hop = NextHop("mx:b".to_owned());
    second.recipients[0].address = "b@c.example".parse().unwrap();
    message.entries.push(second);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_on_a_folder_conforms() {
    let server = RedisServer::start().await.unwrap();
    let folders = tempfile::tempdir().unwrap();
    conformance::run(|| async {
        flush(&server).await.unwrap();
        let config = folder_spool(&folders.path().join(QueueId::generate().to_string()));
        Arc::new(SpooledQueue::open(index(&server).await.unwrap(), &config).await.unwrap()) as Subject
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_accepted_together_share_a_pack_that_goes_with_the_last() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let config = Config { pack_window: Duration::from_millis(200), ..folder_spool(folder.path()) };
    let queue = SpooledQueue::open(index(&server).await?, &config).await?;
    let accepts = (0..50).map(|_| queue.accept(common::message("mx:a"), None));
    for accepted in futures::future::join_all(accepts).await {
        ensure!(accepted?.fresh);
    }
    let packs = folder.path().join("packs");
    ensure!(files(&packs).len() == 1, "{:?}", files(&packs));
    let leased = lease(&queue, 50).await?;
    let (last, others) = leased.split_last().context("nothing leased")?;
    for one in others {
        ensure!(queue.inline_content(one.message.id).await?.starts_with(b"Subject"));
        queue.settle(delivered(one)).await?;
    }
    ensure!(files(&packs).len() == 1, "the pack went before its last message");
    queue.settle(delivered(last)).await?;
    wait::until("the pack to go", SOON, async || files(&packs).is_empty().then_some(())).await?;
    let swept = queue.sweep().await?;
    ensure!(swept.notes > 0 && files(&folder.path().join("notes")).is_empty(), "{swept:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_made_again_without_what_was_settled() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let config = folder_spool(folder.path());
    let queue = SpooledQueue::open(index(&server).await?, &config).await?;
    let (kept, halfway, settled, removed) =
        (common::message("mx:a"), two_hops(), common::message("mx:a"), common::message("mx:a"));
    let mut long = common::message("mx:a");
    let parts = [Bytes::from(vec![b'x'; PART_SIZE]), Bytes::from_static(b"end\r\n")];
    for (number, part) in (0..).zip(&parts) {
        queue.stage(long.record.id, number, part.clone()).await?;
        long.record.size += part.len() as u64;
        long.record.parts += 1;
    }
    let ids = [&kept, &halfway, &settled, &removed, &long].map(|message| message.record.id);
    for message in [kept, halfway, settled, removed, long] {
        queue.accept(message, None).await?;
    }
    queue.operate(Target::Message(ids[3]), &Verb::Remove, "test").await?;
    for leased in lease(&queue, 10).await? {
        let finished =
            leased.message.id == ids[2] || (leased.message.id == ids[1] && leased.entry.next_hop.0 == "mx:a");
        match finished {
            true => queue.settle(delivered(&leased)).await?,
            false => queue.hand_back(&leased.lease).await?,
        }
    }
    drop(queue);

    flush(&server).await?;
    let index = index(&server).await?;
    let rebuilt = rebuild(&*index, &config, false, |_| {}).await?;
    ensure!((rebuilt.restored, rebuilt.incomplete, rebuilt.unreadable) == (3, 0, 0), "{rebuilt:?}");
    let refused = rebuild(&*index, &config, false, |_| {}).await;
    ensure!(matches!(refused, Err(QueueError::Mismatch(_))), "a queue with entries was rebuilt: {refused:?}");
    let again = rebuild(&*index, &config, true, |_| {}).await?;
    ensure!((again.restored, again.present) == (0, 3), "{again:?}");

    let queue = SpooledQueue::open(index, &config).await?;
    let mut leased = lease(&queue, 10).await?;
    leased.sort_by_key(|leased| ids.iter().position(|id| *id == leased.message.id));
    let found: Vec<_> =
        leased.iter().map(|leased| (leased.message.id, leased.entry.next_hop.0.as_str())).collect();
    ensure!(found == [(ids[0], "mx:a"), (ids[1], "mx:b"), (ids[4], "mx:a")], "{found:?}");
    ensure!(queue.part(ids[4], 0).await? == parts[0] && queue.part(ids[4], 1).await? == parts[1]);
    ensure!(leased[2].message.parts == 2, "{:?}", leased[2].message);
    for one in &leased {
        ensure!(queue.inline_content(one.message.id).await?.starts_with(b"Subject"));
        queue.settle(delivered(one)).await?;
    }
    queue.sweep().await?;
    ensure!(files(&folder.path().join("packs")).is_empty() && files(&folder.path().join("parts")).is_empty());
    flush(&server).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_swept_while_the_index_is_lost() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let config = Config { orphan_age: Duration::ZERO, ..folder_spool(folder.path()) };
    let queue = SpooledQueue::open(index(&server).await?, &config).await?;
    queue.accept(common::message("mx:a"), None).await?;
    flush(&server).await?;
    let refused = queue.sweep().await;
    ensure!(matches!(refused, Err(QueueError::Mismatch(_))), "{refused:?}");
    queue.accept(common::message("mx:a"), None).await.context("new mail is accepted meanwhile")?;
    let rebuilt = rebuild(&*index(&server).await?, &config, true, |_| {}).await?;
    ensure!((rebuilt.restored, rebuilt.present) == (1, 1), "{rebuilt:?}");
    ensure!(queue.sweep().await?.removed == 0);
    ensure!(lease(&queue, 10).await?.len() == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_answered_for_is_swept() -> Result<()> {
    let (mut server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let config = folder_spool(folder.path());
    let eager = Config { orphan_age: Duration::ZERO, ..config.clone() };
    let queue = SpooledQueue::open(index(&server).await?, &config).await?;
    let accepted = common::message("mx:a");
    let id = accepted.record.id;
    queue.accept(accepted, None).await?;
    queue.stage(QueueId::generate(), 0, Bytes::from_static(b"abandoned")).await?;
    server.kill9().await?;
    let refused = queue.accept(common::message("mx:a"), None).await;
    ensure!(matches!(refused, Err(QueueError::Unavailable { .. })), "accepted without an index");
    server.restart().await?;
    wait::until("redis to be found again", SOON, async || queue.check().await.is_ok().then_some(())).await?;
    let swept = queue.sweep().await?;
    ensure!((swept.removed, swept.parts) == (0, 0), "swept before its time: {swept:?}");
    let queue = SpooledQueue::open(index(&server).await?, &eager).await?;
    let swept = queue.sweep().await?;
    ensure!((swept.removed, swept.orphans, swept.parts) == (1, 1, 1), "{swept:?}");
    ensure!(queue.inline_content(id).await?.starts_with(b"Subject"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_and_an_index_that_do_not_belong_together_are_refused() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let inline = index(&server).await?;
    inline.accept(common::message("mx:a"), None).await?;
    let config = folder_spool(&folder.path().join("one"));
    let refused = SpooledQueue::open(inline, &config).await.err();
    ensure!(matches!(refused, Some(QueueError::Mismatch(_))), "a queue with contents of its own");
    flush(&server).await?;
    SpooledQueue::open(index(&server).await?, &config).await?;
    let other = folder_spool(&folder.path().join("other"));
    let refused = SpooledQueue::open(index(&server).await?, &other).await.err();
    ensure!(matches!(refused, Some(QueueError::Mismatch(_))), "another queue's spool");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn octets_that_were_changed_are_not_delivered() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let queue = SpooledQueue::open(index(&server).await?, &folder_spool(folder.path())).await?;
    let message = common::message("mx:a");
    let id = message.record.id;
    queue.accept(message, None).await?;
    let pack = files(&folder.path().join("packs")).pop().context("no pack")?;
    let mut octets = std::fs::read(&pack)?;
    *octets.last_mut().context("an empty pack")? ^= 1;
    std::fs::write(&pack, octets)?;
    ensure!(matches!(queue.inline_content(id).await, Err(QueueError::Corrupt { .. })));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_overtakes_an_accept_keeps_the_message() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let config = folder_spool(folder.path());
    let proxy = Proxy::start(server.address()).await?;
    let slow = queue::redis::Config {
        url: Some(format!("redis://{}", proxy.address())),
        response_timeout: Duration::from_secs(60),
        ..queue::redis::Config::default()
    };
    let queue = SpooledQueue::open(Arc::new(RedisQueue::connect(&slow).await?), &config).await?;
    let queue = Arc::new(queue);
    proxy.set(Weather::BlackHole);
    let message = common::message("mx:a");
    let accepting = tokio::spawn({
        let (queue, message) = (Arc::clone(&queue), message.clone());
        async move { queue.accept(message, None).await }
    });
    // The copy is in the store, the word to Redis is on its way.
    let packs = folder.path().join("packs");
    wait::until_true("a pack", SOON, async || files(&packs).len() == 1).await?;
    let rebuilt = rebuild(index(&server).await?.as_ref(), &config, true, |_| {}).await?;
    ensure!(rebuilt.restored == 1, "{rebuilt:?}");
    proxy.set(Weather::Fair);
    ensure!(!accepting.await??.fresh, "the rebuild was to come first");

    let leased = lease(queue.as_ref(), 10).await?;
    ensure!(leased.len() == 1, "{} entries", leased.len());
    let content = queue.inline_content(message.record.id).await?;
    ensure!(content == message.inline.to_bytes(), "the content went with the copy that was thought spare");
    queue.settle(delivered(&leased[0])).await?;
    wait::until_true("the pack to go", SOON, async || files(&packs).is_empty()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vanished_from_the_queue_is_restored_from_the_spool() -> Result<()> {
    let (server, folder) = (RedisServer::start().await?, tempfile::tempdir()?);
    let config = folder_spool(folder.path());
    let queue = SpooledQueue::open(index(&server).await?, &config).await?;
    let (entry, record, settled, well) =
        (two_hops(), common::message("mx:a"), common::message("mx:a"), common::message("mx:a"));
    for message in [&entry, &record, &settled, &well] {
        ensure!(queue.accept(message.clone(), None).await?.fresh);
    }
    for leased in lease(&queue, 10).await? {
        match leased.message.id == settled.record.id {
            true => queue.settle(delivered(&leased)).await?,
            false => queue.hand_back(&leased.lease).await?,
        }
    }
    for pattern in [format!("*:e:{}.1", entry.record.id), format!("*:m:{}", record.record.id)] {
        let key = server.command(&["KEYS", &pattern]).await?;
        ensure!(server.command(&["DEL", key.trim()]).await?.trim() == "1", "{pattern} was not there");
    }
    let mut odd = Vec::new();
    let mut cursor = None;
    loop {
        let page = queue.audit(cursor.as_deref()).await?;
        odd.extend(page.odd);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    for id in [entry.record.id, record.record.id] {
        ensure!(odd.iter().any(|one| one.what.contains(id.as_str())), "{id} is not named: {odd:?}");
    }
    let rebuilt = rebuild(&*index(&server).await?, &config, true, |_| {}).await?;
    ensure!((rebuilt.vanished, rebuilt.restored, rebuilt.present) == (2, 0, 1), "{rebuilt:?}");
    let found = queue::invariants::Witness::default().look(&queue).await;
    ensure!(found.is_ok(), "{found:?}");
    let mut left: Vec<QueueId> = Vec::new();
    for leased in lease(&queue, 10).await? {
        left.push(leased.message.id);
        ensure!(queue.inline_content(leased.message.id).await?.starts_with(b"Subject"));
        queue.settle(delivered(&leased)).await?;
    }
    left.sort_unstable();
    let mut expected = vec![entry.record.id, entry.record.id, record.record.id, well.record.id];
    expected.sort_unstable();
    ensure!(left == expected, "{left:?} are left, not {expected:?}");
    ensure!(queue.ledger().await?.unaccounted() == 0);
    Ok(())
}
