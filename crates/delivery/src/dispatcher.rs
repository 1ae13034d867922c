//! Leases due entries and runs their attempts, within the limits of [`Slots`]; hands back what it
//! cannot run. An attempt that panics ends alone: its lease runs out, and the entry is tried again.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use domains::Domains;
use futures::{FutureExt, StreamExt};
use queue::{LeaseRequest, Leased, NewEntry, NextHop, Policy, Pool, Queue, Scope, Tenant};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::attempt::Attempts;
use crate::auditor::Auditor;
use crate::config::DispatchConfig;
use crate::error::with_causes;
use crate::policy::{policy, pool_of, shared_limits, warn_of_unknown_pools};
use crate::route::Hop;
use crate::shares::Shares;
use crate::slots::{Admission, InHand, PoolLimit, Slots};

/// The first wait while the queue store cannot be used; it doubles.
const FIRST_OUTAGE_WAIT: Duration = Duration::from_millis(100);
/// How long the attempts that did not end in time have to write down what they know, or to hand their leases back.
const HAND_BACK_WAIT: Duration = Duration::from_secs(5);
/// How long settlements that are given up then have to say so.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Leases handed back at once.
const HAND_BACKS: usize = 32;
/// The queue is told the policy anew after so long, whether it has changed or not.
const POLICY_LASTS: Duration = Duration::from_secs(60);

/// Runs attempts.
pub(crate) struct Dispatcher {
    worker: String,
    config: DispatchConfig,
    queue: Arc<dyn Queue>,
    attempts: Attempts,
    domains: Domains,
    slots: Slots,
    shares: Shares,
    auditor: Auditor,
    tasks: TaskTracker,
    /// Cancelled when attempts in flight are to be given up.
    abandon: CancellationToken,
    /// Cancelled when what is not written down by then is lost.
    over: CancellationToken,
}

impl Dispatcher {
    /// A next hop that cannot be reached is left alone for `rest`.
    pub(crate) fn new(
        worker: String,
        config: DispatchConfig,
        queue: Arc<dyn Queue>,
        attempts: Attempts,
        rest: Duration,
    ) -> Self {
        let slots = Slots::new(config.concurrency, rest);
        // Workers may share a name; their shares must not.
        let sharer = format!("{worker}/{:016x}", rand::random::<u64>());
        let auditor = Auditor::new(Arc::clone(&queue), sharer.clone(), config.audit);
        let limits = shared_limits(&config.next_hops, attempts.outbound.pools());
        let shares = Shares::new(Arc::clone(&queue), sharer, limits, config.share_grace);
        Self {
            worker,
            config,
            queue,
            domains: attempts.domains.clone(),
            attempts,
            slots,
            shares,
            auditor,
            tasks: TaskTracker::new(),
            abandon: CancellationToken::new(),
            over: CancellationToken::new(),
        }
    }

    /// How a message being accepted should be leased, when all its entries could run at once.
    pub(crate) fn lease_with_accept(&self, entries: &[NewEntry]) -> Option<LeaseRequest> {
        let room = entries.len() <= self.config.batch
            && entries.iter().all(|NewEntry { tenant, next_hop, .. }| {
                let pool = self.pool_limit(tenant, next_hop);
                self.shares.most(&hop_scope(next_hop)) != Some(0)
                    && self.slots.has_room_for(next_hop, pool.as_ref())
            });
        room.then(|| self.request(entries.len(), Vec::new(), Vec::new()))
    }

    fn request(&self, max: usize, except: Vec<NextHop>, except_pools: Vec<Pool>) -> LeaseRequest {
        let (worker, duration) = (self.worker.clone(), self.config.lease);
        LeaseRequest { worker, max, duration, except, except_pools }
    }

    /// This worker's limit in the source pool by which something leaves, where there is one.
    fn pool_limit(&self, tenant: &Tenant, next_hop: &NextHop) -> Option<PoolLimit> {
        let name = pool_of(&self.domains.current(), tenant, next_hop)?;
        let most = self.shares.most(&Scope::Pool(name.clone()))?;
        Some(PoolLimit { name, most })
    }

    /// Takes leased entries in hand.
    pub(crate) fn admit(self: &Arc<Self>, leased: Vec<Leased>) {
        let mut refused = Vec::new();
        for leased in leased {
            let most = self.limit_of_next_hop(&leased.entry.next_hop);
            let pool = self.pool_limit(&leased.entry.tenant, &leased.entry.next_hop);
            match self.slots.admit(leased, most, pool) {
                Admission::Run(in_hand) => self.start(in_hand),
                Admission::Waits => {}
                Admission::Refused(leased) => refused.push(leased),
            }
        }
        if !refused.is_empty() {
            let this = Arc::clone(self);
            self.tasks.spawn(async move { this.hand_back(refused).await });
        }
    }

