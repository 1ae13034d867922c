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
/// are offered to the next host.
pub(super) struct Ledger {
    slots: Vec<Slot>,
}

enum Slot {
    Open(Option<Obstacle>),
    Settled(RecipientOutcome),
}

impl Ledger {
    pub(super) fn new(recipients: usize) -> Self {
        Self { slots: (0..recipients).map(|_| Slot::Open(None)).collect() }
    }

    /// The numbers of the recipients that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = usize> + '_ {
        let is_open = |slot: &Slot| matches!(slot, Slot::Open(_));
        self.slots.iter().enumerate().filter(move |(_, slot)| is_open(slot)).map(|(number, _)| number)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.open().next().is_none()
    }

    /// Settles an open recipient; what is settled stays as it is.
    pub(super) fn settle(&mut self, number: usize, outcome: RecipientOutcome) {
        if let Some(slot @ Slot::Open(_)) = self.slots.get_mut(number) {
            *slot = Slot::Settled(outcome);
        }
    }

    /// Notes why this host did not take an open recipient. One temporary reason outweighs all
    /// permanent ones: the host that gave it may yet take the message.
    pub(super) fn obstruct(&mut self, number: usize, obstacle: &Obstacle) {
        let Some(Slot::Open(last)) = self.slots.get_mut(number) else { return };
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

    /// The outcomes, in the order of the recipients.
    pub(super) fn finish(self) -> Vec<RecipientOutcome> {
        self.slots.into_iter().map(Slot::finish).collect()
    }
}

impl Slot {
    fn finish(self) -> RecipientOutcome {
        match self {
            Self::Settled(outcome) => outcome,
            Self::Open(Some(Obstacle { failure, permanent: true })) => RecipientOutcome::Failed(failure),
            Self::Open(Some(Obstacle { failure, permanent: false })) => RecipientOutcome::Deferred(failure),
            Self::Open(None) => RecipientOutcome::Deferred(Failure {
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
}
