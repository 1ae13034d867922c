use std::time::Duration;

use anyhow::Result;
use queue::EntryState;
use testkit::smtp::{Sink, Verb};
use testkit::wait;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn shutdown_waits_for_attempts_and_hands_the_rest_back() -> Result<()> {
    let (slow, quick) = (Sink::lmtp().await?, Sink::lmtp().await?);
    slow.delay(Verb::Greeting, Duration::from_secs(600));
    quick.delay(Verb::Dot, Duration::from_millis(500));
    let mut plan = Plan::default().behind("slow.example.com", "lmtp", slow.address()).behind(
        "quick.example.com",
        "lmtp",
        quick.address(),
    );
    plan.config.dispatch.per_local_domain = 1;
    plan.config.dispatch.drain = Duration::from_secs(3);
    let mut site = plan.start().await?;
    for n in 0..3 {
        site.deliver("a@example.net", &["b@slow.example.com"], &format!("slow {n}")).await?;
    }
    site.deliver("a@example.net", &["b@quick.example.com"], "quick").await?;
    wait::until_true("both attempts", SOON, async || slow.connections() == 1 && quick.connections() == 1)
        .await?;
    site.stop().await?;
    assert_eq!(quick.count(), 1, "an attempt in flight may end");
    let entries = site.entries().await?;
    assert_eq!(entries.len(), 3);
    assert!(
        entries.iter().all(|entry| entry.state == EntryState::Queued && entry.attempts == 0),
        "{entries:?}"
    );
    Ok(())
}
