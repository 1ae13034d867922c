//! Who a message says it is from: the mailboxes of `From` and its like (RFC 5322 §3.4, §3.6.2).
//!
//! What is not plainly one reading is refused: the address that is checked must be the address that
//! is shown, whatever program shows it. So there are no routes, no comments inside an address, and no
//! group in place of an author.

use smtp::Mailbox;

use crate::header::Header;

/// Deepest nesting of comments.
const MAX_COMMENT_DEPTH: usize = 16;

/// Why no author can be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorError {
    /// There is no such field.
    #[error("there is no {0} field")]
    Missing(&'static str),
    /// There are several of them.
    #[error("there is more than one {0} field")]
    Repeated(&'static str),
    /// A single mailbox is wanted, and there are several.
    #[error("the {0} field names more than one mailbox")]
    Several(&'static str),
    /// The field cannot be read in one way only.
    #[error("the {field} field is malformed: {reason}")]
    Malformed {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A line of the header is no field, so readers disagree on what is header and what is body.
    #[error("a line of the header is no header field")]
    Header,
}

/// The one author: the single mailbox of the single `From` field.
///
/// # Errors
/// Whenever two programs could read another author.
pub fn author(header: &Header) -> Result<Mailbox, AuthorError> {
    if header.is_malformed() {
        return Err(AuthorError::Header);
    }
    let mut mailboxes = mailboxes_of(header, "From")?;
    match (mailboxes.pop(), mailboxes.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(AuthorError::Several("From")),
        (None, _) => Err(AuthorError::Missing("From")),
    }
}

/// The mailboxes of a field that stands once: `From`, `Sender`.
///
/// # Errors
/// When the field is missing, repeated, or cannot be read in one way only.
pub fn mailboxes_of(header: &Header, field: &'static str) -> Result<Vec<Mailbox>, AuthorError> {
    let mut named = header.named(field);
    let only = named.next().ok_or(AuthorError::Missing(field))?;
    if named.next().is_some() {
        return Err(AuthorError::Repeated(field));
    }
    let malformed = |reason| AuthorError::Malformed { field, reason };
    if only.raw_name() != only.name() {
        return Err(malformed("white space stands before the colon"));
    }
    mailbox_list(&only.value()).map_err(malformed)
}

/// Reads a `mailbox-list` (RFC 5322 §3.4) strictly; line folding has been undone.
///
/// # Errors
/// Says what is wrong.
pub fn mailbox_list(value: &[u8]) -> Result<Vec<Mailbox>, &'static str> {
    let mut reader = Reader { rest: value };
    let mut mailboxes = Vec::new();
    loop {
        mailboxes.push(reader.mailbox()?);
        match reader.rest.split_first() {
            None => return Ok(mailboxes),
            Some((b',', rest)) => reader.rest = rest,
            Some(_) => return Err("a comma is wanted between mailboxes"),
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    /// `[display-name] "<" addr-spec ">"`, or `addr-spec`; with what may stand around it.
    fn mailbox(&mut self) -> Result<Mailbox, &'static str> {
        let start = self.rest;
        let mut words = 0;
        loop {
            self.skip_cfws()?;
            match self.rest.first() {
                Some(b'<') => {
                    self.rest = &self.rest[1..];
                    let mailbox = self.addr_spec()?;
                    self.rest = self.rest.strip_prefix(b">").ok_or("an address has no closing bracket")?;
                    self.skip_cfws()?;
                    return Ok(mailbox);
                }
                Some(b'@') if words == 1 => break,
                Some(b'@') => return Err("an @ stands outside an address"),
                Some(b'"') => self.quoted_string()?,
                // No phrase may hold brackets, many do, and there is no second reading of them.
                Some(byte) if is_phrase(*byte) || b"[]".contains(byte) => {
                    self.take_while(|byte| is_phrase(byte) || b"[]".contains(&byte));
                }
                Some(b':' | b';') => return Err("a group stands in place of a mailbox"),
                Some(b',') | None => return Err("a mailbox has no address"),
                Some(_) => return Err("a character may not stand where it does"),
            }
            words += 1;
        }
        self.rest = start;
        self.skip_cfws()?;
        let mailbox = self.addr_spec()?;
        self.skip_cfws()?;
        Ok(mailbox)
    }

    /// `local-part "@" domain` without comments or white space inside.
    fn addr_spec(&mut self) -> Result<Mailbox, &'static str> {
        let start = self.rest;
        if self.rest.first() == Some(&b'"') {
            self.quoted_string()?;
        } else {
            self.take_while(is_phrase);
        }
        let local = &start[..start.len() - self.rest.len()];
        if local.starts_with(b"=?") && local.ends_with(b"?=") {
            return Err("an address holds an encoded word");
        }
        self.rest = self.rest.strip_prefix(b"@").ok_or("an address has no @")?;
        if self.rest.first() == Some(&b'[') {
            self.take_while(|byte| byte.is_ascii_graphic() && byte != b']');
            self.rest = self.rest.strip_prefix(b"]").ok_or("an address literal has no closing bracket")?;
        } else {
            self.take_while(is_phrase);
        }
        let address = &start[..start.len() - self.rest.len()];
        let address = std::str::from_utf8(address).map_err(|_| "an address is not UTF-8")?;
        address.parse().map_err(|error: smtp::address::AddressError| error.0)
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) {
        let end = self.rest.iter().position(|byte| !wanted(*byte)).unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }

    fn quoted_string(&mut self) -> Result<(), &'static str> {
        let mut escaped = false;
        for (at, byte) in self.rest.iter().enumerate().skip(1) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(());
                }
                _ => {}
            }
        }
        Err("a quoted string has no end")
    }

    /// Comments and white space.
    fn skip_cfws(&mut self) -> Result<(), &'static str> {
        let mut depth = 0usize;
        let mut at = 0;
        while let Some(byte) = self.rest.get(at) {
            match byte {
                b'(' if depth == MAX_COMMENT_DEPTH => return Err("comments are nested too deeply"),
                b'(' => depth += 1,
                b')' if depth == 0 => return Err("a comment ends that has not begun"),
                b')' => depth -= 1,
                b'\\' if depth > 0 => at += 1,
                b' ' | b'\t' => {}
                _ if depth > 0 => {}
                _ => break,
            }
            at += 1;
        }
        self.rest = self.rest.get(at..).unwrap_or_default();
        if depth == 0 { Ok(()) } else { Err("a comment has no end") }
    }
}

