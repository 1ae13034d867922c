//! Mail that comes in steadily, of which every message is to be taken at the first try.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::corpus::Message;
use testkit::smtp::Client;
use testkit::wait;
use tokio::task::JoinSet;

/// How long it may take until another some hundred messages are taken, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// The sessions that send.
pub struct Steady {
    taken: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    sessions: JoinSet<Result<()>>,
    count: usize,
}

impl Steady {
    /// Begins to send, over so many sessions, one message after the other.
    pub fn start(target: SocketAddr, from: &str, to: &str, count: usize) -> Self {
        let (taken, stop) = (Arc::default(), Arc::default());
        let mut sessions = JoinSet::new();
        for number in 0..count {
            let session = Session {
                from: from.to_owned(),
                to: to.to_owned(),
                number,
                taken: Arc::clone(&taken),
                stop: Arc::clone(&stop),
            };
            sessions.spawn(session.run(target));
        }
        Self { taken, stop, sessions, count }
    }

    /// Waits until so many more messages are taken.
    ///
    /// # Errors
    /// With the first answer that was not 250.
    pub async fn go_on(&mut self, messages: usize) -> Result<()> {
        let mark = self.taken.load(Ordering::Relaxed) + messages;
        let sessions = &self.sessions;
        let reached = async || self.taken.load(Ordering::Relaxed) >= mark || sessions.len() < self.count;
        wait::until_true("mail to go on", PATIENCE, reached).await?;
        self.check()
    }

    /// Whether everything was taken so far.
    ///
    /// # Errors
    /// With the first answer that was not 250.
    pub fn check(&mut self) -> Result<()> {
        while let Some(ended) = self.sessions.try_join_next() {
            ended??;
        }
        ensure!(self.sessions.len() == self.count, "a session has ended");
        Ok(())
    }

    /// Stops sending; how many messages were taken.
    ///
    /// # Errors
    /// With the first answer that was not 250.
    pub async fn finish(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.sessions.join_next().await {
            ended??;
        }
        Ok(self.taken.load(Ordering::Relaxed))
    }
}

struct Session {
    from: String,
    to: String,
    number: usize,
    taken: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Session {
    async fn run(self, target: SocketAddr) -> Result<()> {
        let mut client = Client::connect(target).await?;
        client.expect(250, "EHLO steady.test").await?;
        for count in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let message =
                Message::new(&self.from, &self.to, &format!("steady-{}-{count}", self.number)).text();
            let reply = client.transaction(&self.from, &[&self.to], &message).await?;
            ensure!(reply.code == 250, "{reply}");
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
