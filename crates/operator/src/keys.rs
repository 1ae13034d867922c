//! The life of signing keys, as a plan. Pure: time, keys and what DNS shows are given; actions come out.
//!
//! Invariants, kept whatever is given in whatever order:
//! - I1: of each algorithm, a key ceases to sign only when a newer one signs (but for an emergency).
//! - I2: a key that signs and whose record is gone for three looks gives way to one that is still shown.
//! - I3: a selector is never used twice; one that is a CNAME only once nothing was signed with it for `retireAfter`
//!   and a time to live.
//! - I4: a private key goes only after `retireAfter` without signing, or revoked.
//! - I6: a clock that is set makes stages longer, never skips one.
//! - I7: where no new key can be made, the old one goes on.

use std::time::Duration;

use domains::Algorithm;
use domains::types::{Delegation, Dkim, Stage};
use jiff::Timestamp;

/// So many looks in a row that do not show an active key's record end its turn, if another is at hand.
pub const MISSED: u32 = 3;

/// A key, as far as the plan needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its selector.
    pub selector: String,
    /// What it signs with.
    pub algorithm: Algorithm,
    /// Where it is in its life.
    pub stage: Stage,
    /// Since when, by the clock.
    pub since: Timestamp,
    /// How long ago that was, by this process's own count, where it was there: a clock may be put forward.
    pub waited: Option<Duration>,
    /// When it was made.
    pub created: Timestamp,
    /// Looks in a row that did not show its record while it was active.
    pub missed: u32,
    /// Which of its domain's keys came to sign when: the highest number is the newest, whatever clocks say.
    pub turn: u32,
    /// The name of its record, where the selector is a CNAME.
    pub target: Option<String>,
    /// The rotation that was asked for when it was made.
    pub order: Option<String>,
}

impl Key {
    /// Whether it lies where keys are to lie now.
    fn is_in_place(&self, dkim: &Dkim) -> bool {
        match (dkim.delegated(), &self.target) {
            (Some(delegation), Some(target)) => target
                .strip_suffix(delegation.target_zone.trim_end_matches('.'))
                .is_some_and(|rest| rest.ends_with('.')),
            (None, None) => true,
            _ => false,
        }
    }
}

/// How fast things may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long a record must have been seen before its key signs: the longest of the setting, of the negative
    /// times to live and, where a selector is used again, of the time to live.
    pub settled: Duration,
    /// The time to live of records.
    pub ttl: Duration,
    /// Rotation needs no person.
    pub automatic: bool,
}

/// What the authoritative name servers show of a key's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// All of them just this record.
    Yes,
    /// At least one none, or another.
    No,
    /// At least one did not answer: nothing follows from it.
    Unknown,
}

/// What is asked for beside the schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// New keys are to be made now, unless there is one that was made for this very wish.
    pub rotate: Option<String>,
    /// This selector is to be revoked, once another signs.
    pub revoke: Option<String>,
    /// It is to be revoked at once, whether another signs or not.
    pub force: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a key.
    Generate(Algorithm),
    /// Move a key to a stage, from now on.
    Move(String, Stage),
    /// Note so many looks that did not show an active key's record.
    Missed(String, u32),
    /// Forget a revoked key: its record and its tombstone go.
    Forget(String),
}

fn to(key: &Key, stage: Stage) -> Action {
    Action::Move(key.selector.clone(), stage)
}

/// How long a stage has lasted, for certain; a clock that was set back gives zero.
fn lasted(key: &Key, now: Timestamp) -> Duration {
    let told: Duration = now.duration_since(key.since).try_into().unwrap_or_default();
    key.waited.map_or(told, |waited| waited.min(told))
}

