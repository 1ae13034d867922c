//! A verifier and a delivery service that are told what to say, and remember what they were told.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use proto::{
    AcceptBegin, AcceptResponse, CHUNK_SIZE, Commit, Cut, Delivery, Disposition, End, ErrorCode, Frames,
    ProbeRequest, ProbeResponse, ServiceError, SignBegin, SignResponse, SmtpReply, Verifier, VerifyResponse,
    accept_request, sign_request, verify_request,
};
use sha2::{Digest, Sha256};

/// A message as delivery was given it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) begin: AcceptBegin,
    pub(crate) content: Vec<u8>,
    pub(crate) commit: Commit,
}

#[derive(Default)]
pub(crate) struct FakeDelivery {
    pub(crate) stored: Mutex<Vec<Stored>>,
    pub(crate) abandoned: Mutex<usize>,
    pub(crate) fails: Mutex<Option<ErrorCode>>,
}

/// A call of Accept: its stream may end without a commit, or the caller may drop it.
struct Open<'a> {
    abandoned: &'a Mutex<usize>,
    committed: bool,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        *self.abandoned.lock().unwrap() += usize::from(!self.committed);
    }
}

#[async_trait]
impl Delivery for FakeDelivery {
    async fn accept(
        &self,
        mut frames: Frames<accept_request::Frame>,
    ) -> Result<AcceptResponse, ServiceError> {
        if let Some(code) = *self.fails.lock().unwrap() {
            return Err(ServiceError::new(code, "told to fail"));
        }
        let (mut begin, mut content) = (None, Vec::new());
        let mut call = Open { abandoned: &self.abandoned, committed: false };
        while let Some(frame) = frames.recv().await {
            match frame {
                accept_request::Frame::Begin(first) => begin = Some(first),
                accept_request::Frame::Chunk(chunk) => {
                    assert!(!chunk.is_empty() && chunk.len() <= CHUNK_SIZE);
                    content.extend_from_slice(&chunk);
                }
                accept_request::Frame::Commit(commit) => {
                    assert_eq!(commit.size, content.len() as u64);
                    assert_eq!(commit.sha256, Sha256::digest(&content).to_vec());
                    let begin = begin.unwrap();
                    call.committed = true;
                    self.stored.lock().unwrap().push(Stored { begin, content, commit });
                    return Ok(AcceptResponse { fresh: true });
                }
            }
        }
        Err(ServiceError::new(ErrorCode::Aborted, "abandoned"))
    }

    async fn probe(&self, _: ProbeRequest) -> Result<ProbeResponse, ServiceError> {
        Err(ServiceError::new(ErrorCode::Unavailable, "no store"))
    }
}

/// What the verifier leaves out of every message.
pub(crate) const CUT: Cut = Cut { offset: 0, length: 1 };

/// What the verifier says.
#[derive(Clone)]
pub(crate) enum Says {
    Verdict(Disposition, Option<SmtpReply>),
    Fails,
    Hangs,
    Panics,
}

pub(crate) struct FakeVerifier {
    pub(crate) says: Mutex<Says>,
    pub(crate) ends: Mutex<Vec<End>>,
    pub(crate) signed: Mutex<Vec<SignBegin>>,
}

impl FakeVerifier {
    /// Says this from now on: code, enhanced code and text of the reply.
    pub(crate) fn verdict(&self, disposition: Disposition, reply: Option<(u32, &str, &str)>) {
        let reply = reply.map(|(code, enhanced, text)| SmtpReply {
            code,
            enhanced: enhanced.to_owned(),
            text: text.to_owned(),
        });
        *self.says.lock().unwrap() = Says::Verdict(disposition, reply);
    }

    async fn say(&self) -> Result<(Disposition, Option<SmtpReply>), ServiceError> {
        let says = self.says.lock().unwrap().clone();
        match says {
            Says::Verdict(disposition, reply) => Ok((disposition, reply)),
            Says::Panics => panic!("told to panic"),
            Says::Fails => Err(ServiceError::new(ErrorCode::Unavailable, "told to fail")),
            Says::Hangs => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(ServiceError::new(ErrorCode::Unavailable, "hung"))
            }
        }
    }
}

#[async_trait]
impl Verifier for FakeVerifier {
    async fn verify(
        &self,
        mut frames: Frames<verify_request::Frame>,
    ) -> Result<VerifyResponse, ServiceError> {
        while let Some(frame) = frames.recv().await {
            if let verify_request::Frame::End(end) = frame {
                self.ends.lock().unwrap().push(end);
                let (disposition, reply) = self.say().await?;
                let prepend = "Authentication-Results: mx.test; none\r\n".into();
                let disposition = disposition.into();
                return Ok(VerifyResponse { disposition, reply, prepend, cuts: vec![CUT] });
            }
        }
        Err(ServiceError::new(ErrorCode::Aborted, "abandoned"))
    }

    async fn sign(&self, mut frames: Frames<sign_request::Frame>) -> Result<SignResponse, ServiceError> {
        let mut begin = None;
        while let Some(frame) = frames.recv().await {
            match frame {
                sign_request::Frame::Begin(first) => begin = Some(first),
                sign_request::Frame::Chunk(_) => {}
                sign_request::Frame::End(_) => {
                    let begin: SignBegin = begin.unwrap();
                    let prepend = [b"DKIM-Signature: x\r\n".as_slice(), &begin.prepend].concat().into();
                    self.signed.lock().unwrap().push(begin);
                    let (disposition, reply) = self.say().await?;
                    let disposition = disposition.into();
                    return Ok(SignResponse { disposition, reply, prepend, cuts: vec![CUT] });
                }
            }
        }
        Err(ServiceError::new(ErrorCode::Aborted, "abandoned"))
    }
}
