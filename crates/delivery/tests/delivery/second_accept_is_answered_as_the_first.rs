use anyhow::Result;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_message_accepted_twice_is_delivered_once() -> Result<()> {
    let site = Plan::default().maildir("example.com").start().await?;
    let mail = site.deliver("a@example.net", &["alice@example.com"], "once").await?;
    assert!(!site.accept(&mail).await?.fresh);
    site.maildir("example.com", "alice").wait_for("once", SOON).await?;
    site.settled().await?;
    assert!(!site.accept(&mail).await?.fresh, "even after it has left the queue");
    site.settled().await?;
    assert_eq!(site.maildir("example.com", "alice").messages()?.len(), 1);
    Ok(())
}
