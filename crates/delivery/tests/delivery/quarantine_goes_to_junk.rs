use anyhow::Result;
use proto::Disposition;

use crate::support::{Mail, Plan, SOON};

#[tokio::test]
async fn quarantined_mail_is_filed_as_junk() -> Result<()> {
    let site = Plan::default().maildir("example.com").start().await?;
    let mut mail = Mail::new("a@example.net", &["alice@example.com"], "dubious");
    mail.commit.disposition = Disposition::Quarantine.into();
    site.accept(&mail).await?;
    let mailbox = site.maildir("example.com", "alice");
    mailbox.junk().wait_for("dubious", SOON).await?;
    assert!(mailbox.messages()?.is_empty());
    site.settled().await
}
