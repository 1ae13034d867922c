//! The trace header field of this hop (RFC 5321 §4.4, RFC 3848, RFC 6531 §3.7.3).

use std::fmt::Write;
use std::net::IpAddr;

use bytes::Bytes;
use jiff::Zoned;
use message::QueueId;
use smtp::Mailbox;

/// What the field tells.
pub struct Received<'a> {
    /// EHLO or HELO argument, as given.
    pub client_name: &'a str,
    /// The client's address.
    pub client_ip: IpAddr,
    /// Our name.
    pub hostname: &'a str,
    /// EHLO, not HELO.
    pub extended: bool,
    /// The session is under TLS.
    pub tls: bool,
    /// A user has authenticated.
    pub authenticated: bool,
    /// MAIL carried SMTPUTF8.
    pub smtputf8: bool,
    /// The message's id.
    pub id: QueueId,
    /// The recipient, when there is just one: with more, the field would tell some about others.
    pub only_recipient: Option<&'a Mailbox>,
}

impl Received<'_> {
    fn with(&self) -> String {
        let base = match (self.smtputf8, self.extended) {
            (true, _) => "UTF8SMTP",
            (false, true) => "ESMTP",
            (false, false) => return "SMTP".to_owned(),
        };
        let tls = if self.tls { "S" } else { "" };
        let authenticated = if self.authenticated { "A" } else { "" };
        format!("{base}{tls}{authenticated}")
    }

    /// The field, folded, ended by CRLF.
    #[must_use]
    pub fn render(&self, at: &Zoned) -> Bytes {
        let literal = match self.client_ip.to_canonical() {
            IpAddr::V4(ip) => format!("[{ip}]"),
            IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
        };
        // A header of ASCII stays one: the next hop may take nothing else.
        let shown = |c: char| if self.smtputf8 || c.is_ascii() { c } else { '?' };
        let client_name: String = self.client_name.chars().map(shown).collect();
        let mut field = format!("Received: from {client_name} ({literal})\r\n\tby {}", self.hostname);
        // Writing to a String does not fail.
        let _ = write!(field, " with {} id {}", self.with(), self.id);
        if let Some(recipient) = self.only_recipient {
            let _ = write!(field, "\r\n\tfor <{recipient}>");
        }
        let _ = write!(field, ";\r\n\t{}\r\n", at.strftime("%a, %d %b %Y %H:%M:%S %z"));
        field.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_tells_how_a_message_came() {
        let recipient: Mailbox = "alice@example.com".parse().unwrap();
        let id = QueueId::generate();
        let mut received = Received {
            client_name: "mail.example.org",
            client_ip: "192.0.2.1".parse().unwrap(),
            hostname: "mx.example.com",
            extended: true,
            tls: true,
            authenticated: false,
            smtputf8: false,
            id,
            only_recipient: Some(&recipient),
        };
        let at: Zoned = "2026-11-24T06:00:00+00:00[UTC]".parse().unwrap();
        let expected = format!(
            "Received: from mail.example.org ([192.0.2.1])\r\n\tby mx.example.com with ESMTPS id {id}\r\n\t\
             for <alice@example.com>;\r\n\tTue, 24 Nov 2026 06:00:00 +0000\r\n"
        );
        assert_eq!(received.render(&at), expected);
        received.authenticated = true;
        assert_eq!(received.with(), "ESMTPSA");
        received.smtputf8 = true;
        assert_eq!(received.with(), "UTF8SMTPSA");
        received.smtputf8 = false;
        received.extended = false;
        assert_eq!(received.with(), "SMTP");
    }
}
