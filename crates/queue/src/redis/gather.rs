//! Changes that came while a call was on its way go together in the next: group commit.
//!
//! A server that is not part of a Cluster takes the changes of all its shards in one call; a Cluster takes those
//! of one shard. A change that comes when nothing is on its way goes at once, alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use message::QueueId;
use redis::{Arg, Cmd, ErrorKind, FromRedisValue, RedisError, Value};
use tokio::sync::{Semaphore, oneshot};

use super::client::{Client, failed};
use super::layout::MOST_SHARDS;
use super::replicas::{Holding, Lent};
use crate::QueueError;

/// Changes of one lane that wait to be sent at most; more wait in their callers.
const MOST_WAITING: usize = 4096;

/// A change, as `change.lua` reads it; arguments are added to it.
pub(super) struct Change {
    pub(super) shard: usize,
    pub(super) kind: &'static str,
    pub(super) arguments: Cmd,
    /// Whether it counts only once enough replicas have it.
    pub(super) replicated: bool,
    /// What is to be taken back where nobody hears that it was made.
    pub(super) message: Option<QueueId>,
}

impl Change {
    pub(super) fn new(shard: usize, kind: &'static str) -> Self {
        Self { shard, kind, arguments: Cmd::with_capacity(16, 1024), replicated: false, message: None }
    }

    fn octets(&self) -> usize {
        self.arguments
            .args_iter()
            .map(|arg| if let Arg::Simple(octets) = arg { octets.len() } else { 0 })
            .sum()
    }
}

type Answer = Result<(Value, Holding), RedisError>;

struct Waiting {
    change: Change,
    octets: usize,
    answer: oneshot::Sender<Answer>,
}

/// What may go together.
struct Lane {
    state: Mutex<State>,
    room: Semaphore,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    calls: usize,
}

/// How much goes together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) changes: usize,
    pub(super) octets: usize,
    pub(super) calls: usize,
}

/// The lanes of a server or a Cluster.
pub(super) struct Gathering {
    lanes: Vec<Lane>,
    by_shard: bool,
    limits: Limits,
}

impl Gathering {
    pub(super) fn new(by_shard: bool, limits: Limits) -> Self {
        let shards = if by_shard { MOST_SHARDS } else { 1 };
        let lane = || Lane { state: Mutex::default(), room: Semaphore::new(MOST_WAITING) };
        // What has to be on replicas waits for them, and nothing else should.
        Self { lanes: (0..2 * shards).map(|_| lane()).collect(), by_shard, limits }
    }

    fn place(&self, change: &Change) -> usize {
        let shard = if self.by_shard { change.shard } else { 0 };
        2 * shard + usize::from(change.replicated)
    }
}

/// Whether the changes of a lane count only once enough replicas have them.
fn waits_for_replicas(place: usize) -> bool {
    place % 2 == 1
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when a call has to be made for it.
    fn push(&self, waiting: Waiting, limits: &Limits) -> bool {
        let mut state = self.state();
        state.waiting.push_back(waiting);
        let calls = state.calls < limits.calls;
        state.calls += usize::from(calls);
        calls
    }

    /// What goes next; the call is over when that is nothing.
    fn take(&self, limits: &Limits) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        let (mut batch, mut octets) = (Vec::new(), 0);
        while let Some(next) = state.waiting.front() {
            // Who asked has given up: it is told nothing, and nothing is done.
            if next.answer.is_closed() {
                state.waiting.pop_front();
                continue;
            }
            let full = batch.len() >= limits.changes || octets + next.octets > limits.octets;
            if full && !batch.is_empty() {
                break;
            }
            octets += next.octets;
            batch.extend(state.waiting.pop_front());
        }
        if batch.is_empty() {
            state.calls -= 1;
            return None;
        }
        Some(batch)
    }
}

