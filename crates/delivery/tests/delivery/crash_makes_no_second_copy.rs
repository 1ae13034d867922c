use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::Result;
use testkit::wait;

use crate::support::{Plan, SOON};

/// A worker that dies between filing and settling leaves the entry to the next one.
async fn delivered_again(read: bool) -> Result<()> {
    let mut plan = Plan::default().maildir("example.com");
    plan.config.dispatch.lease = Duration::from_secs(1);
    let site = plan.start().await?;
    site.queue.lost_settlements.store(1, SeqCst);
    site.deliver("a@example.net", &["alice@example.com"], "just one").await?;
    let mailbox = site.maildir("example.com", "alice");
    mailbox.wait_for("just one", SOON).await?;
    if read {
        for file in std::fs::read_dir(mailbox.path().join("new"))? {
            let file = file?;
            let seen = format!("{}:2,S", file.file_name().to_string_lossy());
            std::fs::rename(file.path(), mailbox.path().join("cur").join(seen))?;
        }
    }
    wait::until_true("a settlement", SOON, async || site.queue.settlements.load(SeqCst) == 1).await?;
    site.settled().await?;
    assert_eq!(mailbox.messages()?.len(), usize::from(!read));
    assert_eq!(std::fs::read_dir(mailbox.path().join("cur"))?.count(), usize::from(read));
    assert_eq!(std::fs::read_dir(mailbox.path().join("tmp"))?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn a_message_filed_before_a_crash_is_not_filed_twice() -> Result<()> {
    delivered_again(false).await
}

#[tokio::test]
async fn a_message_read_before_the_second_attempt_is_not_filed_again() -> Result<()> {
    delivered_again(true).await
}
