//! One attempt at one entry: is it too old? where does it go (`attempt/way.rs`)? hand it over; judge what came of it,
//! and write that down (`attempt/settle.rs`).
//!
//! While it runs the lease is kept alive. When the lease is lost, at shutdown, and when it takes too long, the attempt is
//! broken off. What is known of its recipients by then is written down all the same: whoever was served must not be
//! served again.

mod settle;
mod way;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domains::Domains;
use message::{Failure, Recipient, Standing};
use queue::{Entry, Lease, Leased, Next, Queue, QueueError, Settlement, Timestamp};
use smtp::Mailbox;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::bounce::Bouncer;
use crate::config::{DispatchConfig, RetryConfig};
use crate::error::with_causes;
use crate::outbound::{Ledger, Outbound};
use crate::outcome::{Judgement, given_up, judge};
use crate::slots::{Answer, InHand};
use crate::transfer::RecipientOutcome;
use way::Course;

/// An entry past its time that was leased so often and never settled has a fault of its own.
const HOPELESS_EPOCH: u64 = 16;
/// How long after the end of a drain a notification may still be written. It leaves some seconds to settle, before
/// the dispatcher leaves leases to run out.
const LAST_NOTIFICATION: Duration = Duration::from_secs(2);

/// Makes attempts.
pub(crate) struct Attempts {
    pub(crate) hostname: String,
    pub(crate) base_folder: PathBuf,
    pub(crate) dispatch: DispatchConfig,
    pub(crate) retry: RetryConfig,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) domains: Domains,
    pub(crate) outbound: Outbound,
    pub(crate) bouncer: Bouncer,
}

/// The recipients that an attempt is about: their places in the entry, and their addresses.
type Open = Vec<(usize, Mailbox)>;
type Outcomes = Vec<(usize, RecipientOutcome)>;

/// How an attempt ended.
#[derive(Default)]
pub(crate) struct Ended {
    /// What is to be written down, and the lease's span; nothing when it was broken off before anything was known.
    pub(crate) settlement: Option<(Settlement, Span)>,
    pub(crate) answer: Answer,
}

/// Why an attempt was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Late,
    LeaseLost,
    Abandoned,
}

/// What may break an attempt off.
struct Interrupts<'a> {
    abandon: &'a CancellationToken,
    /// Cancelled when the lease is lost.
    lost: CancellationToken,
    /// A peer has been sent the end of the message.
    ended: Arc<AtomicBool>,
}

/// What came of trying.
struct Tried {
    /// The name of the route, for metrics.
    route: &'static str,
    outcomes: Outcomes,
    answer: Answer,
    /// It was broken off for no fault of a peer, and is to go on soon.
    soon: bool,
}

impl Broken {
    /// What is told of recipients whose turn did not come.
    fn failure(self) -> Failure {
        match self {
            Self::Late => failure("4.4.2", "the attempt took too long"),
            Self::LeaseLost => failure("4.3.0", "this server lost hold of the message in its queue"),
            Self::Abandoned => failure("4.3.2", "this server was shut down before this recipient's turn"),
        }
    }
}

impl Interrupts<'_> {
    async fn first(&self, limit: Duration) -> Broken {
        tokio::select! {
            biased;
            () = self.lost.cancelled() => Broken::LeaseLost,
            () = self.abandon.cancelled() => Broken::Abandoned,
            () = sleep(limit) => Broken::Late,
        }
    }

    /// Shutdown has come so far that there is time for no more than a settlement.
    async fn last_moment(&self) {
        self.abandon.cancelled().await;
        sleep(LAST_NOTIFICATION).await;
    }
}

impl Tried {
    /// Nobody was asked.
    fn nowhere(outcomes: Outcomes) -> Self {
        Self { route: "none", outcomes, answer: Answer::Unknown, soon: false }
    }
}

impl Attempts {
    /// Makes one attempt. What it gives back is to be settled.
    pub(crate) async fn run(&self, in_hand: InHand, abandon: &CancellationToken) -> Ended {
        let entry = &in_hand.leased.entry;
        let lease = in_hand.span.clone();
        let span = tracing::info_span!(
            parent: &lease, "attempt",
            otel.status_code = Empty,
            mail.route = Empty,
            mail.delivered = Empty,
            mail.deferred = Empty,
            mail.failed = Empty,
        );
        match &in_hand.leased.message.traceparent {
            Some(accepting) if entry.attempts > 0 => proto::trace::link_trace(&span, accepting),
            _ => {}
        }
        match self.hold_and_try(in_hand, abandon).instrument(span).await {
            Some((settlement, answer)) => Ended { settlement: Some((settlement, lease)), answer },
            None => Ended::default(),
        }
    }

