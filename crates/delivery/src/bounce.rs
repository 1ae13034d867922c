//! Notifications to senders about recipients that failed for good (RFC 3464). A notification enters
//! the queue in the same step that settles its entry, and under an id that follows from the entry
//! and the attempt: a settlement that is repeated makes no second one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domains::{DomainIndex, Domains};
use message::dsn::{FailedRecipient, Report, original_header};
use message::{Content, Cut, Envelope, Origin, QueueId, Standing};
use proto::sign_request::Frame;
use proto::{CHUNK_SIZE, Disposition, End, Frames, SignBegin, SignResponse, Verifier};
use queue::{Leased, MessageRecord, NewMessage, Queue, Timestamp};
use sha2::{Digest, Sha256};
use smtp::{Domain, Mailbox, ReversePath};
use tokio::time::{sleep, timeout};

use crate::config::BounceConfig;
use crate::content::ContentReader;
use crate::outcome::Judgement;
use crate::route::Planner;

/// The wait before the second try for a signature; it doubles.
const SIGN_WAIT: Duration = Duration::from_millis(250);

/// Writes notifications.
pub(crate) struct Bouncer {
    pub(crate) hostname: Domain,
    pub(crate) config: BounceConfig,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) domains: Domains,
    pub(crate) verifier: Arc<dyn Verifier>,
    pub(crate) planner: Planner,
}

impl Bouncer {
    /// The notification about the recipients that failed in an attempt; `None` when nobody failed,
    /// when the message is itself a notification (RFC 5321 §4.5.5), or when it was quarantined: its
    /// sender is most likely forged, and the notification would hit someone else.
    pub(crate) async fn bounce(
        &self,
        leased: &Leased,
        judged: &Judgement,
        now: Timestamp,
    ) -> Option<NewMessage> {
        if judged.failed.is_empty() {
            return None;
        }
        let about = &leased.message;
        let sender = about.envelope.reverse_path.mailbox().filter(|_| !about.quarantine);
        let Some(sender) = sender else {
            metrics::counter!("packetboat_bounces_suppressed_total").increment(1);
            tracing::warn!("message is dropped without a notification");
            return None;
        };
        let index = self.domains.current();
        let from = self.author(&index, sender, judged)?;
        let id = bounce_id(leased);
        let utf8 = about.envelope.smtputf8;
        let start = self.start_of_content(leased).await;
        let header = original_header(&start, self.config.max_header_bytes, utf8);
        let notification = Report {
            id,
            about: about.id,
            hostname: &self.hostname.to_string(),
            from: &from,
            to: sender,
            now: calendar(now),
            arrived: calendar(about.accepted_at),
            recipients: &failures(judged),
            header: &header,
            smtputf8: utf8,
        }
        .write();
        let content = self.sign(id, &from, Bytes::from(notification.content)).await;
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            recipients: vec![sender.clone()],
            smtputf8: notification.smtputf8 || sender.needs_smtputf8(),
            eight_bit: notification.eight_bit,
            user: None,
            origin: Origin::Local,
        };
        let entries = self.planner.plan(&envelope, &index);
        let record = MessageRecord {
            id,
            envelope,
            size: content.len(),
            inline_size: content.len(),
            parts: 0,
            traceparent: proto::trace::traceparent(),
            quarantine: false,
            accepted_at: Timestamp::default(),
        };
        metrics::counter!("packetboat_bounces_total").increment(1);
        tracing::info!(queue_id = %about.id, bounce_id = %id, recipients = judged.failed.len(), "sender is notified");
        Some(NewMessage { record, inline: content, entries })
    }

    /// Who writes: the mail system of the sender's domain if it is hosted here, else that of the
    /// domain the message was for, so that the notification can be signed for it; else this host.
    fn author(&self, index: &DomainIndex, sender: &Mailbox, judged: &Judgement) -> Option<Mailbox> {
        let failed = judged.failed.iter().filter_map(|place| judged.recipients.get(*place));
        let addressed = failed.flat_map(|recipient| recipient.original.iter().chain([&recipient.address]));
        let hosted = std::iter::once(sender)
            .chain(addressed)
            .map(Mailbox::domain)
            .find(|domain| matches!(domain, Domain::Name(name) if index.hosted(name).is_some()));
        Mailbox::new("MAILER-DAEMON", hosted.unwrap_or(&self.hostname).clone()).ok()
    }

    /// The first octets of the message, as many as a notification may quote. A content that cannot
    /// be read leaves the quote short; the notification is still worth sending.
    async fn start_of_content(&self, leased: &Leased) -> Vec<u8> {
        let mut content = ContentReader::new(Arc::clone(&self.queue), leased);
        let mut start = Vec::new();
        while start.len() < self.config.max_header_bytes {
            match content.next().await {
                Ok(Some(piece)) => {
                    let room = self.config.max_header_bytes - start.len();
                    start.extend_from_slice(&piece[..piece.len().min(room)]);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %crate::error::with_causes(&error), "header of the message cannot be quoted");
                    break;
                }
            }
        }
        start
    }

    /// The notification with its signatures in front; without, when they cannot be had.
    async fn sign(&self, id: QueueId, from: &Mailbox, content: Bytes) -> Content {
        let mut wait = SIGN_WAIT;
        for tried in 1..=self.config.sign_tries {
            let asked = self.verifier.sign(sign_frames(id, from, &content));
            let problem = match timeout(self.config.sign_timeout, asked).await {
                Ok(Ok(answer)) if answer.disposition() == Disposition::Deliver => {
                    return signed(content, answer);
                }
                Ok(Ok(answer)) if answer.disposition() == Disposition::Reject => {
                    tracing::warn!(bounce_id = %id, "verifier refuses to sign a notification");
                    break;
                }
                Ok(Ok(_)) => "the verifier defers".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the verifier does not answer".to_owned(),
            };
            tracing::warn!(bounce_id = %id, tried, problem, "notification cannot be signed now");
            if tried < self.config.sign_tries {
                sleep(wait).await;
                wait *= 2;
            }
        }
        metrics::counter!("packetboat_bounces_unsigned_total").increment(1);
        content.into()
    }
}

