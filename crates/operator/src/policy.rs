//! An MTA-STS policy's life, as a plan (RFC 8461). Pure.
//!
//! Senders remember a policy for as long as it says, and look at the TXT record before they give a message up. So
//! changes go in an order in which no policy that a sender may hold forbids a host that MX names:
//!
//! - A policy is served first; its id goes into the TXT record once the policy host was seen to serve just it.
//! - A new MX host is in the policy before it is in MX: MX waits until the record has been seen at all name
//!   servers for its time to live.
//! - A host that is declared no more stays in the policy until no name server has named it in MX for the time to
//!   live of the MX records.
//! - `enforce` begins when MX names declared hosts alone, and none of them shows a certificate that is refused.
//! - Before a policy goes, `none` takes its place until every enforced one that was served has been forgotten.
//!
//! An id is never used twice, not even for a policy that comes back: between, senders have fetched another under it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mta_sts::{MAX_AGE_LIMIT, Mode, Policy, Standing};
use serde::{Deserialize, Serialize};

use crate::keys::Seen;

mod verdict;

pub(crate) use verdict::Verdict;

/// How long `none` is remembered while a policy is withdrawn, in seconds at most.
const FAREWELL_AGE: u32 = 86_400;
/// A policy that was chosen so recently is waited for closely.
const FRESH: Duration = Duration::from_secs(60);
/// Policies that senders may hold though a newer one is announced, at most; the oldest are forgotten.
const MAX_EARLIER: usize = 16;

/// A policy under the id by which senders know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Version {
    pub(crate) policy: Policy,
    /// It begins with the id that the content gives, and ends with a number that only grows.
    pub(crate) id: String,
}

impl Version {
    fn is_enforced(&self) -> bool {
        self.policy.mode == Mode::Enforce
    }
}

/// What is remembered of a domain's policy, in an object of its own: an erased status changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Memory {
    /// The policy that is to be served.
    pub(crate) served: Option<Version>,
    /// The number in the last id.
    pub(crate) serial: u64,
    /// Since when.
    pub(crate) served_since: Option<Timestamp>,
    /// Since when the policy host was seen to serve just it.
    pub(crate) seen_since: Option<Timestamp>,
    /// The policy whose id the TXT record tells.
    pub(crate) announced: Option<Version>,
    /// Since when every name server shows the record as it should be, or none where it is withdrawn.
    pub(crate) shown_since: Option<Timestamp>,
    /// Policies announced or served before, which senders may hold who have not seen the present record.
    pub(crate) earlier: Vec<Policy>,
    /// How long senders remember an enforced policy, in seconds, that may be served still.
    pub(crate) lagging: Option<u32>,
    /// Until when senders may remember an enforced policy that is served no more.
    pub(crate) remembered_until: Option<Timestamp>,
    /// Since when MX is looked at: what it named before may still be remembered.
    pub(crate) watched_since: Option<Timestamp>,
    /// Hosts that are declared no more, and still in the policy.
    pub(crate) former: BTreeMap<String, Lingering>,
    /// Hosts that MX names, or resolvers may still find there.
    pub(crate) named: BTreeMap<String, Lingering>,
    /// The TXT record is to go, and then all of this.
    pub(crate) withdrawn: bool,
}

/// A host that resolvers may still find in MX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lingering {
    /// Since when no name server names it.
    unnamed_since: Option<Timestamp>,
    /// The time to live of the records that named it, in seconds.
    ttl: u32,
}

/// The hosts that MX names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exchangers {
    /// Each with the longest time to live of its records, in seconds.
    pub(crate) named: BTreeMap<String, u32>,
    /// Every name server has told.
    pub(crate) complete: bool,
}

/// What is to be seen from outside.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) now: Timestamp,
    /// What each address of the policy host serves; or why nothing is to be had.
    pub(crate) texts: Result<Vec<String>, String>,
    /// Whether the TXT record is as the memory says; before there is any, whether there is no record.
    pub(crate) record: Seen,
    pub(crate) exchangers: Exchangers,
    /// What was found of declared hosts, where it was looked.
    pub(crate) standing: BTreeMap<String, Standing>,
}

/// What the domain declares, and the operator's settings say.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// Nothing where a policy is wanted no more.
    pub(crate) policy: Option<&'a Policy>,
    /// The hosts of MX, in lower case; none where MX is not declared.
    pub(crate) hosts: &'a [String],
    /// How long a policy must have been seen before its id is published.
    pub(crate) settle: Duration,
    /// The time to live of the TXT record, and of MX records that were never seen.
    pub(crate) ttl: u32,
}

/// What follows.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What is to be remembered; nothing once all is over.
    pub(crate) memory: Option<Memory>,
    /// MX may be published as it is declared.
    pub(crate) mx_free: bool,
    pub(crate) verdict: Verdict,
    /// When to look again, where something is on its way.
    pub(crate) again: Option<Duration>,
}

