//! The Redis backend: a queue that many processes share.
//!
//! Every change is made by a Lua script on one shard, so it is atomic and costs one round trip; those that come
//! together share it. The keys and what each script moves are in `prelude.lua` and `docs/queue.md`. An answer means that the
//! server has written the change to its disk (`appendfsync always`, asked for at the start), and with
//! `replicas` that so many replicas have it, too.

mod client;
mod config;
mod durability;
mod gather;
mod index;
mod layout;
mod leasing;
mod link;
mod operators;
mod replicas;
mod rows;
mod withdraw;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::try_join_all;
use message::QueueId;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

pub use config::{Config, SentinelConfig, TlsConfig};

use self::client::{Call, Client};
use self::gather::Change;
use self::rows::Row;
use crate::spool::Index;
use crate::{
    Accepted, AuditPage, Closing, Depth, Entry, EntryId, EntryState, Events, Lease, LeaseRequest, Leased,
    Ledger, ListFilter, MessageRecord, NewMessage, Next, Page, Policy, Queue, QueueError, Scope, Settlement,
    Suspension, Target, Timestamp, Verb, VerbRecord,
};

/// The rights that the queue needs in the server, as lines of an `aclfile` to be completed with a password.
pub const USERS_ACL: &str = include_str!("users.acl");

/// How often other processes' changes are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A staged part that no accept names goes after this. Seconds.
const PART_EXPIRES: u64 = 3600;

/// The queue in a Redis server.
pub struct RedisQueue {
    client: Arc<Client>,
    /// Look after layout, durability, what is to be withdrawn and shards that are away, until the queue is dropped.
    _keepers: [AbortOnDropHandle<()>; 3],
    /// Something may have come to be due, by this process's doing.
    changed: Notify,
    /// The shard that is leased from first, next time.
    turn: AtomicUsize,
    wanted_shards: usize,
}

impl RedisQueue {
    /// Connects, and makes sure that the server keeps what it answers for. It is waited for until `startup_timeout`.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] when the server does not answer in time;
    /// [`QueueError::NotDurable`] when its settings do not meet the durability asked for.
    pub async fn connect(config: &Config) -> Result<Self, QueueError> {
        let client = Arc::new(Client::start(config).await?);
        let wanted_shards = config.wanted_shards();
        let keeper = tokio::spawn(keep(Arc::clone(&client), wanted_shards, config.require_durable));
        let withdrawing = tokio::spawn(withdraw::keep(Arc::clone(&client)));
        let looking = tokio::spawn(leasing::keep(Arc::clone(&client)));
        let _keepers = [keeper, withdrawing, looking].map(AbortOnDropHandle::new);
        Ok(Self { client, _keepers, changed: Notify::new(), turn: AtomicUsize::new(0), wanted_shards })
    }

    fn shards(&self) -> usize {
        self.client.layout.shards()
    }

    fn shard_of(&self, id: QueueId) -> usize {
        self.client.layout.shard_of(id)
    }

    /// Fails when nothing may be accepted now.
    async fn may_accept(&self) -> Result<(), QueueError> {
        if let Some(refusal) = self.client.durability.refusal() {
            return Err(refusal);
        }
        if self.client.layout.is_known() { Ok(()) } else { self.client.read_layout(self.wanted_shards).await }
    }

    async fn counts(&self) -> Result<Vec<Counts>, QueueError> {
        let ask = |shard| self.client.run("counting the queue", self.client.call(shard, Call::Depth));
        try_join_all((0..self.shards()).map(ask)).await
    }

    /// Takes back a message that too few replicas have. Its sender is told to send it again: if it stayed, it would
    /// be delivered twice, and if it were remembered, it would be taken for a copy.
    async fn withdraw(&self, id: QueueId) {
        match self.forget(id).await {
            Ok(()) => tracing::warn!(queue_id = %id, "too few replicas have the message, it is withdrawn"),
            Err(error) => {
                tracing::warn!(
                    queue_id = %id,
                    error = &error as &dyn std::error::Error,
                    "a message that too few replicas have cannot be withdrawn now, it is tried again"
                );
                self.client.withdrawals.push(id);
            }
        }
    }

