//! The text of a delivery status notification (RFC 3464 in RFC 6522): what a sender reads when a
//! message could not be delivered. Delivery decides when one is due, and for whom.
//!
//! Everything that came from outside (addresses, replies, header fields) passes through [`clean`] or
//! [`original_header`] on its way in, so that none of it can start a line of its own.

use std::fmt::Write as _;

use jiff::Timestamp;
use smtp::Mailbox;

use crate::{Failure, QueueId};

/// Longest text taken from a remote reply or an error, in octets; lines stay under the 998 of
/// RFC 5322 §2.1.1 with the field's name.
const MAX_TEXT: usize = 700;

/// One recipient that the message did not reach.
#[derive(Debug, Clone)]
pub struct FailedRecipient<'a> {
    /// The address it was to go to (`Final-Recipient`, RFC 3464 §2.3.2).
    pub address: &'a Mailbox,
    /// The address the sender wrote, where an alias led on from it (`Original-Recipient`, §2.3.1).
    pub original: Option<&'a Mailbox>,
    /// Why.
    pub failure: &'a Failure,
}

/// What a notification tells.
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// The notification's own id: it names its Message-ID and its boundary.
    pub id: QueueId,
    /// The message that could not be delivered.
    pub about: QueueId,
    /// Our host name (`Reporting-MTA`, RFC 3464 §2.2.2).
    pub hostname: &'a str,
    /// Who writes it.
    pub from: &'a Mailbox,
    /// To whom: the reverse-path of the message.
    pub to: &'a Mailbox,
    /// When it is written, and when the last attempt was.
    pub now: Timestamp,
    /// When the message was accepted (`Arrival-Date`).
    pub arrived: Timestamp,
    /// Whom it did not reach; at least one.
    pub recipients: &'a [FailedRecipient<'a>],
    /// The header of the message, as [`original_header`] made it.
    pub header: &'a [u8],
    /// The message asked for SMTPUTF8, so its notification may hold UTF-8 (RFC 6533).
    pub smtputf8: bool,
}

/// A written notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Header and body, CRLF line ends.
    pub content: Vec<u8>,
    /// It holds octets above 127 in header fields or addresses, and must travel with SMTPUTF8.
    pub smtputf8: bool,
    /// It holds octets above 127 anywhere.
    pub eight_bit: bool,
}

