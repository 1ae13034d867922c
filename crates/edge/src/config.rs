//! What the edge is told: its listeners and its limits.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use crate::proxy::Network;

/// Settings of the edge.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our name: in the greeting, in EHLO and in `Received`.
    pub hostname: String,
    /// Where mail comes in.
    pub listeners: Vec<Listener>,
    /// What a client may ask for.
    pub limits: Limits,
}

/// One listener.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Its name, for logs and metrics.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// TLS begins with the connection (RFC 8314), not with STARTTLS.
    pub implicit_tls: bool,
    /// Networks whose PROXY header is required and believed; empty: no PROXY protocol.
    pub proxies: Vec<Network>,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Mail from other sites, for domains hosted here.
    Mx,
    /// Mail from users, for anybody.
    Submission,
}

/// What a client may ask for. Each limit answers with a reply that says so.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sessions at a time.
    pub max_sessions: usize,
    /// Sessions at a time from one address (an IPv6 /64 counts as one).
    pub max_sessions_per_client: usize,
    /// Recipients of a message; 100 at least (RFC 5321 §4.5.3.1.8).
    pub max_recipients: usize,
    /// Commands answered with 5xx before the session is ended.
    pub max_errors: usize,
    /// The largest message, in octets.
    pub max_message_bytes: u64,
    /// The longest line of a message, in octets.
    pub max_line_bytes: usize,
    /// Failed authentications from one address (an IPv6 /64 counts as one) within `auth_window`; further
    /// attempts are put off, right or wrong. A single login is put off after ten times as many.
    pub max_auth_failures: u32,
    /// How long a failed authentication counts.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub auth_window: Duration,
    /// `Received` fields of a message before it is taken for a loop (RFC 5321 §6.3).
    pub max_hops: usize,
    /// How long the greeting waits for a client that talks before it was spoken to (RFC 5321 §4.3.1),
    /// on `mx` listeners; such a client is refused. At zero only what is there already is seen.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub greet_pause: Duration,
    /// A whole command line must come within this (RFC 5321 §4.5.3.2.7).
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub command_timeout: Duration,
    /// While a message comes in, 64 KiB or its end must come within this.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub data_timeout: Duration,
    /// A whole message must come within this. What of it is stored already is kept for an hour.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub message_timeout: Duration,
    /// A session is ended after this. An open transaction has `command_timeout` more to reach its message.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub session_timeout: Duration,
    /// The verifier and delivery must answer within this after the end of a message. RFC 1047 asks
    /// for little here: a client that gives up sends again.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub service_timeout: Duration,
    /// When every transaction on `mx` listeners for so long came from a private address, the way to here hides
    /// clients' addresses: it is told by a warning and `packetboat_smtp_clients_all_private`.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub private_clients_window: Duration,
    /// So many transactions it takes for that, at least. 0: it is never told, where all clients are internal.
    pub private_clients_transactions: u32,
    /// On shutdown, sessions in a transaction get this long.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sessions: 2000,
            max_sessions_per_client: 100,
            max_recipients: 1000,
            max_errors: 20,
            max_message_bytes: 64 * 1024 * 1024,
            max_line_bytes: 64 * 1024,
            max_auth_failures: 20,
            auth_window: Duration::from_secs(600),
            max_hops: 100,
            greet_pause: Duration::ZERO,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
            message_timeout: Duration::from_secs(1800),
            session_timeout: Duration::from_secs(3600),
            service_timeout: Duration::from_secs(120),
            private_clients_window: Duration::from_secs(600),
            private_clients_transactions: 20,
            drain: Duration::from_secs(25),
        }
    }
}
