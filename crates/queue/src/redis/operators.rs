//! What operators ask for: listings, suspensions, policy, the outbox and the audit, over all shards.

use futures::future::try_join_all;
use serde::Deserialize;
use tokio::time::Instant;

use super::client::{Call, Client};
use super::rows::{Row, corrupt};
use super::{LOOK_EVERY, RedisQueue, millis};
use crate::outbox::OUTBOX_READERS;
use crate::{
    AuditPage, Entry, EntryState, Event, EventKind, Events, ListFilter, MessageRecord, Oddity, Page, Policy,
    QueueError, Scope, Suspension, Target, Timestamp, Verb, VerbRecord,
};

/// Entries looked at for one page of a listing or an audit, in each shard.
const SCANNED_PER_PAGE: usize = 1000;

/// An event as `events.lua` tells it.
type EventRow = (String, String, String, String);

/// Who suspended something, when and why.
#[derive(Deserialize)]
struct Suspended {
    by: String,
    why: String,
    since: f64,
}

/// A cursor over shards: `SHARD:AFTER`.
fn place(cursor: Option<&str>) -> (usize, String) {
    match cursor.and_then(|cursor| cursor.split_once(':')) {
        Some((shard, after)) => (shard.parse().unwrap_or(0), after.to_owned()),
        None => (0, String::new()),
    }
}

fn state_name(state: Option<EntryState>) -> &'static str {
    match state {
        None => "",
        Some(EntryState::Queued) => "queued",
        Some(EntryState::Leased) => "leased",
        Some(EntryState::Held) => "held",
    }
}

impl Client {
    /// Does what a verb says to a message or an entry; how many entries that concerned. `by` is written down, unless it
    /// is empty.
    pub(super) async fn operate(&self, target: Target, verb: &Verb, by: &str) -> Result<u64, QueueError> {
        let number = match target {
            Target::Message(_) => String::new(),
            Target::Entry(id) => id.number.to_string(),
        };
        let id = target.message();
        let mut call = self.call(self.layout.shard_of(id), Call::Operate);
        call.arg(id.as_str()).arg(number).arg(verb.name()).arg(verb.why()).arg(by);
        self.run("changing a message", call).await
    }
}

impl RedisQueue {
    pub(super) async fn list_entries(&self, filter: &ListFilter) -> Result<Page, QueueError> {
        let limit = filter.limit.clamp(1, 1000);
        let (mut shard, mut after) = place(filter.cursor.as_deref());
        let mut entries: Vec<(Entry, MessageRecord)> = Vec::new();
        let until = Instant::now() + LOOK_EVERY;
        while shard < self.shards() && entries.len() < limit && (entries.is_empty() || Instant::now() < until)
        {
            let mut call = self.client.call(shard, Call::List);
            call.arg(&after).arg(limit - entries.len()).arg(SCANNED_PER_PAGE);
            call.arg(filter.next_hop.as_deref().unwrap_or_default()).arg(state_name(filter.state));
            call.arg(filter.tenant.as_deref().unwrap_or("*"));
            match filter.older_than {
                Some(age) => call.arg(millis(age)),
                None => call.arg(""),
            };
            call.arg(filter.pool.as_deref().unwrap_or_default());
            let (rows, last): (Vec<Row>, String) = self.client.run("listing the queue", call).await?;
            for row in rows {
                let (entry, record) = row.into_entry()?;
                if filter.concerns(&entry, &record) {
                    entries.push((entry, record));
                }
            }
            shard += usize::from(last.is_empty());
            after = last;
        }
        let next = (shard < self.shards()).then(|| format!("{shard}:{after}"));
        Ok(Page { entries, next })
    }

    pub(super) async fn set_suspended(
        &self,
        scope: &Scope,
        by: &str,
        why: &str,
        verb: &str,
    ) -> Result<bool, QueueError> {
        let ask = |shard| {
            let mut call = self.client.call(shard, Call::Suspend);
            call.arg(scope.key()).arg(by).arg(why).arg(verb);
            self.client.run::<bool>("suspending", call)
        };
        let changed = try_join_all((0..self.shards()).map(ask)).await?;
        self.changed.notify_waiters();
        Ok(changed.contains(&true))
    }

