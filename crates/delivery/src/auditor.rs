//! Has the queue compare itself with itself, again and again, so that what vanished from its store is noticed
//! before anybody misses it: in the log by name, on `/metrics` by number.

use std::sync::Arc;
use std::time::Duration;

use queue::{Queue, QueueError, Scope};
use tokio::time::sleep;

use crate::error::with_causes;

/// The name under which the workers of a queue agree on who looks.
const NAME: &str = "audit";
/// Between two pages of an audit.
const PAUSE: Duration = Duration::from_millis(200);
/// Oddities named in the log by one audit at most; all are counted.
const NAMED: u64 = 100;

/// Looks through the queue every `interval`, for as long as it is the first of the workers that do.
pub(crate) struct Auditor {
    queue: Arc<dyn Queue>,
    worker: String,
    interval: Duration,
}

impl Auditor {
    pub(crate) fn new(queue: Arc<dyn Queue>, worker: String, interval: Duration) -> Self {
        Self { queue, worker, interval }
    }

    pub(crate) async fn run(&self) {
        loop {
            // At first, too: who comes up with the others waits for all to have said so.
            sleep(self.interval).await;
            match self.look().await {
                Ok(odd) => metrics::gauge!("mail_queue_oddities").set(odd as f64),
                Err(error) => tracing::debug!(error = %with_causes(&error), "the queue cannot be audited"),
            }
        }
    }

    /// How much does not fit; zero as well where another worker looks.
    async fn look(&self) -> Result<u64, QueueError> {
        let (_, before) =
            self.queue.sharers(&Scope::NextHop(NAME.to_owned()), &self.worker, self.interval * 3).await?;
        if before > 0 {
            return Ok(0);
        }
        let (mut cursor, mut odd) = (None, 0);
        loop {
            let page = self.queue.audit(cursor.as_deref()).await?;
            for one in page.odd {
                odd += 1;
                if odd <= NAMED {
                    tracing::error!(what = one.what, why = one.why, "the queue does not fit itself");
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(odd);
            }
            sleep(PAUSE).await;
        }
    }
}