/// The plan for one domain.
pub fn plan(
    now: Timestamp,
    dkim: &Dkim,
    pace: Pace,
    keys: &[Key],
    seen: impl Fn(&str) -> Seen,
    orders: &Orders,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let signs = |algorithm: Algorithm| {
        keys.iter().any(|key| key.stage == Stage::Active && key.algorithm == algorithm)
    };
    for algorithm in [Algorithm::RsaSha256, Algorithm::Ed25519Sha256] {
        let own: Vec<&Key> = keys.iter().filter(|key| key.algorithm == algorithm).collect();
        let wanted = dkim.algorithms.contains(&algorithm) && dkim.rotation.enabled;
        // One that is asked for no more ceases to sign once one that is asked for does.
        let dropped =
            !dkim.algorithms.contains(&algorithm) && dkim.algorithms.iter().any(|other| signs(*other));
        plan_algorithm(now, dkim, pace, (wanted, dropped), algorithm, &own, &seen, orders, &mut actions);
    }
    if let Some(delegation) = dkim.delegated() {
        within_slots(now, dkim, pace, delegation, keys, orders, &mut actions);
    }
    actions
}

/// How long a selector that is a CNAME is kept after its key was revoked.
fn quiet(dkim: &Dkim, pace: Pace) -> Duration {
    dkim.rotation.retire_after.saturating_add(pace.ttl)
}

/// Makes no more keys than there are free slots. Where one lacks, that of the key which is revoked for longest
/// is made free, if it is quiet.
fn within_slots(
    now: Timestamp,
    dkim: &Dkim,
    pace: Pace,
    delegation: &Delegation,
    keys: &[Key],
    orders: &Orders,
    actions: &mut Vec<Action>,
) {
    let mut free = free_slots(delegation, keys, orders).count();
    let mut lacking = 0_usize;
    actions.retain(|action| match action {
        Action::Generate(_) if free == 0 => {
            lacking += 1;
            false
        }
        Action::Generate(_) => {
            free -= 1;
            true
        }
        _ => true,
    });
    let mut silent: Vec<&Key> = keys
        .iter()
        .filter(|key| key.stage == Stage::Revoked && key.target.is_some())
        .filter(|key| orders.revoke.as_ref() != Some(&key.selector))
        .filter(|key| lasted(key, now) >= quiet(dkim, pace))
        .collect();
    silent.sort_by_key(|key| key.since);
    for key in silent.into_iter().take(lacking) {
        let forget = Action::Forget(key.selector.clone());
        if !actions.contains(&forget) {
            actions.push(forget);
        }
    }
}

/// The selectors that no key has. One that is to be revoked would be revoked again.
fn free_slots<'a>(
    delegation: &Delegation,
    keys: &'a [Key],
    orders: &'a Orders,
) -> impl Iterator<Item = String> + use<'a> {
    delegation
        .selectors()
        .filter(|slot| keys.iter().all(|key| key.selector != *slot) && orders.revoke.as_ref() != Some(slot))
}

/// The selector for a new key, where selectors are CNAMEs: one that no key has, and if possible one whose CNAME
/// is shown.
pub fn slot(
    delegation: &Delegation,
    keys: &[Key],
    orders: &Orders,
    is_shown: impl Fn(&str) -> bool,
) -> Option<String> {
    let free: Vec<String> = free_slots(delegation, keys, orders).collect();
    free.iter().find(|slot| is_shown(slot)).or(free.first()).cloned()
}

