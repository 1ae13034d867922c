//! A steady load, and the balance of what became of it.
//!
//! Every message comes by a connection of its own through the Service, and is tried until it is taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::corpus::{self, Message};
use testkit::smtp::{Client, Sink};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, sleep, sleep_until};

/// Who gets the load.
pub(crate) const RECIPIENT: &str = "alice@load.test";
const SENDER: &str = "dave@friend.test";
/// Messages a second.
const RATE: u64 = 50;
/// The load goes on for at least so long.
const AT_LEAST: Duration = Duration::from_secs(8);
/// Everything has arrived within this: leases have to end first.
const SETTLED: Duration = Duration::from_secs(120);
/// Refusals, and messages in doubt, of which one reads how they came about.
const TROUBLES_TOLD: usize = 20;

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
    /// Times that the answer to a whole message did not come: the client had to send it again.
    pub(crate) in_doubt: usize,
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
}

struct Counts {
    begun: Instant,
    sent: AtomicUsize,
    refused: AtomicUsize,
    in_doubt: AtomicUsize,
    stop: AtomicBool,
    /// When, and how, connections were refused and answers did not come: the first few.
    troubles: Mutex<Vec<String>>,
}

impl Counts {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            sent: AtomicUsize::default(),
            refused: AtomicUsize::default(),
            in_doubt: AtomicUsize::default(),
            stop: AtomicBool::default(),
            troubles: Mutex::default(),
        }
    }

    fn tell(&self, what: &str, error: &anyhow::Error) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.len() < TROUBLES_TOLD {
            troubles.push(format!("{what} after {:.1} s: {error:#}", self.begun.elapsed().as_secs_f32()));
        }
    }
}

/// A load on its way.
pub(crate) struct Load {
    event: &'static str,
    counts: Arc<Counts>,
    sender: JoinHandle<Result<Vec<String>>>,
}

impl Load {
    /// Starts to send to this address.
    pub(crate) fn start(event: &'static str, address: SocketAddr) -> Self {
        let counts = Arc::new(Counts::new());
        let sender = tokio::spawn(send(event, address, counts.clone()));
        Self { event, counts, sender }
    }

    /// Stops it, and waits until all that was taken has arrived, or will not.
    pub(crate) async fn balance(self, store: &Sink) -> Result<Balance> {
        sleep_until(self.counts.begun + AT_LEAST).await;
        self.counts.stop.store(true, Ordering::Relaxed);
        let taken = self.sender.await??;
        for trouble in self.counts.troubles.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            println!("cluster: {}: {trouble}", self.event);
        }
        let deadline = Instant::now() + SETTLED;
        loop {
            let arrived = arrivals(store, self.event);
            let delivered = taken.iter().filter(|id| arrived.contains_key(*id)).count();
            if delivered == taken.len() || Instant::now() >= deadline {
                return Ok(Balance {
                    sent: taken.len(),
                    delivered,
                    lost: taken.len() - delivered,
                    doubled: arrived.values().map(|copies| copies - 1).sum(),
                    refused: self.counts.refused.load(Ordering::Relaxed),
                    in_doubt: self.counts.in_doubt.load(Ordering::Relaxed),
                });
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The ids of this event at the mail store, with the number of copies.
fn arrivals(store: &Sink, event: &str) -> HashMap<String, usize> {
    let mut arrived = HashMap::new();
    for received in store.received() {
        if let Some(id) = corpus::id_of(&received.message).filter(|id| id.starts_with(&format!("{event}:"))) {
            *arrived.entry(id.to_owned()).or_default() += 1;
        }
    }
    arrived
}

/// Sends at the rate until told to stop, then waits until everything begun is taken: these ids.
async fn send(event: &'static str, address: SocketAddr, counts: Arc<Counts>) -> Result<Vec<String>> {
    let mut ticks = interval(Duration::from_millis(1000 / RATE));
    let (mut under_way, mut taken) = (JoinSet::new(), Vec::new());
    while !counts.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let id = format!("{event}:{:05}", counts.sent.fetch_add(1, Ordering::Relaxed));
        under_way.spawn(insist(address, id, counts.clone()));
        while let Some(ended) = under_way.try_join_next() {
            taken.push(ended??);
        }
    }
    while let Some(ended) = under_way.join_next().await {
        taken.push(ended??);
    }
    Ok(taken)
}

/// Tries one message until it is taken.
async fn insist(address: SocketAddr, id: String, counts: Arc<Counts>) -> Result<String> {
    let message = Message::new(SENDER, RECIPIENT, &id).text();
    let deadline = Instant::now() + SETTLED;
    loop {
        match Client::connect(address).await {
            Err(error) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                counts.tell("refused", &error);
            }
            Ok(client) => match attempt(client, &message, &counts).await {
                Ok(250) => return Ok(id),
                Ok(code) => ensure!(code < 500, "{id} was refused for good: {code}"),
                // A broken connection says nothing about the message.
                Err(_) => {}
            },
        }
        ensure!(Instant::now() < deadline, "{id} was not taken within {SETTLED:?}");
        sleep(Duration::from_millis(200)).await;
    }
}

async fn attempt(client: Client, message: &str, counts: &Counts) -> Result<u16> {
    let mut client = client.patience(Duration::from_secs(20));
    client.expect(250, "EHLO mail.friend.test").await?;
    client.expect(250, &format!("MAIL FROM:<{SENDER}>")).await?;
    let reply = client.command(&format!("RCPT TO:<{RECIPIENT}>")).await?;
    if reply.code != 250 {
        return Ok(reply.code);
    }
    let reply = client.command("DATA").await?;
    if reply.code != 354 {
        return Ok(reply.code);
    }
    let reply = client.content(message).await;
    let reply = reply.inspect_err(|error| {
        counts.in_doubt.fetch_add(1, Ordering::Relaxed);
        counts.tell("in doubt", error);
    })?;
    if reply.code == 250 {
        client.send_raw(b"QUIT\r\n").await.ok();
    }
    Ok(reply.code)
}
