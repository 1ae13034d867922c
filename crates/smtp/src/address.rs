//! Mailboxes and paths (RFC 5321 §4.1.2, RFC 6531 §3.3).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest local part, in octets (RFC 5321 §4.5.3.1.1).
pub const MAX_LOCAL_PART: usize = 64;
/// Longest domain, in octets (RFC 5321 §4.5.3.1.2).
pub const MAX_DOMAIN: usize = 255;
/// Longest path, with its angle brackets, in octets (RFC 5321 §4.5.3.1.3).
pub const MAX_PATH: usize = 256;

/// Why a text is not a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(pub &'static str);

/// The part after the `@`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Domain {
    /// A name in lower case. U-labels (RFC 6531) have been turned into A-labels.
    Name(String),
    /// `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Literal(IpAddr),
}

/// A mailbox: `local-part "@" domain`. The local part is held unquoted, its case kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    local_part: String,
    domain: Domain,
}

/// The argument of MAIL FROM: a mailbox, or `<>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ReversePath {
    /// `<>`: a notification; nothing is ever sent back to it (RFC 5321 §4.5.5).
    #[default]
    Null,
    /// Where notifications go.
    Mailbox(Mailbox),
}

/// The argument of RCPT TO: a mailbox, or `postmaster` without a domain (RFC 5321 §4.5.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ForwardPath {
    /// `<postmaster>`: the postmaster of this system.
    Postmaster,
    /// Anybody else.
    Mailbox(Mailbox),
}

impl Mailbox {
    /// Builds a mailbox from parts already validated.
    ///
    /// # Errors
    /// When a part is empty, over its length limit, or holds a control character.
    pub fn new(local_part: impl Into<String>, domain: Domain) -> Result<Self, AddressError> {
        let local_part = local_part.into();
        if local_part.is_empty() {
            return Err(AddressError("the local part is empty"));
        }
        if local_part.len() > MAX_LOCAL_PART {
            return Err(AddressError("the local part is longer than 64 octets"));
        }
        if local_part.chars().any(char::is_control) {
            return Err(AddressError("the local part holds a control character"));
        }
        Ok(Self { local_part, domain })
    }

    /// The local part, unquoted, as the client wrote its case.
    #[must_use]
    pub fn local_part(&self) -> &str {
        &self.local_part
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The domain's name; `None` for an address literal.
    #[must_use]
    pub fn domain_name(&self) -> Option<&str> {
        match &self.domain {
            Domain::Name(name) => Some(name),
            Domain::Literal(_) => None,
        }
    }

    /// Whether the local part needs SMTPUTF8 to travel (the domain never does: it is an A-label).
    #[must_use]
    pub fn needs_smtputf8(&self) -> bool {
        !self.local_part.is_ascii()
    }
}

fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii()
}

fn is_dot_string(text: &str) -> bool {
    !text.is_empty() && text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_dot_string(&self.local_part) {
            write!(f, "{}@{}", self.local_part, self.domain)
        } else {
            f.write_str("\"")?;
            for c in self.local_part.chars() {
                if c == '"' || c == '\\' {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
            write!(f, "\"@{}", self.domain)
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Literal(IpAddr::V4(ip)) => write!(f, "[{ip}]"),
            Self::Literal(IpAddr::V6(ip)) => write!(f, "[IPv6:{ip}]"),
        }
    }
}

impl FromStr for Domain {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner =
                inner.strip_suffix(']').ok_or(AddressError("the address literal has no closing bracket"))?;
            let ip = match inner.get(..5) {
                Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => inner[5..].parse().map(IpAddr::V6).ok(),
                _ => inner.parse().map(IpAddr::V4).ok(),
            };
            return ip.map(Self::Literal).ok_or(AddressError("the address literal is malformed"));
        }
        let name = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(text)
                .map_err(|_| AddressError("the domain is not a valid internationalised name"))?
        };
        if name.is_empty() || name.len() > MAX_DOMAIN {
            return Err(AddressError("the domain is empty or longer than 255 octets"));
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.split('.').all(label_ok) {
            Ok(Self::Name(name))
        } else {
            Err(AddressError("the domain is not a host name"))
        }
    }
}

impl FromStr for Mailbox {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = match text.strip_prefix('"') {
            Some(quoted) => split_quoted(quoted)?,
            None => {
                let (local, domain) = text.split_once('@').ok_or(AddressError("the address has no @"))?;
                if !is_dot_string(local) {
                    return Err(AddressError("the local part is not a dot-string"));
                }
                (local.to_owned(), domain)
            }
        };
        Self::new(local, domain.parse()?)
    }
}

/// Splits `qtext" @ domain` (the opening quote is gone) into the unquoted local part and the domain.
fn split_quoted(text: &str) -> Result<(String, &str), AddressError> {
    let mut local = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, escaped)) => local.push(escaped),
                None => return Err(AddressError("the quoted local part ends in a backslash")),
            },
            '"' => {
                let domain = text[at + 1..]
                    .strip_prefix('@')
                    .ok_or(AddressError("no @ follows the quoted local part"))?;
                return Ok((local, domain));
            }
            _ => local.push(c),
        }
    }
    Err(AddressError("the quoted local part has no closing quote"))
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Mailbox(mailbox) => mailbox.fmt(f),
        }
    }
}

impl ReversePath {
    /// The mailbox, if it is not the null path.
    #[must_use]
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Null => None,
            Self::Mailbox(mailbox) => Some(mailbox),
        }
    }
}

impl FromStr for ReversePath {
    type Err = AddressError;

    /// The text without angle brackets; empty is the null path.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() { Ok(Self::Null) } else { text.parse().map(Self::Mailbox) }
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Mailbox);
serde_as_text!(ReversePath);
serde_as_text!(Domain);
