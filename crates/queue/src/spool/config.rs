//! Settings of the spool.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// Which store, and how it is used.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `file:///folder`. All processes of
    /// a queue name the same, and no two queues do. Required.
    pub url: String,
    /// What the store's client has to know, as `aws_endpoint`, `aws_region` or `google_service_account`. What is
    /// secret among it belongs in the environment (`AWS_ACCESS_KEY_ID`, …). Never shown.
    pub options: BTreeMap<String, String>,
    /// Variables of the environment: those that the store's client knows (`AWS_…`, `GOOGLE_…`, `AZURE_…`) count
    /// where `options` do not say otherwise, the others are passed over. Never shown.
    #[serde(skip)]
    pub environment: BTreeMap<String, String>,
    /// For so long after the first message of a pack others may join it. It adds to the time of a `250`.
    /// Default 5 ms.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub pack_window: Duration,
    /// The same for the notes of what is settled. Nobody waits for them but the worker that settles. Default
    /// 20 ms.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub note_window: Duration,
    /// A pack is closed at so many octets of content; it may hold one message more. Default 4 MiB.
    pub pack_bytes: u64,
    /// A pack is closed at so many messages, 1 to 10000. Default 256.
    pub pack_messages: usize,
    /// So many objects are written at a time by one process, and as many notes. Default 8.
    pub writes_at_a_time: usize,
    /// One request to the store may take so long, with its repetitions. Default 10 s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub request_timeout: Duration,
    /// How often one process of the queue looks for what can go. Default 10 min.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub sweep_interval: Duration,
    /// What no entry of the queue names goes after so long: messages that were never answered for. Not under
    /// an hour, and longer than the queue may be out of reach while a message is accepted. Default 6 h.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub orphan_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            options: BTreeMap::new(),
            environment: BTreeMap::new(),
            pack_window: Duration::from_millis(5),
            note_window: Duration::from_millis(20),
            pack_bytes: 4 * 1024 * 1024,
            pack_messages: 256,
            writes_at_a_time: 8,
            request_timeout: Duration::from_secs(10),
            sweep_interval: Duration::from_secs(600),
            orphan_age: Duration::from_secs(6 * 3600),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("pack_window", &self.pack_window)
            .field("note_window", &self.note_window)
            .field("pack_bytes", &self.pack_bytes)
            .field("pack_messages", &self.pack_messages)
            .field("writes_at_a_time", &self.writes_at_a_time)
            .field("request_timeout", &self.request_timeout)
            .field("sweep_interval", &self.sweep_interval)
            .field("orphan_age", &self.orphan_age)
            .finish_non_exhaustive()
    }
}