/// What follows from what is remembered, wanted and seen; nothing for a domain that never had a policy.
pub(crate) fn plan(memory: Option<&Memory>, wanted: &Wanted<'_>, sight: &Sight) -> Option<Plan> {
    if memory.is_none() && wanted.policy.is_none() {
        return None;
    }
    let mut memory = match memory {
        Some(memory) => memory.clone(),
        // A record that stands there is of a policy that nobody here knows.
        None if sight.record != Seen::Yes => Memory { earlier: vec![unknown_policy()], ..Memory::default() },
        None => Memory::default(),
    };
    memory.step_back_to(sight.now);
    memory.follow_exchangers(wanted, sight);
    let (target, obstacle) = memory.target(wanted, sight);
    memory.serve(target, sight.now);
    memory.withdrawn &= wanted.policy.is_none();
    let announced_now = memory.witness(wanted, sight);
    // What was seen of the record is of the one before.
    let mut sight = sight.clone();
    if announced_now {
        sight.record = Seen::No;
    }
    let in_force = memory.is_in_force(wanted, &sight);
    if in_force {
        memory.earlier.clear();
    }
    if in_force && wanted.policy.is_none() && memory.is_forgotten(sight.now) {
        if memory.withdrawn {
            let verdict = Verdict::Withdrawing("the record is gone everywhere".to_owned());
            return Some(Plan { memory: None, mx_free: true, verdict, again: None });
        }
        (memory.withdrawn, memory.announced, memory.shown_since) = (true, None, None);
        sight.record = Seen::No;
    }
    let mx_held = memory.mx_held(wanted, &sight);
    let verdict = memory.verdict(wanted, &sight, in_force, obstacle, mx_held.as_deref());
    let again = memory.again(wanted, &sight, in_force);
    Some(Plan { memory: Some(memory), mx_free: mx_held.is_none(), verdict, again })
}

/// A policy of which nothing is known: it may forbid any host.
pub(crate) fn unknown_policy() -> Policy {
    Policy::new(Mode::Enforce, ["unknown.invalid"], MAX_AGE_LIMIT)
}

fn after(since: Timestamp, seconds: u32) -> Timestamp {
    since.checked_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX)
}

/// How long until `then`; nothing when it is over.
fn until(now: Timestamp, then: Timestamp) -> Option<Duration> {
    Duration::try_from(then.duration_since(now)).ok().filter(|rest| !rest.is_zero())
}

impl Lingering {
    fn new(ttl: u32) -> Self {
        Self { unnamed_since: None, ttl }
    }

    /// When resolvers have forgotten it; nothing while it is named.
    fn ends(&self) -> Option<Timestamp> {
        self.unnamed_since.map(|since| after(since, self.ttl))
    }
}

/// Notes which hosts are named, and forgets those that resolvers have forgotten.
fn follow(hosts: &mut BTreeMap<String, Lingering>, sight: &Sight) {
    let Exchangers { named, complete } = &sight.exchangers;
    hosts.retain(|host, lingering| {
        if let Some(ttl) = named.get(host) {
            *lingering = Lingering::new(lingering.ttl.max(*ttl));
        } else if *complete {
            lingering.unnamed_since.get_or_insert(sight.now);
        }
        // One server that does not tell may be the one that names it.
        !(*complete && lingering.ends().is_some_and(|end| end <= sight.now))
    });
}

impl Memory {
    /// A clock that was set back makes everything wait anew, and nothing happen early.
    fn step_back_to(&mut self, now: Timestamp) {
        let seen = [&mut self.seen_since, &mut self.shown_since];
        let own = [&mut self.served_since, &mut self.watched_since].into_iter().chain(seen);
        let hosts = self.former.values_mut().chain(self.named.values_mut());
        for since in own.chain(hosts.map(|lingering| &mut lingering.unnamed_since)) {
            *since = since.map(|since| since.min(now));
        }
    }

    fn follow_exchangers(&mut self, wanted: &Wanted<'_>, sight: &Sight) {
        if sight.exchangers.complete {
            self.watched_since.get_or_insert(sight.now);
        }
        let is_declared = |host: &String| wanted.hosts.contains(host);
        let ttl = sight.exchangers.named.values().copied().max().unwrap_or_default().max(wanted.ttl);
        for host in self.served.iter().flat_map(|served| &served.policy.mx).filter(|host| !is_declared(host))
        {
            self.former.entry(host.clone()).or_insert(Lingering::new(ttl));
        }
        self.former.retain(|host, _| !is_declared(host));
        for (host, ttl) in &sight.exchangers.named {
            self.named.entry(host.clone()).or_insert(Lingering::new(*ttl));
        }
        follow(&mut self.former, sight);
        follow(&mut self.named, sight);
    }