/// `atext` of RFC 5322 §3.2.3 and RFC 6532 §3.2, and the dot, which phrases in use have too (§4.1).
fn is_phrase(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&byte) || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::header::Limits;

    fn author_of(header: &str) -> Result<String, AuthorError> {
        let section = Bytes::from(format!("{header}\r\n\r\n"));
        let header = Header::split(section, Limits::default()).unwrap();
        author(&header).map(|mailbox| mailbox.to_string())
    }

    #[test]
    fn usual_forms_are_read() {
        for (field, address) in [
            ("From: a@b.example", "a@b.example"),
            ("From: <a@B.example>", "a@b.example"),
            ("From: A Name <a@b.example>", "a@b.example"),
            ("From: A. N. Other <a@b.example>", "a@b.example"),
            ("From: \"Name, A\" <a@b.example>", "a@b.example"),
            ("From: \"c@d.example\" <a@b.example>", "a@b.example"),
            ("From: \"<c@d.example>\\\"\" <a@b.example>", "a@b.example"),
            ("From: =?utf-8?q?c=40d?= <a@b.example>", "a@b.example"),
            ("From: a@b.example (Name (nested))", "a@b.example"),
            ("From: Name\r\n <a@b.example>", "a@b.example"),
            ("From: [List] Name[1]<a@b.example>", "a@b.example"),
            ("From: J\u{fc}rgen <j@b\u{fc}cher.example>", "j@xn--bcher-kva.example"),
            ("From: \"a b\"@b.example", "\"a b\"@b.example"),
            ("fRoM: a@[192.0.2.1]", "a@[192.0.2.1]"),
        ] {
            assert_eq!(author_of(field).as_deref(), Ok(address), "{field}");
        }
    }

    #[test]
    fn whatever_has_two_readings_is_refused() {
        for header in [
            "To: a@b.example",
            "From: a@b.example\r\nFrom: c@d.example",
            "From: a@b.example, c@d.example",
            "From : a@b.example",
            "From: a@b.example\r\nnot a field",
            "From:",
            "From: a",
            "From: <>",
            "From: a@b.example c@d.example",
            "From: c@d.example <a@b.example>",
            "From: <a@b.example> <c@d.example>",
            "From: <a@b.example> c@d.example",
            "From: <@c.example:a@b.example>",
            "From: group: a@b.example;",
            "From: Name, Inc <a@b.example>",
            "From: a(x)@b.example",
            "From: [a]@b.example",
            "From: []@b.example",
            "From: a@(x)b.example",
            "From: a @b.example",
            "From: <a@b.example",
            "From: a@b.example>",
            "From: a@b.example (open",
            "From: a@b.example )",
            "From: \"a@b.example",
            "From: =?utf-8?q?a=40b.example?=",
            "From: =?utf-8?q?a?=@b.example",
            "From: a@b.example,",
            "From: a@b.example.",
            "From: a@b..example",
            "From: a@b.example\0",
        ] {
            assert!(author_of(header).is_err(), "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(value in prop::collection::vec(prop_oneof![
            prop::sample::select(&b"<>()@,:;\"\\[]. a=?"[..]), any::<u8>()], 0..60)) {
            let _ = mailbox_list(&value);
        }

        /// One address in, the same address out, whatever display name stands before it.
        #[test]
        fn the_address_does_not_depend_on_the_name(name in "[ -~]{0,20}") {
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            let value = format!("\"{quoted}\" <a@b.example>");
            let read = mailbox_list(value.as_bytes()).unwrap();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(read[0].to_string(), "a@b.example");
        }
    }
}
