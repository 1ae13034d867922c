//! RCPT (RFC 5321 §4.1.1.3): whether the recipient is ours, exists, and takes this message.

use smtp::{EnhancedCode, ForwardPath, Mailbox, Reply};
use tracing::Instrument;

use crate::config::Kind;
use crate::recipients::Standing;
use crate::session::{End, Session};
use crate::transaction::Transaction;

impl Session {
    pub(crate) async fn rcpt(&mut self, path: ForwardPath, internationalized: bool) -> Result<(), End> {
        let reply = match self.judge(path, internationalized).await {
            Ok(()) => {
                self.rules.rcpt_accepted();
                Reply::new(250, EnhancedCode(2, 1, 5), "Ok")
            }
            Err(reply) => {
                metrics::counter!(
                    "packetboat_smtp_recipients_refused_total",
                    "listener" => self.listener.name.clone(), "code" => reply.code.to_string()
                )
                .increment(1);
                reply
            }
        };
        self.say(reply)
    }

    async fn judge(&mut self, path: ForwardPath, internationalized: bool) -> Result<(), Reply> {
        let limits = &self.shared.config.limits;
        let hostname = &self.shared.config.hostname;
        let Some(mailbox) = self.shared.recipients.mailbox(path, hostname) else {
            return Err(Reply::new(550, EnhancedCode(5, 1, 1), "No domain is hosted here that takes mail"));
        };
        let Some(transaction) = &mut self.transaction else {
            return Err(Reply::new(503, EnhancedCode(5, 5, 1), "Send MAIL first"));
        };
        if transaction.recipients.len() >= limits.max_recipients {
            return Err(Reply::new(452, EnhancedCode(4, 5, 3), "Too many recipients, send the rest again"));
        }
        if internationalized && !transaction.smtputf8 {
            let text = "A non-ASCII address needs the SMTPUTF8 parameter";
            return Err(Reply::new(553, EnhancedCode(5, 6, 7), text));
        }
        let standing = self.shared.recipients.standing(&mailbox).instrument(transaction.span.clone()).await;
        match standing {
            Standing::Exists => {}
            Standing::NotHosted if self.listener.kind == Kind::Submission => {}
            Standing::NotHosted => {
                let text = format!("Mail for {} is not taken here", mailbox.domain());
                return Err(Reply::new(550, EnhancedCode(5, 7, 1), text));
            }
            Standing::Unknown => {
                let text = format!("There is no {mailbox} here: check the address");
                return Err(Reply::new(550, EnhancedCode(5, 1, 1), text));
            }
            Standing::Unavailable => {
                let text = "Whether the recipient exists cannot be told now, try again later";
                return Err(Reply::new(451, EnhancedCode(4, 3, 0), text));
            }
        }
        let limit = domain_terms(&self.shared.domains.current(), &mailbox, transaction, self.rules.is_tls())?;
        transaction.add(mailbox, limit);
        Ok(())
    }
}

/// What the recipient's domain asks of mail for it: its size limit, or the reply to what breaks its terms.
fn domain_terms(
    index: &domains::DomainIndex,
    mailbox: &Mailbox,
    transaction: &Transaction,
    tls: bool,
) -> Result<Option<u64>, Reply> {
    let inbound =
        mailbox.domain_name().and_then(|name| index.hosted(name)).and_then(|domain| domain.inbound());
    let Some(inbound) = inbound else { return Ok(None) };
    if inbound.require_tls && !tls {
        let text = format!("{} takes mail over TLS alone: use STARTTLS", mailbox.domain());
        return Err(Reply::new(530, EnhancedCode(5, 7, 10), text));
    }
    match inbound.max_message_bytes {
        Some(limit) if transaction.declared_size > limit => {
            let text = format!("{} takes no message larger than {limit} octets", mailbox.domain());
            Err(Reply::new(552, EnhancedCode(5, 3, 4), text))
        }
        limit => Ok(limit),
    }
}
