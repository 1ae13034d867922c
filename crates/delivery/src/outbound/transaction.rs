//! One mail transaction on a connection: MAIL, RCPT for each recipient, DATA, the content, and what
//! the peer said to each (RFC 5321 §3.3, RFC 2033 §4.2).
//!
//! With PIPELINING (RFC 2920) everything up to DATA goes out in one write. The content follows
//! without being copied, its last piece and the final dot in one gathered write.

use std::fmt::Write;
use std::time::Duration;

use bytes::Buf;
use smtp::Reply;
use smtp::data::DataEncoder;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::client::Connection;
use super::config::OutboundConfig;
use super::failure::{CONTENT, Class, DATA, MAIL, RCPT, Stage, class, reply_text};
use super::ledger::{Ledger, Obstacle};
use super::peer::Protocol;
use super::wire::{Loss, Pieces};
use crate::transfer::{RecipientOutcome, Transfer};

/// Content is sent when so many octets have gathered.
const BATCH: usize = 256 * 1024;
/// What is told of a host that did not answer the end of the message.
const MAY_HAVE_IT: &str = "; it may have taken the message all the same";

/// What a connection is good for after a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// MAIL may be said again.
    Ready,
    /// Nothing: to be dropped.
    Spent,
    /// It had been lost since its last use, before MAIL was answered: nothing is in the ledger, and
    /// a fresh connection may do better.
    Stale,
}

/// Offers the open recipients, in as many transactions as it takes.
pub(super) async fn offer(
    connection: &mut Connection,
    transfer: &Transfer,
    ledger: &mut Ledger,
    config: &OutboundConfig,
) -> After {
    let parameters = match mail_parameters(connection, transfer) {
        Ok(parameters) => parameters,
        Err(obstacle) => {
            ledger.obstruct_all(&obstacle);
            return After::Ready;
        }
    };
    let mut waiting: Vec<usize> = ledger.open().collect();
    let mut may_be_stale = connection.transactions > 0;
    let limit = config.max_recipients.clamp(1, 1000);
    // Every turn takes at least one recipient out of those that wait.
    while !waiting.is_empty() {
        let rest = waiting.split_off(waiting.len().min(limit));
        let batch = std::mem::replace(&mut waiting, rest);
        connection.transactions += 1;
        let mut transaction = Transaction {
            connection,
            transfer,
            ledger,
            config,
            may_be_stale,
            accepted: Vec::with_capacity(batch.len()),
            postponed: Vec::new(),
        };
        let after = transaction.run(&parameters, &batch).await;
        if after != After::Ready {
            let peer = &connection.peer;
            let text = format!("the session with {peer} ended before this recipient's turn");
            let obstacle = peer.obstacle("4.4.2", text);
            waiting.iter().filter(|_| after == After::Spent).for_each(|n| ledger.obstruct(*n, &obstacle));
            return after;
        }
        if !transaction.accepted.is_empty() {
            waiting.append(&mut transaction.postponed);
        }
        may_be_stale = false;
    }
    After::Ready
}

/// The parameters of MAIL, or why the peer cannot take the message.
fn mail_parameters(connection: &Connection, transfer: &Transfer) -> Result<String, Obstacle> {
    let (peer, offered) = (&connection.peer, &connection.capabilities);
    let utf8 = transfer.smtputf8
        || transfer.reverse_path.mailbox().is_some_and(smtp::Mailbox::needs_smtputf8)
        || transfer.recipients.iter().any(smtp::Mailbox::needs_smtputf8);
    if utf8 && !offered.smtputf8 {
        return Err(peer.unfit("5.6.7", "does not take internationalised mail (no SMTPUTF8)"));
    }
    if transfer.eight_bit && !offered.eight_bit_mime {
        return Err(peer.unfit("5.6.1", "does not take 8-bit content (no 8BITMIME)"));
    }
    let mut parameters = String::new();
    if let Some(limit) = offered.size {
        // RFC 1870 §4: a limit of zero is none.
        if limit > 0 && transfer.size > limit {
            let text =
                format!("takes messages of {limit} octets at most, and this one has {}", transfer.size);
            return Err(peer.unfit("5.3.4", &text));
        }
        // Writing to a String cannot fail, here and below.
        let _ = write!(parameters, " SIZE={}", transfer.size);
    }
    if transfer.eight_bit {
        parameters.push_str(" BODY=8BITMIME");
    }
    if utf8 {
        parameters.push_str(" SMTPUTF8");
    }
    Ok(parameters)
}

/// The span of one step of a transaction.
fn step(command: &'static str) -> Span {
    tracing::info_span!(
        "smtp",
        otel.name = command,
        otel.kind = "client",
        otel.status_code = Empty,
        smtp.command = command,
        smtp.status_code = Empty,
    )
}

