use anyhow::Result;
use proto::Disposition;
use testkit::smtp::{Sink, Verb};

use crate::support::{Mail, Plan};

#[tokio::test]
async fn the_forged_sender_of_quarantined_mail_is_not_told() -> Result<()> {
    let store = Sink::lmtp().await?;
    store.reply(Verb::Rcpt, "550 5.1.1 no such user");
    let site = Plan::default()
        .maildir("victim.example.com")
        .behind("example.com", "lmtp", store.address())
        .start()
        .await?;
    let mut mail = Mail::new("forged@victim.example.com", &["b@example.com"], "dubious");
    mail.commit.disposition = Disposition::Quarantine.into();
    site.accept(&mail).await?;
    site.settled().await?;
    assert!(site.maildir("victim.example.com", "forged").messages()?.is_empty());
    Ok(())
}
