//! The settings of delivery. The binary reads them; nothing here touches files or the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::accept::MEMORY_OF_ONE;
use crate::error::DeliveryError;

/// Settings of the delivery service.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Our host name: in notifications, and in the names of Maildir files, where it must be the same
    /// on every worker. It is the `hostname` setting, no key of its own.
    #[serde(skip)]
    pub hostname: String,
    /// The name of this worker, shown to operators beside its leases. Default: the host name.
    pub worker: Option<String>,
    /// The folder that relative Maildir paths start from: that of the configuration file.
    #[serde(skip)]
    pub base_folder: PathBuf,
    /// Taking messages.
    pub accept: AcceptConfig,
    /// Leasing entries and running attempts.
    pub dispatch: DispatchConfig,
    /// When to try again, and when to give up.
    pub retry: RetryConfig,
    /// Notifications to senders.
    pub bounce: BounceConfig,
    /// Questions to mailbox stores.
    pub probe: ProbeConfig,
}

/// Limits on taking messages.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcceptConfig {
    /// The longest message, in octets. Default 100 MiB.
    pub max_message_bytes: u64,
    /// The most recipients of one message. Default 10 000.
    pub max_recipients: usize,
    /// Octets that all messages being streamed may hold in memory together. Default 256 MiB.
    pub memory_bytes: usize,
    /// How long a message waits for that memory before it is refused for now. Default 30 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub memory_wait: Duration,
    /// How long to wait for the next frame. The edge ends slow sessions long before. Default 15 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub frame_timeout: Duration,
    /// The most recipients in one queue entry; the rest of one next hop's go to further entries.
    /// Default 100.
    pub recipients_per_entry: usize,
}

/// Limits on attempts.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DispatchConfig {
    /// Attempts at once, to all next hops. Default 512.
    pub concurrency: usize,
    /// Attempts at once to one remote next hop, while it takes mail; one that defers everything is
    /// tried with fewer. Default 20.
    pub per_next_hop: usize,
    /// Attempts at once to one hosted domain's route. Default 64.
    pub per_local_domain: usize,
    /// Limits on one next hop over all workers, by its name in listings (`mx:example.org`). Default: none.
    pub next_hops: BTreeMap<String, NextHopLimit>,
    /// For how long a worker that cannot reach the queue store goes on with its share of such a limit, and
    /// for how long the others leave it to it. Default 15 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub share_grace: Duration,
    /// Entries leased in one request. Default 32.
    pub batch: usize,
    /// How long a lease lasts; it is renewed at a third of this. Default 60 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub lease: Duration,
    /// The longest attempt. The transports have shorter deadlines for each step. Default 2 h.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub attempt_timeout: Duration,
    /// How often the queue is asked when nothing announces itself. Default 1 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub poll: Duration,
    /// The longest wait between two tries while the queue store cannot be used. Default 5 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub outage_wait: Duration,
    /// How long attempts in flight may go on after shutdown begins. Default 25 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain: Duration,
    /// How often the depth of the queue is measured for metrics. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub measure: Duration,
    /// How often the queue is compared with itself, by one of the workers, at least 1 s: what does not fit is
    /// logged, and counted in `mail_queue_oddities`. Default 10 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub audit: Duration,
}

/// Limits on one next hop, over all workers of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NextHopLimit {
    /// Attempts at once, at least 1; the workers share them evenly. Default: each worker has
    /// `per_next_hop`.
    pub connections: Option<usize>,
    /// Attempts begun a minute, at least 1. Default: no limit.
    pub per_minute: Option<u32>,
}

/// When to try again, and when to give up (RFC 5321 §4.5.4.1).
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// The wait after the first attempt; it doubles with each further one. A next hop that cannot be
    /// reached, again and again, is left alone for half of this. Default 5 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub initial: Duration,
    /// The longest wait. Default 4 h.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_interval: Duration,
    /// A message is given up so long after it was accepted. Default 120 h.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub max_age: Duration,
    /// Each wait is made longer or shorter by up to this share of it (0 to 1), so that entries that
    /// failed together do not come back together. Default 0.1.
    pub jitter: f64,
}

/// Notifications to senders.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BounceConfig {
    /// Octets of the message's header that a notification quotes. Default 64 KiB, at most 128 KiB.
    pub max_header_bytes: usize,
    /// How often the verifier is asked for a signature before the notification goes unsigned: an
    /// unsigned one that arrives is worth more than a signed one that does not. Default 3.
    pub sign_tries: u32,
    /// How long each of these may take. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub sign_timeout: Duration,
}

