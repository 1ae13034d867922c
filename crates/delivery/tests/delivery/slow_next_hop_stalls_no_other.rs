use std::time::Duration;

use anyhow::Result;
use testkit::smtp::{Sink, Verb};

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_slow_next_hop_with_a_deep_queue_stalls_no_other() -> Result<()> {
    let (slow, quick) = (Sink::lmtp().await?, Sink::lmtp().await?);
    slow.delay(Verb::Greeting, Duration::from_secs(600));
    let mut plan = Plan::default().behind("slow.example.com", "lmtp", slow.address()).behind(
        "quick.example.com",
        "lmtp",
        quick.address(),
    );
    plan.config.dispatch.concurrency = 4;
    plan.config.dispatch.per_local_domain = 2;
    let site = plan.start().await?;
    for n in 0..20 {
        site.deliver("a@example.net", &["b@slow.example.com"], &format!("slow {n}")).await?;
    }
    for n in 0..20 {
        site.deliver("a@example.net", &["b@quick.example.com"], &format!("quick {n}")).await?;
    }
    for n in 0..20 {
        quick.wait_for(&format!("quick {n}\r\n"), SOON).await?;
    }
    assert_eq!(slow.count(), 0);
    assert!(slow.connections() <= 2, "no more than the limit of one next hop");
    Ok(())
}