    fn limit_of_next_hop(&self, next_hop: &NextHop) -> usize {
        let most = match Hop::parse(next_hop) {
            Some(Hop::Local(_)) => self.config.per_local_domain,
            _ => self.config.per_next_hop,
        };
        self.shares.most(&hop_scope(next_hop)).map_or(most, |share| share.min(most))
    }

    /// Learns this worker's share in the next hops and source pools of what it has leased, where there is a limit.
    async fn ask_for_shares(&self, leased: &[Leased]) {
        for leased in leased {
            let (tenant, next_hop) = (&leased.entry.tenant, &leased.entry.next_hop);
            let pool = pool_of(&self.domains.current(), tenant, next_hop).map(Scope::Pool);
            for scope in [Some(hop_scope(next_hop)), pool].into_iter().flatten() {
                if self.shares.is_unknown(&scope) {
                    self.shares.ask(&scope).await;
                    self.follow_share(&scope).await;
                }
            }
        }
    }

    async fn follow_share(&self, scope: &Scope) {
        let given_up = match scope {
            Scope::NextHop(name) => {
                let next_hop = NextHop(name.clone());
                self.slots.limit(&next_hop, self.limit_of_next_hop(&next_hop))
            }
            Scope::Pool(name) => self.slots.limit_pool(name, self.shares.most(scope).unwrap_or(usize::MAX)),
            Scope::Tenant(_) => Vec::new(),
        };
        self.hand_back(given_up).await;
    }

    async fn keep_shares(&self) {
        loop {
            sleep(self.shares.every()).await;
            for scope in self.shares.kept() {
                if self.slots.forget_if_idle(&scope) {
                    self.shares.leave(&scope);
                } else {
                    self.shares.ask(&scope).await;
                    self.follow_share(&scope).await;
                }
            }
        }
    }

    /// Keeps the queue's policy as the domains and the settings have it.
    async fn follow_policy(&self) {
        let mut told: Option<(Policy, Instant)> = None;
        loop {
            let pools = self.attempts.outbound.pools();
            let wanted = policy(&self.domains.current(), &self.config.next_hops, pools);
            if told.as_ref().is_none_or(|(policy, _)| policy.tenant_pools != wanted.tenant_pools) {
                warn_of_unknown_pools(&wanted, pools);
            }
            let stands =
                told.as_ref().is_some_and(|(policy, at)| *policy == wanted && at.elapsed() < POLICY_LASTS);
            if !stands {
                match self.queue.set_policy(&wanted).await {
                    Ok(()) => told = Some((wanted, Instant::now())),
                    Err(error) => {
                        tracing::warn!(error = %with_causes(&error), "queue cannot be told its policy")
                    }
                }
            }
            sleep(self.config.poll).await;
        }
    }

    fn start(self: &Arc<Self>, in_hand: InHand) {
        let this = Arc::clone(self);
        self.tasks.spawn(async move { this.work(in_hand).await });
    }

    /// Runs an attempt. Its next hop is free for others as soon as it has answered, not only when the
    /// answer is written down.
    async fn work(self: Arc<Self>, in_hand: InHand) {
        let (next_hop, pool) = (in_hand.leased.entry.next_hop.clone(), in_hand.pool.clone());
        let pool = pool.as_deref();
        let ended = contained(self.attempts.run(in_hand, &self.abandon)).await.unwrap_or_default();
        self.start_all(self.slots.release_next_hop(&next_hop, pool, ended.answer));
        if let Some((settlement, span)) = ended.settlement {
            contained(self.attempts.settle(settlement, &self.over).instrument(span)).await;
        }
        self.start_all(self.slots.finish(&next_hop, pool));
    }

    fn start_all(self: &Arc<Self>, waited: Vec<InHand>) {
        waited.into_iter().for_each(|in_hand| self.start(in_hand));
    }

    /// Leases and runs until shutdown, then lets attempts in flight end.
    pub(crate) async fn run(self: &Arc<Self>, shutdown: CancellationToken) {
        let measuring = shutdown.run_until_cancelled(self.measure());
        let sharing = shutdown.run_until_cancelled(self.keep_shares());
        let governing = shutdown.run_until_cancelled(self.follow_policy());
        let auditing = shutdown.run_until_cancelled(self.auditor.run());
        tokio::join!(self.lease_until(&shutdown), measuring, sharing, governing, auditing);
        self.drain().await;
    }

