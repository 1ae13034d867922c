//! The content of a message on the wire, both ways (RFC 5321 §4.5.2): only CRLF "." CRLF ends it,
//! a dot at the start of a line is doubled on the way and halved on arrival.
//!
//! A bare CR, a bare LF or a NUL is never passed on: components that disagree on line ends are how
//! messages are smuggled.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2_iter};

/// What makes a content unacceptable. The first one found is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A CR without LF or an LF without CR.
    #[error("the message holds a bare CR or a bare LF")]
    BareLineEnd,
    /// A NUL octet.
    #[error("the message holds a NUL octet")]
    Nul,
    /// A line longer than the limit.
    #[error("the message holds a line longer than the limit")]
    LineTooLong,
    /// More octets than the limit.
    #[error("the message is larger than the limit")]
    TooLarge,
}

/// What came out of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataEvent {
    /// Octets of the message, dots unstuffed. A slice of what was read.
    Chunk(Bytes),
    /// The message is over. What is left in the buffer are commands.
    End,
}

/// Takes the content of one message off a buffer.
#[derive(Debug)]
pub struct DataDecoder {
    max_size: u64,
    max_line: usize,
    size: u64,
    column: usize,
    at_line_start: bool,
    fault: Option<DataError>,
}

impl DataDecoder {
    /// A decoder for one message of at most `max_size` octets in lines of at most `max_line` octets.
    #[must_use]
    pub fn new(max_size: u64, max_line: usize) -> Self {
        Self { max_size, max_line, size: 0, column: 0, at_line_start: true, fault: None }
    }

    /// What is wrong with the message so far. Once there is something, no chunk comes out any more;
    /// the decoder goes on to the true end, so that one reply can be given there.
    #[must_use]
    pub fn fault(&self) -> Option<DataError> {
        self.fault
    }

    /// Octets of the message so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next event; `None` when more octets are needed. Leaves at most two octets in the buffer then.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Option<DataEvent> {
        loop {
            if self.at_line_start && buffer.first() == Some(&b'.') {
                match buffer[1..] {
                    [] | [b'\r'] => return None,
                    [b'\r', b'\n', ..] => {
                        buffer.advance(3);
                        return Some(DataEvent::End);
                    }
                    _ => {
                        buffer.advance(1);
                        self.at_line_start = false;
                    }
                }
            }
            let span = self.span(buffer);
            if span == 0 {
                return None;
            }
            let chunk = buffer.split_to(span).freeze();
            self.size += chunk.len() as u64;
            if self.size > self.max_size {
                self.fault.get_or_insert(DataError::TooLarge);
            }
            if memchr(0, &chunk).is_some() {
                self.fault.get_or_insert(DataError::Nul);
            }
            if self.fault.is_none() {
                return Some(DataEvent::Chunk(chunk));
            }
        }
    }

    /// How many octets can be taken off as they are: up to a line that begins with a dot, or up to
    /// a CR whose successor is not here yet. Notes what is wrong with them.
    fn span(&mut self, buffer: &[u8]) -> usize {
        let mut line_start = 0;
        let mut after_cr = None;
        for at in memchr2_iter(b'\r', b'\n', buffer) {
            if buffer[at] == b'\r' {
                match buffer.get(at + 1) {
                    Some(b'\n') => after_cr = Some(at + 1),
                    Some(_) => self.note(DataError::BareLineEnd),
                    None => return self.partial(at, line_start, at > 0),
                }
            } else if after_cr == Some(at) {
                self.measure(at + 1 - line_start);
                self.column = 0;
                self.at_line_start = true;
                line_start = at + 1;
                if buffer.get(line_start) == Some(&b'.') {
                    return line_start;
                }
            } else {
                self.note(DataError::BareLineEnd);
            }
        }
        self.partial(buffer.len(), line_start, buffer.len() > line_start)
    }

    fn partial(&mut self, end: usize, line_start: usize, mid_line: bool) -> usize {
        self.measure(end - line_start);
        self.column += end - line_start;
        if mid_line && end > line_start {
            self.at_line_start = false;
        }
        end
    }

    fn measure(&mut self, octets: usize) {
        if self.column + octets > self.max_line {
            self.note(DataError::LineTooLong);
        }
    }

    fn note(&mut self, error: DataError) {
        self.fault.get_or_insert(error);
    }
}

/// Puts the content of one message on the wire. The slices it gives out are those it was given.
#[derive(Debug)]
pub struct DataEncoder {
    at_line_start: bool,
    after_cr: bool,
}

impl Default for DataEncoder {
    fn default() -> Self {
        Self { at_line_start: true, after_cr: false }
    }
}

const DOT: Bytes = Bytes::from_static(b".");

impl DataEncoder {
    /// Appends the wire form of a piece of content to `out`.
    ///
    /// # Errors
    /// When the content holds a bare CR or a bare LF: nothing of it may be sent.
    pub fn encode(&mut self, piece: &Bytes, out: &mut Vec<Bytes>) -> Result<(), DataError> {
        let Some(&first) = piece.first() else { return Ok(()) };
        if self.after_cr && first != b'\n' {
            return Err(DataError::BareLineEnd);
        }
        if self.at_line_start && first == b'.' {
            out.push(DOT);
        }
        let mut from = 0;
        let mut expect_lf_at = self.after_cr.then_some(0);
        self.after_cr = false;
        for at in memchr2_iter(b'\r', b'\n', piece) {
            if piece[at] == b'\r' {
                match piece.get(at + 1) {
                    Some(b'\n') => expect_lf_at = Some(at + 1),
                    Some(_) => return Err(DataError::BareLineEnd),
                    None => self.after_cr = true,
                }
            } else if expect_lf_at != Some(at) {
                return Err(DataError::BareLineEnd);
            } else if piece.get(at + 1) == Some(&b'.') {
                out.push(piece.slice(from..=at));
                out.push(DOT);
                from = at + 1;
            }
        }
        out.push(piece.slice(from..));
        self.at_line_start = piece.last() == Some(&b'\n');
        Ok(())
    }

    /// Appends the end of the message to `out`; a last line without CRLF gets one.
    ///
    /// # Errors
    /// When the content ended in a bare CR.
    pub fn finish(self, out: &mut Vec<Bytes>) -> Result<(), DataError> {
        if self.after_cr {
            return Err(DataError::BareLineEnd);
        }
        let end: &'static [u8] = if self.at_line_start { b".\r\n" } else { b"\r\n.\r\n" };
        out.push(Bytes::from_static(end));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
