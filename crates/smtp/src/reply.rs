//! Replies (RFC 5321 §4.2) and enhanced status codes (RFC 3463, RFC 2034).

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, BytesMut};

/// Longest text of one reply line that is sent, so that a line stays under 512 octets (RFC 5321 §4.5.3.1.5).
const MAX_TEXT: usize = 480;

/// An enhanced status code: class, subject, detail (`5.1.1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl std::str::FromStr for EnhancedCode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let (Some(class), Some(subject), Some(detail), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let digits = |part: &str| -> Result<u16, ()> {
            if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(());
            }
            part.parse().map_err(|_| ())
        };
        match class {
            "2" | "4" | "5" => Ok(Self(class.as_bytes()[0] - b'0', digits(subject)?, digits(detail)?)),
            _ => Err(()),
        }
    }
}

/// A reply: to be sent by a server, or received by a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// The enhanced code, where the reply has one.
    pub enhanced: Option<EnhancedCode>,
    /// The text, a line each; at least one.
    pub lines: Vec<Cow<'static, str>>,
}

impl Reply {
    /// A one-line reply with an enhanced code.
    #[must_use]
    pub fn new(code: u16, enhanced: EnhancedCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced: Some(enhanced), lines: vec![text.into()] }
    }

    /// A one-line reply without enhanced code: greeting, HELO, 354.
    #[must_use]
    pub fn plain(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, enhanced: None, lines: vec![text.into()] }
    }

    /// A multi-line reply without enhanced code: EHLO, HELP.
    #[must_use]
    pub fn multiline(code: u16, lines: Vec<Cow<'static, str>>) -> Self {
        Self { code, enhanced: None, lines }
    }

    /// 2xx.
    #[must_use]
    pub fn is_positive(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// 4xx: to be tried again.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    /// 5xx: not to be tried again as it is.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }

    /// Appends the reply as it goes on the wire. Control characters in the text become `?`, so that
    /// nothing a client or a policy put there can make a second reply.
    pub fn encode(&self, out: &mut BytesMut) {
        let last = self.lines.len().saturating_sub(1);
        for (at, line) in self.lines.iter().enumerate() {
            let separator = if at == last { ' ' } else { '-' };
            out.put_slice(self.code.to_string().as_bytes());
            out.put_u8(separator as u8);
            if let Some(enhanced) = self.enhanced {
                out.put_slice(enhanced.to_string().as_bytes());
                out.put_u8(b' ');
            }
            let mut room = MAX_TEXT;
            for c in line.chars() {
                let c = if c.is_control() { '?' } else { c };
                if c.len_utf8() > room {
                    break;
                }
                room -= c.len_utf8();
                out.put_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            out.put_slice(b"\r\n");
        }
    }
}

impl fmt::Display for Reply {
    /// One line, for logs and bounces: `550 5.1.1 text`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for line in &self.lines {
            if !line.is_empty() {
                write!(f, " {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut out = BytesMut::new();
        reply.encode(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn control_characters_cannot_forge_a_second_reply() {
        let reply = Reply::new(550, EnhancedCode(5, 1, 1), "no\r\n250 ok");
        assert_eq!(wire(&reply), "550 5.1.1 no??250 ok\r\n");
    }

    #[test]
    fn all_lines_but_the_last_have_a_hyphen() {
        let reply = Reply::multiline(250, vec!["mx.example".into(), "PIPELINING".into()]);
        assert_eq!(wire(&reply), "250-mx.example\r\n250 PIPELINING\r\n");
    }

    #[test]
    fn enhanced_codes_parse_strictly() {
        assert_eq!("5.7.26".parse(), Ok(EnhancedCode(5, 7, 26)));
        for bad in ["1.0.0", "5.7", "5.7.1.1", "5.7.1234", "5..1", "x.1.1"] {
            assert_eq!(bad.parse::<EnhancedCode>(), Err(()));
        }
    }
}