    /// Hosts that senders may find in MX, and that nobody declares or declared.
    fn strays(&self, wanted: &Wanted<'_>) -> impl Iterator<Item = (&String, &Lingering)> {
        let hosts = wanted.hosts;
        let is_stray = move |host: &String| !hosts.contains(host) && !self.former.contains_key(host);
        self.named.iter().filter(move |(host, _)| is_stray(host))
    }

    /// Until when senders may keep to an enforced policy, if it goes now.
    pub(crate) fn binds_until(&self, now: Timestamp) -> Option<Timestamp> {
        let served = self.served.iter().filter(|served| served.is_enforced());
        let ages = served.map(|served| served.policy.max_age).chain(self.lagging);
        let ends = ages.map(|age| after(now, age)).chain(self.remembered_until);
        ends.max().filter(|end| *end > now)
    }

    fn enforces(&self) -> bool {
        self.served.iter().chain(&self.announced).any(Version::is_enforced)
    }

    /// The policy to serve, and what keeps it from being enforced.
    fn target(&self, wanted: &Wanted<'_>, sight: &Sight) -> (Policy, Option<String>) {
        let Some(declared) = wanted.policy else {
            let age =
                self.served.as_ref().map_or(FAREWELL_AGE, |served| served.policy.max_age.min(FAREWELL_AGE));
            return (Policy::new(Mode::None, [], age), None);
        };
        let obstacle = match declared.mode {
            // Only the hosts of what is served were followed all the time.
            Mode::Enforce if !self.served.as_ref().is_some_and(Version::is_enforced) => {
                self.obstacle(wanted, sight)
            }
            _ => None,
        };
        let mode = if obstacle.is_some() { Mode::Testing } else { declared.mode };
        let hosts = declared.mx.iter().chain(self.former.keys()).map(String::as_str);
        (Policy::new(mode, hosts, declared.max_age), obstacle)
    }

    /// What speaks against enforcing now.
    fn obstacle(&self, wanted: &Wanted<'_>, sight: &Sight) -> Option<String> {
        if !sight.exchangers.complete {
            return Some("a name server does not answer for MX".to_owned());
        }
        if sight.exchangers.named.is_empty() {
            return Some("MX names no host".to_owned());
        }
        if let Some((host, lingering)) = self.strays(wanted).next() {
            return Some(match lingering.ends() {
                None => {
                    format!("MX names {host}, which spec.mx does not: add it there, or remove it from MX")
                }
                Some(end) => format!("resolvers may remember {host} in MX until {end}"),
            });
        }
        if let Some(end) = self.watched(wanted, sight).filter(|end| *end > sight.now) {
            return Some(format!("resolvers may remember what MX named before, until {end}"));
        }
        refused(wanted.hosts, sight).map(str::to_owned)
    }

    /// When resolvers have forgotten what MX named before it was looked at.
    fn watched(&self, wanted: &Wanted<'_>, sight: &Sight) -> Option<Timestamp> {
        let ttl = sight.exchangers.named.values().copied().max().unwrap_or_default().max(wanted.ttl);
        self.watched_since.map(|since| after(since, ttl))
    }

    fn serve(&mut self, target: Policy, now: Timestamp) {
        if self.served.as_ref().is_some_and(|served| served.policy == target) {
            return;
        }
        self.serial = u64::try_from(now.as_second()).unwrap_or_default().max(self.serial + 1);
        let id = format!("{:.16}{:x}", target.id(), self.serial);
        if let Some(old) = self.served.replace(Version { policy: target, id }) {
            if old.is_enforced() {
                self.lagging = self.lagging.max(Some(old.policy.max_age));
            }
            // Whoever held none yet has fetched it under the id that was announced.
            self.supersede(old.policy);
        }
        (self.served_since, self.seen_since) = (Some(now), None);
    }

    /// Senders may hold this until they have seen a newer id.
    fn supersede(&mut self, policy: Policy) {
        self.earlier.retain(|earlier| *earlier != policy);
        self.earlier.push(policy);
        self.earlier.drain(..self.earlier.len().saturating_sub(MAX_EARLIER));
    }

    /// Takes note of what the policy host and the name servers show. Whether a policy is announced from now on.
    fn witness(&mut self, wanted: &Wanted<'_>, sight: &Sight) -> bool {
        if self.is_seen(sight) {
            self.seen_since.get_or_insert(sight.now);
        } else {
            self.seen_since = None;
        }
        match sight.record {
            Seen::Yes => _ = self.shown_since.get_or_insert(sight.now),
            Seen::No => self.shown_since = None,
            Seen::Unknown => {}
        }
        if !self.is_settled(wanted, sight.now) {
            return false;
        }
        if let Some(age) = self.lagging.take() {
            self.remembered_until = self.remembered_until.max(Some(after(sight.now, age)));
        }
        if self.announced == self.served || self.withdrawn {
            return false;
        }
        if let Some(old) = std::mem::replace(&mut self.announced, self.served.clone()) {
            self.supersede(old.policy);
        }
        self.shown_since = None;
        true
    }

