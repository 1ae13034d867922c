//! Takes one message: Begin, Chunk…, Commit. The message is in the queue, durably, when
//! [`Intake::run`] returns; before that nothing of it is, but parts that no record names.
//!
//! The first [`queue::INLINE_LIMIT`] octets are kept until the commit, because the commit says what
//! is put in front of them and cut out of them; what follows is staged in parts as it comes. So a
//! message of any length holds at most [`MEMORY_OF_ONE`] octets.

use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use message::{Content, Cut, Envelope, Origin, QueueId};
use proto::accept_request::Frame;
use proto::{AcceptBegin, CHUNK_SIZE, Commit, Disposition, FRAMES_IN_FLIGHT, Frames};
use queue::{INLINE_LIMIT, MessageRecord, PART_SIZE, Queue};
use sha2::{Digest, Sha256};
use smtp::{Mailbox, ReversePath};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::config::AcceptConfig;
use crate::error::AcceptError;

/// The most octets that one message being accepted holds: its head, the part being filled, and the
/// frames on their way.
pub(crate) const MEMORY_OF_ONE: usize = INLINE_LIMIT + PART_SIZE + FRAMES_IN_FLIGHT * CHUNK_SIZE;

/// What a message holds before more of it has come, whatever length was declared: words cost a client nothing.
const FIRST_MEMORY: usize = CHUNK_SIZE;

/// A message that is whole, agrees with its checksum, and has only its head left to store.
pub(crate) struct Received<'a> {
    pub(crate) record: MessageRecord,
    pub(crate) head: Content,
    /// Its share of the memory, until the head is stored.
    pub(crate) memory: SemaphorePermit<'a>,
}

/// The stream of one message.
pub(crate) struct Intake<'a> {
    pub(crate) config: &'a AcceptConfig,
    pub(crate) queue: &'a dyn Queue,
    pub(crate) memory: &'a Semaphore,
}

/// What has come so far.
struct Streamed<'a> {
    id: QueueId,
    memory: SemaphorePermit<'a>,
    head: Content,
    part: BytesMut,
    parts: u32,
    size: u64,
    sha256: Sha256,
    /// Whether an octet beyond ASCII has come.
    eight_bit: bool,
}

