use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use message::Standing;
use queue::EntryState;
use testkit::smtp::{Sink, Verb};
use testkit::wait;
use tokio::net::TcpListener;

use crate::support::{Counts, Plan, SOON, Site};

const LONG: Duration = Duration::from_secs(600);
const TWO: [&str; 2] = ["alice@example.org", "bob@example.org"];

/// Takes connections, and says nothing.
struct BlackHole {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl BlackHole {
    async fn at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (address, connections) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let counted = connections.clone();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
                counted.fetch_add(1, SeqCst);
            }
        });
        Ok(Self { address, connections })
    }
}

/// A first exchanger that takes alice and puts bob off, and a second one that says nothing to anybody.
async fn half_taken() -> Result<(Sink, BlackHole, Plan)> {
    let first = Sink::smtp().await?;
    first.reply_to_recipient("bob@example.org", "450 4.2.0 later");
    let second = BlackHole::at(SocketAddr::from(([127, 0, 0, 2], first.address().port()))).await?;
    let plan = Plan::default().exchangers("example.org", [first.address(), second.address]);
    Ok((first, second, plan))
}

/// Waits until alice is taken, and bob is on offer to the black hole.
async fn begun(first: &Sink, second: &BlackHole) -> Result<()> {
    let begun = async || first.count() == 1 && second.connections.load(SeqCst) == 1;
    wait::until_true("an attempt at the second exchanger", SOON, begun).await
}

/// Waits until all is delivered; each recipient has one copy.
async fn one_copy_each(site: &Site, first: &Sink) -> Result<()> {
    site.settled().await?;
    let received: Vec<_> = first.received().into_iter().map(|received| received.to).collect();
    assert_eq!(received, [["alice@example.org"], ["bob@example.org"]]);
    Ok(())
}

#[tokio::test]
async fn a_drain_does_not_forget_who_was_served() -> Result<()> {
    let (first, second, plan) = half_taken().await?;
    let mut site = plan.start().await?;
    site.deliver("a@example.com", &TWO, "to two").await?;
    begun(&first, &second).await?;
    site.stop().await?;
    let entry = site.entry().await?;
    assert_eq!((entry.state, entry.attempts), (EntryState::Queued, 1));
    assert_eq!(entry.recipients[0].standing, Standing::Delivered);
    let Standing::Deferred(failure) = &entry.recipients[1].standing else { panic!("{entry:?}") };
    assert_eq!(failure.reply.as_deref(), Some("450 4.2.0 later"), "what is known of him, too");
    first.behave();
    site.start_again()?;
    one_copy_each(&site, &first).await
}

#[tokio::test]
async fn a_drain_does_not_have_those_wait_long_who_were_not_served() -> Result<()> {
    let (first, second, mut plan) = half_taken().await?;
    plan.config.retry.initial = LONG;
    let mut site = plan.start().await?;
    site.deliver("a@example.com", &TWO, "to two").await?;
    begun(&first, &second).await?;
    site.stop().await?;
    first.behave();
    site.start_again()?;
    one_copy_each(&site, &first).await
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_does_not_forget_who_was_served() -> Result<()> {
    let (first, second, mut plan) = half_taken().await?;
    plan.config.dispatch.attempt_timeout = Duration::from_secs(2);
    let site = plan.start().await?;
    site.deliver("a@example.com", &TWO, "to two").await?;
    begun(&first, &second).await?;
    first.behave();
    one_copy_each(&site, &first).await
}

#[tokio::test]
async fn a_message_whose_end_is_not_answered_at_a_drain_is_in_doubt() -> Result<()> {
    let counts = Counts::default();
    let _counting = counts.begin();
    let sink = Sink::smtp().await?;
    sink.delay(Verb::Dot, LONG);
    let mut plan = Plan::default().exchanger("example.org", sink.address());
    plan.config.retry.initial = LONG;
    let mut site = plan.start().await?;
    site.deliver("a@example.com", &["alice@example.org"], "taken or not").await?;
    sink.wait_for("taken or not", SOON).await?;
    site.stop().await?;
    let entry = site.entry().await?;
    assert_eq!((entry.state, entry.attempts), (EntryState::Queued, 1), "not handed back as if untried");
    let Standing::Deferred(failure) = &entry.recipients[0].standing else { panic!("{entry:?}") };
    assert!(failure.text.contains("may have taken the message"), "{}", failure.text);
    assert_eq!(counts.of("packetboat_outbound_ambiguous_total"), 1);
    // It waits its time: the peer may be about to answer.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    assert!(Duration::from_millis(entry.due.0) > now + LONG / 2, "{entry:?}");
    Ok(())
}

#[tokio::test]
async fn a_notification_that_comes_too_late_costs_nobody_a_second_copy() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply_to_recipient("bob@example.org", "550 5.1.1 no such user");
    let mut plan = Plan::default().maildir("example.com").exchanger("example.org", sink.address());
    plan.signer.unavailable = true;
    // The waits between these double: they last.
    plan.config.bounce.sign_tries = 30;
    let mut site = plan.start().await?;
    site.deliver("a@example.com", &TWO, "to two").await?;
    sink.wait_for("to two", SOON).await?;
    site.stop().await?;
    let entry = site.entry().await?;
    let standings: Vec<_> = entry.recipients.iter().map(|recipient| &recipient.standing).collect();
    assert_eq!(standings, [&Standing::Delivered, &Standing::Pending]);
    assert_eq!(sink.count(), 1);
    Ok(())
}

#[tokio::test]
async fn the_answer_to_an_ended_message_is_not_missed_for_a_silent_store() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.delay(Verb::Dot, Duration::from_secs(3));
    let mut plan = Plan::default().exchanger("example.org", sink.address());
    plan.config.dispatch.lease = Duration::from_secs(1);
    let site = plan.start().await?;
    site.queue.time_stands_still.store(true, SeqCst);
    site.queue.failing_renewals.store(usize::MAX, SeqCst);
    site.deliver("a@example.com", &["alice@example.org"], "patience").await?;
    wait::until_true("a settlement", SOON, async || site.queue.settlements.load(SeqCst) == 1).await?;
    assert!(site.entries().await?.is_empty(), "the answer was that it is delivered");
    assert_eq!(sink.count(), 1);
    Ok(())
}
