//! The client's side: replies off a buffer, and what EHLO said (RFC 5321 §4.2, §4.1.1.1).

use bytes::BytesMut;
use memchr::memchr;

use crate::reply::{EnhancedCode, Reply};

/// Longest reply line that is taken, in octets. RFC 5321 §4.5.3.1.5 says 512; servers exceed it.
pub const MAX_REPLY_LINE: usize = 2048;
/// Most lines of one reply.
pub const MAX_REPLY_LINES: usize = 128;

/// What a peer sent is no reply. The connection is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line without a three-digit code.
    #[error("the peer sent something that is no SMTP reply")]
    Malformed,
    /// A line or a reply beyond the limits.
    #[error("the peer sent a reply beyond all limits")]
    TooLong,
}

/// Takes replies off a buffer.
#[derive(Debug, Default)]
pub struct ReplyDecoder {
    lines: Vec<String>,
}

impl ReplyDecoder {
    /// The next whole reply; `None` when more octets are needed.
    ///
    /// # Errors
    /// When the peer does not speak SMTP, or does not stop.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Reply>, ReplyError> {
        loop {
            let Some(end) = memchr(b'\n', buffer) else {
                return if buffer.len() > MAX_REPLY_LINE { Err(ReplyError::TooLong) } else { Ok(None) };
            };
            if end > MAX_REPLY_LINE || self.lines.len() == MAX_REPLY_LINES {
                return Err(ReplyError::TooLong);
            }
            let line = buffer.split_to(end + 1);
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            let (code, more, text) = split(line)?;
            self.lines.push(text);
            if !more {
                return Ok(Some(finish(code, std::mem::take(&mut self.lines))));
            }
        }
    }
}

fn split(line: &[u8]) -> Result<(u16, bool, String), ReplyError> {
    let code = line
        .get(..3)
        .filter(|code| matches!(code[0], b'2'..=b'5') && code.iter().all(u8::is_ascii_digit))
        .ok_or(ReplyError::Malformed)?;
    let code = code.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    let more = match line.get(3) {
        None | Some(b' ') => false,
        Some(b'-') => true,
        Some(_) => return Err(ReplyError::Malformed),
    };
    let text = String::from_utf8_lossy(line.get(4..).unwrap_or_default());
    Ok((code, more, text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()))
}

/// The last line's code counts; an enhanced code counts when its class agrees with it.
fn finish(code: u16, mut lines: Vec<String>) -> Reply {
    let leading = |line: &String| line.split(' ').next().and_then(|word| word.parse::<EnhancedCode>().ok());
    let enhanced = lines
        .first()
        .and_then(leading)
        .filter(|enhanced| u16::from(enhanced.0) == code / 100 && code / 100 != 3);
    if enhanced.is_some() {
        for line in &mut lines {
            if leading(line) == enhanced {
                *line = line.split_once(' ').map_or_else(String::new, |(_, text)| text.to_owned());
            }
        }
    }
    Reply { code, enhanced, lines: lines.into_iter().map(Into::into).collect() }
}

/// What a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Commands may be sent in groups (RFC 2920).
    pub pipelining: bool,
    /// STARTTLS is offered (RFC 3207).
    pub starttls: bool,
    /// 8-bit octets may be sent (RFC 6152).
    pub eight_bit_mime: bool,
    /// Internationalised mail may be sent (RFC 6531).
    pub smtputf8: bool,
    /// SIZE is offered; the limit in octets, 0 for none told (RFC 1870).
    pub size: Option<u64>,
}

impl Capabilities {
    /// Reads the reply to EHLO or LHLO.
    #[must_use]
    pub fn from_ehlo(reply: &Reply) -> Self {
        let mut found = Self::default();
        for line in reply.lines.iter().skip(1) {
            let mut words = line.split_ascii_whitespace();
            match words.next().unwrap_or_default().to_ascii_uppercase().as_str() {
                "PIPELINING" => found.pipelining = true,
                "STARTTLS" => found.starttls = true,
                "8BITMIME" => found.eight_bit_mime = true,
                "SMTPUTF8" => found.smtputf8 = true,
                "SIZE" => found.size = Some(words.next().and_then(|word| word.parse().ok()).unwrap_or(0)),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(input: &str) -> Result<Option<Reply>, ReplyError> {
        ReplyDecoder::default().decode(&mut BytesMut::from(input))
    }

    #[test]
    fn replies_of_one_and_many_lines() {
        let reply = decode("250 2.1.5 Ok\r\n").unwrap().unwrap();
        assert_eq!((reply.code, reply.enhanced), (250, Some(EnhancedCode(2, 1, 5))));
        assert_eq!(reply.lines, ["Ok"]);
        let reply = decode("550-5.1.1 no\r\n550 5.1.1 such user\r\n").unwrap().unwrap();
        assert_eq!(reply.lines, ["no", "such user"]);
        assert_eq!(decode("250-a\r\n250").unwrap(), None);
        assert_eq!(decode("250\r\n").unwrap().unwrap().lines, [""]);
        // The class disagrees with the code: only text.
        assert_eq!(decode("450 5.1.1 x\r\n").unwrap().unwrap().enhanced, None);
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bad in ["hello\r\n", "99\r\n", "650 x\r\n", "250xok\r\n", "\r\n"] {
            assert_eq!(decode(bad), Err(ReplyError::Malformed), "{bad:?}");
        }
        assert_eq!(decode(&"2".repeat(5000)), Err(ReplyError::TooLong));
        assert_eq!(decode(&"250-x\r\n".repeat(200)), Err(ReplyError::TooLong));
    }

    #[test]
    fn capabilities_are_read() {
        let reply = decode("250-mx PIPELINING\r\n250-pipelining\r\n250-SIZE 10\r\n250 8BITMIME\r\n")
            .unwrap()
            .unwrap();
        let expected =
            Capabilities { pipelining: true, eight_bit_mime: true, size: Some(10), ..Default::default() };
        assert_eq!(Capabilities::from_ehlo(&reply), expected);
    }

    proptest! {
        #[test]
        fn no_octets_make_the_decoder_panic(input in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = ReplyDecoder::default().decode(&mut BytesMut::from(input.as_slice()));
        }

        #[test]
        fn replies_survive_the_wire(code in 200u16..600, texts in prop::collection::vec("[a-z ]{0,30}", 1..5)) {
            let reply = Reply::multiline(code, texts.into_iter().map(Into::into).collect());
            let mut wire = BytesMut::new();
            reply.encode(&mut wire);
            prop_assert_eq!(ReplyDecoder::default().decode(&mut wire), Ok(Some(reply)));
        }
    }
}
