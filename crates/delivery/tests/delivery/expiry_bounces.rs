use std::time::Duration;

use anyhow::Result;
use testkit::smtp::{Sink, Verb};

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_message_that_is_deferred_for_too_long_bounces() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "450 4.2.2 the mailbox is full");
    let mut plan = Plan::default().maildir("example.com").exchanger("example.org", sink.address());
    plan.config.retry.max_age = Duration::from_millis(700);
    let site = plan.start().await?;
    site.deliver("alice@example.com", &["b@example.org"], "too late").await?;
    let bounce = site.maildir("example.com", "alice").wait_for("too late", SOON).await?;
    assert!(bounce.contains("Status: 4.4.7\r\n"), "{bounce}");
    assert!(bounce.contains("Diagnostic-Code: smtp; 450 4.2.2 the mailbox is full\r\n"), "{bounce}");
    site.settled().await?;
    assert_eq!(site.maildir("example.com", "alice").messages()?.len(), 1);
    Ok(())
}
