//! Command lines out of a stream of octets (RFC 5321 §2.3.8): CRLF ends a line, and nothing else does.

use bytes::{Bytes, BytesMut};
use memchr::memchr;

/// What is wrong with a line. The decoder has passed it and is ready for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Longer than the limit (RFC 5321 §4.5.3.1.4): answer 500 5.5.2.
    #[error("the line is too long")]
    TooLong,
    /// A CR without LF, an LF without CR, or a NUL.
    #[error("the line holds a bare CR, a bare LF or a NUL")]
    BareControl,
}

/// Splits command lines off a buffer without copying them.
#[derive(Debug, Default)]
pub struct LineDecoder {
    /// Octets at the start of the buffer known to hold no LF.
    scanned: usize,
    /// The last octet that was passed over of a line that is too long, whose rest is passed over, too.
    skipped: Option<u8>,
}

impl LineDecoder {
    /// The next line, without its CRLF; `None` when the buffer holds no whole line yet.
    ///
    /// `limit` is in octets with the CRLF. What is beyond it is dropped from the buffer at once, so
    /// the buffer never grows past `limit` and one read.
    ///
    /// # Errors
    /// When the line breaks a rule; the next call goes on behind it.
    pub fn decode(&mut self, buffer: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, LineError> {
        let Some(at) = memchr(b'\n', &buffer[self.scanned..]) else {
            self.scanned = buffer.len();
            if self.scanned >= limit {
                self.skipped = buffer.last().copied();
                buffer.clear();
                self.scanned = 0;
            }
            return Ok(None);
        };
        let line = buffer.split_to(self.scanned + at + 1).freeze();
        self.scanned = 0;
        let skipped = self.skipped.take();
        if skipped.is_some() || line.len() > limit {
            let before = line.len().checked_sub(2).map_or(skipped, |at| line.get(at).copied());
            return Err(if before == Some(b'\r') { LineError::TooLong } else { LineError::BareControl });
        }
        let Some(line) = line.strip_suffix(b"\r\n").map(|text| line.slice(..text.len())) else {
            return Err(LineError::BareControl);
        };
        if line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(LineError::BareControl);
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(input: &[u8], chunk: usize, limit: usize) -> Vec<Result<Bytes, LineError>> {
        let mut decoder = LineDecoder::default();
        let mut buffer = BytesMut::new();
        let mut lines = Vec::new();
        for piece in input.chunks(chunk.max(1)) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer, limit) {
                    Ok(Some(line)) => lines.push(Ok(line)),
                    Ok(None) => break,
                    Err(error) => lines.push(Err(error)),
                }
            }
        }
        lines
    }

    #[test]
    fn only_crlf_ends_a_line() {
        let lines = all(b"NOOP\r\nDATA\nQUIT\r\nA\rB\r\nC\0\r\n", 3, 512);
        let bare = Err(LineError::BareControl);
        assert_eq!(lines, [Ok("NOOP".into()), bare.clone(), Ok("QUIT".into()), bare.clone(), bare]);
    }

    #[test]
    fn a_line_too_long_is_told_once_and_passed_over() {
        let mut input = vec![b'x'; 2000];
        input.extend_from_slice(b"\r\nNOOP\r\n");
        for chunk in [1, 7, 100, 5000] {
            assert_eq!(all(&input, chunk, 512), [Err(LineError::TooLong), Ok("NOOP".into())]);
        }
    }

    #[test]
    fn a_bare_line_feed_ends_no_line_that_is_too_long() {
        let mut input = vec![b'x'; 2000];
        input.extend_from_slice(b"\nMAIL FROM:<>\r\n");
        for chunk in [1, 7, 100, 5000] {
            assert_eq!(all(&input, chunk, 512)[0], Err(LineError::BareControl));
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_octets_arrive(
            input in prop::collection::vec(prop::sample::select(b"ab\r\n\0 ".to_vec()), 0..200),
            chunk in 1usize..50,
        ) {
            prop_assert_eq!(all(&input, chunk, 20), all(&input, 1, 20));
        }
    }
}
