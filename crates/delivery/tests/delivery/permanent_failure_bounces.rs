use anyhow::Result;
use testkit::smtp::{Sink, Verb};

use crate::support::{Plan, SOON};

#[tokio::test]
async fn a_refused_message_comes_back_to_its_sender() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Dot, "554 5.7.1 we do not like it");
    let site =
        Plan::default().maildir("example.com").exchanger("example.org", sink.address()).start().await?;
    let mail = site.deliver("alice@example.com", &["b@example.org"], "unloved").await?;
    let bounce = site.maildir("example.com", "alice").wait_for("unloved", SOON).await?;
    for wanted in [
        "Return-Path: <>\r\nDKIM-Signature: v=1; by=test\r\n",
        "From: Mail Delivery System <MAILER-DAEMON@example.com>\r\n",
        "To: <alice@example.com>\r\n",
        "Auto-Submitted: auto-replied\r\n",
        "Reporting-MTA: dns; mx.example.com\r\n",
        "Final-Recipient: rfc822; b@example.org\r\nAction: failed\r\nStatus: 5.7.1\r\n",
        "Diagnostic-Code: smtp; 554 5.7.1 we do not like it\r\n",
        "Subject: unloved\r\n",
        mail.id.as_str(),
    ] {
        assert!(bounce.contains(wanted), "{wanted:?} is missing in:\n{bounce}");
    }
    assert!(!bounce.contains("\r\n\r\nunloved\r\n"), "only the header comes back");
    site.settled().await?;
    assert_eq!(sink.connections(), 1, "nothing was tried again");
    Ok(())
}

#[tokio::test]
async fn a_bounce_goes_to_a_remote_sender_by_its_mail_exchanger() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply_to_recipient("gone@example.org", "550 5.1.1 no such user");
    let site = Plan::default().exchanger("example.org", sink.address()).start().await?;
    site.deliver("alice@example.org", &["gone@example.org"], "there and back").await?;
    let bounce = sink.wait_for("there and back", SOON).await?;
    assert_eq!((bounce.from.as_str(), bounce.to), ("", vec!["alice@example.org".to_owned()]));
    assert!(bounce.message.contains("From: Mail Delivery System <MAILER-DAEMON@mx.example.com>"));
    site.settled().await
}
