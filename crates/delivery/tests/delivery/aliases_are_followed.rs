use anyhow::Result;
use testkit::smtp::{Sink, Verb};

use crate::support::{Plan, SOON};

#[tokio::test]
async fn an_alias_leads_to_each_address_once_and_a_bounce_names_it() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "550 5.1.1 no such user");
    let mut plan = Plan::default().exchanger("example.org", sink.address());
    plan.domains.push(
        "domain: example.com\ninbound: {recipients: {mode: List, addresses: [alice, sender], \
         aliases: {sales: [alice, crm@example.org]}}, route: {maildir: {path: mail}}}"
            .to_owned(),
    );
    let site = plan.start().await?;
    site.deliver("sender@example.com", &["sales@example.com", "alice@example.com"], "to sales").await?;
    let bounce = site.maildir("example.com", "sender").wait_for("to sales", SOON).await?;
    let named =
        "Original-Recipient: rfc822; sales@example.com\r\nFinal-Recipient: rfc822; crm@example.org\r\n";
    assert!(bounce.contains(named), "{bounce}");
    site.settled().await?;
    assert_eq!(site.maildir("example.com", "alice").messages()?.len(), 1);
    Ok(())
}