    async fn lease_until(self: &Arc<Self>, shutdown: &CancellationToken) {
        let mut outage_wait = None;
        while !shutdown.is_cancelled() {
            let room = self.slots.room().min(self.config.batch);
            if room == 0 {
                shutdown.run_until_cancelled(self.slots.freed()).await;
                continue;
            }
            let (full, full_pools) = self.slots.full();
            let passing_over = !full.is_empty() || !full_pools.is_empty();
            // Not raced with shutdown: a lease whose answer is dropped is held by nobody.
            match self.queue.lease(self.request(room, full, full_pools)).await {
                Ok(leased) => {
                    outage_wait = None;
                    if leased.is_empty() {
                        shutdown.run_until_cancelled(self.idle(passing_over)).await;
                    } else {
                        self.ask_for_shares(&leased).await;
                        self.admit(leased);
                    }
                }
                Err(error) => {
                    let wait = outage_wait.unwrap_or(FIRST_OUTAGE_WAIT).min(self.config.outage_wait);
                    tracing::warn!(error = %with_causes(&error), wait = ?wait, "queue cannot be leased from");
                    outage_wait = Some(wait * 2);
                    shutdown
                        .run_until_cancelled(sleep(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)))
                        .await;
                }
            }
        }
    }

    /// Waits until there may be something to lease.
    async fn idle(&self, passing_over: bool) {
        if passing_over {
            // What is passed over is due, so the queue would announce it at once, again and again.
            let _ = timeout(self.config.poll / 4, self.slots.freed()).await;
        } else {
            self.queue.wait(self.config.poll).await;
        }
    }

    async fn measure(&self) {
        loop {
            match self.queue.depth().await {
                Ok(depth) => {
                    metrics::gauge!("packetboat_queue_entries", "state" => "queued").set(depth.queued as f64);
                    metrics::gauge!("packetboat_queue_entries", "state" => "leased").set(depth.leased as f64);
                    metrics::gauge!("packetboat_queue_entries", "state" => "held").set(depth.held as f64);
                    metrics::gauge!("packetboat_queue_oldest_due_seconds")
                        .set(depth.oldest_due.as_secs_f64());
                }
                Err(error) => tracing::debug!(error = %with_causes(&error), "queue depth cannot be measured"),
            }
            match self.queue.ledger().await {
                Ok(ledger) => metrics::gauge!("mail_unaccounted_messages").set(ledger.unaccounted() as f64),
                Err(error) => tracing::debug!(error = %with_causes(&error), "the account cannot be read"),
            }
            sleep(self.config.measure).await;
        }
    }

    async fn drain(self: &Arc<Self>) {
        self.tasks.close();
        self.hand_back(self.slots.close()).await;
        tracing::info!(attempts = self.tasks.len(), "no more leases are taken, attempts in flight may end");
        if timeout(self.config.drain, self.tasks.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(attempts = self.tasks.len(), "attempts in flight are broken off");
        self.abandon.cancel();
        if timeout(HAND_BACK_WAIT, self.tasks.wait()).await.is_err() {
            tracing::warn!(attempts = self.tasks.len(), "some leases are left to run out");
            self.over.cancel();
            let _ = timeout(LAST_WORD, self.tasks.wait()).await;
        }
    }

    async fn hand_back(&self, leased: Vec<Leased>) {
        let hand_back = |leased: Leased| async move {
            if let Err(error) = self.queue.hand_back(&leased.lease).await {
                tracing::warn!(entry = %leased.entry.id, error = %with_causes(&error), "lease is left to run out");
            }
        };
        futures::stream::iter(leased).for_each_concurrent(HAND_BACKS, hand_back).await;
    }
}

fn hop_scope(next_hop: &NextHop) -> Scope {
    Scope::NextHop(next_hop.0.clone())
}

/// The value of a future; `None` when it panics.
async fn contained<T>(future: impl Future<Output = T>) -> Option<T> {
    let result = AssertUnwindSafe(future).catch_unwind().await;
    if result.is_err() {
        metrics::counter!("packetboat_delivery_attempt_panics_total").increment(1);
        tracing::error!("attempt panicked, its entry is tried again when the lease ends");
    }
    result.ok()
}
