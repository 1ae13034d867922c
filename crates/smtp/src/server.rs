//! The server's side of a session: which command may come when (RFC 5321 §4.1.4, RFC 3207 §4.2,
//! RFC 4954 §4). It knows nothing of what a recipient or a message is worth; the caller does.

use std::borrow::Cow;

use crate::command::Command;
use crate::reply::{EnhancedCode, Reply};

/// What a listener offers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// STARTTLS is offered before TLS.
    pub starttls: bool,
    /// AUTH is offered under TLS, and mail is taken from authenticated users alone.
    pub submission: bool,
    /// `SIZE`: the largest message, in octets.
    pub max_size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No EHLO or HELO yet.
    Connected,
    /// Between transactions.
    Ready,
    /// After MAIL.
    Mail,
    /// After at least one accepted RCPT.
    Rcpt,
}

/// Where a session stands.
#[derive(Debug, Clone)]
pub struct Session {
    offer: Offer,
    phase: Phase,
    tls: bool,
    authenticated: bool,
}

impl Session {
    /// A session that has just begun; `tls` when the listener speaks TLS from the first octet.
    #[must_use]
    pub fn new(offer: Offer, tls: bool) -> Self {
        Self { offer, phase: Phase::Connected, tls, authenticated: false }
    }

    /// Whether the session is under TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether a user has authenticated.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// Whether a transaction is open.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        matches!(self.phase, Phase::Mail | Phase::Rcpt)
    }

    /// Whether `command` may come now.
    ///
    /// # Errors
    /// The reply to give instead of doing it.
    pub fn admit(&self, command: &Command) -> Result<(), Reply> {
        match command {
            Command::Mail { .. } => self.admit_mail(),
            Command::Rcpt { .. } if !self.in_transaction() => Err(sequence("Send MAIL first")),
            Command::Data => match self.phase {
                Phase::Rcpt => Ok(()),
                Phase::Mail => Err(Reply::new(554, EnhancedCode(5, 5, 1), "No valid recipients")),
                _ => Err(sequence("Send MAIL and RCPT first")),
            },
            Command::StartTls if self.tls => Err(sequence("TLS is already active")),
            Command::StartTls if !self.offer.starttls => {
                Err(Reply::new(502, EnhancedCode(5, 5, 1), "Command not implemented"))
            }
            Command::StartTls if self.in_transaction() => Err(sequence("A transaction is open")),
            Command::Auth { mechanism, .. } => self.admit_auth(mechanism),
            _ => Ok(()),
        }
    }

    fn admit_mail(&self) -> Result<(), Reply> {
        match self.phase {
            Phase::Connected => Err(sequence("Send EHLO first")),
            Phase::Mail | Phase::Rcpt => Err(sequence("A transaction is open already")),
            Phase::Ready if self.offer.submission && !self.authenticated => {
                Err(Reply::new(530, EnhancedCode(5, 7, 0), "Authentication required"))
            }
            Phase::Ready => Ok(()),
        }
    }

    fn admit_auth(&self, mechanism: &str) -> Result<(), Reply> {
        if !self.offer.submission {
            return Err(Reply::new(502, EnhancedCode(5, 5, 1), "Command not implemented"));
        }
        if !self.tls {
            return Err(Reply::new(538, EnhancedCode(5, 7, 11), "Encryption required: use STARTTLS first"));
        }
        if self.phase == Phase::Connected {
            return Err(sequence("Send EHLO first"));
        }
        if self.authenticated || self.in_transaction() {
            return Err(sequence("AUTH is not possible now"));
        }
        if !matches!(mechanism, "PLAIN" | "LOGIN") {
            return Err(Reply::new(
                504,
                EnhancedCode(5, 5, 4),
                "Mechanism not supported: use PLAIN or LOGIN",
            ));
        }
        Ok(())
    }

    /// EHLO or HELO was accepted; an open transaction is gone (RFC 5321 §4.1.4).
    pub fn greeted(&mut self) {
        self.phase = Phase::Ready;
    }

    /// MAIL was accepted.
    pub fn mail_accepted(&mut self) {
        self.phase = Phase::Mail;
    }

    /// A recipient was accepted.
    pub fn rcpt_accepted(&mut self) {
        self.phase = Phase::Rcpt;
    }

    /// The transaction is over: after DATA, or by RSET.
    pub fn transaction_over(&mut self) {
        if self.in_transaction() {
            self.phase = Phase::Ready;
        }
    }

    /// TLS has begun: everything learned before is forgotten (RFC 3207 §4.2).
    pub fn tls_started(&mut self) {
        *self = Self::new(self.offer.clone(), true);
    }

    /// A user has authenticated.
    pub fn authenticated(&mut self) {
        self.authenticated = true;
    }

    /// The reply to EHLO: our name and the extensions offered now.
    #[must_use]
    pub fn ehlo_reply(&self, hostname: &str) -> Reply {
        let mut lines: Vec<Cow<'static, str>> = vec![
            hostname.to_owned().into(),
            "PIPELINING".into(),
            format!("SIZE {}", self.offer.max_size).into(),
            "8BITMIME".into(),
            "SMTPUTF8".into(),
            "ENHANCEDSTATUSCODES".into(),
        ];
        if self.offer.starttls && !self.tls {
            lines.push("STARTTLS".into());
        }
        if self.offer.submission && self.tls && !self.authenticated {
            lines.push("AUTH PLAIN LOGIN".into());
        }
        Reply::multiline(250, lines)
    }
}

