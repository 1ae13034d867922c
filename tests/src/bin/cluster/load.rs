//! A steady load, and the balance of what became of it.
//!
//! Every message comes by a connection of its own through the Service, and is tried until it is taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result, bail};
use testkit::corpus::{self, Message};
use testkit::smtp::{Client, Reply, Sink};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::kube::Namespace;
use crate::queue;

/// Who gets the load.
pub(crate) const RECIPIENT: &str = "alice@load.test";
const SENDER: &str = "dave@friend.test";
/// Messages a second.
const RATE: u64 = 50;
/// The load goes on for at least so long.
const AT_LEAST: Duration = Duration::from_secs(8);
/// Everything has arrived within this, and the queue is empty: leases have to end first.
const SETTLED: Duration = Duration::from_secs(120);
/// Of so many troubles of a kind one reads how they came about.
const TROUBLES_TOLD: usize = 5;

/// Messages at the mail store, by their ids: how many copies of each.
pub(crate) type Arrivals = HashMap<String, usize>;

/// What became of the messages of an event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Balance {
    /// Messages sent, and in the end taken with `250`.
    pub(crate) sent: usize,
    /// Of these, those that arrived.
    pub(crate) delivered: usize,
    /// Of these, those that did not.
    pub(crate) lost: usize,
    /// Copies beyond the first.
    pub(crate) doubled: usize,
    /// Connections that were refused, or greeted with a refusal.
    pub(crate) refused: usize,
    /// Sessions in which the server, after a good greeting, said `4yz`.
    pub(crate) deferred: usize,
    /// Sessions that broke before the final dot.
    pub(crate) broken: usize,
    /// Times that the answer to a whole message did not come: the client had to send it again.
    pub(crate) in_doubt: usize,
    /// The most that one message came more often than its client was in doubt about it.
    pub(crate) repeated: usize,
    /// What was in the queue still when it should have been empty.
    pub(crate) queued: u64,
    /// Messages begun in a second.
    pub(crate) per_second: f64,
}

impl Balance {
    /// Prints the line of an event.
    pub(crate) fn print(&self, event: &str) {
        let Self { sent, delivered, lost, doubled, refused, .. } = self;
        println!(
            "cluster: {event} sent={sent} delivered={delivered} lost={lost} doubled={doubled} refused={refused}"
        );
    }

    /// That of single messages that have all arrived.
    pub(crate) fn of(messages: usize) -> Self {
        Self { sent: messages, delivered: messages, ..Self::default() }
    }

    /// What can be told of what was sent and what has arrived.
    fn weigh(sent: &Sent, arrived: &Arrivals) -> Self {
        let delivered = sent.doubts.keys().filter(|id| arrived.contains_key(*id)).count();
        let repeated = arrived
            .iter()
            .map(|(id, copies)| (copies - 1).saturating_sub(*sent.doubts.get(id).unwrap_or(&0)));
        Self {
            sent: sent.doubts.len(),
            delivered,
            lost: sent.doubts.len() - delivered,
            doubled: arrived.values().map(|copies| copies - 1).sum(),
            in_doubt: sent.doubts.values().sum(),
            repeated: repeated.max().unwrap_or_default(),
            per_second: sent.doubts.len() as f64 / sent.within.as_secs_f64(),
            ..Self::default()
        }
    }
}

/// What the sender has done.
struct Sent {
    /// The messages, all of them taken, and how many times each was in doubt before.
    doubts: HashMap<String, usize>,
    /// From the first one's beginning until no other was begun.
    within: Duration,
}

/// What happened on the way, counted as it happens.
struct Counts {
    begun: Instant,
    refused: AtomicUsize,
    deferred: AtomicUsize,
    broken: AtomicUsize,
    stop: AtomicBool,
    /// How sessions went wrong, and when: the first few of each kind.
    troubles: Mutex<Vec<(&'static str, String)>>,
}

impl Counts {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            refused: AtomicUsize::default(),
            deferred: AtomicUsize::default(),
            broken: AtomicUsize::default(),
            stop: AtomicBool::default(),
            troubles: Mutex::default(),
        }
    }

    fn tell(&self, what: &'static str, how: &str) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.iter().filter(|(kind, _)| *kind == what).count() < TROUBLES_TOLD {
            troubles.push((what, format!("after {:.1} s: {how}", self.begun.elapsed().as_secs_f32())));
        }
    }
}

/// A load on its way.
pub(crate) struct Load {
    event: &'static str,
    counts: Arc<Counts>,
    sender: JoinHandle<Result<Sent>>,
}

impl Load {
    /// Starts to send to this address.
    pub(crate) fn start(event: &'static str, address: SocketAddr) -> Self {
        let counts = Arc::new(Counts::new());
        let sender = tokio::spawn(send(event, address, counts.clone()));
        Self { event, counts, sender }
    }