/// Questions to mailbox stores.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// Questions at once. Default 64.
    pub concurrency: usize,
    /// How long one may take, with its wait for a turn. Default 20 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub timeout: Duration,
}

const MIB: u64 = 1024 * 1024;

impl Default for Config {
    fn default() -> Self {
        Self {
            hostname: "localhost".into(),
            worker: None,
            base_folder: PathBuf::from("."),
            accept: AcceptConfig::default(),
            dispatch: DispatchConfig::default(),
            retry: RetryConfig::default(),
            bounce: BounceConfig::default(),
            probe: ProbeConfig::default(),
        }
    }
}

impl Default for AcceptConfig {
    fn default() -> Self {
        Self {
            max_message_bytes: 100 * MIB,
            max_recipients: 10_000,
            memory_bytes: 256 * MIB as usize,
            memory_wait: Duration::from_secs(30),
            frame_timeout: Duration::from_secs(15 * 60),
            recipients_per_entry: 100,
        }
    }
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            concurrency: 512,
            per_next_hop: 20,
            per_local_domain: 64,
            next_hops: BTreeMap::new(),
            share_grace: Duration::from_secs(15),
            batch: 32,
            lease: Duration::from_secs(60),
            attempt_timeout: Duration::from_secs(2 * 60 * 60),
            poll: Duration::from_secs(1),
            outage_wait: Duration::from_secs(5),
            drain: Duration::from_secs(25),
            measure: Duration::from_secs(10),
            audit: Duration::from_secs(600),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(5 * 60),
            max_interval: Duration::from_secs(4 * 60 * 60),
            max_age: Duration::from_secs(120 * 60 * 60),
            jitter: 0.1,
        }
    }
}

impl Default for BounceConfig {
    fn default() -> Self {
        Self { max_header_bytes: 64 * 1024, sign_tries: 3, sign_timeout: Duration::from_secs(10) }
    }
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { concurrency: 64, timeout: Duration::from_secs(20) }
    }
}

impl Config {
    /// The name under which this worker leases.
    pub(crate) fn worker(&self) -> &str {
        self.worker.as_deref().unwrap_or(&self.hostname)
    }

    /// Refuses settings under which nothing could be done.
    ///
    /// # Errors
    /// With the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), DeliveryError> {
        let refuse = |setting, why: &str| Err(DeliveryError::Setting { setting, why: why.to_owned() });
        if let Err(error) = self.hostname.parse::<smtp::Domain>() {
            return refuse("hostname", &error.to_string());
        }
        let counts = [
            ("accept.max_recipients", self.accept.max_recipients),
            ("accept.recipients_per_entry", self.accept.recipients_per_entry),
            ("dispatch.concurrency", self.dispatch.concurrency),
            ("dispatch.per_next_hop", self.dispatch.per_next_hop),
            ("dispatch.per_local_domain", self.dispatch.per_local_domain),
            ("dispatch.batch", self.dispatch.batch),
            ("probe.concurrency", self.probe.concurrency),
        ];
        if let Some((setting, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return refuse(setting, "must be at least 1");
        }
        if !(MEMORY_OF_ONE..=u32::MAX as usize).contains(&self.accept.memory_bytes) {
            return refuse(
                "accept.memory_bytes",
                &format!("must lie between {MEMORY_OF_ONE} octets and 4 GiB"),
            );
        }
        let zero = |limit: &NextHopLimit| limit.connections == Some(0) || limit.per_minute == Some(0);
        if self.dispatch.next_hops.values().any(zero) {
            return refuse("dispatch.next_hops", "limits must be at least 1; suspend a next hop to stop it");
        }
        if self.dispatch.share_grace < Duration::from_secs(1) {
            return refuse("dispatch.share_grace", "must be at least 1 s");
        }
        if self.dispatch.audit < Duration::from_secs(1) {
            return refuse("dispatch.audit", "must be at least 1 s");
        }
        if self.dispatch.lease < Duration::from_secs(1) {
            return refuse("dispatch.lease", "must be at least 1 s");
        }
        if self.dispatch.poll.is_zero() || self.dispatch.measure.is_zero() || self.retry.initial.is_zero() {
            return refuse("dispatch.poll, dispatch.measure, retry.initial", "must be longer than zero");
        }
        if !(0.0..=1.0).contains(&self.retry.jitter) {
            return refuse("retry.jitter", "must lie between 0 and 1");
        }
        if self.bounce.max_header_bytes > 128 * 1024 {
            return refuse("bounce.max_header_bytes", "must be at most 131072");
        }
        Ok(())
    }
}
