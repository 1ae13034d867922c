//! From what a next hop said to what the queue is told: each recipient's standing, when the entry is
//! due again, and whom a notification is about. Pure: time and chance come in as arguments.

use std::time::Duration;

use message::{Failure, Recipient, Standing};
use queue::{Closing, Entry, Next, Timestamp};

use crate::config::RetryConfig;
use crate::transfer::RecipientOutcome;

/// The wait doubles at most so often: a first wait of a second has become a century by then.
const MAX_DOUBLINGS: u32 = 31;

/// The wait after an attempt that was broken off. Not none: a peer that has put somebody off a moment ago is not to be
/// asked again within the same breath.
const SOON: Duration = Duration::from_secs(5);

/// Delivery time expired (RFC 3463 §3.5).
const GIVEN_UP: &str = "4.4.7";

/// What one attempt comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// All recipients of the entry, with their new standing.
    pub(crate) recipients: Vec<Recipient>,
    /// What becomes of the entry.
    pub(crate) next: Next,
    /// Which recipients failed for good in this attempt.
    pub(crate) failed: Vec<usize>,
    /// How many were delivered in it.
    pub(crate) delivered: usize,
    /// How many were deferred in it.
    pub(crate) deferred: usize,
}

/// Judges one attempt. `outcomes` names recipients of the entry by their place; one that it does
/// not name stands where it stood. `chance` lies between 0 and 1.
pub(crate) fn judge(
    entry: &Entry,
    outcomes: Vec<(usize, RecipientOutcome)>,
    retry: &RetryConfig,
    now: Timestamp,
    chance: f64,
) -> Judgement {
    let mut recipients = entry.recipients.clone();
    let (mut failed, mut delivered, mut deferred) = (Vec::new(), 0, 0);
    let mut error = None;
    for (place, outcome) in outcomes {
        let Some(recipient) = recipients.get_mut(place) else { continue };
        recipient.standing = match outcome {
            RecipientOutcome::Delivered { .. } => {
                delivered += 1;
                Standing::Delivered
            }
            RecipientOutcome::Deferred(failure) if now < entry.expires => {
                deferred += 1;
                error.get_or_insert_with(|| describe(&failure));
                Standing::Deferred(failure)
            }
            RecipientOutcome::Deferred(failure) => {
                failed.push(place);
                Standing::Failed(given_up(Some(&failure)))
            }
            RecipientOutcome::Failed(failure) => {
                failed.push(place);
                Standing::Failed(failure)
            }
        };
    }
    let open = recipients.iter().any(|recipient| recipient.standing.is_open());
    let next = if open {
        let left = Duration::from_millis(entry.expires.0.saturating_sub(now.0));
        let after = wait(retry, entry.attempts, chance).min(left);
        Next::Retry { after, error: error.unwrap_or_else(|| "no answer for some recipients".to_owned()) }
    } else {
        Next::Done(closing(&recipients))
    };
    Judgement { recipients, next, failed, delivered, deferred }
}

impl Judgement {
    /// What was broken off for no fault of a peer goes on soon, by another worker.
    pub(crate) fn retry_soon(&mut self) {
        if let Next::Retry { after, .. } = &mut self.next {
            *after = (*after).min(SOON);
        }
    }

    /// Leaves those who failed as they were, so that a later attempt fails them and tells the sender.
    pub(crate) fn leave_failed(&mut self, entry: &Entry) {
        if self.failed.is_empty() {
            return;
        }
        for place in self.failed.drain(..) {
            if let (Some(judged), Some(before)) =
                (self.recipients.get_mut(place), entry.recipients.get(place))
            {
                *judged = before.clone();
            }
        }
        if matches!(self.next, Next::Done(_)) {
            self.next = Next::Retry { after: SOON, error: "the sender could not be notified yet".to_owned() };
        }
    }
}

/// How an entry ends whose recipients are all final. A refusal weighs more than a lack of time.
fn closing(recipients: &[Recipient]) -> Closing {
    let failures = || {
        recipients.iter().filter_map(|recipient| match &recipient.standing {
            Standing::Failed(failure) => Some(failure),
            _ => None,
        })
    };
    if failures().next().is_none() {
        Closing::Delivered
    } else if failures().all(|failure| failure.status == GIVEN_UP) {
        Closing::Expired
    } else {
        Closing::Bounced
    }
}

/// The wait after an attempt, when `attempts` were settled before it.
fn wait(retry: &RetryConfig, attempts: u32, chance: f64) -> Duration {
    let doubled = retry.initial.saturating_mul(1 << attempts.min(MAX_DOUBLINGS));
    let factor = 1.0 + retry.jitter * (2.0 * chance - 1.0);
    doubled.min(retry.max_interval).mul_f64(factor)
}

/// The failure of a recipient whose time is over (RFC 3463 §3.5, X.4.7).
pub(crate) fn given_up(last: Option<&Failure>) -> Failure {
    let text = match last {
        Some(failure) => {
            format!("no delivery was possible in the time allowed; the last problem was: {}", failure.text)
        }
        None => "no delivery was possible in the time allowed".to_owned(),
    };
    Failure {
        status: GIVEN_UP.to_owned(),
        reply: last.and_then(|failure| failure.reply.clone()),
        remote_mta: last.and_then(|failure| failure.remote_mta.clone()),
        text,
    }
}