    /// Stops it, and waits until all that was taken has arrived and the queue is empty, or will not be: the balance,
    /// and what it is drawn from.
    pub(crate) async fn balance(self, store: &Sink, queue: Namespace) -> Result<(Balance, Arrivals)> {
        sleep_until(self.counts.begun + AT_LEAST).await;
        self.counts.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.await??;
        for (what, how) in self.counts.troubles.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            println!("cluster: {}: {what} {how}", self.event);
        }
        let deadline = Instant::now() + SETTLED;
        loop {
            let late = Instant::now() >= deadline;
            // A pod that is about to end may not answer, and others do. Asked before the copies are counted: nothing
            // makes others once the queue is empty.
            let account = queue::account(queue).await;
            let arrived = arrivals(store, self.event);
            let balance = Balance {
                refused: self.counts.refused.load(Ordering::Relaxed),
                deferred: self.counts.deferred.load(Ordering::Relaxed),
                broken: self.counts.broken.load(Ordering::Relaxed),
                ..Balance::weigh(&sent, &arrived)
            };
            match account {
                Ok(account) if late || (account.queued == 0 && balance.lost == 0) => {
                    return Ok((Balance { queued: account.queued, ..balance }, arrived));
                }
                Err(error) if late => return Err(error.context("the queue does not answer")),
                _ => sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

/// The ids of this event at the mail store, with the number of copies.
pub(crate) fn arrivals(store: &Sink, event: &str) -> Arrivals {
    let mut arrived = HashMap::new();
    for received in store.received() {
        if let Some(id) = corpus::id_of(&received.message).filter(|id| id.starts_with(&format!("{event}:"))) {
            *arrived.entry(id.to_owned()).or_default() += 1;
        }
    }
    arrived
}

/// Sends at the rate until told to stop, then waits until everything begun is taken.
async fn send(event: &'static str, address: SocketAddr, counts: Arc<Counts>) -> Result<Sent> {
    let mut ticks = interval(Duration::from_millis(1000 / RATE));
    // What a slow moment has held up is made good: the rate is kept.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut under_way, mut doubts, mut number) = (JoinSet::new(), HashMap::new(), 0);
    let begun = Instant::now();
    while !counts.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        under_way.spawn(insist(address, format!("{event}:{number:05}"), counts.clone()));
        number += 1;
        while let Some(ended) = under_way.try_join_next() {
            doubts.extend([ended??]);
        }
    }
    let within = begun.elapsed();
    while let Some(ended) = under_way.join_next().await {
        doubts.extend([ended??]);
    }
    Ok(Sent { doubts, within })
}

/// Tries one message until it is taken: its id, and how many times it was in doubt before.
async fn insist(address: SocketAddr, id: String, counts: Arc<Counts>) -> Result<(String, usize)> {
    let message = Message::new(SENDER, RECIPIENT, &id).text();
    let deadline = Instant::now() + SETTLED;
    let mut doubts = 0;
    loop {
        let (count, what, how) = match attempt(address, &message).await {
            Attempt::Taken => return Ok((id, doubts)),
            Attempt::Answered(reply) if !reply.is_temporary() => bail!("{id} was refused for good: {reply}"),
            Attempt::Answered(reply) => (Some(&counts.deferred), "deferred", reply.to_string()),
            Attempt::Refused(error) => (Some(&counts.refused), "refused", format!("{error:#}")),
            Attempt::Broken(error) => (Some(&counts.broken), "broken", format!("{error:#}")),
            Attempt::InDoubt(error) => {
                doubts += 1;
                (None, "in doubt", format!("{error:#}"))
            }
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        counts.tell(what, &format!("{id}: {how}"));
        if Instant::now() >= deadline {
            bail!("{id} was not taken within {SETTLED:?}: {what}: {how}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// How one session ended.
enum Attempt {
    /// With `250` for the whole message.
    Taken,
    /// Without a connection, or a good greeting.
    Refused(Error),
    /// With another reply than the one that lets it go on.
    Answered(Reply),
    /// Before the final dot, which says nothing about the message.
    Broken(Error),
    /// After the final dot, without an answer.
    InDoubt(Error),
}

async fn attempt(address: SocketAddr, message: &str) -> Attempt {
    let mut client = match Client::connect(address).await {
        Ok(client) => client.patience(Duration::from_secs(20)),
        Err(error) => return Attempt::Refused(error),
    };
    let (sender, recipient) = (format!("MAIL FROM:<{SENDER}>"), format!("RCPT TO:<{RECIPIENT}>"));
    let steps = [("EHLO mail.friend.test", 250), (&sender, 250), (&recipient, 250), ("DATA", 354)];
    for (line, wanted) in steps {
        match client.command(line).await {
            Ok(reply) if reply.code == wanted => {}
            Ok(reply) => return Attempt::Answered(reply),
            Err(error) => return Attempt::Broken(error),
        }
    }
    match client.content(message).await {
        Ok(reply) if reply.code == 250 => {
            client.send_raw(b"QUIT\r\n").await.ok();
            Attempt::Taken
        }
        Ok(reply) => Attempt::Answered(reply),
        Err(error) => Attempt::InDoubt(error),
    }
}
