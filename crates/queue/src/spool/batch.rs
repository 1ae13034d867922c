//! Group commit: what comes within a short window is written as one object.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::QueueError;

/// What may wait to be written; who comes then waits at the door.
const WAITING: usize = 1024;

/// When a batch is closed.
pub(super) struct Limits {
    /// After its first item.
    pub(super) window: Duration,
    /// At so many items.
    pub(super) items: usize,
    /// At so many octets.
    pub(super) octets: u64,
    /// Batches being written.
    pub(super) writes: usize,
}

struct Waiting<T, R> {
    item: T,
    octets: u64,
    answer: oneshot::Sender<Result<R, Arc<QueueError>>>,
}

/// The door to a writer of batches. The writer ends when the last door is gone.
pub(super) struct Batcher<T, R> {
    sender: mpsc::Sender<Waiting<T, R>>,
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts a writer. `write` makes a batch durable and gives one answer for each item, in their order.
    pub(super) fn start(
        limits: Limits,
        write: impl Fn(Vec<T>) -> BoxFuture<'static, Result<Vec<R>, QueueError>> + Send + Sync + 'static,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(run(receiver, limits, Arc::new(write)));
        Self { sender }
    }

    /// Has an item written; it is durable when this returns.
    pub(super) async fn write(&self, item: T, octets: u64) -> Result<R, QueueError> {
        let ended = || QueueError::Unavailable {
            doing: "writing to the spool".to_owned(),
            cause: "its writer has ended".into(),
        };
        let (answer, answered) = oneshot::channel();
        self.sender.send(Waiting { item, octets, answer }).await.map_err(|_| ended())?;
        // Every write has a deadline, and so has this answer.
        answered.await.map_err(|_| ended())?.map_err(|error| QueueError::Unavailable {
            doing: "writing to the spool, together with others".to_owned(),
            cause: Box::new(error),
        })
    }
}

async fn run<T: Send + 'static, R: Send + 'static>(
    mut receiver: mpsc::Receiver<Waiting<T, R>>,
    limits: Limits,
    write: Arc<impl Fn(Vec<T>) -> BoxFuture<'static, Result<Vec<R>, QueueError>> + Send + Sync + 'static>,
) {
    let slots = Arc::new(Semaphore::new(limits.writes.max(1)));
    while let Some(first) = receiver.recv().await {
        let until = Instant::now() + limits.window;
        let mut octets = first.octets;
        let mut batch = vec![first];
        while batch.len() < limits.items && octets < limits.octets {
            let Ok(Some(next)) = timeout_at(until, receiver.recv()).await else { break };
            octets += next.octets;
            batch.push(next);
        }
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let write = Arc::clone(&write);
        tokio::spawn(async move {
            let (items, answers): (Vec<T>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.item, waiting.answer)).unzip();
            match write(items).await {
                Ok(results) => {
                    for (answer, result) in answers.into_iter().zip(results) {
                        // Who asked may have gone; what was written is swept then.
                        let _ = answer.send(Ok(result));
                    }
                }
                Err(error) => {
                    let error = Arc::new(error);
                    for answer in answers {
                        let _ = answer.send(Err(Arc::clone(&error)));
                    }
                }
            }
            drop(slot);
        });
    }
}
