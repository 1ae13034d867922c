//! The header section (RFC 5322 §2.1, §2.2), split once and the same way for everyone who reads it:
//! edge, verifier and signer must never disagree about which fields there are, where the body begins,
//! or who the author is.
//!
//! Lines end at CRLF and nowhere else. The section ends at the first empty line. A line that is no
//! field is kept as such and marks the header as malformed: mail programs disagree on what follows it.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memmem};

use crate::Cut;

/// How large a header section may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most octets, with the empty line that ends it. At most 4 GiB.
    pub max_octets: usize,
    /// The most fields.
    pub max_fields: usize,
}

impl Default for Limits {
    /// 512 KiB and 1000 fields: tens of times what ordinary mail has.
    fn default() -> Self {
        Self { max_octets: 512 * 1024, max_fields: 1000 }
    }
}

/// Why a header section is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No empty line within the limit.
    #[error("the header section is longer than {0} octets")]
    TooLong(usize),
    /// More fields than the limit.
    #[error("the header section has more than {0} fields")]
    TooManyFields(usize),
}

/// Finds the end of the header section in a message that arrives in chunks, and holds no more than
/// the section.
#[derive(Debug)]
pub struct Splitter {
    limits: Limits,
    gathered: BytesMut,
}

/// What [`Splitter::push`] came to.
#[derive(Debug)]
pub enum Step {
    /// The header section goes on.
    More,
    /// It is whole; the rest of the chunk belongs to the body.
    Done {
        /// The header section.
        header: Header,
        /// The first octets of the body.
        body: Bytes,
    },
}

impl Splitter {
    /// A splitter at the beginning of a message.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let max_octets = limits.max_octets.min(u32::MAX as usize);
        Self { limits: Limits { max_octets, ..limits }, gathered: BytesMut::new() }
    }

    /// Octets held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.gathered.len()
    }

    /// Takes the next chunk. After [`Step::Done`] the splitter is at the beginning again. A section
    /// that lies in the first chunk is not copied.
    ///
    /// # Errors
    /// When a limit is passed.
    pub fn push(&mut self, chunk: Bytes) -> Result<Step, HeaderError> {
        if self.gathered.is_empty()
            && let Some(end) = section_end(&chunk, 0)
        {
            return self.done(chunk, end);
        }
        let seen = self.gathered.len();
        let room = self.limits.max_octets - seen;
        // What lies past the limit is not even copied.
        self.gathered.extend_from_slice(&chunk[..chunk.len().min(room)]);
        match section_end(&self.gathered, seen) {
            Some(end) => {
                let section = std::mem::take(&mut self.gathered).freeze();
                let body = chunk.slice(end - seen..);
                let step = self.done(section, end)?;
                Ok(match step {
                    Step::Done { header, .. } => Step::Done { header, body },
                    Step::More => Step::More,
                })
            }
            None if chunk.len() > room => Err(HeaderError::TooLong(self.limits.max_octets)),
            None => Ok(Step::More),
        }
    }

    /// The message has ended without an empty line: all of it is header.
    ///
    /// # Errors
    /// When a limit is passed.
    pub fn finish(self) -> Result<Header, HeaderError> {
        Header::split(self.gathered.freeze(), self.limits)
    }

    fn done(&self, data: Bytes, end: usize) -> Result<Step, HeaderError> {
        let header = Header::split(data.slice(..end), self.limits)?;
        Ok(Step::Done { header, body: data.slice(end..) })
    }
}

/// Where the body begins; `seen` octets have been searched before.
fn section_end(data: &[u8], seen: usize) -> Option<usize> {
    if data.starts_with(b"\r\n") {
        return Some(2);
    }
    let from = seen.saturating_sub(3);
    memmem::find(&data[from..], b"\r\n\r\n").map(|at| from + at + 4)
}

/// Octet positions of one field in the section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    colon: u32,
    end: u32,
}

/// A header section, split into its fields. Cloning copies the list of positions, not the octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    section: Bytes,
    spans: Vec<Span>,
    malformed: bool,
}

/// One field of a [`Header`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    section: &'a [u8],
    span: Span,
}