    /// Every address of the policy host serves just the policy.
    fn is_seen(&self, sight: &Sight) -> bool {
        let text = self.served.as_ref().map(|served| served.policy.to_string());
        let texts = sight.texts.as_deref().unwrap_or_default();
        !texts.is_empty() && texts.iter().all(|served| Some(served) == text.as_ref())
    }

    fn settles(&self, wanted: &Wanted<'_>) -> Option<Timestamp> {
        let settle = u32::try_from(wanted.settle.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        self.seen_since.map(|since| after(since, settle))
    }

    fn is_settled(&self, wanted: &Wanted<'_>, now: Timestamp) -> bool {
        self.settles(wanted).is_some_and(|end| end <= now)
    }

    /// Resolvers have forgotten what the record said before.
    fn is_in_force(&self, wanted: &Wanted<'_>, sight: &Sight) -> bool {
        let told = self.withdrawn || (self.announced.is_some() && self.announced == self.served);
        let shown = self.shown_since.is_some_and(|since| after(since, wanted.ttl) <= sight.now);
        told && shown && sight.record == Seen::Yes
    }

    fn is_forgotten(&self, now: Timestamp) -> bool {
        self.lagging.is_none() && self.remembered_until.is_none_or(|end| end <= now)
    }

    /// Why MX records must wait.
    fn mx_held(&self, wanted: &Wanted<'_>, sight: &Sight) -> Option<String> {
        let versions = self.announced.iter().chain(&self.served).map(|version| &version.policy);
        let held = self.earlier.iter().chain(versions);
        let mut binding = held.filter(|policy| policy.mode != Mode::None);
        let forbidden = |policy: &Policy| wanted.hosts.iter().find(|host| !policy.covers(host)).cloned();
        if let Some(host) = binding.find_map(forbidden) {
            return Some(format!("senders may hold a policy without {host}"));
        }
        let coming: Vec<String> = match &sight.exchangers {
            Exchangers { named, complete: true } => {
                wanted.hosts.iter().filter(|host| !named.contains_key(*host)).cloned().collect()
            }
            _ => Vec::new(),
        };
        let enforced = self.enforces() && wanted.policy.is_some_and(|policy| policy.mode == Mode::Enforce);
        refused(&coming, sight).filter(|_| enforced).map(str::to_owned)
    }

    /// When the next step may be due.
    fn again(&self, wanted: &Wanted<'_>, sight: &Sight, in_force: bool) -> Option<Duration> {
        let now = sight.now;
        let fresh = self.served_since.is_some_and(|since| {
            Duration::try_from(now.duration_since(since)).is_ok_and(|lasted| lasted < FRESH)
        });
        let patient = if fresh { Duration::from_secs(1) } else { FRESH / 2 };
        let unseen = !self.is_seen(sight) && !self.withdrawn;
        let unshown = sight.record != Seen::Yes && (self.announced.is_some() || self.withdrawn);
        let shown = self.shown_since.filter(|_| !in_force).map(|since| after(since, wanted.ttl));
        let settled = self.settles(wanted).filter(|_| self.announced != self.served && !self.withdrawn);
        let hosts = self.former.values().chain(self.strays(wanted).map(|(_, lingering)| lingering));
        let hosts: Vec<&Lingering> = hosts.collect();
        let named = hosts.iter().any(|lingering| lingering.unnamed_since.is_none());
        let ends = hosts.iter().filter_map(|lingering| lingering.ends());
        let farewell = self.remembered_until.filter(|_| wanted.policy.is_none());
        let watched = self.watched(wanted, sight).filter(|_| !self.enforces());
        let dues = ends.chain([shown, settled, farewell, watched].into_iter().flatten());
        let due = dues.filter_map(|then| until(now, then)).min();
        let waits = [(unseen, patient), (unshown, patient), (named, FRESH / 2)];
        let waits = waits.into_iter().filter(|(waits, _)| *waits).map(|(_, wait)| wait).min();
        due.into_iter().chain(waits).min()
    }
}

/// What is wrong with the first of these hosts that senders would refuse.
fn refused<'a>(hosts: &[String], sight: &'a Sight) -> Option<&'a str> {
    hosts.iter().find_map(|host| match sight.standing.get(host) {
        Some(Standing::Bad(why)) => Some(why.as_str()),
        _ => None,
    })
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
