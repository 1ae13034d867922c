//! DATA (RFC 5321 §4.1.1.4): the content streams through, and responsibility is taken or not.

use bytes::BytesMut;
use jiff::Zoned;
use smtp::{DataDecoder, DataError, DataEvent, EnhancedCode, Reply};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::hops::Hops;
use crate::received::Received;
use crate::relay::Relay;
use crate::session::{End, Session};
use crate::transaction::Transaction;

/// Octets asked for at a time.
const DATA_READ: usize = 32 * 1024;
/// So much must come within `data_timeout`.
const PROGRESS: u64 = 64 * 1024;

impl Session {
    pub(crate) async fn data(&mut self) -> Result<(), End> {
        let Some(transaction) = self.transaction.take() else {
            return self.say(Reply::new(503, EnhancedCode(5, 5, 1), "Send MAIL and RCPT first"));
        };
        let (id, span) = (transaction.id, transaction.span.clone());
        let reply = self.transfer(transaction).instrument(span.clone()).await;
        self.rules.transaction_over();
        let outcome = match &reply {
            Err(_) => "aborted",
            Ok(reply) if reply.is_positive() => "accepted",
            Ok(reply) if reply.is_permanent() => "rejected",
            Ok(_) => "deferred",
        };
        metrics::counter!(
            "packetboat_smtp_messages_total", "listener" => self.listener.name.clone(), "outcome" => outcome
        )
        .increment(1);
        let reply = reply.inspect_err(|_| {
            span.record("otel.status_code", "error").record("error.type", "aborted");
        })?;
        Transaction::tell(&span, &reply);
        let _entered = span.entered();
        tracing::info!(queue_id = %id, client = %self.client_ip(), %reply, "message {outcome}");
        self.say(reply)
    }

    async fn transfer(&mut self, transaction: Transaction) -> Result<Reply, End> {
        let received = Received {
            client_name: &self.greeting.name,
            client_ip: self.client_ip(),
            hostname: &self.shared.config.hostname,
            extended: self.greeting.extended,
            tls: self.rules.is_tls(),
            authenticated: self.user.is_some(),
            smtputf8: transaction.smtputf8,
            id: transaction.id,
            only_recipient: match transaction.recipients.as_slice() {
                [only] => Some(only),
                _ => None,
            },
        }
        .render(&Zoned::now());
        transaction.span.record("mail.recipients", transaction.recipients.len());
        tracing::info!(
            target: "addresses",
            from = %transaction.reverse_path,
            to = ?transaction.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "envelope"
        );
        let mut relay = Relay::open(self, &transaction, received);
        self.connection.queue(&Reply::plain(354, "Start mail input; end with <CRLF>.<CRLF>"));
        self.connection.flush().await?;

        let limits = &self.shared.config.limits;
        let mut decoder = DataDecoder::new(transaction.max_size, limits.max_line_bytes);
        let mut hops = Hops::default();
        self.stream(&mut decoder, &mut hops, &mut relay).await?;
        transaction.span.record("mail.size", decoder.size());
        if let Some(fault) = decoder.fault() {
            return Ok(fault_reply(fault, transaction.max_size));
        }
        let max_hops = self.shared.config.limits.max_hops;
        if hops.count() > max_hops {
            let text = format!("The message went through more than {max_hops} hosts: it is in a loop");
            return Ok(Reply::new(554, EnhancedCode(5, 4, 6), text));
        }
        Ok(relay.finish().await)
    }

    /// Passes the content on as it comes, to its true end.
    async fn stream(
        &mut self,
        decoder: &mut DataDecoder,
        hops: &mut Hops,
        relay: &mut Relay,
    ) -> Result<(), End> {
        let limits = self.shared.config.limits.clone();
        let (mut came, mut mark) = (0, PROGRESS);
        let last = Instant::now() + limits.message_timeout;
        let mut deadline = Instant::now() + limits.data_timeout;
        loop {
            while let Some(event) = decoder.decode(&mut self.connection.input) {
                match event {
                    DataEvent::Chunk(chunk) => {
                        hops.see(&chunk);
                        relay.push(chunk).await;
                    }
                    DataEvent::End => return Ok(()),
                }
            }
            let before = self.connection.input.len();
            match timeout_at(deadline.min(last), self.connection.read(DATA_READ)).await {
                Ok(read) => read?,
                Err(_) => return Err(End::TooSlow),
            }
            came += (self.connection.input.len() - before) as u64;
            if came >= mark {
                mark = came + PROGRESS;
                deadline = Instant::now() + limits.data_timeout;
            }
            // A message that is refused anyway is read to its end, within reason.
            if decoder.fault().is_some() && came > 2 * limits.max_message_bytes {
                let text = "The message is far too large, closing";
                self.connection.queue(&Reply::new(552, EnhancedCode(5, 3, 4), text));
                self.connection.input = BytesMut::new();
                return Err(End::Said);
            }
        }
    }
}

fn fault_reply(fault: DataError, max_size: u64) -> Reply {
    match fault {
        DataError::BareLineEnd => {
            Reply::new(554, EnhancedCode(5, 6, 0), "The message holds a bare CR or LF: end lines in CRLF")
        }
        DataError::Nul => Reply::new(554, EnhancedCode(5, 6, 0), "The message holds a NUL octet"),
        DataError::LineTooLong => {
            Reply::new(554, EnhancedCode(5, 6, 0), "The message holds a line that is too long: encode it")
        }
        DataError::TooLarge => {
            Reply::new(552, EnhancedCode(5, 3, 4), format!("The message is larger than {max_size} octets"))
        }
    }
}
