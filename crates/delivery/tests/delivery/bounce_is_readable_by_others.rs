use anyhow::{Context, Result};
use mail_parser::{MessageParser, MimeHeaders};
use testkit::smtp::{Sink, Verb};

use crate::support::{Plan, SOON};

#[tokio::test]
async fn an_independent_parser_finds_the_three_parts() -> Result<()> {
    let sink = Sink::smtp().await?;
    sink.reply(Verb::Rcpt, "550 5.1.1 no such user");
    let site =
        Plan::default().maildir("example.com").exchanger("example.org", sink.address()).start().await?;
    site.deliver("alice@example.com", &["b@example.org"], "lost").await?;
    let bounce = site.maildir("example.com", "alice").wait_for_count(1, SOON).await?.remove(0);
    assert!(bounce.is_ascii());
    let parsed = MessageParser::default().parse(&bounce).context("not a message")?;
    let kind = parsed.content_type().context("no content type")?;
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    let kinds: Vec<_> = parsed.parts[1..]
        .iter()
        .filter_map(|part| part.content_type())
        .map(|kind| format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default()))
        .collect();
    assert_eq!(kinds, ["text/plain", "message/delivery-status", "text/rfc822-headers"]);
    assert!(parsed.date().is_some_and(|date| date.is_valid()));
    assert!(parsed.message_id().is_some_and(|id| id.ends_with("@mx.example.com")));
    let words = parsed.body_text(0).context("no text")?;
    assert!(words.contains("<b@example.org>") && words.contains("550 5.1.1 no such user"), "{words}");
    Ok(())
}
