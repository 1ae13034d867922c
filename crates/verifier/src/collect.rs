//! The message from its frames: hashed, its header section kept, its end compared with what was sent.

use std::sync::Arc;
use std::time::Duration;

use auth::{Purpose, Scan, Scanned};
use bytes::Bytes;
use message::header::HeaderError;
use proto::{CHUNK_SIZE, End, ErrorCode, Frames, ServiceError, SmtpReply, sign_request, verify_request};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::Config;
use crate::disposition::reply;

/// A frame of either call.
pub(crate) enum Frame<B> {
    Begin(B),
    Chunk(Bytes),
    End(End),
}

impl From<verify_request::Frame> for Frame<proto::VerifyBegin> {
    fn from(frame: verify_request::Frame) -> Self {
        match frame {
            verify_request::Frame::Begin(begin) => Self::Begin(begin),
            verify_request::Frame::Chunk(chunk) => Self::Chunk(chunk),
            verify_request::Frame::End(end) => Self::End(end),
        }
    }
}

impl From<sign_request::Frame> for Frame<proto::SignBegin> {
    fn from(frame: sign_request::Frame) -> Self {
        match frame {
            sign_request::Frame::Begin(begin) => Self::Begin(begin),
            sign_request::Frame::Chunk(chunk) => Self::Chunk(chunk),
            sign_request::Frame::End(end) => Self::End(end),
        }
    }
}

/// Why a message is not judged at all: it is refused for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oversize {
    Header(HeaderError),
    Message(u64),
}

impl Oversize {
    pub(crate) fn reply(self) -> SmtpReply {
        let text = match self {
            Self::Header(HeaderError::TooLong(limit)) => {
                format!(
                    "The header of the message is larger than {limit} octets, which are the most taken here"
                )
            }
            Self::Header(HeaderError::TooManyFields(limit)) => {
                format!(
                    "The header of the message has more than {limit} fields, which are the most taken here"
                )
            }
            Self::Message(limit) => {
                format!("The message is larger than {limit} octets, which are the most taken here")
            }
        };
        reply(552, "5.3.4", text)
    }
}

/// Memory for messages, in octets.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Semaphore>);

impl Memory {
    pub(crate) fn new(octets: usize) -> Self {
        Self(Arc::new(Semaphore::new(octets.clamp(CHUNK_SIZE, Semaphore::MAX_PERMITS))))
    }

    /// Room for a message whose header section lies in its first chunk, as nearly all do.
    async fn reserve(&self, wait: Duration) -> Result<OwnedSemaphorePermit, ServiceError> {
        match timeout(wait, self.0.clone().acquire_many_owned(CHUNK_SIZE as u32)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(exhausted()),
        }
    }

    /// Room for one chunk more. It does not wait: messages with large headers would come to wait for
    /// each other.
    fn extend(&self, permit: &mut OwnedSemaphorePermit) -> Result<(), ServiceError> {
        let more = self.0.clone().try_acquire_many_owned(CHUNK_SIZE as u32).map_err(|_| exhausted())?;
        permit.merge(more);
        Ok(())
    }
}

fn exhausted() -> ServiceError {
    metrics::counter!("packetboat_verifier_memory_exhausted_total").increment(1);
    ServiceError::new(ErrorCode::ResourceExhausted, "max_held_octets of the verifier are in use")
}

/// A message that has come in whole. The permit stands for the memory it takes.
pub(crate) struct Collected {
    pub(crate) scanned: Result<Scanned, Oversize>,
    _permit: OwnedSemaphorePermit,
}

/// Takes the first frame.
pub(crate) async fn begin<F: Into<Frame<B>>, B>(
    frames: &mut Frames<F>,
    config: &Config,
) -> Result<B, ServiceError> {
    match next(frames, config).await? {
        Frame::Begin(begin) => Ok(begin),
        Frame::Chunk(_) | Frame::End(_) => Err(out_of_order()),
    }
}

/// Takes the frames after the first. An oversize message is read to its end all the same, so that the
/// caller gets its answer where it waits for one.
pub(crate) async fn collect<F: Into<Frame<B>>, B>(
    frames: &mut Frames<F>,
    purpose: Purpose,
    config: &Config,
    memory: &Memory,
) -> Result<Collected, ServiceError> {
    let mut permit = memory.reserve(config.deadline).await?;
    let mut scan = Ok(Scan::new(purpose, config.header_limits()));
    let mut hash = Sha256::new();
    let mut size = 0u64;
    let end = loop {
        match next(frames, config).await? {
            Frame::Begin(_) => return Err(out_of_order()),
            Frame::End(end) => break end,
            Frame::Chunk(chunk) => {
                size += chunk.len() as u64;
                hash.update(&chunk);
                if size > config.max_message_octets {
                    scan = Err(Oversize::Message(config.max_message_octets));
                }
                if let Ok(open) = &mut scan {
                    let pushed = open.push(chunk);
                    if open.held() > permit.num_permits() {
                        memory.extend(&mut permit)?;
                    }
                    if let Err(error) = pushed {
                        scan = Err(Oversize::Header(error));
                    }
                }
            }
        }
    };
    if end.size != size || *end.sha256 != *hash.finalize() {
        let text = "the message is not the one that was sent: its size or its SHA-256 differs";
        return Err(ServiceError::new(ErrorCode::InvalidArgument, text));
    }
    let scanned = scan.and_then(|scan| scan.finish().map_err(Oversize::Header));
    Ok(Collected { scanned, _permit: permit })
}

async fn next<F: Into<Frame<B>>, B>(
    frames: &mut Frames<F>,
    config: &Config,
) -> Result<Frame<B>, ServiceError> {
    match timeout(config.frame_timeout, frames.recv()).await {
        Ok(Some(frame)) => Ok(frame.into()),
        Ok(None) => Err(ServiceError::new(ErrorCode::Aborted, "the stream ended before its last frame")),
        Err(_) => Err(ServiceError::new(ErrorCode::DeadlineExceeded, "no frame came within frame_timeout")),
    }
}

fn out_of_order() -> ServiceError {
    ServiceError::new(ErrorCode::InvalidArgument, "a frame is out of order: begin, chunks and end are wanted")
}
