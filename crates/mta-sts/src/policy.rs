//! The policy itself (RFC 8461 §3.2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most seconds that a policy may be remembered: a year (RFC 8461 §3.2).
pub const MAX_AGE_LIMIT: u32 = 31_557_600;
/// Patterns of hosts in one policy at most.
const MAX_PATTERNS: usize = 1000;
/// Octets of a policy's digest that its id tells.
const ID_OCTETS: usize = 16;

/// What senders are to do with a host that does not keep the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As if there were no policy.
    None,
    /// They deliver, and report.
    Testing,
    /// They do not deliver there.
    Enforce,
}

impl Mode {
    /// As policies write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Testing => "testing",
            Self::Enforce => "enforce",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Testing, Self::Enforce].into_iter().find(|mode| mode.name() == name)
    }
}

/// A policy. In JSON and YAML it is its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Policy {
    /// What it asks of senders.
    pub mode: Mode,
    /// The hosts that mail may go to: lower-case names, or `*.` and a name. Sorted, each once.
    pub mx: Vec<String>,
    /// How long senders remember it, in seconds; at most [`MAX_AGE_LIMIT`].
    pub max_age: u32,
}

/// Why a text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Another version, or none.
    #[error("it has no line \"version: STSv1\"")]
    Version,
    /// A line that has no colon.
    #[error("the line {0:?} is not a name and a value with a colon between")]
    Line(String),
    /// No mode, or an unknown one.
    #[error("its mode is {0:?}, and not none, testing or enforce")]
    Mode(String),
    /// No `max_age`, or one that cannot be.
    #[error("its max_age is {0:?}, and not a number of seconds up to {MAX_AGE_LIMIT}")]
    MaxAge(String),
    /// A pattern that no host can match.
    #[error("its mx {0:?} is neither a host name nor *. and one")]
    Mx(String),
    /// It names no host though its mode asks for some.
    #[error("it names no mx")]
    NoMx,
    /// More patterns than anybody needs.
    #[error("it names more than {MAX_PATTERNS} mx")]
    TooMany,
}

impl Policy {
    /// A policy of these hosts, in any order and case. One of mode `none` names none.
    #[must_use]
    pub fn new<'a>(mode: Mode, hosts: impl IntoIterator<Item = &'a str>, max_age: u32) -> Self {
        let lower = |host: &str| host.trim_end_matches('.').to_ascii_lowercase();
        let mut mx: Vec<String> = match mode {
            Mode::None => Vec::new(),
            _ => hosts.into_iter().map(lower).collect(),
        };
        mx.sort();
        mx.dedup();
        Self { mode, mx, max_age: max_age.min(MAX_AGE_LIMIT) }
    }

    /// Whether a mail exchanger of this name is among its hosts; a `*` stands for one label (RFC 8461 §4.1).
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(parent) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
            None => *pattern == host,
        })
    }

    /// The id by which its TXT record tells it from others: it changes when the policy does, and only then.
    #[must_use]
    pub fn id(&self) -> String {
        let digest = Sha256::digest(self.to_string().as_bytes());
        digest.iter().take(ID_OCTETS).map(|octet| format!("{octet:02x}")).collect()
    }
}

/// The text that is served.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version: STSv1\r\nmode: {}\r\n", self.mode.name())?;
        for mx in &self.mx {
            write!(f, "mx: {mx}\r\n")?;
        }
        write!(f, "max_age: {}\r\n", self.max_age)
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

impl TryFrom<String> for Policy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

/// Reads a policy as senders do: lines end with CRLF or LF, unknown names are passed over, and of names that come
/// twice the first counts, but for `mx`.
impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
            if line.trim().is_empty() {
                continue;
            }
            let shown = || line.chars().take(80).collect::<String>();
            let (name, value) = line.split_once(':').ok_or_else(|| PolicyError::Line(shown()))?;
            let value = value.trim().to_owned();
            match name.trim() {
                "version" => version = version.or(Some(value)),
                "mode" => mode = mode.or(Some(value)),
                "max_age" => max_age = max_age.or(Some(value)),
                "mx" if mx.len() == MAX_PATTERNS => return Err(PolicyError::TooMany),
                "mx" => mx.push(pattern(&value)?),
                _ => {}
            }
        }
        if version.as_deref() != Some("STSv1") {
            return Err(PolicyError::Version);
        }
        let mode = mode.unwrap_or_default();
        let mode = Mode::from_name(&mode).ok_or(PolicyError::Mode(mode))?;
        let max_age = seconds(&max_age.unwrap_or_default())?;
        if mx.is_empty() && mode != Mode::None {
            return Err(PolicyError::NoMx);
        }
        mx.sort();
        mx.dedup();
        Ok(Self { mode, mx, max_age })
    }
}

