use anyhow::Result;
use testkit::smtp::{Sink, Verb};
use testkit::wait;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn queued_mail_follows_a_route_that_changes() -> Result<()> {
    let store = Sink::lmtp().await?;
    store.reply(Verb::Rcpt, "451 4.3.0 out of order");
    let site = Plan::default().behind("example.com", "lmtp", store.address()).start().await?;
    site.deliver("a@example.net", &["alice@example.com"], "diverted").await?;
    wait::until_true("an attempt", SOON, async || store.connections() > 0).await?;
    site.redeclare(
        "domain: example.com\ninbound: {recipients: {mode: AcceptAll}, route: {maildir: {path: mail}}}",
    )?;
    site.maildir("example.com", "alice").wait_for("diverted", SOON).await?;
    site.settled().await?;
    assert_eq!(store.count(), 0);
    Ok(())
}