impl Client {
    /// Makes a change, together with others that come at the same time. The second part of the answer says
    /// whether enough replicas have it, where that was asked for; the first has happened either way.
    pub(super) async fn change<T: FromRedisValue>(
        self: &Arc<Self>,
        doing: &str,
        mut change: Change,
    ) -> Result<(T, Result<(), QueueError>), QueueError> {
        change.replicated &= self.replicas.wanted() > 0;
        let place = self.gathering.place(&change);
        let work = async {
            let lane = &self.gathering.lanes[place];
            let _room = lane.room.acquire().await;
            let (answer, answered) = oneshot::channel();
            let octets = change.octets();
            if lane.push(Waiting { change, octets, answer }, &self.gathering.limits) {
                tokio::spawn(Arc::clone(self).send_gathered(place));
            }
            answered.await.unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "the call was dropped"))))
        };
        let (value, holding) = self.within(doing, work).await?;
        let parsed = refused(value).and_then(|value| Ok(T::from_redis_value(value)?));
        let answer = parsed.map_err(|error| failed(self.doing(doing), error))?;
        let replicated = match holding {
            Holding::Enough => Ok(()),
            Holding::TooFew(cause) => {
                Err(QueueError::Unavailable { doing: self.doing(doing), cause: cause.into() })
            }
            Holding::Unknown(error) => Err(failed(self.doing(doing), error)),
        };
        Ok((answer, replicated))
    }

    /// Sends what waits in a lane, call after call, until nothing does.
    async fn send_gathered(self: Arc<Self>, place: usize) {
        let lane = &self.gathering.lanes[place];
        loop {
            // Before anything is taken: what its caller gives up meanwhile is not sent.
            let lent = if waits_for_replicas(place) { Some(self.replicas.borrow().await) } else { None };
            let Some(mut batch) = lane.take(&self.gathering.limits) else { break };
            batch.sort_by_key(|waiting| waiting.change.shard);
            let started = tokio::time::Instant::now();
            let told = self.send(&batch, lent).await;
            metrics::histogram!("packetboat_queue_commit_seconds").record(started.elapsed().as_secs_f64());
            metrics::histogram!("packetboat_queue_commit_changes").record(batch.len() as f64);
            self.tell(batch, told);
            // Those who were told come first: what they ask for next goes along.
            tokio::task::yield_now().await;
        }
    }

    /// Tells what came of a batch. A message that nobody is going to answer for is taken back.
    fn tell(&self, batch: Vec<Waiting>, told: Result<(Vec<Value>, Holding), RedisError>) {
        match told {
            Ok((answers, holding)) => {
                for (Waiting { change, answer, .. }, value) in batch.into_iter().zip(answers) {
                    let heard = answer.send(Ok((value, holding.clone())));
                    if let (Err(_), Some(id)) = (heard, change.message) {
                        self.withdrawals.push(id);
                    }
                }
            }
            Err(error) => {
                for Waiting { change, answer, .. } in batch {
                    let _ = answer.send(Err(error.clone()));
                    change.message.into_iter().for_each(|id| self.withdrawals.push(id));
                }
            }
        }
    }

    async fn send(
        &self,
        batch: &[Waiting],
        lent: Option<Lent<'_>>,
    ) -> Result<(Vec<Value>, Holding), RedisError> {
        let call = self.gathered(batch);
        let limit = tokio::time::timeout(self.patience, self.evaluate(&call, lent));
        let late = |_| RedisError::from((ErrorKind::Io, "the server did not answer in time"));
        let (answers, holding) = limit.await.map_err(late)??;
        let answers = Vec::<Value>::from_redis_value(answers)?;
        if answers.len() != batch.len() {
            return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "not each change was answered")));
        }
        Ok((answers, holding))
    }

    /// The call that makes the changes of a batch.
    fn gathered(&self, batch: &[Waiting]) -> Cmd {
        let mut shards: Vec<usize> = batch.iter().map(|waiting| waiting.change.shard).collect();
        shards.dedup();
        let octets: usize = batch.iter().map(|waiting| waiting.octets + 16).sum();
        let mut call = Cmd::with_capacity(16 * batch.len(), octets + 64 * shards.len() + 64);
        call.arg("EVALSHA").arg(self.changing().get_hash()).arg(shards.len());
        for shard in &shards {
            call.arg(self.tag(*shard));
        }
        let mut at = 0;
        for Waiting { change, .. } in batch {
            at += usize::from(shards.get(at) != Some(&change.shard));
            let arguments = change.arguments.args_iter();
            call.arg(at + 1).arg(change.kind).arg(arguments.len());
            for argument in arguments {
                if let Arg::Simple(octets) = argument {
                    call.arg(octets);
                }
            }
        }
        call
    }
}

/// A change that failed by itself says so in its answer.
fn refused(answer: Value) -> Result<Value, RedisError> {
    match answer {
        Value::Array(parts) if matches!(parts.first(), Some(Value::Int(-2))) => {
            let why = parts.into_iter().nth(1).map(String::from_redis_value).transpose()?.unwrap_or_default();
            Err(RedisError::from((ErrorKind::Extension, "the change was refused", why)))
        }
        answer => Ok(answer),
    }
}
