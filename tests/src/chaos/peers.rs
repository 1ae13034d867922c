//! Peers that break off, hang, crawl or cannot be reached, and messages that kill who touches them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::corpus;
use testkit::ledger::Ledger;
use testkit::process::{Role, Settings};
use testkit::redis::RedisServer;
use testkit::smtp::{Sink, Verb};
use testkit::wait;

use super::processes::reborn;
use super::{Outcome, SETTLED};
use crate::cluster::Cluster;
use crate::load::{Load, wait_for_balance};
use crate::world::{DEAD, HOSTED, PLAIN, World, at};

const FEW: usize = 60;
/// What the log says of a message whose peer broke off before it answered for it.
const AMBIGUOUS: &str = "no answer to the end of the message";

/// Two of each service, the hosted domain's mail going to an LMTP server of ours; leases last `lease`.
struct Scene {
    world: World,
    cluster: Cluster,
    sink: Sink,
    ledger: Arc<Ledger>,
}

impl Scene {
    async fn new(lease: &str) -> Result<Self> {
        let (world, sink) = (World::new().await?, Sink::lmtp().await?);
        world.host(
            "recipients: {mode: AcceptAll}",
            &format!("{{lmtp: {{address: \"{}\"}}}}", sink.address()),
        )?;
        world.site.domain(
            "other.test",
            "inbound:\n  recipients: {mode: AcceptAll}\n  route: {maildir: {path: mail}}\n",
        )?;
        let lease = ("PACKETBOAT_DELIVERY__DISPATCH__LEASE".to_owned(), lease.to_owned());
        let adjust = |settings: &mut Settings| {
            if settings.role == Role::Delivery {
                settings.environment.push(lease.clone());
            }
        };
        let cluster = Cluster::over(&world, RedisServer::start().await?, adjust).await?;
        Ok(Self { world, cluster, sink, ledger: Arc::new(Ledger::new()) })
    }

    fn load(&self, from: &str, to: &str, messages: usize) -> Load {
        let targets = [self.cluster.rows[0].edge.0.mx, self.cluster.rows[1].edge.0.mx];
        Load { messages, ..Load::of_500(&targets, from, to) }
    }

    /// Waits until every message is at the sink, and the queue is empty.
    async fn settle(&self) -> Result<Outcome> {
        let delivery = &self.cluster.rows[0].delivery.1;
        let what = "all mail at the peer, and an empty queue";
        let counts = wait::until(what, SETTLED, async || {
            self.ledger.forget_arrivals();
            let mut copies: HashMap<String, usize> = HashMap::new();
            for received in self.sink.received() {
                if let Some(id) = corpus::id_of(&received.message) {
                    self.ledger.arrived(id);
                    *copies.entry(id.to_owned()).or_default() += 1;
                }
            }
            let account = delivery.get("/api/v1/queue/account").await.ok()?.1;
            (self.ledger.balance().is_even() && account.contains("\"queued\":0")).then_some(copies)
        })
        .await?;
        let most = counts.values().copied().max().unwrap_or_default();
        let note = format!("at most {most} copies");
        Ok(Outcome { note, ..(self.ledger.balance(), Duration::ZERO).into() })
    }
}

/// The peer takes twenty messages and breaks off instead of saying so. One more copy each.
pub async fn peer_breaks_off_after_the_dot() -> Result<Outcome> {
    let scene = Scene::new("60s").await?;
    scene.sink.drop_after_dot(20);
    scene.load(&at("dave", PLAIN), &at("alice", HOSTED), FEW).start(&scene.ledger).finish().await?;
    let outcome = scene.settle().await?;
    ensure!(outcome.duplicated <= 20, "{outcome}");
    let told = scene.cluster.sum_of("packetboat_outbound_ambiguous_total").await?;
    ensure!(told == 20.0, "{told} of 20 lost answers were counted as ambiguous");
    let logs = scene.cluster.rows.iter().map(|row| row.delivery.1.log().matches(AMBIGUOUS).count());
    ensure!(logs.sum::<usize>() == 20, "not each is in the log");
    Ok(outcome)
}

/// The peer has taken messages, and the workers die before they can write it down.
pub async fn worker_dies_before_it_can_tell() -> Result<Outcome> {
    let mut scene = Scene::new("2s").await?;
    scene.sink.delay(Verb::Dot, Duration::from_secs(3));
    let load = scene.load(&at("dave", PLAIN), &at("alice", HOSTED), FEW).start(&scene.ledger);
    wait::until_true("messages at the peer", SETTLED, async || scene.sink.count() >= 5).await?;
    let before = scene.sink.count();
    for row in &mut scene.cluster.rows {
        reborn(&scene.world, &mut row.delivery).await?;
    }
    scene.sink.behave();
    load.finish().await?;
    let outcome = scene.settle().await?;
    ensure!(outcome.note == "at most 2 copies" || outcome.duplicated == 0, "{outcome}");
    ensure!(outcome.duplicated >= 1 && outcome.duplicated <= before + 40, "{outcome}");
    Ok(outcome)
}

