use std::time::Duration;

use anyhow::Result;
use testkit::smtp::{Sink, Verb};

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_bounce_that_cannot_be_signed_goes_unsigned() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "550 5.1.1 no such user");
    let mut plan = Plan::default().maildir("example.com").exchanger("example.org", sink.address());
    plan.signer.unavailable = true;
    plan.config.bounce.sign_tries = 2;
    plan.config.bounce.sign_timeout = Duration::from_millis(500);
    let site = plan.start().await?;
    site.deliver("alice@example.com", &["b@example.org"], "unsigned").await?;
    let bounce = site.maildir("example.com", "alice").wait_for("unsigned", SOON).await?;
    assert!(!bounce.contains("DKIM-Signature"));
    site.settled().await
}
