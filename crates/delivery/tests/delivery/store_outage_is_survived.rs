use std::sync::atomic::Ordering::SeqCst;

use anyhow::Result;
use proto::ErrorCode;

use crate::support::{Mail, Plan, SOON};

#[tokio::test]
async fn an_outage_of_the_store_is_an_unavailable_service_and_passes() -> Result<()> {
    let mut plan = Plan::default().maildir("example.com");
    plan.config.dispatch.outage_wait = std::time::Duration::from_millis(50);
    let site = plan.start().await?;
    site.queue.failing_leases.store(5, SeqCst);
    site.queue.failing_accepts.store(1, SeqCst);
    let mail = Mail::new("a@example.net", &["alice@example.com"], "storm");
    assert_eq!(site.accept(&mail).await.unwrap_err().code, ErrorCode::Unavailable);
    assert!(site.entries().await?.is_empty());
    assert!(site.accept(&mail).await?.fresh, "the same message may come again");
    site.maildir("example.com", "alice").wait_for("storm", SOON).await?;
    site.settled().await
}