    /// A change by who holds a lease.
    fn of_lease(&self, kind: &'static str, lease: &Lease) -> Change {
        let mut change = Change::new(self.shard_of(lease.entry.message), kind);
        change.arguments.arg(lease.entry.to_string()).arg(lease.epoch);
        change
    }
}

/// Reads the layout and the server's settings again and again.
async fn keep(client: Arc<Client>, shards: usize, require_durable: bool) {
    loop {
        sleep(layout::EVERY).await;
        for outcome in [client.read_layout(shards).await, client.require_durable(require_durable).await] {
            if let Err(error) = outcome {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "queue's server was looked at in vain"
                );
            }
        }
    }
}

/// What `depth.lua` gives.
type Counts = (u64, u64, u64, u64, (u64, u64, u64, u64, u64));

/// What a change by a lease's holder comes to.
fn holds(held: bool) -> Result<(), QueueError> {
    if held { Ok(()) } else { Err(QueueError::StaleLease) }
}

/// The column of the account.
fn column(closing: Closing) -> &'static str {
    match closing {
        Closing::Delivered => "delivered",
        Closing::Bounced => "bounced",
        Closing::Expired => "expired",
    }
}

/// Milliseconds, at least one.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 52)
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, QueueError> {
    serde_json::to_vec(value)
        .map_err(|cause| QueueError::Corrupt { what: "a record to write".to_owned(), cause: Box::new(cause) })
}

/// Adds a message to a call, as `admit` in `change.lua` reads it.
fn add_message(call: &mut redis::Cmd, message: &NewMessage) -> Result<(), QueueError> {
    call.arg(message.record.id.as_str()).arg(json(&message.record)?);
    call.arg(message.inline.to_bytes().as_ref()).arg(message.record.parts).arg(message.entries.len());
    for entry in &message.entries {
        call.arg(&entry.next_hop.0).arg(&entry.tenant.0);
        call.arg(json(&entry.recipients)?).arg(millis(entry.max_age));
    }
    Ok(())
}

/// The entries of a message that were accepted leased: those with a `1` in `leased`.
fn leased_at_birth(message: NewMessage, request: &LeaseRequest, leased: &str, now: Timestamp) -> Vec<Leased> {
    let NewMessage { mut record, inline, entries } = message;
    record.accepted_at = now;
    let record = Arc::new(record);
    let ends = now.after(request.duration);
    let started = entries.into_iter().zip(0..).zip(leased.bytes()).filter(|(_, leased)| *leased == b'1');
    let leased = started.map(|((new, number), _)| {
        let id = EntryId { message: record.id, number };
        let entry = Entry {
            id,
            next_hop: new.next_hop,
            tenant: new.tenant,
            recipients: new.recipients,
            state: EntryState::Leased,
            epoch: 1,
            attempts: 0,
            due: ends,
            expires: now.after(new.max_age),
            last_error: None,
            worker: Some(request.worker.clone()),
            held: None,
            doomed: None,
            doubt: None,
        };
        let lease = Lease { entry: id, epoch: 1 };
        Leased { lease, entry, message: Arc::clone(&record), inline: Some(inline.clone()), now }
    });
    leased.collect()
}

#[async_trait]
impl Queue for RedisQueue {
    async fn stage(&self, id: QueueId, number: u32, octets: Bytes) -> Result<(), QueueError> {
        let key = self.client.key(self.shard_of(id), &format!("p:{id}:{number}"));
        let mut command = redis::cmd("SET");
        command.arg(key).arg(octets.as_ref()).arg("EX").arg(PART_EXPIRES);
        self.client.query("staging a part", command).await
    }

