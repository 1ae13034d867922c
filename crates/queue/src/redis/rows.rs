//! Entries as the scripts tell them.

use std::sync::Arc;

use bytes::Bytes;
use message::Content;
use redis::{FromRedisValue, ParsingError, Value};

use crate::{Doubt, Entry, EntryState, Lease, Leased, MessageRecord, NextHop, QueueError, Tenant, Timestamp};

/// One entry, as `tell` in `prelude.lua` gives it; with the content, where it came along.
pub(super) struct Row {
    entry: String,
    state: EntryState,
    due: u64,
    epoch: u64,
    attempts: u32,
    expires: u64,
    next_hop: String,
    recipients: Vec<u8>,
    error: Option<String>,
    worker: Option<String>,
    held: Option<String>,
    doomed: Option<String>,
    doubt: Option<String>,
    doubt_since: Option<u64>,
    tenant: String,
    record: Vec<u8>,
    accepted_at: u64,
    body: Option<Vec<u8>>,
}

impl FromRedisValue for Row {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let mut fields = Vec::<Value>::from_redis_value(value)?.into_iter();
        let mut next = || fields.next().unwrap_or(Value::Nil);
        let entry = String::from_redis_value(next())?;
        let state = match String::from_redis_value(next())?.as_str() {
            "leased" => EntryState::Leased,
            "held" => EntryState::Held,
            _ => EntryState::Queued,
        };
        Ok(Self {
            entry,
            state,
            due: FromRedisValue::from_redis_value(next())?,
            epoch: FromRedisValue::from_redis_value(next())?,
            attempts: FromRedisValue::from_redis_value(next())?,
            expires: FromRedisValue::from_redis_value(next())?,
            next_hop: FromRedisValue::from_redis_value(next())?,
            recipients: FromRedisValue::from_redis_value(next())?,
            error: FromRedisValue::from_redis_value(next())?,
            worker: FromRedisValue::from_redis_value(next())?,
            held: FromRedisValue::from_redis_value(next())?,
            doomed: FromRedisValue::from_redis_value(next())?,
            doubt: FromRedisValue::from_redis_value(next())?,
            doubt_since: FromRedisValue::from_redis_value(next())?,
            tenant: FromRedisValue::from_redis_value(next())?,
            record: FromRedisValue::from_redis_value(next())?,
            accepted_at: FromRedisValue::from_redis_value(next())?,
            body: FromRedisValue::from_redis_value(next())?,
        })
    }
}

pub(super) fn corrupt(what: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> QueueError {
    QueueError::Corrupt { what: what.to_owned(), cause: cause.into() }
}

/// A message's record, with the time the store wrote beside it.
pub(super) fn record(what: &str, json: &[u8], accepted_at: u64) -> Result<MessageRecord, QueueError> {
    let mut record: MessageRecord =
        serde_json::from_slice(json).map_err(|cause| corrupt(&format!("message {what}"), cause))?;
    record.accepted_at = Timestamp(accepted_at);
    Ok(record)
}

impl Row {
    /// The entry and its message's record.
    pub(super) fn into_entry(self) -> Result<(Entry, MessageRecord), QueueError> {
        let id = self.entry.parse().map_err(|cause| corrupt(&format!("entry {}", self.entry), cause))?;
        let recipients = serde_json::from_slice(&self.recipients)
            .map_err(|cause| corrupt(&format!("recipients of {}", self.entry), cause))?;
        let record = record(&self.entry, &self.record, self.accepted_at)?;
        let entry = Entry {
            id,
            next_hop: NextHop(self.next_hop),
            tenant: Tenant(self.tenant),
            recipients,
            state: self.state,
            epoch: self.epoch,
            attempts: self.attempts,
            due: Timestamp(self.due),
            expires: Timestamp(self.expires),
            last_error: self.error,
            worker: self.worker,
            held: self.held,
            doomed: self.doomed,
            doubt: self
                .doubt
                .map(|peer| Doubt { peer, since: Timestamp(self.doubt_since.unwrap_or_default()) }),
        };
        Ok((entry, record))
    }

    /// The entry in its new holder's hands.
    pub(super) fn into_leased(mut self, now: Timestamp) -> Result<Leased, QueueError> {
        let inline = self.body.take().map(|body| Content::from(Bytes::from(body)));
        let (entry, record) = self.into_entry()?;
        let lease = Lease { entry: entry.id, epoch: entry.epoch };
        Ok(Leased { lease, entry, message: Arc::new(record), inline, now })
    }
}