fn seconds(text: &str) -> Result<u32, PolicyError> {
    let wrong = || PolicyError::MaxAge(text.chars().take(20).collect());
    // `+5` is a number to Rust, and none to RFC 8461.
    if text.is_empty() || !text.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().ok().filter(|seconds| *seconds <= MAX_AGE_LIMIT).ok_or_else(wrong)
}

fn pattern(value: &str) -> Result<String, PolicyError> {
    let host = value.strip_prefix("*.").unwrap_or(value);
    match host.parse() {
        Ok(smtp::Domain::Name(_)) => Ok(value.to_ascii_lowercase()),
        _ => Err(PolicyError::Mx(value.chars().take(80).collect())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str =
        "version: STSv1\r\nmode: enforce\r\nmx: *.example.net\r\nmx: mx1.example.com\r\nmax_age: 604800\r\n";

    #[test]
    fn what_is_written_is_read() {
        let policy =
            Policy::new(Mode::Enforce, ["MX1.example.com.", "*.example.net", "mx1.example.com"], 604_800);
        assert_eq!(policy.to_string(), TEXT);
        assert_eq!(TEXT.parse(), Ok(policy.clone()));
        assert_eq!(TEXT.replace("\r\n", "\n").trim_end().parse(), Ok(policy));
        let none = Policy::new(Mode::None, ["mx1.example.com"], 86_400);
        assert_eq!(none.to_string().parse(), Ok(none));
    }

    #[test]
    fn what_others_write_is_read_as_the_standard_says() {
        let lenient = format!("{TEXT}mode: none\r\nfuture: x\r\nmax_age: 1\r\n");
        assert_eq!(lenient.parse::<Policy>(), TEXT.parse());
        let error = |text: &str| text.parse::<Policy>().unwrap_err();
        assert_eq!(error("mode: none\nmax_age: 1\n"), PolicyError::Version);
        assert_eq!(error(&TEXT.replace("enforce", "strict")), PolicyError::Mode("strict".to_owned()));
        for age in ["31557601", "+5", "-1", "", "1e3"] {
            assert!(matches!(error(&TEXT.replace("604800", age)), PolicyError::MaxAge(_)), "{age}");
        }
        for mx in ["mx.*.example.net", "*", "*.", "a b", "https://x"] {
            assert!(matches!(error(&TEXT.replace("*.example.net", mx)), PolicyError::Mx(_)), "{mx}");
        }
        assert_eq!(error("version: STSv1\nmode: testing\nmax_age: 1\n"), PolicyError::NoMx);
        assert!(matches!(error("<html>"), PolicyError::Line(_)));
    }

    #[test]
    fn a_star_is_one_label() {
        let policy: Policy = TEXT.parse().unwrap();
        for host in ["mx1.example.com", "MX1.example.com.", "a.example.net"] {
            assert!(policy.covers(host), "{host}");
        }
        for host in ["example.net", "a.b.example.net", ".example.net", "mx2.example.com", "xmx1.example.com"]
        {
            assert!(!policy.covers(host), "{host}");
        }
    }

    #[test]
    fn the_id_follows_the_content() {
        let of = |mode, age| Policy::new(mode, ["mx.example.com"], age).id();
        assert_eq!(of(Mode::Testing, 86_400), of(Mode::Testing, 86_400));
        let all = [of(Mode::Testing, 86_400), of(Mode::Enforce, 86_400), of(Mode::Testing, 86_401)];
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:?}");
        assert!(
            all.iter()
                .all(|id| (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric()))
        );
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "\\PC{0,200}") {
            let _ = text.parse::<Policy>();
        }
    }
}