    /// An attempt for as long as its lease is ours.
    async fn hold_and_try(
        &self,
        in_hand: InHand,
        abandon: &CancellationToken,
    ) -> Option<(Settlement, Answer)> {
        let InHand { leased, since, unreachable, .. } = in_hand;
        let lease = leased.lease;
        // One that has waited for its turn may not be ours any more.
        let mut renewed = since;
        if since.elapsed() >= self.dispatch.lease / 3 {
            renewed = Instant::now();
            if let Err(error) = self.queue.renew(&lease, self.dispatch.lease).await {
                tracing::debug!(error = %with_causes(&error), "lease was lost while waiting");
                return None;
            }
        }
        let leased = Arc::new(leased);
        let interrupts =
            Interrupts { abandon, lost: CancellationToken::new(), ended: Arc::new(AtomicBool::new(false)) };
        tokio::select! {
            biased;
            settlement = self.attempt(&leased, since, unreachable, &interrupts) => settlement,
            never = self.keep(lease, renewed, &interrupts) => match never {},
        }
    }

    /// Renews a lease for as long as it can be; then tells that it is lost, and waits to be dropped.
    async fn keep(&self, lease: Lease, renewed: Instant, interrupts: &Interrupts<'_>) -> Infallible {
        self.renew(lease, renewed, &interrupts.ended).await;
        interrupts.lost.cancel();
        std::future::pending().await
    }

    /// Renews a lease until it is lost: the queue says so, or it has said nothing for a lease's time. The latter does
    /// not count once a peer was sent the end of the message, for its answer must not be missed. Waiting for that
    /// harms nobody: no other message is ended without the queue's word that the lease is ours.
    async fn renew(&self, lease: Lease, mut renewed: Instant, ended: &AtomicBool) {
        let duration = self.dispatch.lease;
        let mut wait = duration / 3;
        loop {
            sleep_until(renewed + wait).await;
            let asked = Instant::now();
            let silent = renewed.elapsed() >= duration;
            let answer_by = asked + duration / 4;
            let answer_by = if silent { answer_by } else { answer_by.min(renewed + duration) };
            match timeout_at(answer_by, self.queue.renew(&lease, duration)).await {
                Ok(Ok(())) => {
                    renewed = asked;
                    wait = duration / 3;
                }
                Ok(Err(QueueError::StaleLease | QueueError::Gone(_))) => return,
                Ok(Err(_)) | Err(_) => {
                    if renewed.elapsed() >= duration && !ended.load(Ordering::Relaxed) {
                        return;
                    }
                    wait = renewed.elapsed() + duration / 12;
                }
            }
        }
    }

    async fn attempt(
        &self,
        leased: &Arc<Leased>,
        since: Instant,
        unreachable: Option<Failure>,
        interrupts: &Interrupts<'_>,
    ) -> Option<(Settlement, Answer)> {
        let started = Instant::now();
        let entry = &leased.entry;
        warn_of_doubt(entry);
        let open: Open = entry
            .recipients
            .iter()
            .enumerate()
            .filter(|(_, recipient)| recipient.standing.is_open())
            .map(|(place, recipient)| (place, recipient.address.clone()))
            .collect();
        let tried_in_vain = entry.attempts > 0 || entry.epoch > HOPELESS_EPOCH;
        let tried = if let Some(why) = &entry.doomed {
            let text = format!("the postmaster returned the message: {why}");
            Tried::nowhere(all(open, RecipientOutcome::Failed(failure("5.0.0", &text))))
        } else if leased.now >= entry.expires && tried_in_vain {
            Tried::nowhere(expired(leased, open))
        } else if let Some(failure) = unreachable {
            Tried::nowhere(all(open, RecipientOutcome::Deferred(failure)))
        } else {
            self.transfer(leased, open, interrupts).await?
        };
        let now = leased.now.after(since.elapsed());
        let mut judged = judge(entry, tried.outcomes, &self.retry, now, rand::random());
        if tried.soon {
            judged.retry_soon();
        }
        let bounce = self.notify(leased, &mut judged, now, interrupts).await;
        remember_attempt(&mut judged.recipients);
        report(tried.route, &judged, started.elapsed());
        let settlement =
            Settlement { lease: leased.lease, recipients: judged.recipients, next: judged.next, bounce };
        Some((settlement, tried.answer))
    }

    /// Hands the message over. Nothing when that was broken off before anything was known: then the entry is as it
    /// was, for whoever has it next.
    async fn transfer(&self, leased: &Arc<Leased>, open: Open, interrupts: &Interrupts<'_>) -> Option<Tried> {
        let Course { route, way, open, mut outcomes } = self.course(leased, open);
        // Outside of what may be dropped.
        let mut ledger = Ledger::new(open.len());
        let broken = tokio::select! {
            biased;
            () = self.go(way, leased, &open, &interrupts.ended, &mut ledger) => None,
            broken = interrupts.first(self.dispatch.attempt_timeout) => Some(broken),
        };
        let Some(broken) = broken else {
            outcomes.extend(zip(open, ledger.finish()));
            let answer = answer(&outcomes);
            return Some(Tried { route, outcomes, answer, soon: false });
        };
        let late = broken == Broken::Late;
        if !late && !ledger.is_begun() {
            self.let_go(leased.lease, broken).await;
            return None;
        }
        tracing::warn!(why = ?broken, "attempt is broken off, what is known of its recipients is kept");
        let soon = !late && !ledger.has_to_wait();
        outcomes.extend(zip(open, ledger.break_off(&broken.failure())));
        let answer = if late { answer(&outcomes) } else { Answer::Unknown };
        Some(Tried { route, outcomes, answer, soon })
    }

