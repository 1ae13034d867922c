//! Writing down what came of an attempt, for as long as that takes.

use std::time::Duration;

use queue::{QueueError, Settlement};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Attempts;
use crate::error::with_causes;

/// An outage of the store is waited out for so long. A lease outlives one of nearly any length, since the queue's time
/// stands still while the store is away; so it pays to wait while somebody may yet bring it back. The wait takes one of
/// the places of `dispatch.concurrency`, so there is an end to how many wait.
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// The first wait before a settlement is tried again; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest such wait. A lease that outlived an outage has some ten seconds left after it.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What became of a settlement.
enum Fate {
    Written,
    /// An answer was lost, and the queue looks as if it had been the good one.
    Assumed,
    Lost(String),
}

impl Attempts {
    /// Writes the outcome down, again and again while the store cannot be used: until then the
    /// recipients that were reached would be reached again. It is given up when `over` is cancelled.
    pub(crate) async fn settle(&self, settlement: Settlement, over: &CancellationToken) {
        let fate = over.run_until_cancelled(self.write_down(&settlement)).await;
        match fate.unwrap_or_else(|| Fate::Lost("the process ends".to_owned())) {
            Fate::Written => {}
            Fate::Assumed => {
                tracing::warn!("the queue did not answer in time, but the outcome seems to be written down");
            }
            Fate::Lost(error) => {
                metrics::counter!("packetboat_delivery_settlements_lost_total").increment(1);
                tracing::error!(error, "outcome is lost, recipients may get a second copy");
            }
        }
    }

    async fn write_down(&self, settlement: &Settlement) -> Fate {
        let given_up = Instant::now() + PATIENCE;
        let (mut wait, mut unanswered) = (FIRST_WAIT, false);
        loop {
            let error = match self.queue.settle(settlement.clone()).await {
                Ok(()) => return Fate::Written,
                Err(error) => error,
            };
            let told = with_causes(&error);
            match error {
                QueueError::Unavailable { .. } if Instant::now() + wait < given_up => {
                    unanswered = true;
                    // Each of many says so some times, not every few seconds for an hour.
                    if wait < LONGEST_WAIT {
                        tracing::warn!(error = told, "outcome cannot be written down yet");
                    } else {
                        tracing::debug!(error = told, "outcome cannot be written down yet");
                    }
                    sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                // The first that was not answered may have been written, and so have ended the lease.
                QueueError::StaleLease | QueueError::Gone(_) if unanswered => {
                    let lost = self.is_contradicted(settlement).await;
                    return if lost { Fate::Lost(told) } else { Fate::Assumed };
                }
                _ => return Fate::Lost(told),
            }
        }
    }

    /// Whether the queue would have a recipient tried again of whom this settlement says the last word. An entry that is
    /// gone does not: nobody is tried again. Nor does a queue that cannot be asked.
    async fn is_contradicted(&self, settlement: &Settlement) -> bool {
        let id = settlement.lease.entry;
        let Ok(Some((_, entries))) = self.queue.show(id.message).await else { return false };
        let Some(entry) = entries.into_iter().find(|entry| entry.id == id) else { return false };
        let pairs = settlement.recipients.iter().zip(&entry.recipients);
        pairs.into_iter().any(|(said, kept)| !said.standing.is_open() && kept.standing.is_open())
    }
}
