use anyhow::{Context, Result};
use bytes::Bytes;
use proto::{Cut, Disposition, ErrorCode};

use crate::support::{Mail, Plan};

async fn refused(spoil: impl Fn(&mut Mail)) -> Result<()> {
    let site = Plan::default().maildir("example.com").start().await?;
    let mut mail = Mail::new("a@example.net", &["alice@example.com"], "hello");
    spoil(&mut mail);
    let error = site.accept(&mail).await.err().context("a commit that disagrees was accepted")?;
    assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    assert!(site.entries().await?.is_empty());
    assert!(site.maildir("example.com", "alice").messages()?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_wrong_checksum_is_refused() -> Result<()> {
    refused(|mail| mail.commit.sha256 = Bytes::from_static(&[7; 32])).await
}

#[tokio::test]
async fn a_wrong_size_is_refused() -> Result<()> {
    refused(|mail| mail.commit.size += 1).await
}

#[tokio::test]
async fn a_cut_beyond_the_message_is_refused() -> Result<()> {
    refused(|mail| mail.commit.cuts = vec![Cut { offset: 5, length: u64::MAX }]).await
}

#[tokio::test]
async fn a_rejected_message_is_refused() -> Result<()> {
    refused(|mail| mail.commit.disposition = Disposition::Reject.into()).await
}

#[tokio::test]
async fn a_prepended_line_without_an_end_is_refused() -> Result<()> {
    refused(|mail| mail.commit.prepend = Bytes::from_static(b"Received: from nowhere")).await
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() -> Result<()> {
    let mut plan = Plan::default().maildir("example.com");
    plan.config.accept.max_message_bytes = 1000;
    let site = plan.start().await?;
    let mail = Mail::of("a@example.net", &["alice@example.com"], vec![b'x'; 1001].into());
    assert_eq!(site.accept(&mail).await.unwrap_err().code, ErrorCode::ResourceExhausted);
    assert!(site.entries().await?.is_empty());
    Ok(())
}
