//! Waiting for an event, with a deadline and a name for what did not happen.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How often a condition is looked at again.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `condition` until it gives a value, and fails once `limit` has passed.
///
/// The last look happens after the deadline, so that a slow machine gets the benefit of the doubt.
/// `what` completes the sentence "gave up waiting for …".
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let late = Instant::now() >= deadline;
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if late {
            bail!("gave up waiting for {what} after {limit:?}");
        }
        sleep(INTERVAL).await;
    }
}

/// [`until`] for a condition that is either true or not.
pub async fn until_true(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> Result<()> {
    until(what, limit, async || condition().await.then_some(())).await
}
