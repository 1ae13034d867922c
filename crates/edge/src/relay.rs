//! Tees a message to the verifier and to delivery while it comes in; Commit waits for the verdict.
//!
//! Whatever fails on the way, the client is told to come back, and nothing of the message is kept.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::{
    AcceptBegin, AcceptResponse, CHUNK_SIZE, Commit, Cut, Disposition, End, Envelope, ErrorCode,
    FRAMES_IN_FLIGHT, ServiceError, SignBegin, SignResponse, SmtpReply, VerifyBegin, VerifyResponse,
    accept_request, sign_request, verify_request,
};
use sha2::{Digest, Sha256};
use smtp::{EnhancedCode, Reply};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::session::Session;
use crate::transaction::Transaction;

/// Pieces smaller than this are gathered: a message of short lines that begin with dots would
/// otherwise make a frame of each.
const SMALL: usize = 2048;
/// Gathered pieces are sent when they have grown to this.
const GATHERED: usize = 16 * 1024;

type Call<T> = AbortOnDropHandle<Result<T, ServiceError>>;

/// The verifier's part: judge what came from outside, or sign what a user sends.
enum Check {
    Verify { frames: mpsc::Sender<verify_request::Frame>, response: Call<VerifyResponse> },
    Sign { frames: mpsc::Sender<sign_request::Frame>, response: Call<SignResponse> },
}

/// What the verifier said.
struct Verdict {
    disposition: Disposition,
    reply: Option<SmtpReply>,
    prepend: Bytes,
    cuts: Vec<Cut>,
}

/// One message on its way to both services.
pub(crate) struct Relay {
    id: message::QueueId,
    check: Check,
    accept: mpsc::Sender<accept_request::Frame>,
    response: Call<AcceptResponse>,
    /// Our trace field, to go in front of what came from outside. The signer puts it in itself.
    received: Bytes,
    gathered: BytesMut,
    sha256: Sha256,
    size: u64,
    /// A service has stopped listening; the rest of the message is only read.
    broken: bool,
    patience: Duration,
}

impl Relay {
    /// Begins both calls.
    pub(crate) fn open(session: &Session, transaction: &Transaction, received: Bytes) -> Self {
        let shared = &session.shared;
        let (accept, frames) = mpsc::channel(FRAMES_IN_FLIGHT);
        let delivery = shared.delivery.clone();
        let call = async move { delivery.accept(frames).await };
        let response = AbortOnDropHandle::new(tokio::spawn(call.in_current_span()));
        // The channel is new and has room.
        let _ = accept.try_send(accept_request::Frame::Begin(accept_begin(session, transaction)));
        let (check, received) = match &session.user {
            None => (Check::verify(session, transaction), received),
            Some(user) => {
                let begin = SignBegin {
                    queue_id: transaction.id.to_string(),
                    user: user.login.clone(),
                    owned_addresses: user.owned_addresses.clone(),
                    prepend: received,
                };
                (Check::sign(session, begin), Bytes::new())
            }
        };
        Self {
            id: transaction.id,
            check,
            accept,
            response,
            received,
            gathered: BytesMut::new(),
            sha256: Sha256::new(),
            size: 0,
            broken: false,
            patience: shared.config.limits.service_timeout,
        }
    }

    /// Passes octets of the message on.
    pub(crate) async fn push(&mut self, mut chunk: Bytes) {
        if chunk.len() < SMALL {
            self.gathered.extend_from_slice(&chunk);
            if self.gathered.len() >= GATHERED {
                self.send_gathered().await;
            }
            return;
        }
        self.send_gathered().await;
        while !chunk.is_empty() {
            self.send(chunk.split_to(chunk.len().min(CHUNK_SIZE))).await;
        }
    }

    async fn send_gathered(&mut self) {
        if !self.gathered.is_empty() {
            let chunk = std::mem::take(&mut self.gathered).freeze();
            self.send(chunk).await;
        }
    }

    async fn send(&mut self, chunk: Bytes) {
        if self.broken {
            return;
        }
        self.sha256.update(&chunk);
        self.size += chunk.len() as u64;
        let both = async {
            tokio::join!(
                self.accept.send(accept_request::Frame::Chunk(chunk.clone())),
                self.check.send(chunk)
            )
        };
        self.broken = !matches!(timeout(self.patience, both).await, Ok((Ok(()), true)));
    }

    /// The message is whole: asks for the verdict, and has the message stored if it is a good one.
    /// Gives the reply for the client.
    pub(crate) async fn finish(mut self) -> Reply {
        self.send_gathered().await;
        let id = self.id;
        match self.settle().await {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(queue_id = %id, %error, code = ?error.code, "message cannot be taken now");
                match error.code {
                    ErrorCode::ResourceExhausted => {
                        Reply::new(452, EnhancedCode(4, 3, 1), "No room for the message now, try again later")
                    }
                    _ => Reply::new(
                        451,
                        EnhancedCode(4, 3, 0),
                        "The message cannot be taken now, try again later",
                    ),
                }
            }
        }
    }

    async fn settle(self) -> Result<Reply, ServiceError> {
        let Self { check, accept, response, patience, size, .. } = self;
        if self.broken && accept.is_closed() {
            // Delivery has said why already.
            return Err(outcome(response, patience, "delivery").await.err().unwrap_or_else(stopped));
        }
        let end = End { size, sha256: self.sha256.finalize().to_vec().into() };
        let verdict = check.verdict(end.clone(), patience).await?;
        match verdict.disposition {
            Disposition::Deliver | Disposition::Quarantine => {}
            Disposition::Reject | Disposition::Defer => return Ok(refusal(&verdict)),
            Disposition::Unspecified => {
                return Err(ServiceError::new(ErrorCode::Internal, "a verdict without a disposition"));
            }
        }
        if self.broken {
            return Err(stopped());
        }
        let mut prepend = BytesMut::with_capacity(verdict.prepend.len() + self.received.len());
        prepend.extend_from_slice(&verdict.prepend);
        prepend.extend_from_slice(&self.received);
        let commit = Commit {
            size: end.size,
            sha256: end.sha256,
            prepend: prepend.freeze(),
            cuts: verdict.cuts,
            disposition: verdict.disposition.into(),
        };
        if !matches!(timeout(patience, accept.send(accept_request::Frame::Commit(commit))).await, Ok(Ok(())))
        {
            return Err(outcome(response, patience, "delivery").await.err().unwrap_or_else(stopped));
        }
        drop(accept);
        outcome(response, patience, "delivery").await?;
        Ok(Reply::new(250, EnhancedCode(2, 0, 0), format!("Ok: queued as {}", self.id)))
    }
}

