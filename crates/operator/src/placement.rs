//! Where keys lie, and what the name servers show of them there. Pure.

use domains::Algorithm;
use domains::types::{Dkim, MailDomain, RecordState};
use jiff::Timestamp;

use crate::keys::{Key, Orders, Seen, selector, slot};
use crate::observe::Observation;
use crate::record::{Purpose, Record};
use crate::status::selector_of;
use crate::store::StoredKey;

/// The selector for a new key and, where selectors are CNAMEs, the name of its record; nothing when none is free.
pub(crate) fn place(
    domain: &MailDomain,
    dkim: &Dkim,
    algorithm: Algorithm,
    keys: &[StoredKey],
    orders: &Orders,
    seen: &[(Record, Observation)],
) -> Option<(String, Option<String>)> {
    let Some(delegation) = dkim.delegated() else {
        let taken: Vec<&str> = keys.iter().map(|stored| stored.key.selector.as_str()).collect();
        let (template, now) = (&dkim.selector_template, Timestamp::now());
        return Some((selector(template, algorithm, now, rand::random(), &taken), None));
    };
    let plain: Vec<Key> = keys.iter().map(|stored| stored.key.clone()).collect();
    let is_shown = |slot: &str| alias_of(slot, seen) == Some(RecordState::Verified);
    let selector = slot(delegation, &plain, orders, is_shown)?;
    let target = format!("{selector}.{}", delegation.base(&domain.spec.domain));
    Some((selector, Some(target)))
}

/// What is seen of the CNAME of a selector.
fn alias_of(selector: &str, seen: &[(Record, Observation)]) -> Option<RecordState> {
    let is = |record: &Record| {
        record.purpose == Purpose::DkimCname && record.name.split('.').next() == Some(selector)
    };
    seen.iter().find(|(record, _)| is(record)).map(|(_, observation)| observation.state)
}

/// What the name servers show of a key: its record, and the CNAME that leads to it, where there is one.
pub(crate) fn shown(wanted: &str, keys: &[Key], seen: &[(Record, Observation)]) -> Seen {
    let found = seen.iter().find(|(record, _)| selector_of(record) == Some(wanted));
    let record = found.map(|(_, observation)| observation.state);
    let delegated = keys.iter().any(|key| key.selector == wanted && key.target.is_some());
    let states = match (delegated, record) {
        // It lies in a zone that is not looked at any more.
        (true, None) => return Seen::Unknown,
        (true, record) => vec![record, alias_of(wanted, seen)],
        (false, record) => vec![record],
    };
    if states.contains(&Some(RecordState::Unknown)) {
        return Seen::Unknown;
    }
    if states.iter().all(|state| *state == Some(RecordState::Verified)) { Seen::Yes } else { Seen::No }
}

/// The TLSA records, with the old keys that stay for a while; none of which a name server says nothing.
pub(crate) fn pinned(seen: &[(Record, Observation)]) -> impl Iterator<Item = Record> {
    let known = |(record, seen): &&(Record, Observation)| {
        record.purpose == Purpose::Tlsa && seen.state != RecordState::Unknown
    };
    seen.iter().filter(known).map(|(record, _)| record.clone())
}
