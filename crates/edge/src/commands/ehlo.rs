//! EHLO and HELO (RFC 5321 §4.1.1.1).

use smtp::Reply;

use crate::session::{End, Greeting, Session};

impl Session {
    pub(crate) fn greeted(&mut self, name: String, extended: bool) -> Result<(), End> {
        self.forget_transaction();
        self.rules.greeted();
        self.greeting = Greeting { name, extended };
        let hostname = &self.shared.config.hostname;
        let reply =
            if extended { self.rules.ehlo_reply(hostname) } else { Reply::plain(250, hostname.clone()) };
        self.say(reply)
    }
}