    async fn accept(&self, message: NewMessage, lease: Option<LeaseRequest>) -> Result<Accepted, QueueError> {
        self.may_accept().await?;
        let id = message.record.id;
        let lease = lease.filter(|request| message.entries.len() <= request.max);
        let mut change = Change::new(self.shard_of(id), "accept");
        change.replicated = true;
        change.message = Some(id);
        match &lease {
            Some(request) => change.arguments.arg(&request.worker).arg(millis(request.duration)),
            None => change.arguments.arg("").arg(0),
        };
        add_message(&mut change.arguments, &message)?;
        let (answer, replicated) = self.client.change("accepting a message", change).await?;
        let (outcome, started, now): (i64, String, u64) = answer;
        if outcome >= 0
            && let Err(shortfall) = replicated
        {
            // A copy of what was accepted before stays: that may have been answered for.
            if outcome == 1 {
                self.withdraw(id).await;
            }
            return Err(shortfall);
        }
        match outcome {
            1 => {}
            0 => return Ok(Accepted { fresh: false, leased: Vec::new() }),
            _ => return Err(QueueError::Gone(id)),
        }
        let leased = match lease {
            Some(request) => leased_at_birth(message, &request, &started, Timestamp(now)),
            None => Vec::new(),
        };
        if started.contains('0') {
            self.changed.notify_waiters();
        }
        Ok(Accepted { fresh: true, leased })
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        self.lease_from_all(&request).await
    }

    async fn renew(&self, lease: &Lease, duration: Duration) -> Result<(), QueueError> {
        let mut change = self.of_lease("renew", lease);
        change.arguments.arg(millis(duration));
        holds(self.client.change::<bool>("renewing a lease", change).await?.0)
    }

    async fn doubt(&self, lease: &Lease, peer: &str) -> Result<(), QueueError> {
        let mut change = self.of_lease("doubt", lease);
        change.arguments.arg(peer);
        holds(self.client.change::<bool>("writing down a doubt", change).await?.0)
    }

