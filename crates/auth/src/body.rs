//! The hash of a body in canonical form (RFC 6376 §3.4.3, §3.4.4), made as the body passes.
//!
//! Both forms drop the empty lines at the end. In the relaxed form a line of nothing but white space
//! is an empty line, since white space at line ends goes first: that is where mail-auth 0.13.3 errs.

use memchr::{memchr, memchr3};
use sha2::{Digest, Sha256};

/// How a body is brought into a form that survives transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Simple,
    /// White space reduced.
    Relaxed,
}

/// The hash of a canonical body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BodyHash {
    pub(crate) sha256: [u8; 32],
    /// Octets of the canonical body, as the `l=` of a signature counts them.
    pub(crate) length: u64,
}

/// Takes a body in chunks.
pub(crate) struct BodyHasher {
    form: Form,
    hash: Sha256,
    length: u64,
    /// CRLFs not yet written: they may turn out to be the end.
    held_lines: u64,
    /// White space seen since the last word of the line (relaxed form).
    blank: bool,
    /// The chunk before ended in a CR.
    held_cr: bool,
}

const LINES: &[u8; 64] = b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\
\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n";

impl BodyHasher {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, hash: Sha256::new(), length: 0, held_lines: 0, blank: false, held_cr: false }
    }

    pub(crate) fn update(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        if self.held_cr && !rest.is_empty() {
            self.held_cr = false;
            match rest.strip_prefix(b"\n") {
                Some(after) => {
                    self.line_end();
                    rest = after;
                }
                None => self.words(b"\r"),
            }
        }
        if rest.last() == Some(&b'\r') {
            self.held_cr = true;
            rest = &rest[..rest.len() - 1];
        }
        match self.form {
            Form::Simple => self.simple(rest),
            Form::Relaxed => self.relaxed(rest),
        }
    }

    pub(crate) fn finish(mut self) -> (Form, BodyHash) {
        if self.held_cr {
            self.words(b"\r");
        }
        // A body that is empty in simple form is one CRLF (§3.4.3), in relaxed form nothing (§3.4.4).
        if self.length > 0 || self.form == Form::Simple {
            self.write(b"\r\n");
        }
        (self.form, BodyHash { sha256: self.hash.finalize().into(), length: self.length })
    }

    fn simple(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            while let Some(after) = rest.strip_prefix(b"\r\n") {
                self.line_end();
                rest = after;
            }
            let run = simple_run(rest);
            if run > 0 {
                self.words(&rest[..run]);
            }
            rest = &rest[run..];
        }
    }

    fn relaxed(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            let run = relaxed_run(rest);
            if run > 0 {
                self.words(&rest[..run]);
            }
            rest = &rest[run..];
            loop {
                rest = match rest {
                    [b' ' | b'\t', after @ ..] => {
                        self.blank = true;
                        after
                    }
                    [b'\r', b'\n', after @ ..] => {
                        self.line_end();
                        after
                    }
                    _ => break,
                };
            }
        }
    }

    fn line_end(&mut self) {
        self.held_lines += 1;
        self.blank = false;
    }

    /// Writes what was held, and then `text`, which is not empty.
    fn words(&mut self, text: &[u8]) {
        while self.held_lines > 0 {
            let lines = self.held_lines.min(LINES.len() as u64 / 2);
            self.write(&LINES[..lines as usize * 2]);
            self.held_lines -= lines;
        }
        if std::mem::take(&mut self.blank) {
            self.write(b" ");
        }
        self.write(text);
    }

    fn write(&mut self, octets: &[u8]) {
        self.hash.update(octets);
        self.length += octets.len() as u64;
    }
}

/// How much of `rest` stands as it is: up to a CRLF that another CRLF or the end of `rest` follows.
fn simple_run(rest: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr(b'\r', &rest[at..]) {
        at += found;
        match &rest[at..] {
            [b'\r', b'\n'] | [b'\r', b'\n', b'\r', ..] => return at,
            _ => at += 1,
        }
    }
    rest.len()
}

