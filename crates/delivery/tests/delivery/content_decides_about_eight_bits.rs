//! What is asked of a next hop follows from the content, not from what the client declared.

use anyhow::{Result, ensure};
use testkit::smtp::Sink;

use crate::support::{Mail, Plan, SOON};

#[tokio::test]
async fn a_peer_is_asked_for_no_more_and_no_less_than_needed() -> Result<()> {
    let sink = Sink::smtp().await?;
    let site = Plan::default().exchanger("example.org", sink.address()).start().await?;
    for (subject, declared, parameters) in [
        ("ascii-plain", false, [false, false]),
        ("ascii-declared", true, [false, false]),
        ("grüße-plain", false, [true, false]),
        ("grüße-declared", true, [true, true]),
    ] {
        let mail = Mail::new("a@example.com", &["b@example.org"], subject);
        site.accept(&Mail { declared_eight_bit: declared, ..mail }).await?;
        let told = sink.wait_for(subject, SOON).await?.parameters;
        let asked = ["BODY=8BITMIME", "SMTPUTF8"].map(|keyword| told.contains(keyword));
        ensure!(asked == parameters, "{subject}: {told}");
    }
    Ok(())
}