impl Report<'_> {
    /// Writes the notification: words for a person, `message/delivery-status` for programs, and the
    /// header of the message. Plain ASCII, unless the message asked for SMTPUTF8.
    #[must_use]
    pub fn write(&self) -> Notification {
        let global = self.smtputf8;
        let boundary = format!("={}=", self.id);
        let mut text = self.header_fields(&boundary);
        let _ = write!(
            text,
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {}\r\n\r\n",
            encoding(global)
        );
        self.words(&mut text);
        let status = if global { "global-delivery-status" } else { "delivery-status" };
        let _ = write!(
            text,
            "\r\n--{boundary}\r\nContent-Type: message/{status}\r\nContent-Transfer-Encoding: {}\r\n\r\n",
            encoding(global)
        );
        self.status(&mut text);
        let header = if global { "message/global-headers" } else { "text/rfc822-headers" };
        let _ = write!(
            text,
            "\r\n--{boundary}\r\nContent-Type: {header}\r\nContent-Transfer-Encoding: {}\r\n\r\n",
            encoding(global)
        );
        let mut content = text.into_bytes();
        content.extend_from_slice(self.header);
        content.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let eight_bit = !content.is_ascii();
        Notification { content, smtputf8: global && eight_bit, eight_bit }
    }

    fn header_fields(&self, boundary: &str) -> String {
        let kind = if self.smtputf8 { "global-delivery-status" } else { "delivery-status" };
        format!(
            "From: Mail Delivery System <{from}>\r\n\
             To: <{to}>\r\n\
             Subject: Your message could not be delivered\r\n\
             Date: {date}\r\n\
             Message-ID: <{id}@{host}>\r\n\
             Auto-Submitted: auto-replied\r\n\
             MIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type={kind};\r\n\
             \tboundary=\"{boundary}\"\r\n\r\n\
             This is a delivery status notification in MIME format (RFC 3464).\r\n\r\n",
            from = self.address(self.from),
            to = self.address(self.to),
            date = rfc5322_date(self.now),
            id = self.id,
            host = self.hostname,
        )
    }

    /// The part for people.
    fn words(&self, text: &mut String) {
        let one = self.recipients.len() == 1;
        let _ = write!(
            text,
            "This is the mail system at {host}.\r\n\r\n\
             Your message of {arrived} could not be delivered to {whom}:\r\n",
            host = self.hostname,
            arrived = rfc5322_date(self.arrived),
            whom = if one { "this recipient" } else { "these recipients" },
        );
        for recipient in self.recipients {
            let failure = recipient.failure;
            let _ = write!(text, "\r\n  <{}>", self.address(recipient.address));
            if let Some(original) = recipient.original {
                let _ = write!(text, " (written to <{}>)", self.address(original));
            }
            let _ = write!(text, "\r\n    {}\r\n", self.clean(&failure.text));
            if let Some(reply) = &failure.reply {
                let host = failure.remote_mta.as_deref().unwrap_or("the remote server");
                let _ = write!(text, "    {} said: {}\r\n", self.clean(host), self.clean(reply));
            }
        }
        let _ = write!(
            text,
            "\r\nNothing more will be tried for {}. The header of your message is attached.\r\n\
             When you ask your postmaster about it, please name this id: {}\r\n",
            if one { "this recipient" } else { "these recipients" },
            self.about,
        );
    }

    /// The part for programs (RFC 3464 §2).
    fn status(&self, text: &mut String) {
        let kind = if self.smtputf8 { "utf-8" } else { "rfc822" };
        let _ = write!(
            text,
            "Reporting-MTA: dns; {}\r\nX-Packetboat-Queue-ID: {}\r\nArrival-Date: {}\r\n",
            self.hostname,
            self.about,
            rfc5322_date(self.arrived)
        );
        for recipient in self.recipients {
            let failure = recipient.failure;
            text.push_str("\r\n");
            if let Some(original) = recipient.original {
                let _ = write!(text, "Original-Recipient: {kind}; {}\r\n", self.address(original));
            }
            let _ = write!(
                text,
                "Final-Recipient: {kind}; {}\r\nAction: failed\r\nStatus: {}\r\n",
                self.address(recipient.address),
                status_code(&failure.status)
            );
            if let Some(host) = &failure.remote_mta {
                let _ = write!(text, "Remote-MTA: dns; {}\r\n", self.clean(host));
            }
            if let Some(reply) = &failure.reply {
                let _ = write!(text, "Diagnostic-Code: smtp; {}\r\n", self.clean(reply));
            }
            let _ = write!(text, "Last-Attempt-Date: {}\r\n", rfc5322_date(self.now));
        }
    }

    fn address(&self, mailbox: &Mailbox) -> String {
        self.clean(&mailbox.to_string())
    }

    fn clean(&self, text: &str) -> String {
        clean(text, self.smtputf8)
    }
}

fn encoding(global: bool) -> &'static str {
    if global { "8bit" } else { "7bit" }
}

/// Outside text on one line: control characters become spaces, what is not ASCII becomes `?` unless
/// the notification may hold UTF-8, and what is long is cut.
fn clean(text: &str, utf8: bool) -> String {
    let mut cleaned = String::with_capacity(text.len().min(MAX_TEXT));
    for c in text.trim().chars() {
        if cleaned.len() >= MAX_TEXT {
            cleaned.push_str("...");
            break;
        }
        match c {
            c if c.is_control() => cleaned.push(' '),
            c if c.is_ascii() || utf8 => cleaned.push(c),
            _ => cleaned.push('?'),
        }
    }
    cleaned
}

