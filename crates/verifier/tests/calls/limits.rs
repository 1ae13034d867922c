//! Frames that break the contract, and messages that are too large.

use std::time::Duration;

use bytes::Bytes;
use proto::{Disposition, End, ErrorCode, Verifier, frames_of, verify_request::Frame};
use tokio::sync::mpsc;
use verifier::Config;

use crate::support::{Bench, begin, end, verify_frames};

const TO: [&str; 1] = ["bob@receiver.test"];
const MESSAGE: &str = "From: a@free.test\r\n\r\ntext\r\n";

async fn error(bench: &Bench, frames: Vec<Frame>) -> ErrorCode {
    bench.service.verify(frames_of(frames)).await.unwrap_err().code
}

#[tokio::test]
async fn frames_out_of_order_or_short_are_errors() {
    let bench = Bench::new("").await;
    let whole = verify_frames("a@free.test", &TO, MESSAGE);
    let chunk = || Frame::Chunk(Bytes::from_static(MESSAGE.as_bytes()));
    let open = || Frame::Begin(begin("a@free.test", &TO));
    for (frames, code) in [
        (vec![], ErrorCode::Aborted),
        (whole[..whole.len() - 1].to_vec(), ErrorCode::Aborted),
        (vec![chunk()], ErrorCode::InvalidArgument),
        (vec![open(), open()], ErrorCode::InvalidArgument),
        (vec![open(), Frame::End(end(MESSAGE))], ErrorCode::InvalidArgument),
        (vec![open(), chunk(), chunk(), Frame::End(end(MESSAGE))], ErrorCode::InvalidArgument),
        (
            vec![open(), chunk(), Frame::End(End { sha256: vec![0; 32].into(), ..end(MESSAGE) })],
            ErrorCode::InvalidArgument,
        ),
        (vec![Frame::Begin(begin("not a path", &TO))], ErrorCode::InvalidArgument),
        (vec![Frame::Begin(begin("a@free.test", &["?"]))], ErrorCode::InvalidArgument),
    ] {
        assert_eq!(error(&bench, frames).await, code);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_for_good() {
    let small = |config| Config {
        max_header_octets: 4000,
        max_header_fields: 20,
        max_message_octets: 9000,
        ..config
    };
    let bench = Bench::with("", &[], &[], small).await;
    let long = format!("From: a@free.test\r\nX: {}\r\n\r\ntext\r\n", "x".repeat(4000));
    let many = format!("{}From: a@free.test\r\n\r\ntext\r\n", "X: y\r\n".repeat(20));
    let whole = format!("{MESSAGE}{}", "text\r\n".repeat(1500));
    for message in [long, many, whole] {
        let judged = bench.verify("a@free.test", &TO, &message).await;
        assert_eq!((judged.disposition, judged.code().as_str()), (Disposition::Reject, "552 5.3.4"));
    }
    assert_eq!(bench.verify("a@free.test", &TO, MESSAGE).await.disposition, Disposition::Deliver);
}

#[tokio::test]
async fn a_stream_that_stops_is_ended() {
    let quick = |config| Config { frame_timeout: Duration::from_millis(50), ..config };
    let bench = Bench::with("", &[], &[], quick).await;
    let (sender, frames) = mpsc::channel(2);
    sender.send(Frame::Begin(begin("a@free.test", &TO))).await.unwrap();
    let error = bench.service.verify(frames).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    drop(sender);
}

#[tokio::test]
async fn memory_is_bounded() {
    let tight =
        |config| Config { max_held_octets: 64 * 1024, deadline: Duration::from_millis(100), ..config };
    let bench = Bench::with("", &[], &[], tight).await;
    let (sender, frames) = mpsc::channel(2);
    sender.send(Frame::Begin(begin("a@free.test", &TO))).await.unwrap();
    let open = bench.service.verify(frames);
    tokio::pin!(open);
    // The first message takes all there is, and waits for its next frame.
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut open).await.is_err());
    let frames = verify_frames("a@free.test", &TO, MESSAGE);
    assert_eq!(error(&bench, frames).await, ErrorCode::ResourceExhausted);
    drop(sender);
    assert_eq!(open.await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(bench.verify("a@free.test", &TO, MESSAGE).await.disposition, Disposition::Deliver);
    // A header that grows beyond its share while there is no more is not waited for.
    let large = format!("X: {}\r\n{MESSAGE}", "x".repeat(100_000));
    let frames = verify_frames("a@free.test", &TO, &large);
    assert_eq!(error(&bench, frames).await, ErrorCode::ResourceExhausted);
}
