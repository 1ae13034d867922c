//! The settings of the verifier.

use std::time::Duration;

use message::header::Limits;
use serde::Deserialize;

/// How messages are judged and signed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name in `Authentication-Results`, and whose forged ones are removed: the host name of the
    /// cluster. Set by the binary from `hostname`.
    #[serde(skip)]
    pub authserv_id: String,
    /// Look-ups and limits of the methods. Its name servers are set by the binary from `dns`.
    pub auth: auth::Config,
    /// The largest message that is looked at, in octets. The body is not held, so this bounds time and
    /// not memory. Default 256 MiB.
    pub max_message_octets: u64,
    /// The largest header section, in octets. Default 512 KiB.
    pub max_header_octets: usize,
    /// The most header fields. Default 1000.
    pub max_header_fields: usize,
    /// What all messages at work may hold in memory together, in octets; further ones wait. Default
    /// 64 MiB.
    pub max_held_octets: usize,
    /// How long a call waits for the next frame. Default 10 min, as an SMTP client may be slow.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub frame_timeout: Duration,
    /// The end of the work on a message once it is whole, and of the wait for memory. Default 60 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub deadline: Duration,
    /// What is done when the DNS gives no answer that an enforcing policy hangs on. Default `defer`.
    pub on_temperror: OnTempError,
    /// What is done with mail that has no one author, which no policy covers. Default `quarantine`.
    pub malformed_from: MalformedFrom,
    /// What is done with submitted mail of a domain that has no DKIM key. Default `refuse`.
    pub unsigned: Unsigned,
    /// How long a signature holds (`x=`). It must exceed the time a message may wait in the queue.
    /// Default 7 days.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub signature_lifetime: Duration,
}

/// What is done when the DNS gives no answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTempError {
    /// The sender is asked to try again.
    #[default]
    Defer,
    /// The message is taken as if there were no policy.
    Deliver,
}

/// What is done with mail without one author.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MalformedFrom {
    /// It goes to the quarantine folder.
    #[default]
    Quarantine,
    /// It is refused.
    Reject,
    /// It is delivered, marked `dmarc=permerror`.
    Deliver,
}

/// What is done with submitted mail that cannot be signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// It is refused for now: the sender tries again, the operator finds it in the log.
    #[default]
    Refuse,
    /// It is sent without a signature.
    Allow,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            authserv_id: String::new(),
            auth: auth::Config::default(),
            max_message_octets: 256 * 1024 * 1024,
            max_header_octets: limits.max_octets,
            max_header_fields: limits.max_fields,
            max_held_octets: 64 * 1024 * 1024,
            frame_timeout: Duration::from_secs(600),
            deadline: Duration::from_secs(60),
            on_temperror: OnTempError::default(),
            malformed_from: MalformedFrom::default(),
            unsigned: Unsigned::default(),
            signature_lifetime: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl Config {
    pub(crate) fn header_limits(&self) -> Limits {
        Limits { max_octets: self.max_header_octets, max_fields: self.max_header_fields }
    }
}
