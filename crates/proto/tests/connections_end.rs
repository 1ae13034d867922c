//! Connections end under calls, at their age: no call fails, and none is acted on twice.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use proto::accept_request::Frame;
use proto::client::{DeliveryClient, Peers};
use proto::server::GrpcServer;
use proto::{
    AcceptBegin, AcceptResponse, Commit, Delivery, ErrorCode, Frames, ProbeRequest, ProbeResponse,
    ServiceError, frames_of,
};
use tls::PeerRole;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CALLERS: usize = 8;
const CALLS: usize = 400;
/// When the server ends connections.
const AGE: Duration = Duration::from_millis(100);

/// Counts the calls that arrive, and takes those that arrive whole.
#[derive(Default)]
struct Counting(AtomicUsize);

#[async_trait]
impl Delivery for Counting {
    async fn accept(&self, mut frames: Frames<Frame>) -> Result<AcceptResponse, ServiceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let mut kinds = String::new();
        while let Some(frame) = frames.recv().await {
            kinds.push(match frame {
                Frame::Begin(_) => 'b',
                Frame::Chunk(_) => '-',
                Frame::Commit(_) => 'c',
            });
        }
        if kinds == "b--c" {
            Ok(AcceptResponse::default())
        } else {
            Err(ServiceError::new(ErrorCode::InvalidArgument, format!("frames came as {kinds:?}")))
        }
    }

    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, ServiceError> {
        Ok(ProbeResponse::default())
    }
}

/// Makes calls to a server whose connections end at [`AGE`], over peers that believe in another; how many arrived.
async fn calls_arrive(believed: Duration) -> usize {
    let server = GrpcServer::bind("127.0.0.1:0", None, AGE).await.unwrap();
    let endpoint = format!("http://{}", server.address().unwrap());
    let service = Arc::new(Counting::default());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve_delivery(service.clone(), stop.clone()));
    let peers = Peers::watch(&[endpoint], PeerRole::Delivery, None, believed, stop.clone()).await.unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let client = DeliveryClient(peers.clone());
        callers.spawn(async move {
            for call in 0..CALLS {
                let chunk = || Frame::Chunk(vec![b'x'; 1000].into());
                let begin = Frame::Begin(AcceptBegin::default());
                let list = vec![begin, chunk(), chunk(), Frame::Commit(Commit::default())];
                client.accept(frames_of(list)).await.map_err(|error| format!("call {call}: {error}"))?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap().unwrap();
    }
    drop(peers);
    stop.cancel();
    serving.await.unwrap().unwrap();
    service.0.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_renewed_before_their_age() {
    assert_eq!(calls_arrive(AGE).await, CALLERS * CALLS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_refuses_unseen_is_sent_again() {
    assert_eq!(calls_arrive(Duration::from_secs(3600)).await, CALLERS * CALLS);
}
