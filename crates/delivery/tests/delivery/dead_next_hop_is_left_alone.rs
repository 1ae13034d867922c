use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use testkit::wait;
use tokio::net::TcpListener;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn what_is_due_for_a_dead_next_hop_shares_its_failure() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        // Takes connections and says nothing.
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, SeqCst);
            drop(stream);
        }
    });
    let mut plan = Plan::default().behind("example.com", "lmtp", address);
    plan.config.dispatch.per_local_domain = 1;
    plan.config.retry.initial = Duration::from_secs(600);
    let site = plan.start().await?;
    for n in 0..10 {
        site.deliver("a@example.net", &["b@example.com"], &format!("dead {n}")).await?;
    }
    wait::until_true("ten deferrals", SOON, async || {
        site.entries().await.is_ok_and(|entries| entries.iter().all(|entry| entry.attempts == 1))
    })
    .await?;
    assert_eq!(connections.load(SeqCst), 1);
    Ok(())
}
