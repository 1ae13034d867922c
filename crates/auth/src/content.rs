//! One pass over a message: its header section is kept, its body is only hashed. So the memory for a
//! message does not grow with its body.

use bytes::Bytes;
use message::header::{Header, HeaderError, Limits, Splitter, Step};

use crate::body::{BodyHash, BodyHasher, Form};
use crate::tags::Tags;

/// What the scan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The body is hashed as the signatures in the header ask; not at all when there are none.
    Verify,
    /// The body is hashed for our own signature.
    Sign,
}

/// A message on its way through.
pub struct Scan {
    purpose: Purpose,
    state: State,
}

enum State {
    Header(Splitter),
    Body(Header, Vec<BodyHasher>),
}

/// What is kept of a message.
#[derive(Debug, Clone)]
pub struct Scanned {
    header: Header,
    pub(crate) simple: Option<BodyHash>,
    pub(crate) relaxed: Option<BodyHash>,
}

impl Scan {
    /// At the beginning of a message.
    #[must_use]
    pub fn new(purpose: Purpose, limits: Limits) -> Self {
        Self { purpose, state: State::Header(Splitter::new(limits)) }
    }

    /// Takes the next octets.
    ///
    /// # Errors
    /// When the header section passes a limit; the scan is then of no more use.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), HeaderError> {
        match &mut self.state {
            State::Body(_, hashers) => hashers.iter_mut().for_each(|hasher| hasher.update(&chunk)),
            State::Header(splitter) => {
                if let Step::Done { header, body } = splitter.push(chunk)? {
                    let mut hashers = hashers(self.purpose, &header);
                    hashers.iter_mut().for_each(|hasher| hasher.update(&body));
                    self.state = State::Body(header, hashers);
                }
            }
        }
        Ok(())
    }

    /// Octets of an unfinished header section that are held in memory of their own.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.state {
            State::Header(splitter) => splitter.held(),
            State::Body(..) => 0,
        }
    }

    /// The message is whole.
    ///
    /// # Errors
    /// When all of it was header and passes a limit.
    pub fn finish(self) -> Result<Scanned, HeaderError> {
        let (header, hashers) = match self.state {
            State::Body(header, hashers) => (header, hashers),
            State::Header(splitter) => {
                let header = splitter.finish()?;
                let hashers = hashers(self.purpose, &header);
                (header, hashers)
            }
        };
        let mut scanned = Scanned { header, simple: None, relaxed: None };
        for (form, hash) in hashers.into_iter().map(BodyHasher::finish) {
            match form {
                Form::Simple => scanned.simple = Some(hash),
                Form::Relaxed => scanned.relaxed = Some(hash),
            }
        }
        Ok(scanned)
    }
}

impl Scanned {
    /// The header section.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn hash(&self, form: Form) -> Option<&BodyHash> {
        match form {
            Form::Simple => self.simple.as_ref(),
            Form::Relaxed => self.relaxed.as_ref(),
        }
    }
}

fn hashers(purpose: Purpose, header: &Header) -> Vec<BodyHasher> {
    let wanted = |form| match purpose {
        Purpose::Sign => form == Form::Relaxed,
        Purpose::Verify => header
            .fields()
            .filter(|field| field.is("DKIM-Signature") || field.is("ARC-Message-Signature"))
            .any(|field| form_of(&field.value()) == form),
    };
    [Form::Simple, Form::Relaxed].into_iter().filter(|form| wanted(*form)).map(BodyHasher::new).collect()
}

/// The form of body that a signature names (`c=`, RFC 6376 §3.5: simple unless said otherwise).
fn form_of(signature: &[u8]) -> Form {
    let c = Tags::parse_lenient(signature).and_then(|tags| tags.compact("c"));
    let body = c.as_deref().and_then(|c| c.split_once('/')).map(|(_, body)| body);
    if body.is_some_and(|body| body.eq_ignore_ascii_case("relaxed")) { Form::Relaxed } else { Form::Simple }
}
