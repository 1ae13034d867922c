use anyhow::Result;
use testkit::smtp::Sink;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_recipient_that_was_served_is_not_served_again() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply_to_recipient("slow@example.org", "451 4.3.0 later");
    sink.reply_to_recipient("gone@example.org", "550 5.1.1 no such user");
    let site =
        Plan::default().maildir("example.com").exchanger("example.org", sink.address()).start().await?;
    let to = ["quick@example.org", "slow@example.org", "gone@example.org"];
    site.deliver("a@example.com", &to, "to three").await?;
    let bounce = site.maildir("example.com", "a").wait_for("gone@example.org", SOON).await?;
    assert!(!bounce.contains("slow@example.org") && !bounce.contains("quick@example.org"));
    sink.behave();
    site.settled().await?;
    let received: Vec<_> = sink.received().into_iter().map(|received| received.to).collect();
    assert_eq!(received, [["quick@example.org"], ["slow@example.org"]]);
    assert_eq!(site.maildir("example.com", "a").messages()?.len(), 1, "one bounce for one failure");
    Ok(())
}
