//! What operators ask for: listings and the audit.

use std::collections::HashSet;
use std::time::Duration;

use super::{Shared, present};
use crate::{
    AuditPage, Entry, EntryId, ListFilter, MessageRecord, Oddity, Page, QueueError, Scope, Timestamp,
};

/// Entries read for one page of a listing or an audit at most, matching or not.
const SCANNED_PER_PAGE: usize = 10_000;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn read_page(shared: &Shared, filter: &ListFilter) -> Result<Page, QueueError> {
    let after = filter.cursor.as_deref().and_then(|cursor| cursor.parse().ok());
    let limit = filter.limit.clamp(1, 1000);
    let (mut entries, mut last, mut scanned, mut more) = (Vec::new(), None, 0, false);
    shared.store.each_entry(after, |entry| {
        if entries.len() == limit || scanned == SCANNED_PER_PAGE {
            more = true;
            return false;
        }
        scanned += 1;
        last = Some(entry.id);
        let wanted = filter.next_hop.as_ref().is_none_or(|hop| entry.next_hop.0 == *hop)
            && filter.tenant.as_ref().is_none_or(|tenant| entry.tenant.0 == *tenant)
            && filter.pool.as_ref().is_none_or(|pool| {
                let found = shared.state().schedule.limits.pool_of(&entry.tenant.0, &entry.next_hop.0);
                found.is_some_and(|found| found == Scope::Pool(pool.clone()))
            });
        if wanted
            && let Some(entry) = present(&shared.state(), entry)
            && filter.state.is_none_or(|state| entry.state == state)
        {
            entries.push(entry);
        }
        true
    })?;
    let with_record = |entry: Entry| -> Result<Option<(Entry, MessageRecord)>, QueueError> {
        Ok(shared.store.message(entry.id.message)?.map(|record| (entry, record)))
    };
    let mut entries: Vec<(Entry, MessageRecord)> =
        entries.into_iter().map(with_record).filter_map(Result::transpose).collect::<Result<_, _>>()?;
    let accepted_before = filter.older_than.map(|age| Timestamp(shared.now().0.saturating_sub(millis(age))));
    entries.retain(|(entry, record)| {
        filter.concerns(entry, record) && accepted_before.is_none_or(|then| record.accepted_at <= then)
    });
    Ok(Page { entries, next: last.filter(|_| more).map(|id| id.to_string()) })
}

/// Compares the disk with itself and with memory.
pub(super) fn audit(shared: &Shared, after: Option<EntryId>) -> Result<AuditPage, QueueError> {
    let (mut checked, mut last, mut more) = (0, None, false);
    let (mut odd, mut messages) = (Vec::new(), HashSet::new());
    let mut fault = |what: String, why: &str| odd.push(Oddity { what, why: why.to_owned() });
    shared.store.each_entry(after, |entry| {
        if checked == SCANNED_PER_PAGE {
            more = true;
            return false;
        }
        checked += 1;
        last = Some(entry.id);
        messages.insert(entry.id.message);
        // What is settled at this moment is gone from one of the two a little earlier.
        let known = shared.state().schedule.slot(entry.id).is_some();
        if !known && matches!(shared.store.entry(entry.id), Ok(Some(_))) {
            fault(entry.id.to_string(), "it is on disk, and not known in memory: it is not tried");
        }
        true
    })?;
    for id in messages {
        let (record, content) = (shared.store.message(id)?, shared.store.content(id, 0));
        let open = shared.state().schedule.contains(id);
        if open && record.is_none() {
            fault(id.to_string(), "its entries are there, its record is gone");
        }
        if open && content.is_err() {
            fault(id.to_string(), "its entries are there, its content is gone");
        }
    }
    Ok(AuditPage { checked: checked as u64, odd, next: last.filter(|_| more).map(|id| id.to_string()) })
}