/// Tells the present step what the peer replied, or that it did not.
fn tell(reply: &Result<Reply, Loss>) {
    match reply {
        Ok(reply) => tell_reply(reply),
        Err(_) => {
            Span::current().record("otel.status_code", "error");
        }
    }
}

fn tell_reply(reply: &Reply) {
    let span = Span::current();
    span.record("smtp.status_code", reply.code);
    if matches!(class(reply), Class::Temporary | Class::Permanent) {
        span.record("otel.status_code", "error");
        tracing::info!(target: "addresses", reply = %reply, "reply of the peer");
    }
}

/// Of several replies a step tells the worst.
fn worst_of(before: Option<Reply>, reply: &Reply) -> Option<Reply> {
    match before {
        Some(before) if before.code >= reply.code => Some(before),
        _ => Some(reply.clone()),
    }
}

/// One transaction for some of the recipients. Errors of its steps say what the connection is good
/// for; the ledger has been told by then.
struct Transaction<'a> {
    connection: &'a mut Connection,
    transfer: &'a Transfer,
    ledger: &'a mut Ledger,
    config: &'a OutboundConfig,
    /// The connection was idle before, and has not answered since.
    may_be_stale: bool,
    /// Recipients whose RCPT was accepted.
    accepted: Vec<usize>,
    /// Recipients that the peer has no room for in this transaction (RFC 5321 §4.5.3.1.10).
    postponed: Vec<usize>,
}

