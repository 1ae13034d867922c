//! Turns what went wrong with a peer into a [`Failure`]: codes for the DSN, words for people.

use std::time::Duration;

use message::Failure;
use smtp::Reply;

use super::ledger::Obstacle;
use super::peer::Peer;
use super::wire::Loss;

/// The longest reply kept, in octets.
const MAX_REPLY: usize = 1000;

/// How a reply is to be taken: its first digit decides (RFC 5321 §4.2.1), whatever the rest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Positive,
    /// 354, where more is wanted.
    Intermediate,
    Temporary,
    Permanent,
}

pub(super) fn class(reply: &Reply) -> Class {
    match reply.code / 100 {
        2 => Class::Positive,
        3 => Class::Intermediate,
        5 => Class::Permanent,
        // Nothing else is foreseen; a later try may meet a saner server.
        _ => Class::Temporary,
    }
}

/// A point in the dialogue, named as people see it.
pub(super) type Stage = &'static str;

pub(super) const GREETING: Stage = "the connection";
pub(super) const MAIL: Stage = "MAIL FROM";
pub(super) const RCPT: Stage = "RCPT TO";
pub(super) const DATA: Stage = "DATA";
pub(super) const CONTENT: Stage = "the message";

/// The reply on one line, with nothing in it that could break out of a header field or a log line.
pub(super) fn reply_text(reply: &Reply) -> String {
    let mut text = reply.to_string();
    text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() > MAX_REPLY {
        let end = (0..=MAX_REPLY).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

/// The enhanced code of a reply, where it agrees with the reply's class; else the general one.
fn status(reply: &Reply, permanent: bool) -> String {
    let digit = if permanent { '5' } else { '4' };
    let given = reply.enhanced.map(|code| code.to_string()).filter(|code| code.starts_with(digit));
    given.unwrap_or_else(|| format!("{digit}.0.0"))
}

/// A duration in seconds, without needless digits.
pub(super) fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f32())
}

impl Peer {
    /// The peer did not agree to something: an obstacle that is as permanent as the reply.
    pub(super) fn refusal(&self, stage: Stage, reply: &Reply) -> Obstacle {
        // RFC 5321 §3.8: a 421 closes the channel, and says nothing of the message.
        let permanent = class(reply) == Class::Permanent;
        let said = reply_text(reply);
        let verb = if permanent { "refused" } else { "put off" };
        let failure = Failure {
            status: status(reply, permanent),
            text: format!("{self} {verb} {stage}: {said}"),
            reply: Some(said),
            remote_mta: Some(self.host.mta_name()),
        };
        Obstacle { failure, permanent }
    }

    /// The connection was lost while the peer's word on `stage` was awaited.
    pub(super) fn lost(&self, stage: Stage, loss: &Loss) -> Obstacle {
        let (status, text) = match loss {
            Loss::Deadline(limit) => {
                ("4.4.2", format!("{self} did not answer {stage} within {}", seconds(*limit)))
            }
            Loss::Closed => ("4.4.2", format!("{self} closed the connection before it answered {stage}")),
            Loss::Broken(error) => ("4.4.2", format!("the connection to {self} broke at {stage}: {error}")),
            Loss::Garbled(what) => {
                ("4.5.0", format!("{self} answered {stage} with something that is no SMTP reply: {what}"))
            }
        };
        self.obstacle(status, text)
    }

    /// The peer cannot take this message for want of an extension or of room.
    pub(super) fn unfit(&self, status: &str, text: &str) -> Obstacle {
        let mut obstacle = self.obstacle(status, format!("{self} {text}"));
        obstacle.permanent = true;
        obstacle
    }

    /// A temporary obstacle without a reply.
    pub(super) fn obstacle(&self, status: &str, text: String) -> Obstacle {
        let failure =
            Failure { status: status.to_owned(), reply: None, remote_mta: Some(self.host.mta_name()), text };
        Obstacle { failure, permanent: false }
    }
}
