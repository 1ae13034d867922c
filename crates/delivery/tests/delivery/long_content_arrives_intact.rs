use anyhow::Result;
use bytes::Bytes;
use testkit::smtp::Sink;

use crate::support::{Mail, Plan, SOON};

fn content(octets: usize) -> Bytes {
    let mut content = String::from("Subject: long\r\n\r\n");
    let mut number = 0u32;
    while content.len() < octets {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        content.push_str(&format!("{number:08x} {number:x}\r\n"));
    }
    content.into()
}

#[tokio::test]
async fn a_long_message_is_staged_and_arrives_whole() -> Result<()> {
    let sink = Sink::smtp().await?;
    let site =
        Plan::default().maildir("example.com").exchanger("example.org", sink.address()).start().await?;
    // Around the borders of the inline head and of the parts.
    let edges = [queue::INLINE_LIMIT, queue::INLINE_LIMIT + queue::PART_SIZE];
    let sizes = edges.iter().flat_map(|edge| [edge - 30, *edge, edge + 30]).chain([5 * 1024 * 1024]);
    for (count, size) in sizes.enumerate() {
        let content = content(size);
        let mut mail = Mail::of(
            "a@example.net",
            &["alice@example.com", "bob@example.com", "b@example.org"],
            content.clone(),
        );
        mail.commit.prepend = Bytes::from_static(b"Received: from test\r\n");
        site.accept(&mail).await?;
        for local_part in ["alice", "bob"] {
            let filed = site.maildir("example.com", local_part).wait_for_count(count + 1, SOON).await?;
            let expected =
                [b"Return-Path: <a@example.net>\r\nReceived: from test\r\n".as_slice(), &content].concat();
            assert!(filed.contains(&expected), "the message of {size} octets has changed");
        }
        testkit::wait::until_true("the remote copy", SOON, async || sink.count() == count + 1).await?;
        let received = sink.received().pop().map(|received| received.message).unwrap_or_default();
        assert!(received.as_bytes() == [b"Received: from test\r\n".as_slice(), &content].concat(), "{size}");
    }
    site.settled().await
}

#[tokio::test]
async fn messages_that_wait_for_memory_all_arrive() -> Result<()> {
    let mut plan = Plan::default().maildir("example.com");
    plan.config.accept.memory_bytes = 4 * 1024 * 1024;
    let site = plan.start().await?;
    let mails: Vec<_> =
        (0..16).map(|_| Mail::of("a@example.net", &["alice@example.com"], content(1 << 20))).collect();
    let accepted = futures::future::join_all(mails.iter().map(|mail| site.accept(mail))).await;
    assert!(accepted.iter().all(|accepted| accepted.is_ok()), "{accepted:?}");
    site.maildir("example.com", "alice").wait_for_count(16, SOON).await?;
    Ok(())
}