    async fn hand_back(&self, lease: &Lease) -> Result<(), QueueError> {
        let change = self.of_lease("hand_back", lease);
        if self.client.change::<bool>("handing a lease back", change).await?.0 {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    async fn settle(&self, settlement: Settlement) -> Result<(), QueueError> {
        let Settlement { lease, recipients, next, bounce } = settlement;
        let mut change = self.of_lease("settle", &lease);
        match &next {
            Next::Done(closing) => change.arguments.arg("").arg("").arg("").arg(column(*closing)),
            Next::Retry { after, error } => {
                change.arguments.arg(json(&recipients)?).arg(millis(*after)).arg(error).arg("")
            }
        };
        match &bounce {
            None => {
                change.arguments.arg(0);
            }
            Some(bounce) if self.shard_of(bounce.record.id) == change.shard => {
                change.arguments.arg(1);
                add_message(&mut change.arguments, bounce)?;
            }
            Some(bounce) => {
                let cause = "its id is not made from that of the message it is about";
                return Err(QueueError::Corrupt {
                    what: format!("bounce {}", bounce.record.id),
                    cause: cause.into(),
                });
            }
        }
        change.replicated = bounce.is_some();
        let (settled, replicated) = self.client.change::<bool>("settling an entry", change).await?;
        holds(settled)?;
        // A bounce is a message that we answer for. The settlement has happened here, and is not undone
        // for want of replicas: a failover that loses it makes a duplicate, never a loss.
        if let Err(shortfall) = replicated {
            tracing::warn!(error = &shortfall as &dyn std::error::Error, "a bounce is on too few replicas");
        }
        if bounce.is_some() {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    async fn inline_content(&self, id: QueueId) -> Result<Bytes, QueueError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.client.key(self.shard_of(id), &format!("m:{id}"))).arg("body");
        let octets: Option<Vec<u8>> = self.client.query("reading a message", command).await?;
        octets.map(Bytes::from).ok_or(QueueError::Gone(id))
    }

    async fn part(&self, id: QueueId, number: u32) -> Result<Bytes, QueueError> {
        let mut command = redis::cmd("GET");
        command.arg(self.client.key(self.shard_of(id), &format!("p:{id}:{number}")));
        let octets: Option<Vec<u8>> = self.client.query("reading a part", command).await?;
        octets.map(Bytes::from).ok_or(QueueError::Gone(id))
    }

    async fn wait(&self, at_most: Duration) {
        // What other processes put into the queue is seen by looking again.
        let _ = timeout(at_most.min(LOOK_EVERY), self.changed.notified()).await;
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        let mut depth = Depth::default();
        for (all, leased, held, oldest, _) in self.counts().await? {
            depth.queued += all.saturating_sub(leased + held);
            depth.leased += leased;
            depth.held += held;
            depth.oldest_due = depth.oldest_due.max(Duration::from_millis(oldest));
        }
        Ok(depth)
    }

    async fn list(&self, filter: ListFilter) -> Result<Page, QueueError> {
        self.list_entries(&filter).await
    }

    async fn show(&self, id: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError> {
        let mut call = self.client.call(self.shard_of(id), Call::Show);
        call.arg(id.as_str());
        type Shown = (Option<Vec<u8>>, Option<u64>, Vec<Row>);
        let (record, at, rows): Shown = self.client.run("reading a message", call).await?;
        let Some((record, at)) = record.zip(at) else { return Ok(None) };
        let record = rows::record(id.as_str(), &record, at)?;
        let entries = rows.into_iter().map(|row| Ok(row.into_entry()?.0));
        Ok(Some((record, entries.collect::<Result<_, QueueError>>()?)))
    }

    async fn operate(&self, target: Target, verb: &Verb, by: &str) -> Result<u64, QueueError> {
        let concerned = self.client.operate(target, verb, by).await?;
        self.changed.notify_waiters();
        Ok(concerned)
    }

    async fn verbs(&self, limit: usize) -> Result<Vec<VerbRecord>, QueueError> {
        self.recorded_verbs(limit).await
    }

    async fn record(&self, verb: &VerbRecord) -> Result<(), QueueError> {
        let mut command = redis::cmd("XADD");
        command.arg(self.client.key(0, "verbs")).arg("MAXLEN").arg("~").arg(10_000).arg("*");
        command.arg("by").arg(&verb.by).arg("verb").arg(&verb.verb).arg("target").arg(&verb.target);
        command.arg("why").arg(&verb.why).arg("entries").arg(verb.entries);
        self.client.query("writing down what an operator did", command).await
    }

    async fn suspend(&self, scope: &Scope, why: &str, by: &str) -> Result<(), QueueError> {
        self.set_suspended(scope, by, why, "suspend").await.map(|_| ())
    }

    async fn resume(&self, scope: &Scope, by: &str) -> Result<bool, QueueError> {
        self.set_suspended(scope, by, "", "resume").await
    }

    async fn suspensions(&self) -> Result<Vec<Suspension>, QueueError> {
        self.suspended().await
    }

    async fn set_policy(&self, policy: &Policy) -> Result<(), QueueError> {
        self.write_policy(policy).await
    }

    async fn sharers(
        &self,
        scope: &Scope,
        worker: &str,
        lasts: Duration,
    ) -> Result<(usize, usize), QueueError> {
        // Next hops stand by their name alone, as in the versions that shared nothing else.
        let name = if let Scope::NextHop(name) = scope { name.clone() } else { scope.key() };
        let mut call = self.client.call(self.client.layout.shard_of_name(&name), Call::Sharers);
        call.arg(&name).arg(worker).arg(millis(lasts));
        self.client.run("sharing a limit", call).await
    }

    async fn events(&self, reader: &str, limit: usize) -> Result<Events, QueueError> {
        self.read_events(reader, limit).await
    }

    async fn passed(&self, reader: &str, cursor: &str) -> Result<(), QueueError> {
        self.pass_events(reader, cursor).await
    }

    async fn forget_reader(&self, reader: &str) -> Result<(), QueueError> {
        self.pass_events(reader, &vec![""; self.shards()].join(",")).await
    }

    async fn audit(&self, cursor: Option<&str>) -> Result<AuditPage, QueueError> {
        self.audit_page(cursor).await
    }

    async fn ledger(&self) -> Result<Ledger, QueueError> {
        let mut ledger = Ledger::default();
        for (all, _, _, _, account) in self.counts().await? {
            let (accepted, delivered, bounced, expired, removed) = account;
            ledger += Ledger { accepted, delivered, bounced, expired, removed, queued: all };
        }
        Ok(ledger)
    }

    async fn check(&self) -> Result<(), QueueError> {
        self.may_accept().await?;
        let mut command = redis::cmd("SET");
        command.arg(self.client.key(0, "check")).arg(1).arg("EX").arg(60);
        self.client.query("writing to the queue", command).await
    }
}
