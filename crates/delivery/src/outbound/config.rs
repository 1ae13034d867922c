//! The settings of the outbound transport.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::source::SourcePool;

/// How mail leaves: towards mail exchangers and configured next hops.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundConfig {
    /// The name given in EHLO and LHLO, and never delivered to (RFC 5321 §5.1). It is the
    /// `hostname` setting, no key of its own.
    #[serde(skip)]
    pub hostname: String,
    /// The port of mail exchangers. Default 25.
    pub port: u16,
    /// Deliver to mail exchangers whose address is loopback, link-local or unspecified. Default false.
    pub allow_loopback: bool,
    /// Addresses connected to, over all mail exchangers, before an attempt is given up. Default 6.
    pub max_connects: usize,
    /// Sessions in which a message is offered before an attempt is given up. Default 3.
    pub max_sessions: usize,
    /// Recipients in one transaction; more are offered in further ones (RFC 5321 §4.5.3.1.8).
    /// Values over 1000 count as 1000: what is pipelined must fit the socket buffers. Default 100.
    pub max_recipients: usize,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// Idle connections kept for the next message.
    pub pool: PoolConfig,
    /// Source pools, by name. MailDomains name theirs in `outbound.pool`; all other mail that leaves does so by the
    /// pool `default`, which without an entry here has whichever address the system takes, and no limits.
    pub pools: BTreeMap<String, SourcePool>,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            hostname: "localhost".to_owned(),
            port: 25,
            allow_loopback: false,
            max_connects: 6,
            max_sessions: 3,
            max_recipients: 100,
            timeouts: Timeouts::default(),
            pool: PoolConfig::default(),
            pools: BTreeMap::new(),
        }
    }
}

/// How long each step of a delivery may take: the values of RFC 5321 §4.5.3.2 by default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a TCP connection to be established. Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub connect: Duration,
    /// For the greeting. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub greeting: Duration,
    /// For the reply to EHLO, HELO, LHLO, STARTTLS and RSET. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub command: Duration,
    /// For the reply to MAIL. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub mail: Duration,
    /// For the reply to each RCPT. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub rcpt: Duration,
    /// For the reply to DATA. Default 2 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub data: Duration,
    /// For each block of content to be sent. Default 3 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub data_block: Duration,
    /// For the reply to the end of the content; short ones make duplicates (RFC 1047). Default 10 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub data_end: Duration,
    /// For the farewell, which nothing depends on. Default 2 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub quit: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Self {
            connect: Duration::from_secs(30),
            greeting: minutes(5),
            command: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            data_block: minutes(3),
            data_end: minutes(10),
            quit: Duration::from_secs(2),
        }
    }
}

/// Idle connections kept for the next message to the same host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Idle connections in all; 0 keeps none. Default 500.
    pub max_idle: usize,
    /// Idle connections to one host. Default 20.
    pub max_idle_per_host: usize,
    /// A connection idle for so long is closed. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub idle_timeout: Duration,
    /// A connection is not used again when it is older than this. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_age: Duration,
    /// Transactions on one connection. Default 100.
    pub max_messages: u32,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_idle: 500,
            max_idle_per_host: 20,
            idle_timeout: Duration::from_secs(5),
            max_age: Duration::from_secs(300),
            max_messages: 100,
        }
    }
}