/// A status code of RFC 3463 as it stands, or the general failure when the text is none.
fn status_code(text: &str) -> &str {
    let mut parts = text.split('.');
    let class = matches!(parts.next(), Some("4" | "5"));
    let number = |part: Option<&str>| {
        part.is_some_and(|p| (1..=3).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
    };
    if class && number(parts.next()) && number(parts.next()) && parts.next().is_none() {
        text
    } else {
        "5.0.0"
    }
}

/// The header of a message, taken from its first octets: cut at the empty line, or at the last whole
/// line within `limit` octets. Lines longer than 998 octets are cut; octets that are not ASCII
/// become `?` unless `utf8`.
#[must_use]
pub fn original_header(start: &[u8], limit: usize, utf8: bool) -> Vec<u8> {
    let mut header = Vec::with_capacity(start.len().min(limit));
    for line in start.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\r\n") else { break };
        if line.is_empty() || header.len() + line.len() + 2 > limit {
            break;
        }
        let line = &line[..line.len().min(998)];
        header.extend(line.iter().map(|byte| match byte {
            b'\r' | 0 => b' ',
            byte if byte.is_ascii() || utf8 => *byte,
            _ => b'?',
        }));
        header.extend_from_slice(b"\r\n");
    }
    if utf8 && std::str::from_utf8(&header).is_err() {
        header.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    header
}

/// A date as in RFC 5322 §3.3, in UTC.
#[must_use]
pub fn rfc5322_date(moment: Timestamp) -> String {
    moment.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(text: &str) -> Mailbox {
        text.parse().unwrap()
    }

    fn report(failure: &Failure, smtputf8: bool, header: &[u8]) -> String {
        let (from, to) = (mailbox("MAILER-DAEMON@example.com"), mailbox("alice@example.com"));
        let (address, original) = (mailbox("bob@example.net"), mailbox("sales@example.com"));
        let id = QueueId::generate();
        let written = Report {
            id,
            about: id,
            hostname: "mx.example.com",
            from: &from,
            to: &to,
            now: Timestamp::UNIX_EPOCH,
            arrived: Timestamp::UNIX_EPOCH,
            recipients: &[FailedRecipient { address: &address, original: Some(&original), failure }],
            header,
            smtputf8,
        }
        .write();
        String::from_utf8(written.content).unwrap()
    }

    fn failure(reply: &str) -> Failure {
        Failure {
            status: "5.1.1".into(),
            reply: Some(reply.into()),
            remote_mta: Some("mx.example.net".into()),
            text: "the server refused the recipient".into(),
        }
    }

    #[test]
    fn a_remote_reply_cannot_add_a_line() {
        let text = report(&failure("550 no\r\nBcc: eve@example.org\nX: \u{7f}\u{e9}"), false, b"");
        assert!(text.contains("Diagnostic-Code: smtp; 550 no  Bcc: eve@example.org X:  ?\r\n"), "{text}");
        assert!(text.is_ascii());
    }

    #[test]
    fn a_message_with_smtputf8_is_told_of_in_utf8() {
        let text = report(&failure("550 caf\u{e9}"), true, "Subject: caf\u{e9}\r\n".as_bytes());
        assert!(text.contains("message/global-delivery-status"));
        assert!(text.contains("Final-Recipient: utf-8; bob@example.net\r\n"));
        assert!(text.contains("smtp; 550 caf\u{e9}\r\n"));
    }

    #[test]
    fn lines_stay_within_the_limit_of_the_format() {
        let text = report(
            &failure(&"x".repeat(5000)),
            false,
            &[b"Subject: ".as_slice(), &[b'y'; 3000], b"\r\n"].concat(),
        );
        let header =
            original_header(&[b"Subject: ".as_slice(), &[b'y'; 3000], b"\r\n\r\n"].concat(), 65536, false);
        assert!(header.len() == 1000);
        assert!(text.lines().filter(|line| !line.starts_with("Subject: yy")).all(|line| line.len() <= 998));
    }

    #[test]
    fn the_header_ends_at_the_empty_line_or_the_limit() {
        let start = b"A: 1\r\nB: \xff\r\n\r\nbody\r\n";
        assert_eq!(original_header(start, 1000, false), b"A: 1\r\nB: ?\r\n");
        assert_eq!(original_header(start, 1000, true), b"A: 1\r\nB: ?\r\n");
        assert_eq!(original_header(start, 8, false), b"A: 1\r\n");
        assert_eq!(original_header(b"A: 1\r\nB: cut of", 1000, false), b"A: 1\r\n");
    }

    #[test]
    fn dates_are_those_of_rfc_5322() {
        assert_eq!(rfc5322_date(Timestamp::UNIX_EPOCH), "Thu, 01 Jan 1970 00:00:00 +0000");
    }
}