/// The peer takes three times as long as a lease; two workers look on.
pub async fn peer_slower_than_a_lease() -> Result<Outcome> {
    let scene = Scene::new("2s").await?;
    scene.sink.delay(Verb::Dot, Duration::from_secs(6));
    scene.load(&at("dave", PLAIN), &at("alice", HOSTED), FEW).start(&scene.ledger).finish().await?;
    let outcome = scene.settle().await?;
    ensure!(outcome.duplicated == 0, "two workers were at one entry: {outcome}");
    Ok(outcome)
}

/// Who works on one message dies. It is put aside after five times; other mail goes on.
pub async fn poison() -> Result<Outcome> {
    let mut scene = Scene::new("1s").await?;
    scene.sink.delay(Verb::Data, Duration::from_secs(600));
    scene.load(&at("dave", PLAIN), &at("alice", HOSTED), 1).start(&Arc::new(Ledger::new())).finish().await?;
    let others = scene.load(&at("dave", PLAIN), &at("bob", "other.test"), 200).start(&scene.ledger);
    let held = async |scene: &Scene| -> Option<String> {
        let answer = scene.cluster.rows[0].delivery.1.get("/api/v1/queue/entries?state=held").await.ok()?;
        Some(answer.1).filter(|body| body.contains("leases in a row ended"))
    };
    for death in 1..=6 {
        let what = format!("attempt {death} with the poison, or its end");
        wait::until_true(&what, SETTLED, async || {
            scene.sink.transactions() >= death || held(&scene).await.is_some()
        })
        .await?;
        if held(&scene).await.is_some() {
            break;
        }
        for row in &mut scene.cluster.rows {
            reborn(&scene.world, &mut row.delivery).await?;
        }
    }
    wait::until("the poison to be put aside", SETTLED, async || held(&scene).await).await?;
    // What the alert is about (PacketboatHeldEntries).
    wait::until_true("the metric to tell", SETTLED, async || {
        let metrics = scene.cluster.rows[0].delivery.1.get("/metrics").await;
        metrics.is_ok_and(|(_, text)| text.contains("packetboat_queue_entries{state=\"held\"} 1"))
    })
    .await?;
    others.finish().await?;
    let mail = scene.world.site.path().join("mail/other.test/bob");
    let mailbox = testkit::maildir::Maildir::at(mail);
    let balance = wait_for_balance(&scene.ledger, &mailbox, &scene.world.mailbox("dave"), SETTLED).await?;
    let deaths = scene.sink.transactions();
    Ok(Outcome { note: format!("held after {deaths} deaths"), ..(balance, Duration::ZERO).into() })
}

/// Two thousand messages wait for a peer that answers nothing; the mail of others keeps its pace.
pub async fn one_peer_crawls() -> Result<Outcome> {
    const OTHERS: usize = 600;
    let scene = Scene::new("60s").await?;
    let mut rates = Vec::new();
    let mut outcome = Outcome::default();
    for user in ["before", "beside"] {
        let ledger = Arc::new(Ledger::new());
        let begun = Instant::now();
        scene.load(&at("dave", PLAIN), &at(user, "other.test"), OTHERS).start(&ledger).finish().await?;
        let mail = scene.world.site.path().join("mail/other.test").join(user);
        let mailbox = testkit::maildir::Maildir::at(mail);
        let balance = wait_for_balance(&ledger, &mailbox, &scene.world.mailbox("dave"), SETTLED).await?;
        rates.push(OTHERS as f64 / begun.elapsed().as_secs_f64());
        outcome = (balance, Duration::ZERO).into();
        if user == "before" {
            scene.sink.delay(Verb::Dot, Duration::from_secs(600));
            let crawl = scene.load(&at("dave", PLAIN), &at("alice", HOSTED), 2000);
            crawl.start(&Arc::new(Ledger::new())).finish().await?;
        }
    }
    let kept = rates[1] / rates[0] * 100.0;
    outcome.note = format!("others at {kept:.0} % of {:.0} a second", rates[0]);
    ensure!(kept >= 80.0, "{outcome}");
    Ok(outcome)
}

/// The peer refuses for good, and the sender to be told does not exist. No loop, nothing is left.
pub async fn bounce_to_nowhere() -> Result<Outcome> {
    let scene = Scene::new("60s").await?;
    scene.sink.reply(Verb::Dot, "550 5.7.1 not wanted");
    let sent = Arc::new(Ledger::new());
    scene.load(&at("nobody", DEAD), &at("alice", HOSTED), FEW).start(&sent).finish().await?;
    let delivery = &scene.cluster.rows[0].delivery.1;
    let account = wait::until("the queue to be empty", SETTLED, async || {
        let account = delivery.get("/api/v1/queue/account").await.ok()?.1;
        account.contains("\"queued\":0").then_some(account)
    })
    .await?;
    let accepted = sent.balance().accepted;
    let entries: u64 = serde_json::from_str::<serde_json::Value>(&account)?["accepted"].as_u64().unwrap_or(0);
    // Each message, and the bounce about it, and no bounce about that.
    ensure!(entries == 2 * accepted as u64, "{account}");
    let note = format!("{entries} entries in all: each message and its bounce");
    Ok(Outcome { accepted, note, ..Outcome::default() })
}
