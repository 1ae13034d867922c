use anyhow::Result;
use testkit::smtp::{Sink, Verb};
use testkit::wait;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_deferred_message_is_tried_again() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "450 4.2.0 greylisted");
    let site = Plan::default().exchanger("example.org", sink.address()).start().await?;
    site.deliver("a@example.com", &["b@example.org"], "patience").await?;
    wait::until_true("a deferral", SOON, async || {
        site.entries().await.is_ok_and(|entries| {
            entries.iter().any(|entry| {
                entry.last_error.as_deref().is_some_and(|error| error.contains("450 4.2.0 greylisted"))
            })
        })
    })
    .await?;
    sink.behave();
    sink.wait_for("patience", SOON).await?;
    site.settled().await?;
    assert_eq!(sink.count(), 1);
    Ok(())
}