impl<'a> Intake<'a> {
    /// Reads the frames to the commit, and stages all but the head.
    pub(crate) async fn run(&self, mut frames: Frames<Frame>) -> Result<Received<'a>, AcceptError> {
        let Frame::Begin(begin) = self.next(&mut frames).await? else {
            return Err(AcceptError::contract("the first frame is not Begin"));
        };
        let id =
            QueueId::from_str(&begin.queue_id).map_err(|error| AcceptError::contract(error.to_string()))?;
        let envelope = self.envelope(&begin)?;
        tracing::Span::current().record("mail.queue_id", id.as_str());
        let expected = match usize::try_from(begin.declared_size).unwrap_or(usize::MAX) {
            0 => FIRST_MEMORY,
            declared => declared.min(FIRST_MEMORY),
        };
        let mut streamed = Streamed {
            id,
            memory: self.permits(expected).await?,
            head: Content::new(),
            part: BytesMut::new(),
            parts: 0,
            size: 0,
            sha256: Sha256::new(),
            eight_bit: false,
        };
        let commit = loop {
            match self.next(&mut frames).await? {
                Frame::Chunk(octets) => self.take(&mut streamed, octets).await?,
                Frame::Commit(commit) => break commit,
                Frame::Begin(_) => return Err(AcceptError::contract("a second Begin")),
            }
        };
        self.complete(streamed, envelope, &commit).await
    }

    async fn next(&self, frames: &mut Frames<Frame>) -> Result<Frame, AcceptError> {
        match timeout(self.config.frame_timeout, frames.recv()).await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(AcceptError::Abandoned),
            Err(_) => Err(AcceptError::FrameTimeout),
        }
    }

    fn envelope(&self, begin: &AcceptBegin) -> Result<Envelope, AcceptError> {
        let given =
            begin.envelope.as_ref().ok_or_else(|| AcceptError::contract("Begin without an envelope"))?;
        if given.forward_paths.is_empty() || given.forward_paths.len() > self.config.max_recipients {
            return Err(AcceptError::contract("no recipients, or more than the limit"));
        }
        let recipients: Result<Vec<_>, _> =
            given.forward_paths.iter().map(|path| Mailbox::from_str(path)).collect();
        let reverse_path = ReversePath::from_str(&given.reverse_path);
        let origin = match given.origin() {
            proto::Origin::Mx => Origin::Mx,
            proto::Origin::Submission => Origin::Submission,
            proto::Origin::Unspecified => return Err(AcceptError::contract("an envelope without an origin")),
        };
        Ok(Envelope {
            reverse_path: reverse_path.map_err(|error| AcceptError::contract(error.to_string()))?,
            recipients: recipients.map_err(|error| AcceptError::contract(error.to_string()))?,
            smtputf8: given.smtputf8,
            eight_bit: given.eight_bit,
            user: (!given.user.is_empty()).then(|| given.user.clone()),
            origin,
        })
    }

    async fn permits(&self, octets: usize) -> Result<SemaphorePermit<'a>, AcceptError> {
        let octets = u32::try_from(octets).unwrap_or(u32::MAX);
        match timeout(self.config.memory_wait, self.memory.acquire_many(octets)).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(_)) | Err(_) => Err(AcceptError::NoMemory),
        }
    }

    async fn take(&self, streamed: &mut Streamed<'a>, mut octets: Bytes) -> Result<(), AcceptError> {
        if octets.len() > CHUNK_SIZE {
            return Err(AcceptError::contract("a chunk over the limit"));
        }
        streamed.size += octets.len() as u64;
        if streamed.size > self.config.max_message_bytes {
            return Err(AcceptError::TooLong(self.config.max_message_bytes));
        }
        // All that a message may ever hold is asked for at once: messages that each hold some and
        // wait for more could otherwise wait for each other, step by step.
        let held = streamed.memory.num_permits();
        if held < MEMORY_OF_ONE && streamed.size > held as u64 {
            streamed.memory.merge(self.permits(MEMORY_OF_ONE - held).await?);
        }
        streamed.sha256.update(&octets);
        streamed.eight_bit |= !octets.is_ascii();
        let room = INLINE_LIMIT - (streamed.head.len() as usize).min(INLINE_LIMIT);
        streamed.head.push(octets.split_to(room.min(octets.len())));
        while !octets.is_empty() {
            if streamed.part.capacity() == 0 {
                streamed.part.reserve(PART_SIZE);
            }
            let room = PART_SIZE - streamed.part.len();
            streamed.part.extend_from_slice(&octets.split_to(room.min(octets.len())));
            if streamed.part.len() == PART_SIZE {
                self.stage(streamed).await?;
            }
        }
        Ok(())
    }

    async fn stage(&self, streamed: &mut Streamed<'a>) -> Result<(), AcceptError> {
        let part = std::mem::take(&mut streamed.part).freeze();
        self.queue.stage(streamed.id, streamed.parts, part).await?;
        streamed.parts += 1;
        Ok(())
    }

    async fn complete(
        &self,
        mut streamed: Streamed<'a>,
        mut envelope: Envelope,
        commit: &Commit,
    ) -> Result<Received<'a>, AcceptError> {
        if commit.size != streamed.size {
            return Err(AcceptError::Contract(format!(
                "the commit speaks of {} octets, {} were streamed",
                commit.size, streamed.size
            )));
        }
        if commit.sha256 != streamed.sha256.finalize_reset().as_slice() {
            return Err(AcceptError::contract("the SHA-256 of the commit is not that of what was streamed"));
        }
        let quarantine = match commit.disposition() {
            Disposition::Deliver => false,
            Disposition::Quarantine => true,
            other => return Err(AcceptError::Contract(format!("a commit with {}", other.as_str_name()))),
        };
        let streamed_head = streamed.head.len();
        let mut head = streamed.head.without(&cuts(commit, streamed_head)?);
        if !commit.prepend.is_empty() && !commit.prepend.ends_with(b"\r\n") {
            return Err(AcceptError::contract("what is to be put in front does not end its line"));
        }
        head.prepend(commit.prepend.clone());
        // What the message is counts, not what its client said of it (RFC 6152 §3, RFC 6531 §3.6): peers are asked for no
        // more than it needs, and for no less. Addresses are looked at by themselves.
        envelope.eight_bit = streamed.eight_bit || !commit.prepend.is_ascii();
        envelope.smtputf8 &= envelope.eight_bit;
        if !streamed.part.is_empty() {
            self.stage(&mut streamed).await?;
        }
        let record = MessageRecord {
            id: streamed.id,
            envelope,
            size: head.len() + (streamed.size - streamed_head),
            inline_size: head.len(),
            parts: streamed.parts,
            traceparent: proto::trace::traceparent(),
            quarantine,
            accepted_at: queue::Timestamp::default(),
        };
        Ok(Received { record, head, memory: streamed.memory })
    }
}

/// The cuts of a commit. They must lie in the head: what follows is stored already.
fn cuts(commit: &Commit, head: u64) -> Result<Vec<Cut>, AcceptError> {
    let inside = |cut: &proto::Cut| cut.offset.checked_add(cut.length).is_some_and(|end| end <= head);
    if !commit.cuts.iter().all(inside) {
        return Err(AcceptError::contract("a cut beyond the octets that are kept for it"));
    }
    Ok(commit.cuts.iter().map(|cut| Cut { offset: cut.offset, length: cut.length }).collect())
}