impl Transaction<'_> {
    async fn run(&mut self, parameters: &str, batch: &[usize]) -> After {
        let started = Instant::now();
        let protocol = self.connection.peer.host.protocol;
        let result = self.dialogue(parameters, batch).await;
        let labels = [("protocol", protocol.as_str())];
        metrics::counter!("packetboat_outbound_transactions_total", &labels).increment(1);
        metrics::histogram!("packetboat_outbound_transaction_duration_seconds", &labels)
            .record(started.elapsed());
        result.err().unwrap_or(After::Ready)
    }

    async fn dialogue(&mut self, parameters: &str, batch: &[usize]) -> Result<(), After> {
        let pipelined = self.connection.capabilities.pipelining;
        let timeouts = &self.config.timeouts;
        let mut line = self.mail_line(parameters);
        if pipelined {
            batch.iter().for_each(|number| line.push_str(&self.rcpt_line(*number)));
            line.push_str("DATA\r\n");
        }
        // Pipelined, this one write holds all commands, and what follows are their replies.
        let mail = self.exchange(Some(line), MAIL, timeouts.mail, batch).instrument(step("MAIL")).await?;
        let has_sender = class(&mail) == Class::Positive;
        if !has_sender {
            batch.iter().for_each(|number| self.judge(*number, MAIL, &mail));
        }
        self.may_be_stale = false;
        if !has_sender && !pipelined {
            return Ok(());
        }
        let span = if batch.len() == 1 { self.step("RCPT") } else { step("RCPT") };
        self.recipients(batch, has_sender, pipelined).instrument(span).await?;
        if self.accepted.is_empty() && !pipelined {
            return self.reset().await;
        }
        let line = (!pipelined).then(|| "DATA\r\n".to_owned());
        let span = self.step("DATA");
        let data = self.exchange(line, DATA, timeouts.data, &[]).instrument(span).await?;
        match class(&data) {
            Class::Intermediate if self.accepted.is_empty() => self.end_empty().await,
            Class::Intermediate => {
                let content = async {
                    self.send_content().await?;
                    self.final_replies().await
                };
                content.instrument(step("content")).await
            }
            _ => {
                self.judge_accepted(DATA, &data);
                self.reset().await
            }
        }
    }

    /// The span of a step with one reply; none when that came along with the one before, and is good: then there is
    /// nothing to see.
    fn step(&self, command: &'static str) -> Span {
        if self.connection.wire.has_good_reply() { Span::none() } else { step(command) }
    }

    /// RCPT for each of `batch`, or with pipelining the replies to it.
    async fn recipients(&mut self, batch: &[usize], has_sender: bool, pipelined: bool) -> Result<(), After> {
        let mut worst = None;
        for (at, &number) in batch.iter().enumerate() {
            let line = (!pipelined).then(|| self.rcpt_line(number));
            let open = if has_sender { &batch[at..] } else { &[] };
            let reply = self.exchange(line, RCPT, self.config.timeouts.rcpt, open).await?;
            if has_sender {
                self.judge_recipient(number, &reply);
            }
            worst = worst_of(worst, &reply);
        }
        worst.iter().for_each(tell_reply);
        Ok(())
    }

    fn mail_line(&self, parameters: &str) -> String {
        format!("MAIL FROM:<{}>{parameters}\r\n", self.transfer.reverse_path)
    }

    fn rcpt_line(&self, number: usize) -> String {
        match self.transfer.recipients.get(number) {
            Some(mailbox) => format!("RCPT TO:<{mailbox}>\r\n"),
            None => String::new(),
        }
    }

    /// Sends `line`, where one is given, and waits for a reply. A 421 ends the session.
    /// `unanswered` are the recipients that, besides the accepted ones, hang on it.
    async fn exchange(
        &mut self,
        line: Option<String>,
        stage: Stage,
        limit: Duration,
        unanswered: &[usize],
    ) -> Result<Reply, After> {
        let sent = match line {
            Some(line) => self.connection.send(&mut line.as_bytes(), &self.config.timeouts).await,
            None => Ok(()),
        };
        let reply = match sent {
            Ok(()) => self.connection.wire.reply(limit).await,
            Err(loss) => Err(loss),
        };
        if stage != RCPT {
            tell(&reply);
        }
        let obstacle = match &reply {
            Ok(reply) if reply.code == 421 => self.connection.peer.refusal(stage, reply),
            Err(loss) => self.connection.peer.lost(stage, loss),
            Ok(_) => return reply.map_err(|_| After::Spent),
        };
        if self.may_be_stale && !matches!(reply, Err(Loss::Deadline(_))) {
            return Err(After::Stale);
        }
        let concerned = self.accepted.iter().chain(unanswered);
        concerned.for_each(|number| self.ledger.obstruct(*number, &obstacle));
        Err(After::Spent)
    }

    fn judge_recipient(&mut self, number: usize, reply: &Reply) {
        if class(reply) == Class::Positive {
            self.accepted.push(number);
        } else if matches!(reply.code, 452 | 552) {
            // RFC 5321 §4.5.3.1.10: a 552 to RCPT is an old way to say 452, "too many recipients".
            let mut obstacle = self.connection.peer.refusal(RCPT, reply);
            obstacle.permanent = false;
            self.ledger.obstruct(number, &obstacle);
            self.postponed.push(number);
        } else {
            self.judge(number, RCPT, reply);
        }
    }

    /// A reply other than the one hoped for: final when it is permanent.
    fn judge(&mut self, number: usize, stage: Stage, reply: &Reply) {
        let obstacle = self.connection.peer.refusal(stage, reply);
        if obstacle.permanent {
            self.ledger.settle(number, RecipientOutcome::Failed(obstacle.failure));
        } else {
            self.ledger.obstruct(number, &obstacle);
        }
    }

    fn judge_accepted(&mut self, stage: Stage, reply: &Reply) {
        for number in self.accepted.clone() {
            self.judge(number, stage, reply);
        }
    }

    /// The peer wants content although it took no recipient (RFC 2920 §3.1): it gets none.
    async fn end_empty(&mut self) -> Result<(), After> {
        if self.connection.peer.host.protocol == Protocol::Lmtp {
            return Err(After::Spent);
        }
        self.exchange(Some(".\r\n".to_owned()), CONTENT, self.config.timeouts.data_end, &[]).await?;
        Ok(())
    }

    async fn send_content(&mut self) -> Result<(), After> {
        let mut reader = (self.transfer.content)();
        let mut encoder = DataEncoder::default();
        let (mut encoded, mut pieces) = (Vec::new(), Pieces::default());
        loop {
            let fit = match reader.next().await {
                Ok(Some(chunk)) => encoder.encode(&chunk, &mut encoded),
                Ok(None) => break,
                Err(error) => return Err(self.unreadable(&error)),
            };
            if fit.is_err() {
                return Err(self.malformed());
            }
            encoded.drain(..).for_each(|piece| pieces.push(piece));
            if pieces.remaining() >= BATCH {
                self.send_pieces(&mut pieces).await?;
            }
        }
        if encoder.finish(&mut encoded).is_err() {
            return Err(self.malformed());
        }
        encoded.drain(..).for_each(|piece| pieces.push(piece));
        if let Err(error) = (self.transfer.before_end)(self.connection.peer.to_string()).await {
            return Err(self.not_ours(&error));
        }
        // Whoever breaks the attempt off from here on has to know.
        let text =
            format!("the attempt ended before {} answered {CONTENT}{MAY_HAVE_IT}", self.connection.peer);
        let failure = self.connection.peer.obstacle("4.4.2", text).failure;
        self.accepted.iter().for_each(|number| self.ledger.doubt(*number, &failure));
        self.send_pieces(&mut pieces).await
    }

    async fn send_pieces(&mut self, pieces: &mut Pieces) -> Result<(), After> {
        let timeouts = &self.config.timeouts;
        let Err(loss) = self.connection.wire.send(pieces, timeouts.data_block).await else { return Ok(()) };
        // A peer that stops listening may have said why. The final dot has not gone out whole, so
        // it cannot have taken the message.
        match self.connection.wire.reply(timeouts.quit).await {
            Ok(reply) if matches!(class(&reply), Class::Temporary | Class::Permanent) => {
                self.judge_accepted(CONTENT, &reply);
            }
            _ => {
                let obstacle = self.connection.peer.lost(CONTENT, &loss);
                self.accepted.iter().for_each(|number| self.ledger.obstruct(*number, &obstacle));
            }
        }
        Err(After::Spent)
    }

    /// Our store failed in the middle. Without the final dot, the peer drops what it has; no other
    /// host is tried, since the fault is ours.
    fn unreadable(&mut self, error: &queue::QueueError) -> After {
        tracing::error!(queue_id = %self.transfer.id, error = error as &dyn std::error::Error,
            "content cannot be read from the queue");
        let text = "this server could not read the message from its queue".to_owned();
        let mut failure = self.connection.peer.obstacle("4.3.0", text).failure;
        failure.remote_mta = None;
        self.settle_accepted(&RecipientOutcome::Deferred(failure));
        After::Spent
    }

    /// The queue does not let us end the message: another worker has it, or the store is away.
    fn not_ours(&mut self, error: &queue::QueueError) -> After {
        tracing::warn!(queue_id = %self.transfer.id, error = error as &dyn std::error::Error,
            "message is not ended, since the queue cannot tell that it is still ours");
        let text = "this server could not write to its queue".to_owned();
        let mut failure = self.connection.peer.obstacle("4.3.0", text).failure;
        failure.remote_mta = None;
        self.settle_accepted(&RecipientOutcome::Deferred(failure));
        After::Spent
    }

    /// A bare CR or LF: never sent on, for peers disagree about what it means.
    fn malformed(&mut self) -> After {
        let text = "the message holds a bare CR or LF, which cannot be sent".to_owned();
        let mut failure = self.connection.peer.obstacle("5.6.0", text).failure;
        failure.remote_mta = None;
        self.settle_accepted(&RecipientOutcome::Failed(failure));
        After::Spent
    }

    fn settle_accepted(&mut self, outcome: &RecipientOutcome) {
        self.accepted.iter().for_each(|number| self.ledger.settle(*number, outcome.clone()));
    }

    /// One reply for all accepted recipients; with LMTP one for each, in order (RFC 2033 §4.2).
    async fn final_replies(&mut self) -> Result<(), After> {
        let accepted = self.accepted.clone();
        let by = self.connection.peer.to_string();
        let groups: Vec<&[usize]> = match self.connection.peer.host.protocol {
            Protocol::Smtp => vec![&accepted],
            Protocol::Lmtp => accepted.chunks(1).collect(),
        };
        let (mut hung_up, mut worst) = (false, None);
        for (at, group) in groups.iter().enumerate() {
            let reply = match self.connection.wire.reply(self.config.timeouts.data_end).await {
                Ok(reply) => reply,
                Err(loss) => {
                    Span::current().record("otel.status_code", "error");
                    groups[at..].iter().for_each(|group| self.doubt(group, &loss));
                    return Err(After::Spent);
                }
            };
            hung_up |= reply.code == 421;
            worst = worst_of(worst, &reply);
            for &number in *group {
                if class(&reply) == Class::Positive {
                    let outcome = RecipientOutcome::Delivered { by: by.clone(), reply: reply_text(&reply) };
                    self.ledger.settle(number, outcome);
                } else {
                    self.judge(number, CONTENT, &reply);
                }
            }
        }
        worst.iter().for_each(tell_reply);
        if hung_up { Err(After::Spent) } else { Ok(()) }
    }

    /// The peer has the whole message, and we have no answer: it may have taken it. Other hosts are
    /// left alone in this attempt, so that one loss makes one duplicate at most (RFC 1047).
    fn doubt(&mut self, group: &[usize], loss: &Loss) {
        let peer = &self.connection.peer;
        tracing::warn!(queue_id = %self.transfer.id, %peer, error = loss as &dyn std::error::Error,
            "no answer to the end of the message, it may be delivered twice");
        metrics::counter!("packetboat_outbound_ambiguous_total").increment(group.len() as u64);
        let mut failure = peer.lost(CONTENT, loss).failure;
        failure.text.push_str(MAY_HAVE_IT);
        for &number in group {
            self.ledger.settle(number, RecipientOutcome::Deferred(failure.clone()));
        }
    }

    async fn reset(&mut self) -> Result<(), After> {
        if self.connection.reset(&self.config.timeouts).await { Ok(()) } else { Err(After::Spent) }
    }
}
