use anyhow::Result;
use bytes::Bytes;
use proto::Cut;

use crate::support::{Mail, Plan, SOON};

#[tokio::test]
async fn the_message_is_filed_as_the_commit_shaped_it() -> Result<()> {
    let site = Plan::default().maildir("example.com").start().await?;
    let content = "X-Forged: yes\r\nSubject: hi\r\n\r\n.body\r\n";
    let mut mail = Mail::of("a@example.net", &["Alice@example.com", "bob@example.com"], content.into());
    mail.commit.cuts = vec![Cut { offset: 0, length: 15 }];
    mail.commit.prepend = Bytes::from_static(b"Received: from test\r\n");
    assert!(site.accept(&mail).await?.fresh);
    for local_part in ["alice", "bob"] {
        let filed = site.maildir("example.com", local_part).wait_for_count(1, SOON).await?;
        let expected = "Return-Path: <a@example.net>\r\nReceived: from test\r\nSubject: hi\r\n\r\n.body\r\n";
        assert_eq!(String::from_utf8_lossy(&filed[0]), expected);
    }
    site.settled().await
}
