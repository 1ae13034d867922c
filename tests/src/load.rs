//! A sending MTA in small: many messages over many sessions, each tried again until it is taken.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::corpus::{self, Message};
use testkit::ledger::{Balance, Ledger};
use testkit::maildir::Maildir;
use testkit::smtp::Client;
use testkit::wait;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// How long one reply may take before the client gives the connection up and tries again.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause before a message is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// What to send, and where.
#[derive(Clone, Debug)]
pub struct Load {
    /// Servers tried in turn.
    pub targets: Vec<SocketAddr>,
    /// The reverse-path.
    pub from: String,
    /// The one recipient of every message.
    pub to: String,
    /// How many messages.
    pub messages: usize,
    /// The number of the first, where others were sent before.
    pub first: usize,
    /// How many sessions at a time.
    pub sessions: usize,
    /// All messages have to be taken within this.
    pub limit: Duration,
}

/// What the servers have answered besides `250`.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Refusals for now, by their codes (`451 4.3.0`).
    pub deferred: BTreeMap<String, usize>,
    /// The longest time that a transaction took until its answer, or until its connection was lost.
    pub slowest: Duration,
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codes: Vec<String> =
            self.deferred.iter().map(|(code, count)| format!("{count} × {code}")).collect();
        let codes = if codes.is_empty() { "no refusals".to_owned() } else { codes.join(", ") };
        write!(f, "{codes}; slowest answer {:.1} s", self.slowest.as_secs_f64())
    }
}

/// A load on its way.
pub struct Running {
    accepted: Arc<AtomicUsize>,
    answers: Arc<Mutex<Answers>>,
    sessions: JoinSet<Result<()>>,
}

impl Load {
    /// 500 messages over 20 sessions.
    pub fn of_500(targets: &[SocketAddr], from: &str, to: &str) -> Self {
        let limit = Duration::from_secs(180);
        Self {
            targets: targets.to_vec(),
            from: from.to_owned(),
            to: to.to_owned(),
            messages: 500,
            first: 0,
            sessions: 20,
            limit,
        }
    }

    /// Starts sending.
    pub fn start(self, ledger: &Arc<Ledger>) -> Running {
        let accepted = Arc::new(AtomicUsize::new(0));
        let answers = Arc::new(Mutex::new(Answers::default()));
        let next = Arc::new(AtomicUsize::new(0));
        let deadline = Instant::now() + self.limit;
        let mut sessions = JoinSet::new();
        for number in 0..self.sessions {
            let sender = Sender {
                load: self.clone(),
                ledger: ledger.clone(),
                next: next.clone(),
                accepted: accepted.clone(),
                answers: answers.clone(),
                target: number,
                deadline,
            };
            sessions.spawn(sender.run());
        }
        Running { accepted, answers, sessions }
    }
}