    /// Gives up an entry of which nothing is known that was not before.
    async fn let_go(&self, lease: Lease, broken: Broken) {
        if broken == Broken::LeaseLost {
            tracing::warn!("lease is lost, attempt is dropped");
        } else if let Err(error) = self.queue.hand_back(&lease).await {
            tracing::warn!(error = %with_causes(&error), "lease is left to run out");
        }
    }

    /// The notification to the sender. At the end of a shutdown there may be no time for one; then those who failed are
    /// left open, for those who were served would be served again if nothing was written down.
    async fn notify(
        &self,
        leased: &Leased,
        judged: &mut Judgement,
        now: Timestamp,
        interrupts: &Interrupts<'_>,
    ) -> Option<queue::NewMessage> {
        tokio::select! {
            biased;
            bounce = self.bouncer.bounce(leased, judged, now) => return bounce,
            () = interrupts.last_moment() => {}
        }
        tracing::warn!("there is no time left to notify the sender, another attempt has to");
        judged.leave_failed(&leased.entry);
        None
    }
}

fn warn_of_doubt(entry: &Entry) {
    if let Some(doubt) = &entry.doubt {
        metrics::counter!("packetboat_delivery_in_doubt_total").increment(1);
        tracing::warn!(peer = doubt.peer, "the attempt before did not tell its end, this may deliver twice");
    }
}

/// What outcomes say of the next hop: without a reply to any recipient, it was not reached.
fn answer(outcomes: &Outcomes) -> Answer {
    let mut reason = None;
    for (_, outcome) in outcomes {
        match outcome {
            RecipientOutcome::Delivered { .. } | RecipientOutcome::Failed(_) => return Answer::Given,
            RecipientOutcome::Deferred(failure) if failure.reply.is_some() => return Answer::Later,
            RecipientOutcome::Deferred(failure) => reason = Some(failure),
        }
    }
    reason.map_or(Answer::Unknown, |failure| Answer::Unreachable(failure.clone()))
}

/// Writes down in whose trace recipients were deferred.
fn remember_attempt(recipients: &mut [Recipient]) {
    let attempt = proto::trace::traceparent();
    for recipient in recipients {
        recipient.attempt = attempt.clone().filter(|_| matches!(recipient.standing, Standing::Deferred(_)));
    }
}

fn report(route: &'static str, judged: &Judgement, took: Duration) {
    metrics::counter!("packetboat_delivery_attempts_total", "route" => route).increment(1);
    metrics::histogram!("packetboat_delivery_attempt_seconds", "route" => route).record(took);
    let (delivered, deferred, failed) = (judged.delivered, judged.deferred, judged.failed.len());
    for (outcome, count) in [("delivered", delivered), ("deferred", deferred), ("failed", failed)] {
        if count > 0 {
            metrics::counter!("packetboat_delivery_recipients_total", "outcome" => outcome)
                .increment(count as u64);
        }
    }
    let span = Span::current();
    tracing::record_all!(
        span,
        mail.route = route,
        mail.delivered = delivered,
        mail.deferred = deferred,
        mail.failed = failed
    );
    if deferred + failed > 0 {
        span.record("otel.status_code", "error");
    }
    tracing::info!(route, delivered, deferred, failed, "attempt ended");
    if let Next::Retry { after, error } = &judged.next {
        // A remote reply may quote an address.
        tracing::debug!(?after, error, "attempt is to be repeated");
    }
}

fn expired(leased: &Leased, open: Open) -> Outcomes {
    let last = |place: usize| match leased.entry.recipients.get(place).map(|recipient| &recipient.standing) {
        Some(Standing::Deferred(failure)) => Some(failure),
        _ => None,
    };
    open.into_iter().map(|(place, _)| (place, RecipientOutcome::Failed(given_up(last(place))))).collect()
}

fn all(open: Open, outcome: RecipientOutcome) -> Outcomes {
    open.into_iter().map(|(place, _)| (place, outcome.clone())).collect()
}

fn zip(open: Open, outcomes: Vec<RecipientOutcome>) -> Outcomes {
    open.into_iter().map(|(place, _)| place).zip(outcomes).collect()
}

fn failure(status: &str, text: &str) -> Failure {
    Failure { status: status.to_owned(), reply: None, remote_mta: None, text: text.to_owned() }
}
