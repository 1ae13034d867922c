//! What there is over all domains, as metrics: keys by stage, records by state; and what was there last.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use domains::types::{RecordState, Stage};

use crate::observe::Observation;
use crate::record::Record;
use crate::store::StoredKey;

const STAGES: [Stage; 6] =
    [Stage::Generated, Stage::Publishing, Stage::Propagating, Stage::Active, Stage::Retiring, Stage::Revoked];
const STATES: [RecordState; 5] = [
    RecordState::Verified,
    RecordState::Missing,
    RecordState::Drifted,
    RecordState::Conflict,
    RecordState::Unknown,
];

/// What one domain has.
#[derive(Default)]
struct Counts {
    /// Keys are made for it.
    has_keys_made: bool,
    keys: BTreeMap<&'static str, u32>,
    records: BTreeMap<&'static str, u32>,
    /// The zone lines of the records that were there when the name servers last said anything of them.
    shown: HashSet<Vec<String>>,
}

/// What all domains have, by UID.
#[derive(Default)]
pub(crate) struct Tally {
    domains: Mutex<HashMap<String, Counts>>,
}

fn state_name(state: RecordState) -> &'static str {
    match state {
        RecordState::Verified => "Verified",
        RecordState::Missing => "Missing",
        RecordState::Drifted => "Drifted",
        RecordState::Conflict => "Conflict",
        RecordState::Unknown => "Unknown",
    }
}

impl Tally {
    /// Notes what was found of a domain.
    pub(crate) fn note(
        &self,
        uid: &str,
        has_keys_made: bool,
        keys: &[StoredKey],
        records: &[(Record, Observation)],
    ) {
        let mut counts = Counts { has_keys_made, ..Counts::default() };
        for stored in keys {
            *counts.keys.entry(stored.key.stage.name()).or_default() += 1;
        }
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        let before = domains.remove(uid).unwrap_or_default();
        for (record, seen) in records {
            *counts.records.entry(state_name(seen.state)).or_default() += 1;
            let lines = record.zone_lines();
            let is_there = match seen.state {
                RecordState::Verified => true,
                RecordState::Unknown => before.shown.contains(&lines),
                RecordState::Missing | RecordState::Drifted | RecordState::Conflict => false,
            };
            if is_there {
                counts.shown.insert(lines);
            }
        }
        domains.insert(uid.to_owned(), counts);
    }

    /// True where the record was there when the name servers last said anything of it.
    pub(crate) fn was_shown(&self, uid: &str, record: &Record) -> bool {
        let domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.get(uid).is_some_and(|counts| counts.shown.contains(&record.zone_lines()))
    }

    /// Forgets a domain that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Tells the sums.
    pub(crate) fn tell(&self) {
        let domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::gauge!("packetboat_operator_domains").set(count(domains.len()));
        let waits =
            |counts: &&Counts| counts.has_keys_made && !counts.keys.contains_key(Stage::Active.name());
        let waiting = domains.values().filter(waits).count();
        metrics::gauge!("packetboat_operator_domains_without_key").set(count(waiting));
        for stage in STAGES.map(Stage::name) {
            let sum: u32 = domains.values().filter_map(|counts| counts.keys.get(stage)).sum();
            metrics::gauge!("packetboat_operator_keys", "stage" => stage).set(f64::from(sum));
        }
        for state in STATES.map(state_name) {
            let sum: u32 = domains.values().filter_map(|counts| counts.records.get(state)).sum();
            metrics::gauge!("packetboat_operator_records", "state" => state).set(f64::from(sum));
        }
    }
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
