//! What has become of each recipient while an attempt goes from host to host.

use message::Failure;

use crate::transfer::RecipientOutcome;

/// Why a host did not take a recipient, where another host still might.
#[derive(Debug, Clone)]
pub(super) struct Obstacle {
    /// What to report if it stays the last word.
    pub(super) failure: Failure,
    /// Should every host say the like, trying again later cannot help.
    pub(super) permanent: bool,
}

/// The recipients of one attempt. A recipient is open until its outcome is settled; only open ones
/// are offered to the next host. It outlives the transport that writes into it, so that what is known
/// stays known when an attempt is broken off.
pub struct Ledger {
    slots: Vec<Slot>,
}

enum Slot {
    Open {
        last: Option<Obstacle>,
        /// A host has been sent the end of the message, and has not answered.
        in_doubt: Option<Failure>,
    },
    Settled(RecipientOutcome),
}

impl Ledger {
    /// An account of so many recipients, all of them open.
    #[must_use]
    pub fn new(recipients: usize) -> Self {
        Self { slots: (0..recipients).map(|_| Slot::Open { last: None, in_doubt: None }).collect() }
    }

    /// The numbers of the recipients that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> + '_ {
        let is_open = |slot: &Slot| matches!(slot, Slot::Open { .. });
        self.slots.iter().enumerate().filter(move |(_, slot)| is_open(slot)).map(|(number, _)| number)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.open().next().is_none()
    }

    /// Settles an open recipient; what is settled stays as it is.
    pub(crate) fn settle(&mut self, number: usize, outcome: RecipientOutcome) {
        if let Some(slot @ Slot::Open { .. }) = self.slots.get_mut(number) {
            *slot = Slot::Settled(outcome);
        }
    }

    /// Notes that a host is being sent the end of the message for an open recipient. Until it is settled or
    /// obstructed it is in doubt; `failure` is what to report if it stays so.
    pub(super) fn doubt(&mut self, number: usize, failure: &Failure) {
        if let Some(Slot::Open { in_doubt, .. }) = self.slots.get_mut(number) {
            *in_doubt = Some(failure.clone());
        }
    }

    /// Notes why this host did not take an open recipient. One temporary reason outweighs all
    /// permanent ones: the host that gave it may yet take the message.
    pub(super) fn obstruct(&mut self, number: usize, obstacle: &Obstacle) {
        let Some(Slot::Open { last, in_doubt }) = self.slots.get_mut(number) else { return };
        *in_doubt = None;
        let outweighed = last.as_ref().is_some_and(|last| !last.permanent && obstacle.permanent);
        if !outweighed {
            *last = Some(obstacle.clone());
        }
    }

    /// Notes the same reason for every open recipient.
    pub(super) fn obstruct_all(&mut self, obstacle: &Obstacle) {
        for number in 0..self.slots.len() {
            self.obstruct(number, obstacle);
        }
    }

    /// Whether anything is known that must not be forgotten: a recipient is settled, or in doubt.
    pub(crate) fn is_begun(&self) -> bool {
        self.slots.iter().any(|slot| !matches!(slot, Slot::Open { in_doubt: None, .. }))
    }

    /// Whether a recipient is to wait its time before it is tried again: a host may have the message for it, or our
    /// store failed at it.
    pub(crate) fn has_to_wait(&self) -> bool {
        let waits = |slot: &Slot| {
            matches!(
                slot,
                Slot::Open { in_doubt: Some(_), .. } | Slot::Settled(RecipientOutcome::Deferred(_))
            )
        };
        self.slots.iter().any(waits)
    }

    /// The outcomes, in the order of the recipients, when all hosts that were to be tried have been.
    #[must_use]
    pub fn finish(self) -> Vec<RecipientOutcome> {
        self.slots.into_iter().map(Slot::finish).collect()
    }

    /// The outcomes, in the order of the recipients, of an attempt that was broken off for this reason. Nobody fails
    /// for what one host said: another might have said otherwise.
    pub(crate) fn break_off(self, why: &Failure) -> Vec<RecipientOutcome> {
        let in_doubt = self.slots.iter().filter(|slot| matches!(slot, Slot::Open { in_doubt: Some(_), .. }));
        metrics::counter!("packetboat_outbound_ambiguous_total").increment(in_doubt.count() as u64);
        let outcome = |slot| match slot {
            Slot::Open { last: Some(Obstacle { failure, permanent: false }), in_doubt: None } => {
                RecipientOutcome::Deferred(failure)
            }
            Slot::Open { in_doubt: None, .. } => RecipientOutcome::Deferred(why.clone()),
            known => known.finish(),
        };
        self.slots.into_iter().map(outcome).collect()
    }
}

