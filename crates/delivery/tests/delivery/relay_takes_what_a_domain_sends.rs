use anyhow::Result;
use testkit::smtp::Sink;

use crate::support::{Plan, SOON};

#[tokio::test]
async fn what_a_domain_forwards_goes_by_its_relay() -> Result<()> {
    let relay = Sink::smtp().await?;
    let mut plan = Plan::default();
    plan.domains.push(format!(
        "domain: example.com\ninbound: {{recipients: {{mode: List, aliases: {{sales: [x@example.org]}}}}, \
         route: {{maildir: {{path: mail}}}}}}\noutbound: {{relay: \"{}\"}}",
        relay.address()
    ));
    let site = plan.start().await?;
    site.deliver("a@example.net", &["sales@example.com"], "by the relay").await?;
    assert_eq!(relay.wait_for("by the relay", SOON).await?.to, ["x@example.org"]);
    site.settled().await
}
