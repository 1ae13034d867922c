use anyhow::Result;
use proto::{Delivery, ProbeRequest, RecipientStanding};
use testkit::smtp::Sink;

use crate::support::Plan;

#[tokio::test]
async fn a_probe_gives_the_word_of_the_store() -> Result<()> {
    let sink = Sink::lmtp().await?;
    sink.reply_to_recipient("gone@example.com", "550 5.1.1 no such user");
    sink.reply_to_recipient("full@example.com", "452 4.2.2 full");
    let site = Plan::default().behind("example.com", "lmtp", sink.address()).start().await?;
    let standing = async |address: &str| {
        let answer = site.service.probe(ProbeRequest { forward_path: address.to_owned() }).await;
        answer.map(|answer| answer.standing())
    };
    assert_eq!(standing("alice@example.com").await?, RecipientStanding::Exists);
    assert_eq!(standing("gone@example.com").await?, RecipientStanding::Unknown);
    assert_eq!(standing("full@example.com").await?, RecipientStanding::Unavailable);
    assert_eq!(standing("alice@elsewhere.test").await?, RecipientStanding::Unknown);
    assert!(standing("not an address").await.is_err());
    assert_eq!(sink.count(), 0);
    Ok(())
}
