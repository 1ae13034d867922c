use anyhow::Result;
use testkit::smtp::{Sink, Verb};

use crate::support::Plan;

#[tokio::test]
async fn a_notification_that_fails_is_dropped() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "550 5.1.1 no such user");
    let site =
        Plan::default().maildir("example.com").exchanger("example.org", sink.address()).start().await?;
    site.deliver("", &["b@example.org"], "a bounce itself").await?;
    site.settled().await?;
    assert_eq!((sink.connections(), sink.count()), (1, 0));
    Ok(())
}