    pub(super) async fn suspended(&self) -> Result<Vec<Suspension>, QueueError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(self.client.key(0, "suspended"));
        let rows: Vec<(String, String)> = self.client.query("reading what is suspended", command).await?;
        let read = |(key, json): (String, String)| {
            let scope = Scope::from_key(&key).ok_or_else(|| corrupt("a suspension", key.clone()))?;
            let Suspended { by, why, since } =
                serde_json::from_str(&json).map_err(|cause| corrupt(&format!("suspension {key}"), cause))?;
            Ok(Suspension { scope, why, by, since: Timestamp(since as u64) })
        };
        let mut suspensions = rows.into_iter().map(read).collect::<Result<Vec<_>, QueueError>>()?;
        suspensions.sort_by(|a, b| a.scope.cmp(&b.scope));
        Ok(suspensions)
    }

    /// Verbs are written in the shard of what they are about; a suspension in all, and it is told once.
    pub(super) async fn recorded_verbs(&self, limit: usize) -> Result<Vec<VerbRecord>, QueueError> {
        type Told = (u64, String, String, String, String, u64);
        let ask = |shard| {
            let mut call = self.client.call(shard, Call::Verbs);
            call.arg(limit.clamp(1, 10_000));
            self.client.run::<Vec<Told>>("reading what operators did", call)
        };
        let mut verbs = Vec::new();
        for (shard, told) in try_join_all((0..self.shards()).map(ask)).await?.into_iter().enumerate() {
            let records = told.into_iter().map(|(at, by, verb, target, why, entries)| VerbRecord {
                at: Timestamp(at),
                by,
                verb,
                target,
                why,
                entries,
            });
            verbs.extend(records.filter(|one| shard == 0 || !["suspend", "resume"].contains(&&*one.verb)));
        }
        verbs.sort_by_key(|one| std::cmp::Reverse(one.at));
        verbs.truncate(limit);
        Ok(verbs)
    }

    pub(super) async fn write_policy(&self, policy: &Policy) -> Result<(), QueueError> {
        let shards = self.shards();
        let tenants = policy.tenants.iter().map(|(tenant, allowance)| (format!("t:{tenant}"), allowance));
        let hops = policy.next_hops.iter().map(|(hop, allowance)| (format!("h:{hop}"), allowance));
        let pools = policy.pools.iter().map(|(pool, allowance)| (format!("p:{pool}"), allowance));
        let allowances = tenants.chain(hops).chain(pools).map(|(scope, allowance)| {
            let rate = allowance.rate(shards);
            let rate = rate.map(|rate| format!(" {:.9} {:.6}", rate.per_ms, rate.burst));
            (scope, format!("{}{}", allowance.weight(), rate.unwrap_or_default()))
        });
        let leave = policy.tenant_pools.iter().map(|(tenant, pool)| (format!("by:{tenant}"), pool.0.clone()));
        let leaving = policy.leaving.iter().map(|kind| (format!("leaves:{kind}"), "1".to_owned()));
        let rows: Vec<(String, String)> = allowances.chain(leave).chain(leaving).collect();
        let ask = |shard| {
            let mut call = self.client.call(shard, Call::Policy);
            for (scope, text) in &rows {
                call.arg(scope).arg(text);
            }
            self.client.run::<()>("writing the policy", call)
        };
        try_join_all((0..shards).map(ask)).await.map(|_| ())
    }

    pub(super) async fn read_events(&self, reader: &str, limit: usize) -> Result<Events, QueueError> {
        type Told = Option<(Vec<EventRow>, String, bool)>;
        let ask = |shard| {
            let mut call = self.client.call(shard, Call::Events);
            call.arg(reader).arg(limit.clamp(1, 10_000)).arg(OUTBOX_READERS);
            self.client.run::<Told>("reading events", call)
        };
        let (mut events, mut cursors, mut lost) = (Vec::new(), Vec::new(), false);
        for told in try_join_all((0..self.shards()).map(ask)).await? {
            let (rows, last, dropped) = told.ok_or(QueueError::TooManyReaders(OUTBOX_READERS))?;
            events.extend(rows.into_iter().filter_map(|(id, kind, entry, detail)| {
                let at = id.split('-').next()?.parse().ok()?;
                Some(Event { at: Timestamp(at), kind: EventKind::from_name(&kind)?, entry, detail })
            }));
            cursors.push(last);
            lost |= dropped;
        }
        events.sort_by_key(|event| event.at);
        Ok(Events { events, cursor: cursors.join(","), lost })
    }

    /// `cursor` has a part for each shard; an empty one forgets the reader there.
    pub(super) async fn pass_events(&self, reader: &str, cursor: &str) -> Result<(), QueueError> {
        let parts: Vec<&str> = cursor.split(',').collect();
        // A cursor from before shards were added has passed nothing in those.
        if parts.len() > self.shards() {
            return Err(corrupt("an event cursor", format!("{cursor:?} is not one of this queue")));
        }
        let ask = |(shard, part): (usize, &&str)| {
            let mut call = self.client.call(shard, Call::Passed);
            call.arg(reader).arg(*part);
            self.client.run::<()>("passing events", call)
        };
        try_join_all(parts.iter().enumerate().map(ask)).await.map(|_| ())
    }

    pub(super) async fn audit_page(&self, cursor: Option<&str>) -> Result<AuditPage, QueueError> {
        let (shard, after) = place(cursor);
        if shard >= self.shards() {
            return Ok(AuditPage { checked: 0, odd: Vec::new(), next: None });
        }
        let mut call = self.client.call(shard, Call::Audit);
        call.arg(after).arg(SCANNED_PER_PAGE);
        type Told = (u64, Vec<(String, String)>, String);
        let (checked, odd, last): Told = self.client.run("auditing the queue", call).await?;
        let shard = shard + usize::from(last.is_empty());
        let next = (shard < self.shards()).then(|| format!("{shard}:{last}"));
        let odd = odd.into_iter().map(|(what, why)| Oddity { what, why }).collect();
        Ok(AuditPage { checked, odd, next })
    }
}
