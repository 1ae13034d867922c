//! What workers, edges and operators ask of the queue: drawn from the seed, by those who know no more than they were
//! told.

use std::fmt;
use std::time::Duration;

use message::QueueId;
use queue::{Allowance, Closing, EntryId, Lease, Leased, NextHop, Policy, Pool, Scope, Target, Tenant, Verb};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

const HOPS: [&str; 4] = ["mx:a", "mx:b", "mx:c", "local:d"];
const TENANTS: [&str; 3] = ["", "a.example", "b.example"];
/// Leases and messages that are still thought of.
const REMEMBERED: usize = 10;

/// A message to accept.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) id: QueueId,
    /// Tenant and next hop of each entry.
    pub(crate) places: Vec<(&'static str, &'static str)>,
    /// Milliseconds.
    pub(crate) max_age: u64,
    /// Its content has a part that is staged.
    pub(crate) long: bool,
}

/// What became of an attempt.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Done { closing: Closing, bounce: Option<Message> },
    Retry { after: u64, halfway: bool },
}

/// One thing that somebody does. Times are in milliseconds.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Stage(QueueId),
    Accept { message: Message, lease: Option<(usize, u64)> },
    Lease { max: usize, duration: u64, except: Vec<String> },
    Renew { lease: Lease, duration: u64 },
    Doubt { lease: Lease, peer: String },
    HandBack(Lease),
    Settle { leased: Box<Leased>, outcome: Outcome },
    Operate { target: Target, verb: Verb },
    Suspend(Scope),
    Resume(Scope),
    SetPolicy(Policy),
    Wait(u64),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settle { leased, outcome } => write!(f, "Settle {:?} {outcome:?}", leased.lease),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Draws steps.
pub(crate) struct Workload {
    pub(crate) random: StdRng,
    /// Suspensions and rates are among the steps.
    limits: bool,
    /// Messages handed in.
    pub(crate) messages: Vec<Message>,
    /// Messages whose part is staged.
    staged: Vec<QueueId>,
    /// Leases that were told of; most are stale.
    pub(crate) leases: Vec<Leased>,
}

impl Workload {
    pub(crate) fn new(random: StdRng, limits: bool) -> Self {
        Self { random, limits, messages: Vec::new(), staged: Vec::new(), leases: Vec::new() }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    fn chance(&mut self, of: f64) -> bool {
        self.random.random_bool(of)
    }

    fn id(&mut self) -> QueueId {
        // All of one moment: the simulation has one shard, and its own time.
        let base = "00000000000000000000000000".parse::<QueueId>().unwrap_or_else(|_| QueueId::generate());
        base.with_random(u128::from(self.random.next_u64()))
    }

    fn message(&mut self) -> Message {
        let long = self.chance(0.1);
        let id = match self.staged.pop() {
            Some(id) if long => id,
            _ => self.id(),
        };
        let count = 1 + self.below(3);
        let places =
            (0..count).map(|_| (TENANTS[self.below(TENANTS.len())], HOPS[self.below(HOPS.len())])).collect();
        Message { id, places, max_age: 1000 * self.random.random_range(60..600), long }
    }

    fn some_message(&mut self) -> Option<Message> {
        let count = self.messages.len();
        (count > 0).then(|| {
            let late = self.below(count.min(REMEMBERED));
            self.messages[count - 1 - late].clone()
        })
    }

    fn some_lease(&mut self) -> Option<Leased> {
        let count = self.leases.len();
        (count > 0).then(|| {
            let late = self.below(count.min(REMEMBERED));
            self.leases[count - 1 - late].clone()
        })
    }

    fn some_scope(&mut self) -> Scope {
        match self.chance(0.5) {
            true => Scope::NextHop(HOPS[self.below(HOPS.len())].to_owned()),
            false => Scope::Tenant(TENANTS[self.below(TENANTS.len())].to_owned()),
        }
    }

    /// The next step.
    pub(crate) fn step(&mut self) -> Step {
        let most = if self.limits { 24 } else { 21 };
        match self.below(most) {
            0..=3 => self.accept(),
            4..=8 => {
                let except: Vec<&str> =
                    HOPS.iter().copied().filter(|_| self.random.random_bool(0.15)).collect();
                Step::Lease {
                    max: self.below(6),
                    duration: 100 * self.random.random_range(1..40),
                    except: except.into_iter().map(str::to_owned).collect(),
                }
            }
            9..=14 => self.work(),
            15..=17 => self.operate(),
            18..=20 => Step::Wait(self.random.random_range(0..3000)),
            21 => Step::Suspend(self.some_scope()),
            22 => Step::Resume(self.some_scope()),
            _ => self.policy(),
        }
    }

    fn accept(&mut self) -> Step {
        if self.chance(0.1) {
            let id = self.id();
            self.staged.push(id);
            return Step::Stage(id);
        }
        let again = if self.chance(0.15) { self.some_message() } else { None };
        let message = again.unwrap_or_else(|| self.message());
        self.messages.push(message.clone());
        let lease = (self.random.random_bool(0.3))
            .then(|| (1 + self.below(3), 100 * self.random.random_range(1..40)));
        Step::Accept { message, lease }
    }

    fn work(&mut self) -> Step {
        let Some(leased) = self.some_lease() else { return self.accept() };
        let lease = leased.lease;
        match self.below(8) {
            0 => Step::Renew { lease, duration: 100 * self.random.random_range(1..40) },
            1 => Step::Doubt { lease, peer: format!("mx{}.example", self.below(3)) },
            2 => Step::HandBack(lease),
            3 | 4 => {
                let outcome = Outcome::Retry {
                    after: 1 + self.random.random_range(0..3000),
                    halfway: self.chance(0.3),
                };
                Step::Settle { leased: Box::new(leased), outcome }
            }
            _ => {
                let closing = [Closing::Delivered, Closing::Bounced, Closing::Expired][self.below(3)];
                let bounce = (closing != Closing::Delivered).then(|| {
                    let id = leased.message.id.with_random(u128::from(self.random.next_u64()));
                    Message { id, places: vec![("", "local:d")], max_age: 60_000, long: false }
                });
                self.messages.extend(bounce.clone());
                Step::Settle { leased: Box::new(leased), outcome: Outcome::Done { closing, bounce } }
            }
        }
    }

    fn operate(&mut self) -> Step {
        let Some(message) = self.some_message() else { return self.accept() };
        let target = match self.chance(0.5) {
            true => Target::Message(message.id),
            false => Target::Entry(EntryId { message: message.id, number: self.random.random_range(0..3) }),
        };
        let why = "simulated".to_owned();
        let verb = match self.below(8) {
            0 | 1 => Verb::RetryNow,
            2 | 3 => Verb::Hold { why },
            4 | 5 => Verb::Release,
            6 => Verb::Bounce { why },
            _ => Verb::Remove,
        };
        Step::Operate { target, verb }
    }

    fn policy(&mut self) -> Step {
        let mut policy = Policy::default();
        let rate = [None, Some(30), Some(120), Some(6000)][self.below(4)];
        if let Some(per_minute) = rate {
            let allowance =
                Allowance { weight: 1 + self.random.random_range(0..5), per_minute: Some(per_minute) };
            match self.some_scope() {
                Scope::Tenant(name) => drop(policy.tenants.insert(Tenant(name), allowance)),
                Scope::NextHop(name) => drop(policy.next_hops.insert(NextHop(name), allowance)),
                Scope::Pool(name) => drop(policy.pools.insert(Pool(name), allowance)),
            }
        }
        Step::SetPolicy(policy)
    }
}

/// So many milliseconds.
pub(crate) fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
