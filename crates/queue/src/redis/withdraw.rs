//! Messages that Redis may have and nobody answered for: their senders were told to send them again, so they are taken
//! back as soon as that can be done, or they would be delivered twice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use message::QueueId;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::client::Client;
use super::gather::Change;
use crate::{QueueError, Target, Verb};

/// Messages remembered at most; those beyond may be delivered twice.
const MOST: usize = 20_000;
/// Messages taken back at a time.
const AT_A_TIME: usize = 64;
/// After a failure it is tried again, after this.
const AGAIN: Duration = Duration::from_millis(250);

/// What is to be taken back.
#[derive(Default)]
pub(super) struct Withdrawals {
    ids: Mutex<VecDeque<QueueId>>,
    more: Notify,
}

impl Withdrawals {
    fn ids(&self) -> MutexGuard<'_, VecDeque<QueueId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it taken back. The message must not be answered for any more.
    pub(super) fn push(&self, id: QueueId) {
        let mut ids = self.ids();
        if ids.len() < MOST {
            ids.push_back(id);
        } else {
            tracing::error!(queue_id = %id, "a message may be in the queue that nobody answered for; it may be delivered twice");
        }
        drop(ids);
        self.more.notify_one();
    }

    fn some(&self) -> Vec<QueueId> {
        let mut ids = self.ids();
        let count = ids.len().min(AT_A_TIME);
        ids.drain(..count).collect()
    }
}

/// Takes back whatever is to be taken back, until it is dropped.
pub(super) async fn keep(client: Arc<Client>) {
    loop {
        let some = client.withdrawals.some();
        if some.is_empty() {
            client.withdrawals.more.notified().await;
            continue;
        }
        let outcomes = join_all(some.iter().map(|id| client.withdraw_late(*id))).await;
        let failed: Vec<QueueId> = some
            .into_iter()
            .zip(outcomes)
            .filter(|(_, outcome)| outcome.is_err())
            .map(|(id, _)| id)
            .collect();
        if !failed.is_empty() {
            client.withdrawals.ids().extend(failed);
            sleep(AGAIN).await;
        }
    }
}

impl Client {
    /// Takes back a message whose fate is unknown: one that is still to arrive is not accepted any more.
    async fn withdraw_late(self: &Arc<Self>, id: QueueId) -> Result<(), QueueError> {
        let mut bar = Change::new(self.layout.shard_of(id), "bar");
        bar.arguments.arg(id.as_str());
        self.change::<i64>("barring a message", bar).await?.1?;
        let entries = self.operate(Target::Message(id), &Verb::Remove, "").await?;
        if entries > 0 {
            tracing::warn!(queue_id = %id, entries, "a message that nobody answered for is withdrawn");
        }
        Ok(())
    }
}