impl Slot {
    fn finish(self) -> RecipientOutcome {
        match self {
            Self::Settled(outcome) => outcome,
            Self::Open { in_doubt: Some(failure), .. } => {
                tracing::warn!(
                    why = failure.text,
                    "no answer to the end of the message, it may be delivered twice"
                );
                RecipientOutcome::Deferred(failure)
            }
            Self::Open { last: Some(Obstacle { failure, permanent: true }), .. } => {
                RecipientOutcome::Failed(failure)
            }
            Self::Open { last: Some(Obstacle { failure, permanent: false }), .. } => {
                RecipientOutcome::Deferred(failure)
            }
            Self::Open { last: None, .. } => RecipientOutcome::Deferred(Failure {
                status: "4.4.0".to_owned(),
                reply: None,
                remote_mta: None,
                text: "no host was tried; max_connects and max_sessions must be at least 1".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle(text: &str, permanent: bool) -> Obstacle {
        let failure =
            Failure { status: "4.0.0".to_owned(), reply: None, remote_mta: None, text: text.to_owned() };
        Obstacle { failure, permanent }
    }

    #[test]
    fn a_temporary_reason_outweighs_permanent_ones() {
        let mut ledger = Ledger::new(3);
        ledger.obstruct_all(&obstacle("first says never", true));
        ledger.obstruct(0, &obstacle("second says later", false));
        ledger.obstruct(0, &obstacle("third says never", true));
        ledger.settle(1, RecipientOutcome::Delivered { by: "mx".to_owned(), reply: "250".to_owned() });
        ledger.settle(1, RecipientOutcome::Failed(obstacle("too late", true).failure));
        assert_eq!(ledger.open().collect::<Vec<_>>(), [0, 2]);
        let outcomes = ledger.finish();
        assert!(matches!(&outcomes[0], RecipientOutcome::Deferred(f) if f.text == "second says later"));
        assert!(matches!(&outcomes[1], RecipientOutcome::Delivered { .. }));
        assert!(matches!(&outcomes[2], RecipientOutcome::Failed(f) if f.text == "first says never"));
    }
    #[test]
    fn what_is_known_outlives_an_attempt_that_is_broken_off() {
        let mut ledger = Ledger::new(5);
        assert!(!ledger.is_begun() && !ledger.has_to_wait());
        ledger.obstruct(1, &obstacle("later", false));
        ledger.obstruct(2, &obstacle("never here", true));
        assert!(!ledger.is_begun(), "an obstacle is no outcome");
        ledger.settle(0, RecipientOutcome::Delivered { by: "mx".to_owned(), reply: "250".to_owned() });
        assert!(ledger.is_begun() && !ledger.has_to_wait());
        for number in [0, 3, 4] {
            ledger.doubt(number, &obstacle("may have it", false).failure);
        }
        ledger.obstruct(4, &obstacle("has it not", false));
        assert!(ledger.has_to_wait());
        let outcomes = ledger.break_off(&obstacle("broken off", false).failure);
        assert!(matches!(&outcomes[0], RecipientOutcome::Delivered { .. }));
        let told: Vec<&str> = outcomes[1..]
            .iter()
            .map(|outcome| match outcome {
                RecipientOutcome::Deferred(failure) => failure.text.as_str(),
                _ => "not deferred",
            })
            .collect();
        assert_eq!(told, ["later", "broken off", "may have it", "has it not"]);
    }
}