#[allow(clippy::too_many_arguments)]
fn plan_algorithm(
    now: Timestamp,
    dkim: &Dkim,
    pace: Pace,
    (wanted, dropped): (bool, bool),
    algorithm: Algorithm,
    keys: &[&Key],
    seen: impl Fn(&str) -> Seen,
    orders: &Orders,
    actions: &mut Vec<Action>,
) {
    let in_stage = |stage: Stage| keys.iter().filter(move |key| key.stage == stage);
    let coming = keys.iter().any(|key| key.stage < Stage::Active);
    let newest_active = in_stage(Stage::Active).max_by_key(|key| (key.turn, key.since, &key.selector));
    let revoked = |key: &Key| orders.revoke.as_deref() == Some(key.selector.as_str());
    let ordered = orders.rotate.is_some() && keys.iter().all(|key| key.order != orders.rotate);
    let due = newest_active.is_some_and(|key| {
        let old = pace.automatic && (lasted(key, now) >= dkim.rotation.interval || !key.is_in_place(dkim));
        old || ordered || revoked(key)
    });
    if wanted && !coming && (newest_active.is_none() || due) {
        actions.push(Action::Generate(algorithm));
    }
    let fallback = in_stage(Stage::Retiring)
        .filter(|key| seen(&key.selector) == Seen::Yes && !revoked(key))
        .max_by_key(|key| key.since);
    // The key that signs again, because the one that does is shown no more.
    let again =
        newest_active.filter(|key| seen(&key.selector) == Seen::No && key.missed + 1 >= MISSED).and(fallback);
    let mut missed = Vec::new();
    for key in keys {
        match key.stage {
            Stage::Generated => actions.push(to(key, Stage::Publishing)),
            Stage::Publishing if seen(&key.selector) == Seen::Yes => {
                actions.push(to(key, Stage::Propagating))
            }
            Stage::Propagating => match seen(&key.selector) {
                Seen::No => actions.push(to(key, Stage::Publishing)),
                Seen::Yes if lasted(key, now) >= pace.settled => actions.push(to(key, Stage::Active)),
                Seen::Yes | Seen::Unknown => {}
            },
            Stage::Active => {
                let superseded = newest_active.is_some_and(|newest| newest.selector != key.selector);
                if revoked(key) && (superseded || orders.force) {
                    actions.push(to(key, Stage::Revoked));
                } else if superseded || dropped {
                    actions.push(to(key, Stage::Retiring));
                } else {
                    match (seen(&key.selector), again) {
                        (Seen::No, Some(again)) => {
                            actions.push(to(again, Stage::Active));
                            actions.push(to(key, Stage::Publishing));
                        }
                        (Seen::No, _) if key.missed < MISSED => {
                            missed.push(Action::Missed(key.selector.clone(), key.missed + 1));
                        }
                        (Seen::Yes, _) if key.missed > 0 => {
                            missed.push(Action::Missed(key.selector.clone(), 0));
                        }
                        _ => {}
                    }
                }
            }
            // Without a key that signs, one that retires may be needed again.
            Stage::Retiring if again.is_some_and(|again| again.selector == key.selector) => {}
            Stage::Retiring if revoked(key) => actions.push(to(key, Stage::Revoked)),
            Stage::Retiring
                if (newest_active.is_some() || dropped) && lasted(key, now) >= dkim.rotation.retire_after =>
            {
                actions.push(to(key, Stage::Revoked));
            }
            Stage::Revoked
                if lasted(key, now) >= dkim.rotation.revoke_for
                    && (key.target.is_none() || lasted(key, now) >= quiet(dkim, pace)) =>
            {
                actions.push(Action::Forget(key.selector.clone()));
            }
            Stage::Publishing | Stage::Retiring | Stage::Revoked => {}
        }
    }
    actions.extend(missed);
}

/// A selector by the template, another than those given. The second of the day and a number drawn by lot make
/// it one that was not used before, either, though clocks are set back and keys forgotten.
#[must_use]
pub fn selector(template: &str, algorithm: Algorithm, now: Timestamp, lot: u16, taken: &[&str]) -> String {
    let algorithm = match algorithm {
        Algorithm::RsaSha256 => "rsa",
        Algorithm::Ed25519Sha256 => "ed",
    };
    let day = now.strftime("%Y%m%d").to_string();
    let base = template.replace("{alg}", algorithm).replace("{yyyymmdd}", &day);
    let mut second = now.as_second().rem_euclid(86_400);
    loop {
        let selector = format!("{base}-{second:05x}{lot:04x}");
        if !taken.contains(&selector.as_str()) {
            return selector;
        }
        second += 1;
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
