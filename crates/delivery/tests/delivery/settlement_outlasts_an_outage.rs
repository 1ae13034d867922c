use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;
use testkit::smtp::Sink;
use testkit::wait;

use crate::support::{Counts, Plan, SOON, Site};

const LOST: &str = "packetboat_delivery_settlements_lost_total";

async fn site(sink: &Sink) -> Result<Site> {
    let mut plan = Plan::default().exchanger("example.org", sink.address());
    plan.config.dispatch.lease = Duration::from_secs(1);
    plan.start().await
}

async fn delivered(site: &Site, sink: &Sink) -> Result<()> {
    site.deliver("a@example.com", &["b@example.org"], "just one").await?;
    sink.wait_for("just one", SOON).await?;
    Ok(())
}

#[tokio::test]
async fn an_outage_longer_than_a_lease_makes_no_second_copy() -> Result<()> {
    let counts = Counts::default();
    let _counting = counts.begin();
    let sink = Sink::smtp().await?;
    let site = site(&sink).await?;
    site.queue.time_stands_still.store(true, SeqCst);
    // The waits after these are more than three seconds.
    site.queue.failing_settlements.store(6, SeqCst);
    delivered(&site, &sink).await?;
    wait::until_true("a settlement", SOON, async || site.queue.settlements.load(SeqCst) == 1).await?;
    site.settled().await?;
    assert_eq!((sink.count(), counts.of(LOST)), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_settlement_whose_answer_was_lost_is_not_lost() -> Result<()> {
    let counts = Counts::default();
    let _counting = counts.begin();
    let sink = Sink::smtp().await?;
    let mut site = site(&sink).await?;
    site.queue.unanswered_settlements.store(1, SeqCst);
    delivered(&site, &sink).await?;
    site.settled().await?;
    // Ends when the settlement has been tried again, and has been found stale.
    site.stop().await?;
    assert_eq!(site.queue.unanswered_settlements.load(SeqCst), 0);
    assert_eq!((sink.count(), counts.of(LOST)), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_settlement_that_the_queue_contradicts_is_lost() -> Result<()> {
    let counts = Counts::default();
    let _counting = counts.begin();
    let sink = Sink::smtp().await?;
    let mut site = site(&sink).await?;
    site.queue.failing_leases.store(usize::MAX, SeqCst);
    site.queue.failing_settlements.store(1, SeqCst);
    site.queue.lost_settlements.store(1, SeqCst);
    delivered(&site, &sink).await?;
    wait::until_true("the loss", SOON, async || counts.of(LOST) == 1).await?;
    site.stop().await
}

#[tokio::test]
async fn what_cannot_be_written_down_before_the_end_is_told_to_be_lost() -> Result<()> {
    let counts = Counts::default();
    let _counting = counts.begin();
    let sink = Sink::smtp().await?;
    let mut site = site(&sink).await?;
    site.queue.failing_settlements.store(usize::MAX, SeqCst);
    delivered(&site, &sink).await?;
    site.stop().await?;
    assert_eq!(counts.of(LOST), 1);
    Ok(())
}
