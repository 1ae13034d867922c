//! MAIL (RFC 5321 §4.1.1.2): a transaction begins.

use smtp::{Body, EnhancedCode, Reply, ReversePath};
use tokio::time::Instant;

use crate::config::Kind;
use crate::session::{End, Session};
use crate::transaction::Transaction;

impl Session {
    pub(crate) fn mail(
        &mut self,
        reverse_path: ReversePath,
        size: Option<u64>,
        body: Body,
        smtputf8: bool,
    ) -> Result<(), End> {
        let max_size = self.shared.config.limits.max_message_bytes;
        if size.is_some_and(|size| size > max_size) {
            let text = format!("The message is larger than {max_size} octets");
            return self.say(Reply::new(552, EnhancedCode(5, 3, 4), text));
        }
        // The null reverse-path is nobody's: a user's client sends notifications with it.
        if let (Some(user), Some(mailbox)) = (&self.user, reverse_path.mailbox())
            && !user.owned_addresses.iter().any(|owned| domains::owns(owned, mailbox))
        {
            let text = "The sender address is not one of yours";
            return self.say(Reply::new(553, EnhancedCode(5, 7, 1), text));
        }
        let (listener, client) = (&self.listener.name, self.client_ip());
        if self.listener.kind == Kind::Mx {
            self.shared.origins.note(client, Instant::now());
        }
        self.transaction =
            Some(Transaction::new(listener, client, reverse_path, size, body, smtputf8, max_size));
        self.rules.mail_accepted();
        self.say(Reply::new(250, EnhancedCode(2, 1, 0), "Ok"))
    }
}