/// A deferral in one line, for operators.
fn describe(failure: &Failure) -> String {
    match (&failure.remote_mta, &failure.reply) {
        (Some(host), Some(reply)) => format!("{host}: {reply}"),
        _ => format!("{} {}", failure.status, failure.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use message::QueueId;
    use queue::{EntryId, EntryState, NextHop};

    fn entry(recipients: usize) -> Entry {
        let recipient = |n| Recipient {
            address: format!("r{n}@example.net").parse().unwrap(),
            original: None,
            standing: Standing::Pending,
            attempt: None,
        };
        Entry {
            id: EntryId { message: QueueId::generate(), number: 0 },
            next_hop: NextHop("mx:example.net".into()),
            tenant: queue::Tenant::default(),
            recipients: (0..recipients).map(recipient).collect(),
            state: EntryState::Leased,
            epoch: 1,
            attempts: 0,
            due: Timestamp(0),
            expires: Timestamp(1_000_000_000),
            last_error: None,
            worker: None,
            held: None,
            doomed: None,
            doubt: None,
        }
    }

    fn failure(status: &str) -> Failure {
        Failure { status: status.into(), reply: None, remote_mta: None, text: "greylisted".into() }
    }

    fn delivered() -> RecipientOutcome {
        RecipientOutcome::Delivered { by: "mx".into(), reply: "250 ok".into() }
    }

    #[test]
    fn each_recipient_goes_its_own_way() {
        let outcomes = vec![
            (0, delivered()),
            (1, RecipientOutcome::Deferred(failure("4.2.0"))),
            (2, RecipientOutcome::Failed(failure("5.1.1"))),
        ];
        let judged = judge(&entry(3), outcomes, &RetryConfig::default(), Timestamp(0), 0.5);
        assert_eq!((judged.delivered, judged.deferred, judged.failed), (1, 1, vec![2]));
        assert_eq!(judged.recipients[0].standing, Standing::Delivered);
        assert!(judged.recipients[1].standing.is_open());
        assert_eq!(
            judged.next,
            Next::Retry { after: Duration::from_secs(300), error: "4.2.0 greylisted".into() }
        );
    }

    #[test]
    fn an_entry_without_open_recipients_is_done() {
        let judged = judge(&entry(1), vec![(0, delivered())], &RetryConfig::default(), Timestamp(0), 0.5);
        assert_eq!(judged.next, Next::Done(Closing::Delivered));
    }

    #[test]
    fn what_was_broken_off_goes_on_soon_and_not_later_than_it_would_have() {
        let deferred = || vec![(0, RecipientOutcome::Deferred(failure("4.3.2")))];
        let mut judged = judge(&entry(1), deferred(), &RetryConfig::default(), Timestamp(0), 0.5);
        judged.retry_soon();
        assert!(matches!(judged.next, Next::Retry { after, .. } if after == SOON));
        let quick = RetryConfig { initial: Duration::from_secs(1), ..RetryConfig::default() };
        let mut judged = judge(&entry(1), deferred(), &quick, Timestamp(0), 0.5);
        judged.retry_soon();
        assert!(matches!(judged.next, Next::Retry { after, .. } if after == Duration::from_secs(1)));
    }

    #[test]
    fn those_who_failed_can_be_left_for_a_later_attempt() {
        let outcomes = vec![(0, delivered()), (1, RecipientOutcome::Failed(failure("5.1.1")))];
        let mut judged = judge(&entry(2), outcomes, &RetryConfig::default(), Timestamp(0), 0.5);
        assert_eq!(judged.next, Next::Done(Closing::Bounced));
        judged.leave_failed(&entry(2));
        let standings: Vec<_> = judged.recipients.iter().map(|recipient| &recipient.standing).collect();
        assert_eq!(standings, [&Standing::Delivered, &Standing::Pending]);
        assert!(matches!(judged.next, Next::Retry { after, .. } if after == SOON));
        assert!(judged.failed.is_empty(), "nobody is told of them");
    }

    #[test]
    fn the_wait_doubles_to_its_limit_and_wavers() {
        let retry = RetryConfig::default();
        assert_eq!(wait(&retry, 0, 0.0), Duration::from_secs(270));
        assert_eq!(wait(&retry, 0, 1.0), Duration::from_secs(330));
        assert_eq!(wait(&retry, 3, 0.5), Duration::from_secs(2400));
        assert_eq!(wait(&retry, 1000, 0.5), retry.max_interval);
    }

    #[test]
    fn the_last_wait_ends_where_the_time_does() {
        let deferred = vec![(0, RecipientOutcome::Deferred(failure("4.2.0")))];
        let judged = judge(&entry(1), deferred, &RetryConfig::default(), Timestamp(999_990_000), 0.5);
        assert!(matches!(judged.next, Next::Retry { after, .. } if after == Duration::from_secs(10)));
    }

    #[test]
    fn a_deferral_after_the_time_is_a_failure() {
        let mut refused = failure("4.2.0");
        refused.reply = Some("450 later".into());
        let deferred = vec![(0, RecipientOutcome::Deferred(refused))];
        let judged = judge(&entry(1), deferred, &RetryConfig::default(), Timestamp(1_000_000_000), 0.5);
        let Standing::Failed(failure) = &judged.recipients[0].standing else { panic!("still open") };
        assert_eq!((failure.status.as_str(), failure.reply.as_deref()), ("4.4.7", Some("450 later")));
        assert!(failure.text.contains("greylisted"));
        assert_eq!((judged.next, judged.failed), (Next::Done(Closing::Expired), vec![0]));
    }
}
