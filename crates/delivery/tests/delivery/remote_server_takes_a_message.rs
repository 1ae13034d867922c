use anyhow::Result;
use testkit::smtp::Sink;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_message_goes_to_the_mail_exchanger() -> Result<()> {
    let sink = Sink::smtp().await?;
    let site = Plan::default().exchanger("example.org", sink.address()).start().await?;
    site.deliver("a@example.com", &["b@example.org", "c@example.org"], "over the sea").await?;
    let received = sink.wait_for("over the sea", SOON).await?;
    assert_eq!(received.from, "a@example.com");
    assert_eq!(received.to, ["b@example.org", "c@example.org"]);
    site.settled().await?;
    assert_eq!(sink.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_hosted_domain_may_lie_behind_lmtp() -> Result<()> {
    let sink = Sink::lmtp().await?;
    let site = Plan::default().behind("example.com", "lmtp", sink.address()).start().await?;
    site.deliver("a@example.net", &["b@example.com"], "to the store").await?;
    sink.wait_for("to the store", SOON).await?;
    site.settled().await
}

#[tokio::test]
async fn mail_for_a_domain_that_only_sends_here_goes_to_its_mail_exchanger() -> Result<()> {
    let sink = Sink::smtp().await?;
    let mut plan = Plan::default().exchanger("example.org", sink.address());
    plan.domains.push("domain: example.org\noutbound: {retry: {maxAge: 1h}}".to_owned());
    let site = plan.start().await?;
    site.deliver("a@example.com", &["b@example.org"], "not for us").await?;
    sink.wait_for("not for us", SOON).await?;
    site.settled().await
}