impl Check {
    fn verify(session: &Session, transaction: &Transaction) -> Self {
        let (frames, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let begin = VerifyBegin {
            queue_id: transaction.id.to_string(),
            client_ip: session.client_ip().to_string(),
            helo: session.greeting.name.clone(),
            reverse_path: transaction.reverse_path.to_string(),
            forward_paths: transaction.recipients.iter().map(ToString::to_string).collect(),
            smtputf8: transaction.smtputf8,
        };
        // The channel is new and has room.
        let _ = frames.try_send(verify_request::Frame::Begin(begin));
        let verifier = session.shared.verifier.clone();
        let call = async move { verifier.verify(receiver).await };
        Self::Verify { frames, response: AbortOnDropHandle::new(tokio::spawn(call.in_current_span())) }
    }

    fn sign(session: &Session, begin: SignBegin) -> Self {
        let (frames, receiver) = mpsc::channel(FRAMES_IN_FLIGHT);
        let _ = frames.try_send(sign_request::Frame::Begin(begin));
        let verifier = session.shared.verifier.clone();
        let call = async move { verifier.sign(receiver).await };
        Self::Sign { frames, response: AbortOnDropHandle::new(tokio::spawn(call.in_current_span())) }
    }

    /// Whether the verifier still listens.
    async fn send(&self, chunk: Bytes) -> bool {
        match self {
            Self::Verify { frames, .. } => frames.send(verify_request::Frame::Chunk(chunk)).await.is_ok(),
            Self::Sign { frames, .. } => frames.send(sign_request::Frame::Chunk(chunk)).await.is_ok(),
        }
    }

    async fn verdict(self, end: End, patience: Duration) -> Result<Verdict, ServiceError> {
        // A verifier that no longer listens says why in its response.
        match self {
            Self::Verify { frames, response } => {
                let _ = timeout(patience, frames.send(verify_request::Frame::End(end))).await;
                drop(frames);
                let VerifyResponse { disposition, reply, prepend, cuts } =
                    outcome(response, patience, "the verifier").await?;
                Ok(Verdict { disposition: disposition_of(disposition), reply, prepend, cuts })
            }
            Self::Sign { frames, response } => {
                let _ = timeout(patience, frames.send(sign_request::Frame::End(end))).await;
                drop(frames);
                let SignResponse { disposition, reply, prepend, cuts } =
                    outcome(response, patience, "the verifier").await?;
                Ok(Verdict { disposition: disposition_of(disposition), reply, prepend, cuts })
            }
        }
    }
}

async fn outcome<T>(response: Call<T>, patience: Duration, who: &str) -> Result<T, ServiceError> {
    match timeout(patience, response).await {
        Ok(Ok(result)) => result.map_err(|error| ServiceError::new(error.code, format!("{who}: {error}"))),
        Ok(Err(error)) => {
            Err(ServiceError::new(ErrorCode::Internal, format!("the call of {who} failed: {error}")))
        }
        Err(_) => Err(ServiceError::new(ErrorCode::DeadlineExceeded, format!("{who} took too long"))),
    }
}

fn stopped() -> ServiceError {
    ServiceError::new(ErrorCode::Aborted, "a service stopped listening before the message was whole")
}

fn disposition_of(number: i32) -> Disposition {
    Disposition::try_from(number).unwrap_or(Disposition::Unspecified)
}

fn accept_begin(session: &Session, transaction: &Transaction) -> AcceptBegin {
    let origin = if session.user.is_some() { proto::Origin::Submission } else { proto::Origin::Mx };
    AcceptBegin {
        queue_id: transaction.id.to_string(),
        envelope: Some(Envelope {
            reverse_path: transaction.reverse_path.to_string(),
            forward_paths: transaction.recipients.iter().map(ToString::to_string).collect(),
            smtputf8: transaction.smtputf8,
            eight_bit: transaction.eight_bit,
            user: session.user.as_ref().map(|user| user.login.clone()).unwrap_or_default(),
            origin: origin.into(),
        }),
        declared_size: transaction.declared_size,
    }
}

/// The verifier's reply, or one of ours when it left it out.
fn refusal(verdict: &Verdict) -> Reply {
    let reject = verdict.disposition == Disposition::Reject;
    let fallback = if reject { (550, EnhancedCode(5, 7, 1)) } else { (451, EnhancedCode(4, 7, 0)) };
    let Some(reply) = &verdict.reply else {
        return Reply::new(fallback.0, fallback.1, "The message is refused by policy");
    };
    let class = if reject { 500..600 } else { 400..500 };
    let code = u16::try_from(reply.code).ok().filter(|code| class.contains(code)).unwrap_or(fallback.0);
    Reply::new(code, reply.enhanced.parse().unwrap_or(fallback.1), reply.text.clone())
}
