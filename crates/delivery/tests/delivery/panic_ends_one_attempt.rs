use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;

use crate::support::{Mail, Plan, SOON};

#[tokio::test]
async fn an_attempt_that_panics_is_made_again_when_its_lease_ends() -> Result<()> {
    let mut plan = Plan::default().maildir("example.com");
    plan.config.dispatch.lease = Duration::from_secs(1);
    plan.config.dispatch.concurrency = 1;
    let site = plan.start().await?;
    site.queue.panicking_parts.store(2, SeqCst);
    let content = vec![b'x'; queue::INLINE_LIMIT + 1];
    let mail = Mail::of("a@example.net", &["alice@example.com"], content.into());
    site.accept(&mail).await?;
    site.maildir("example.com", "alice").wait_for_count(1, SOON).await?;
    assert_eq!(site.queue.panicking_parts.load(SeqCst), 0);
    site.settled().await
}
