//! A peer that vanished without a word holds up no call for longer than one attempt to reach it takes, however many
//! calls wait for it.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use proto::accept_request::Frame;
use proto::client::{DeliveryClient, Peers};
use proto::{AcceptBegin, Commit, Delivery, ErrorCode, frames_of};
use tls::PeerRole;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const CALLS: usize = 40;
/// Three tries, of three seconds each.
const LONGEST: Duration = Duration::from_secs(11);

/// An address where nobody answers: the line of those who want to connect is full.
async fn void() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
    }
    (address, listener, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_do_not_wait_in_line_for_nobody() {
    let (address, _listener, _waiting) = void().await;
    let (age, stop) = (Duration::from_secs(60), CancellationToken::new());
    let endpoint = format!("http://{address}");
    let peers = Peers::watch(&[endpoint], PeerRole::Delivery, None, age, stop.clone()).await.unwrap();
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let client = DeliveryClient(peers.clone());
        let frames = vec![Frame::Begin(AcceptBegin::default()), Frame::Commit(Commit::default())];
        calls.spawn(async move { client.accept(frames_of(frames)).await });
    }
    while let Some(ended) = calls.join_next().await {
        assert_eq!(ended.unwrap().unwrap_err().code, ErrorCode::Unavailable);
    }
    assert!(begun.elapsed() < LONGEST, "the last call failed after {:?}", begun.elapsed());
    stop.cancel();
}