impl Header {
    /// Splits a whole section, with or without the empty line at its end.
    ///
    /// # Errors
    /// When a limit is passed.
    pub fn split(section: Bytes, limits: Limits) -> Result<Self, HeaderError> {
        if section.len() > limits.max_octets.min(u32::MAX as usize) {
            return Err(HeaderError::TooLong(limits.max_octets));
        }
        let mut header = Self { spans: Vec::with_capacity(24), malformed: false, section };
        let mut at = 0;
        while at < header.section.len() && !header.section[at..].starts_with(b"\r\n") {
            let end = field_end(&header.section, at);
            match colon(&header.section[at..end]) {
                Some(_) if header.spans.len() == limits.max_fields => {
                    return Err(HeaderError::TooManyFields(limits.max_fields));
                }
                Some(colon) => {
                    header.spans.push(Span { start: at as u32, colon: (at + colon) as u32, end: end as u32 })
                }
                None => header.malformed = true,
            }
            header.malformed |= has_stray_control(&header.section[at..end]);
            at = end;
        }
        Ok(header)
    }

    /// The octets of the section, with the empty line that ended it.
    #[must_use]
    pub fn section(&self) -> &Bytes {
        &self.section
    }

    /// Where the body begins, in octets from the start of the message.
    #[must_use]
    pub fn body_offset(&self) -> usize {
        self.section.len()
    }

    /// Whether a line is no field, or a line holds a CR, LF or NUL of its own.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.malformed
    }

    /// The fields, from the top.
    pub fn fields(&self) -> impl DoubleEndedIterator<Item = Field<'_>> + ExactSizeIterator {
        self.spans.iter().map(|&span| Field { section: &self.section, span })
    }

    /// The fields of a name, from the top.
    pub fn named(&self, name: &str) -> impl DoubleEndedIterator<Item = Field<'_>> {
        self.fields().filter(move |field| field.is(name))
    }

    /// The only field of a name; `None` when there is none or there are several.
    #[must_use]
    pub fn only(&self, name: &str) -> Option<Field<'_>> {
        let mut fields = self.named(name);
        fields.next().filter(|_| fields.next().is_none())
    }
}

impl<'a> Field<'a> {
    /// The name as it stands, with white space before the colon if there is any (RFC 5322 §4.5).
    #[must_use]
    pub fn raw_name(&self) -> &'a [u8] {
        &self.section[self.span.start as usize..self.span.colon as usize]
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.raw_name().trim_ascii_end()
    }

    /// Whether the field has this name, in any case.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name().eq_ignore_ascii_case(name.as_bytes())
    }

    /// What follows the colon, folded as it came, with the CRLF at its end.
    #[must_use]
    pub fn raw_value(&self) -> &'a [u8] {
        &self.section[self.span.colon as usize + 1..self.span.end as usize]
    }

    /// The value without white space at its ends and without its line ends (RFC 5322 §2.2.3).
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let folded = self.raw_value().trim_ascii();
        folded.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect()
    }

    /// Its octets in the message: name, colon, value and line end.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.span.start as usize..self.span.end as usize
    }

    /// The cut that takes the whole field out.
    #[must_use]
    pub fn cut(&self) -> Cut {
        Cut { offset: self.span.start.into(), length: (self.span.end - self.span.start).into() }
    }
}

/// The end of the field that starts at `start`: past the CRLF that no white space follows.
fn field_end(section: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(found) = memmem::find(&section[at..], b"\r\n") {
        at += found + 2;
        if !matches!(section.get(at), Some(b' ' | b'\t')) {
            return at;
        }
    }
    section.len()
}

/// The position of the colon after a well-formed name (RFC 5322 §2.2: printable ASCII, no space
/// inside; §4.5: white space may stand before the colon).
fn colon(field: &[u8]) -> Option<usize> {
    let colon = memchr(b':', field)?;
    let name = field[..colon].trim_ascii_end();
    let blank = &field[name.len()..colon];
    let well_formed = !name.is_empty()
        && name.iter().all(u8::is_ascii_graphic)
        && blank.iter().all(|byte| matches!(byte, b' ' | b'\t'));
    well_formed.then_some(colon)
}

/// Whether a CR or LF stands outside a CRLF, or there is a NUL.
fn has_stray_control(field: &[u8]) -> bool {
    let mut rest = field;
    while let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) {
        if !rest[at..].starts_with(b"\r\n") {
            return true;
        }
        rest = &rest[at + 2..];
    }
    false
}

#[cfg(test)]
mod tests;