fn sequence(text: &'static str) -> Reply {
    Reply::new(503, EnhancedCode(5, 5, 1), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(submission: bool, tls: bool) -> Session {
        Session::new(Offer { starttls: true, submission, max_size: 1000 }, tls)
    }

    fn admitted(session: &Session, line: &str) -> u16 {
        session.admit(&Command::parse(line.as_bytes()).unwrap()).map_or_else(|reply| reply.code, |()| 250)
    }

    const MAIL: &str = "MAIL FROM:<a@b.example>";
    const RCPT: &str = "RCPT TO:<a@b.example>";

    #[test]
    fn a_transaction_goes_in_order() {
        let mut session = session(false, false);
        assert_eq!(admitted(&session, MAIL), 503);
        session.greeted();
        assert_eq!(admitted(&session, RCPT), 503);
        assert_eq!(admitted(&session, "DATA"), 503);
        assert_eq!(admitted(&session, MAIL), 250);
        session.mail_accepted();
        assert_eq!(admitted(&session, MAIL), 503);
        assert_eq!(admitted(&session, "DATA"), 554);
        assert_eq!(admitted(&session, "STARTTLS"), 503);
        session.rcpt_accepted();
        assert_eq!(admitted(&session, "DATA"), 250);
        session.transaction_over();
        assert_eq!(admitted(&session, RCPT), 503);
    }

    #[test]
    fn submission_needs_tls_then_auth() {
        let mut session = session(true, false);
        session.greeted();
        assert_eq!(admitted(&session, MAIL), 530);
        assert_eq!(admitted(&session, "AUTH PLAIN AAAA"), 538);
        session.tls_started();
        assert_eq!(admitted(&session, "AUTH PLAIN AAAA"), 503);
        session.greeted();
        assert_eq!(admitted(&session, "STARTTLS"), 503);
        assert_eq!(admitted(&session, "AUTH CRAM-MD5"), 504);
        assert_eq!(admitted(&session, "AUTH PLAIN AAAA"), 250);
        session.authenticated();
        assert_eq!(admitted(&session, "AUTH PLAIN AAAA"), 503);
        assert_eq!(admitted(&session, MAIL), 250);
    }

    #[test]
    fn keywords_follow_the_state() {
        let has = |session: &Session, word: &str| {
            session.ehlo_reply("mx.example").lines.iter().any(|line| line.starts_with(word))
        };
        assert!(has(&session(true, false), "STARTTLS") && !has(&session(true, false), "AUTH"));
        assert!(!has(&session(true, true), "STARTTLS") && has(&session(true, true), "AUTH"));
        assert!(!has(&session(false, true), "AUTH"));
    }
}
