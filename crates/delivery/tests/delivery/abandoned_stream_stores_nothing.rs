use anyhow::Result;
use proto::accept_request::Frame;
use proto::{Delivery, ErrorCode};
use tokio::sync::mpsc;

use crate::support::{Mail, Plan};

#[tokio::test]
async fn a_stream_that_ends_before_its_commit_stores_nothing() -> Result<()> {
    let site = Plan::default().maildir("example.com").start().await?;
    let mail = Mail::new("a@example.net", &["alice@example.com"], "half a message");
    let (sender, frames) = mpsc::channel(8);
    sender.send(mail.begin()).await?;
    sender.send(Frame::Chunk(mail.content.clone())).await?;
    drop(sender);
    let error = site.service.accept(frames).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Aborted);
    assert!(site.entries().await?.is_empty());
    assert!(site.maildir("example.com", "alice").messages()?.is_empty());
    Ok(())
}