impl Running {
    /// How many messages were answered `250` so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// What the servers have answered so far.
    pub fn answers(&self) -> Answers {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now until `count` messages were answered `250`: the longest time in which none was.
    pub fn longest_stall(&self, count: usize) -> JoinHandle<Duration> {
        let accepted = Arc::clone(&self.accepted);
        tokio::spawn(async move {
            let (mut longest, mut seen, mut since) = (Duration::ZERO, 0, Instant::now());
            while seen < count {
                let now = accepted.load(Ordering::Relaxed);
                longest = longest.max(since.elapsed());
                if now > seen {
                    (seen, since) = (now, Instant::now());
                }
                sleep(Duration::from_millis(10)).await;
            }
            longest
        })
    }

    /// Waits until this many messages were answered `250`: the middle of the load.
    pub async fn wait_until_accepted(&self, count: usize) -> Result<()> {
        let what = format!("{count} messages to be taken");
        wait::until_true(&what, Duration::from_secs(120), async || self.accepted() >= count).await
    }

    /// Waits until all messages were answered `250`; gives what else was answered.
    pub async fn finish(mut self) -> Result<Answers> {
        while let Some(session) = self.sessions.join_next().await {
            session??;
        }
        Ok(self.answers())
    }
}

/// One session after another, from one task.
struct Sender {
    load: Load,
    ledger: Arc<Ledger>,
    next: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    answers: Arc<Mutex<Answers>>,
    target: usize,
    deadline: Instant,
}

impl Sender {
    async fn run(mut self) -> Result<()> {
        let mut connection = None;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.load.messages {
                return Ok(());
            }
            let id = format!("load-{:05}", self.load.first + number);
            let message = Message::new(&self.load.from, &self.load.to, &id).text();
            self.ledger.sent(&id);
            self.insist(&mut connection, &id, &message).await?;
            self.ledger.accepted(&id);
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tries one message until it is taken, at the next server after each failure.
    async fn insist(&mut self, connection: &mut Option<Client>, id: &str, message: &str) -> Result<()> {
        loop {
            let begun = Instant::now();
            let attempt = self.attempt(connection, message).await;
            self.note(attempt.as_ref().ok(), begun.elapsed());
            match attempt {
                Ok(reply) if reply.code == 250 => return Ok(()),
                Ok(reply) => ensure!(reply.is_temporary(), "{id} was refused for good: {reply}"),
                // A broken connection says nothing about the message.
                Err(_) => {}
            }
            *connection = None;
            ensure!(Instant::now() < self.deadline, "{id} was not taken within {:?}", self.load.limit);
            self.target += 1;
            sleep(PAUSE).await;
        }
    }

    fn note(&self, reply: Option<&testkit::smtp::Reply>, took: Duration) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.slowest = answers.slowest.max(took);
        if let Some(reply) = reply.filter(|reply| reply.code != 250) {
            let text = reply.lines.first().map(String::as_str).unwrap_or_default();
            let enhanced = text.split(' ').next().unwrap_or_default();
            *answers.deferred.entry(format!("{} {enhanced}", reply.code)).or_default() += 1;
        }
    }

    async fn attempt(&self, connection: &mut Option<Client>, message: &str) -> Result<testkit::smtp::Reply> {
        let client = match connection {
            Some(client) => client,
            None => {
                let target = self.load.targets[self.target % self.load.targets.len()];
                let mut client = Client::connect(target).await?.patience(PATIENCE);
                client.expect(250, "EHLO load.test").await?;
                connection.insert(client)
            }
        };
        client.transaction(&self.load.from, &[&self.load.to], message).await
    }
}

/// Waits until the ledger balances with what arrives in `mailbox` and the bounces in `bounces`.
pub async fn wait_for_balance(
    ledger: &Ledger,
    mailbox: &Maildir,
    bounces: &Maildir,
    limit: Duration,
) -> Result<Balance> {
    wait_for_balance_of(ledger, &[mailbox], bounces, limit).await
}

/// The same for several mailboxes together.
pub async fn wait_for_balance_of(
    ledger: &Ledger,
    mailboxes: &[&Maildir],
    bounces: &Maildir,
    limit: Duration,
) -> Result<Balance> {
    let mut arrivals: Vec<Collector> = mailboxes.iter().map(|mailbox| Collector::new(mailbox)).collect();
    let mut returns = Collector::new(bounces);
    let deadline = Instant::now() + limit;
    loop {
        for arrivals in &mut arrivals {
            arrivals.collect(|id| ledger.arrived(id))?;
        }
        returns.collect(|id| ledger.bounced(id))?;
        let balance = ledger.balance();
        if balance.is_even() {
            return Ok(balance);
        }
        ensure!(Instant::now() < deadline, "the ledger does not balance after {limit:?}: {balance}");
        sleep(PAUSE).await;
    }
}

/// The balance with what has arrived by now.
pub fn collect(ledger: &Ledger, mailbox: &Maildir, bounces: &Maildir) -> Result<Balance> {
    Collector::new(mailbox).collect(|id| ledger.arrived(id))?;
    Collector::new(bounces).collect(|id| ledger.bounced(id))?;
    Ok(ledger.balance())
}

/// Reads each message of a mailbox once.
struct Collector {
    folder: PathBuf,
    seen: HashSet<PathBuf>,
}

impl Collector {
    fn new(mailbox: &Maildir) -> Self {
        Self { folder: mailbox.path().join("new"), seen: HashSet::new() }
    }

    fn collect(&mut self, mut found: impl FnMut(&str)) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Ok(()) };
        for entry in entries {
            let path = entry?.path();
            if self.seen.insert(path.clone())
                && let Some(id) = corpus::id_of(&String::from_utf8_lossy(&std::fs::read(&path)?))
            {
                found(id);
            }
        }
        Ok(())
    }
}
