//! One attempt at one entry: is it too old? where does it go? hand it over; settle what came of it.
//!
//! While it runs the lease is kept alive. When the lease is lost the attempt is dropped at once,
//! because the entry may be in another worker's hands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domains::{Domains, HostedDomain, RecipientStanding, Route};
use message::{Failure, Recipient, Standing};
use queue::{Entry, Lease, Leased, Next, Queue, QueueError, Settlement};
use smtp::Mailbox;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::bounce::Bouncer;
use crate::config::{DispatchConfig, RetryConfig};
use crate::content::ContentReader;
use crate::error::with_causes;
use crate::maildir::{Filing, mailbox_folder};
use crate::outbound::{Outbound, Protocol};
use crate::outcome::{Judgement, given_up, judge};
use crate::policy::pool_of;
use crate::route::Hop;
use crate::slots::{Answer, InHand};
use crate::transfer::{RecipientOutcome, Transfer};

/// An entry past its time that was leased so often and never settled has a fault of its own.
const HOPELESS_EPOCH: u64 = 16;
/// The first wait before a settlement is tried again; it doubles.
const SETTLE_WAIT: Duration = Duration::from_millis(50);
/// The longest such wait.
const MAX_SETTLE_WAIT: Duration = Duration::from_secs(5);

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
    /// What is to be written down, and the lease's span; nothing when it was broken off.
    pub(crate) settlement: Option<(Settlement, Span)>,
    pub(crate) answer: Answer,
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
        tokio::select! {
            biased;
            ended = self.attempt(&leased, since, unreachable) => Some(ended),
            () = self.keep(lease, renewed) => {
                tracing::warn!("lease is lost, attempt is dropped");
                None
            }
            () = abandon.cancelled() => {
                if let Err(error) = self.queue.hand_back(&lease).await {
                    tracing::warn!(error = %with_causes(&error), "lease is left to run out");
                }
                None
            }
        }
    }

    /// Renews a lease for as long as it can be; returns when it is lost.
    async fn keep(&self, lease: Lease, mut renewed: Instant) {
        let duration = self.dispatch.lease;
        let mut wait = duration / 3;
        loop {
            sleep_until(renewed + wait).await;
            let asked = Instant::now();
            let answer_by = (asked + duration / 4).min(renewed + duration);
            match timeout_at(answer_by, self.queue.renew(&lease, duration)).await {
                Ok(Ok(())) => {
                    renewed = asked;
                    wait = duration / 3;
                }
                Ok(Err(QueueError::StaleLease | QueueError::Gone(_))) => return,
                Ok(Err(_)) | Err(_) if renewed.elapsed() >= duration => return,
                Ok(Err(_)) | Err(_) => wait = renewed.elapsed() + duration / 12,
            }
        }
    }

    async fn attempt(
        &self,
        leased: &Arc<Leased>,
        since: Instant,
        unreachable: Option<Failure>,
    ) -> (Settlement, Answer) {
        let started = Instant::now();
        let entry = &leased.entry;
        if let Some(doubt) = &entry.doubt {
            metrics::counter!("packetboat_delivery_in_doubt_total").increment(1);
            tracing::warn!(
                peer = doubt.peer,
                "the attempt before did not tell its end, this may deliver twice"
            );
        }
        let open: Open = entry
            .recipients
            .iter()
            .enumerate()
            .filter(|(_, recipient)| recipient.standing.is_open())
            .map(|(place, recipient)| (place, recipient.address.clone()))
            .collect();
        let tried_in_vain = entry.attempts > 0 || entry.epoch > HOPELESS_EPOCH;
        let (route, outcomes, answer) = if let Some(why) = &entry.doomed {
            let text = format!("the postmaster returned the message: {why}");
            ("none", all(open, RecipientOutcome::Failed(failure("5.0.0", &text))), Answer::Unknown)
        } else if leased.now >= entry.expires && tried_in_vain {
            ("none", expired(leased, open), Answer::Unknown)
        } else if let Some(failure) = unreachable {
            ("none", all(open, RecipientOutcome::Deferred(failure)), Answer::Unknown)
        } else {
            let (route, outcomes) = self.transfer(leased, open).await;
            let answer = answer(&outcomes);
            (route, outcomes, answer)
        };
        let now = leased.now.after(since.elapsed());
        let mut judged = judge(entry, outcomes, &self.retry, now, rand::random());
        remember_attempt(&mut judged.recipients);
        let bounce = self.bouncer.bounce(leased, &judged, now).await;
        report(route, &judged, started.elapsed());
        let settlement =
            Settlement { lease: leased.lease, recipients: judged.recipients, next: judged.next, bounce };
        (settlement, answer)
    }

    /// Hands the message over; the name of the route is for metrics.
    async fn transfer(&self, leased: &Arc<Leased>, open: Open) -> (&'static str, Outcomes) {
        let places: Vec<usize> = open.iter().map(|(place, _)| *place).collect();
        let route = match Hop::parse(&leased.entry.next_hop) {
            Some(Hop::Local(_)) => "local",
            Some(Hop::Mx(_)) => "mx",
            Some(Hop::Relay(_)) => "relay",
            None => "none",
        };
        match timeout(self.dispatch.attempt_timeout, self.over_hop(leased, open)).await {
            Ok(outcomes) => (route, outcomes),
            Err(_) => {
                let failure = deferral("4.4.2", "the attempt took too long");
                (route, places.into_iter().map(|place| (place, failure.clone())).collect())
            }
        }
    }

    async fn over_hop(&self, leased: &Arc<Leased>, open: Open) -> Outcomes {
        match Hop::parse(&leased.entry.next_hop) {
            Some(Hop::Local(domain)) => match self.domains.current().hosted(domain).cloned() {
                Some(domain) => self.locally(leased, open, &domain).await,
                None => all(open, deferral("4.3.5", "the domain is no longer hosted here")),
            },
            Some(Hop::Mx(domain)) => {
                let transfer = self.leaving(leased, &open);
                zip(open, self.outbound.to_domain(domain, &transfer).await)
            }
            Some(Hop::Relay(address)) => {
                let transfer = self.leaving(leased, &open);
                zip(open, self.outbound.to_host(address, Protocol::Smtp, &transfer).await)
            }
            None => all(open, deferral("4.3.5", "the next hop of the queue entry is not known")),
        }
    }

    /// Delivers by the route of a hosted domain, to those who still exist.
    async fn locally(&self, leased: &Arc<Leased>, open: Open, domain: &HostedDomain) -> Outcomes {
        let index = self.domains.current();
        let (open, unknown): (Open, Open) = open
            .into_iter()
            .partition(|(_, address)| !matches!(index.recipient(address), RecipientStanding::Unknown));
        let mut outcomes =
            all(unknown, RecipientOutcome::Failed(failure("5.1.1", "there is no such mailbox")));
        if open.is_empty() {
            return outcomes;
        }
        outcomes.extend(match domain.inbound().and_then(|inbound| inbound.route.as_ref()) {
            Some(Route::Maildir(maildir)) => self.file_in_maildirs(leased, open, domain, &maildir.path).await,
            Some(Route::Lmtp(server)) => {
                let transfer = self.new_transfer(leased, &open);
                zip(open, self.outbound.to_host(&server.address, Protocol::Lmtp, &transfer).await)
            }
            Some(Route::Smtp(server)) => {
                let transfer = self.new_transfer(leased, &open);
                zip(open, self.outbound.to_host(&server.address, Protocol::Smtp, &transfer).await)
            }
            None => all(open, deferral("4.3.5", "the domain has no route")),
        });
        outcomes
    }

    async fn file_in_maildirs(
        &self,
        leased: &Arc<Leased>,
        open: Open,
        domain: &HostedDomain,
        path: &str,
    ) -> Outcomes {
        let root = self.base_folder.join(path);
        let junk = leased.message.quarantine.then(|| domain.quarantine_folder());
        let folders =
            open.iter().map(|(place, address)| (*place, mailbox_folder(&root, address, junk))).collect();
        let content = ContentReader::new(Arc::clone(&self.queue), leased);
        let span = tracing::info_span!("maildir", mail.recipients = open.len());
        zip(open, Filing::new(leased, &self.hostname, folders).run(leased, content).instrument(span).await)
    }

    /// A transfer by the source pool of whose mail it is.
    fn leaving(&self, leased: &Arc<Leased>, open: &Open) -> Transfer {
        let Entry { tenant, next_hop, .. } = &leased.entry;
        let pool = pool_of(&self.domains.current(), tenant, next_hop);
        Transfer { pool, ..self.new_transfer(leased, open) }
    }

    fn new_transfer(&self, leased: &Arc<Leased>, open: &Open) -> Transfer {
        let envelope = &leased.message.envelope;
        let (queue, held) = (Arc::clone(&self.queue), Arc::clone(leased));
        let (account, lease) = (Arc::clone(&self.queue), leased.lease);
        Transfer {
            id: leased.message.id,
            pool: None,
            reverse_path: envelope.reverse_path.clone(),
            recipients: open.iter().map(|(_, address)| address.clone()).collect(),
            smtputf8: envelope.smtputf8,
            eight_bit: envelope.eight_bit,
            size: leased.message.size,
            before_end: Box::new(move |peer| {
                let queue = Arc::clone(&account);
                Box::pin(async move { queue.doubt(&lease, &peer).await })
            }),
            content: Box::new(move || ContentReader::new(Arc::clone(&queue), &held)),
        }
    }

    /// Writes the outcome down, again and again while the store cannot be used: until then the
    /// recipients that were reached would be reached again.
    pub(crate) async fn settle(&self, settlement: Settlement) {
        let given_up = Instant::now() + self.dispatch.lease;
        let mut wait = SETTLE_WAIT;
        loop {
            match self.queue.settle(settlement.clone()).await {
                Ok(()) => return,
                Err(error @ QueueError::Unavailable { .. }) if Instant::now() + wait < given_up => {
                    tracing::warn!(error = %with_causes(&error), "outcome cannot be written down yet");
                    sleep(wait).await;
                    wait = (wait * 2).min(MAX_SETTLE_WAIT);
                }
                Err(error) => {
                    metrics::counter!("packetboat_delivery_settlements_lost_total").increment(1);
                    tracing::error!(error = %with_causes(&error), "outcome is lost, recipients may get a second copy");
                    return;
                }
            }
        }
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

fn deferral(status: &str, text: &str) -> RecipientOutcome {
    RecipientOutcome::Deferred(failure(status, text))
}