/// How much of `rest` stands as it is: up to white space that is more than one space between words,
/// or a CRLF that something other than a word follows. A CRLF or a space at the start ends it at once.
fn relaxed_run(rest: &[u8]) -> usize {
    let mut at = 0;
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| !matches!(byte, b' ' | b'\t' | b'\r'));
    while let Some(found) = memchr3(b' ', b'\t', b'\r', &rest[at..]) {
        at += found;
        match &rest[at..] {
            [b' ', next @ ..] if at > 0 && is_word(next.first()) => at += 1,
            [b'\r', b'\n', next @ ..] if at > 0 && is_word(next.first()) => at += 2,
            [b' ' | b'\t', ..] | [b'\r', b'\n', ..] => return at,
            // A CR on its own is a character like another; edge lets none through.
            _ => at += 1,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(form: Form, chunks: &[&[u8]]) -> BodyHash {
        let mut hasher = BodyHasher::new(form);
        chunks.iter().for_each(|chunk| hasher.update(chunk));
        hasher.finish().1
    }

    /// The rules of §3.4.3 and §3.4.4 word by word, on the whole body.
    fn canonical(form: Form, body: &[u8]) -> Vec<u8> {
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let mut line = Vec::new();
        let mut at = 0;
        while at < body.len() {
            if body[at..].starts_with(b"\r\n") {
                lines.push(std::mem::take(&mut line));
                at += 2;
            } else {
                line.push(body[at]);
                at += 1;
            }
        }
        if !line.is_empty() {
            lines.push(line);
        }
        if form == Form::Relaxed {
            for line in &mut lines {
                let mut reduced: Vec<u8> = Vec::new();
                for byte in line.iter() {
                    match byte {
                        b' ' | b'\t' if reduced.last() == Some(&b' ') => {}
                        b' ' | b'\t' => reduced.push(b' '),
                        byte => reduced.push(*byte),
                    }
                }
                if reduced.last() == Some(&b' ') {
                    reduced.pop();
                }
                *line = reduced;
            }
        }
        while lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        let mut out = lines.iter().flat_map(|line| [&line[..], b"\r\n"].concat()).collect::<Vec<u8>>();
        if out.is_empty() && form == Form::Simple {
            out = b"\r\n".to_vec();
        }
        out
    }

    fn expect(form: Form, body: &[u8], wanted: &[u8]) {
        assert_eq!(canonical(form, body), wanted, "{form:?} {body:?}");
        let found = hash(form, &[body]);
        assert_eq!(found.sha256, <[u8; 32]>::from(Sha256::digest(wanted)), "{form:?} {body:?}");
        assert_eq!(found.length, wanted.len() as u64);
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 6376 §3.4.5
        let body = b" C \r\nD \t E\r\n\r\n\r\n";
        expect(Form::Relaxed, body, b" C\r\nD E\r\n");
        expect(Form::Simple, body, b" C \r\nD \t E\r\n");
    }

    #[test]
    fn lines_of_white_space_at_the_end_are_empty_lines() {
        expect(Form::Relaxed, b"text\r\n \r\n\t\r\n", b"text\r\n");
        expect(Form::Relaxed, b"text\r\n\r\n  \t \r\n\r\n", b"text\r\n");
        expect(Form::Relaxed, b"text\r\n \r\nmore\r\n ", b"text\r\n\r\nmore\r\n");
        expect(Form::Relaxed, b" \r\n\t\r\n", b"");
        expect(Form::Simple, b"text\r\n \r\n\r\n", b"text\r\n \r\n");
    }

    #[test]
    fn bodies_without_content() {
        for body in [&b""[..], b"\r\n", b"\r\n\r\n"] {
            expect(Form::Relaxed, body, b"");
            expect(Form::Simple, body, b"\r\n");
        }
        expect(Form::Relaxed, b"no line end", b"no line end\r\n");
    }

    proptest! {
        /// Like the rules, however the body is cut into chunks.
        #[test]
        fn chunks_do_not_matter(
            body in prop::collection::vec(prop::sample::select(&b"ab \t\r\n."[..]), 0..120),
            lines in prop::collection::vec(prop::sample::select(vec!["\r\n", " ", "x", "\t", "x y"]), 0..40),
            cuts in prop::collection::vec(0usize..160, 0..5),
        ) {
            for body in [body.clone(), lines.concat().into_bytes()] {
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
                cuts.extend([0, body.len()]);
                cuts.sort_unstable();
                let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
                for form in [Form::Simple, Form::Relaxed] {
                    let wanted = canonical(form, &body);
                    let found = hash(form, &chunks);
                    prop_assert_eq!(found.length, wanted.len() as u64);
                    prop_assert_eq!(found.sha256, <[u8; 32]>::from(Sha256::digest(&wanted)));
                }
            }
        }
    }
}