/// The frames that ask for a signature, all at hand.
fn sign_frames(id: QueueId, from: &Mailbox, content: &Bytes) -> Frames<Frame> {
    let begin = Frame::Begin(SignBegin {
        queue_id: id.to_string(),
        user: String::new(),
        owned_addresses: vec![from.to_string()],
        prepend: Bytes::new(),
    });
    let chunks = (0..content.len())
        .step_by(CHUNK_SIZE)
        .map(|at| Frame::Chunk(content.slice(at..content.len().min(at + CHUNK_SIZE))));
    let sha256 = Bytes::copy_from_slice(&Sha256::digest(content));
    let end = Frame::End(End { size: content.len() as u64, sha256 });
    proto::frames_of(std::iter::once(begin).chain(chunks).chain([end]).collect())
}

fn signed(content: Bytes, answer: SignResponse) -> Content {
    let cuts: Vec<Cut> =
        answer.cuts.iter().map(|cut| Cut { offset: cut.offset, length: cut.length }).collect();
    let mut content = Content::from(content).without(&cuts);
    content.prepend(answer.prepend);
    content
}

fn failures(judged: &Judgement) -> Vec<FailedRecipient<'_>> {
    let failed = judged.failed.iter().filter_map(|place| judged.recipients.get(*place));
    failed
        .filter_map(|recipient| match &recipient.standing {
            Standing::Failed(failure) => Some(FailedRecipient {
                address: &recipient.address,
                original: recipient.original.as_ref(),
                failure,
            }),
            _ => None,
        })
        .collect()
}

fn bounce_id(leased: &Leased) -> QueueId {
    let digest = Sha256::digest(format!("bounce {} {}", leased.entry.id, leased.entry.attempts));
    let random = digest.iter().take(16).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    leased.message.id.with_random(random)
}

fn calendar(moment: Timestamp) -> jiff::Timestamp {
    i64::try_from(moment.0)
        .ok()
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .unwrap_or(jiff::Timestamp::MAX)
}
