//! One domain, from what is observed over what is planned to what is done.

use std::sync::Arc;
use std::time::Duration;

use domains::types::{Dkim, DnsMode, MailDomain, RecordPolicy, RecordState, Stage};
use domains::{Algorithm, Namespaces, must_be_proven, ownership_stands};
use futures::future::join_all;
use jiff::Timestamp;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt};
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tracing::{Instrument, Span, info_span};

use crate::contests::Contests;
use crate::error::Error;
use crate::failures::Failures;
use crate::keypair;
use crate::keys::{Action, Key, Orders, Pace, plan};
use crate::memory::MemoryStore;
use crate::observe::{Authorities, Observation, Observer, Zones, is_below};
use crate::placement::{pinned, place, shown};
use crate::policy::Memory;
use crate::record::{Purpose, Record, challenge, desired, policy_record, ttl};
use crate::status::{Findings, PolicyFinding, mode};
use crate::store::{KeyStore, Keys, StoredKey};
use crate::tally::Tally;
use crate::tlsa::Rollovers;
use crate::waits::Waits;
use crate::ways::Ways;
use crate::witness::Witness;

/// Asks for new keys: set it to another value for each rotation.
pub(crate) const ROTATE_NOW: &str = "mail.packetboat.dev/rotate-now";
/// Asks for a selector to be revoked; with `,force` behind it at once.
pub(crate) const REVOKE: &str = "mail.packetboat.dev/revoke";
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// What reconciliations work with.
pub(crate) struct Context {
    pub(crate) client: Client,
    /// The namespaces that are looked after.
    pub(crate) namespaces: Namespaces,
    /// Every domain's ownership is to be proven.
    pub(crate) require_ownership: bool,
    pub(crate) observer: Observer,
    /// Looks at policies from outside.
    pub(crate) witness: Arc<Witness>,
    pub(crate) recorder: Recorder,
    /// All MailDomains, for who claims what.
    pub(crate) domains: Store<MailDomain>,
    /// All keys.
    pub(crate) keys: Keys,
    /// What MailDomains publish through.
    pub(crate) ways: Ways,
    /// How many keys may be made at a time: that is work for processors, and others wait for them too.
    pub(crate) generators: Semaphore,
    /// Keys and records of all domains, counted.
    pub(crate) tally: Tally,
    /// How long keys have been in their stages.
    pub(crate) waits: Waits,
    /// Rounds in a row that failed.
    pub(crate) failures: Failures,
    /// Rounds in a row that came to their end, but could not publish or look.
    pub(crate) troubles: Failures,
    /// Records that something else keeps changing back.
    pub(crate) contests: Contests,
    /// Keys of certificates that come after others.
    pub(crate) rollovers: Rollovers,
}

/// What came of a reconciliation, and when it is to be looked again.
pub(crate) struct Outcome {
    pub(crate) findings: Findings,
    pub(crate) again: Duration,
}

/// By what the older of two MailDomains is told: it has the domain.
pub(crate) fn age(one: &MailDomain) -> impl Ord + use<> {
    (one.creation_timestamp(), one.namespace(), one.name_any())
}

/// Whether another MailDomain has the same domain: an older one, or one that is proven while this one is not. A claim
/// that is yet to be proven stands in nobody's way.
pub(crate) fn is_claimed_by_another(domain: &MailDomain, all: &[Arc<MailDomain>], required: bool) -> bool {
    let stands = |one: &MailDomain| ownership_stands(&one.spec, one.status.as_ref(), required);
    all.iter().any(|other| {
        other.spec.domain == domain.spec.domain
            && other.uid() != domain.uid()
            && other.metadata.deletion_timestamp.is_none()
            && stands(other)
            && (age(other) < age(domain) || !stands(domain))
    })
}

/// The span in which a key comes to a stage.
fn stage_span(selector: &str, stage: Stage) -> Span {
    info_span!("stage", mail.dkim.selector = selector, mail.dkim.stage = stage.name())
}

impl Context {
    pub(crate) fn key_store(&self, domain: &MailDomain) -> KeyStore<'_> {
        KeyStore::new(&self.client, &domain.namespace().unwrap_or_default(), &self.keys)
    }

    /// Brings one domain a step further.
    pub(crate) async fn advance(&self, domain: &MailDomain) -> Result<Outcome, Error> {
        let interval = domain.spec.dns.as_ref().map_or(LONGEST * 20, |dns| dns.verification.interval);
        let settled = |findings| Outcome { findings, again: interval };
        if is_claimed_by_another(domain, &self.domains.state(), self.require_ownership) {
            return Ok(settled(Findings { conflict: true, ..Findings::default() }));
        }
        let store = self.key_store(domain);
        let mut keys = store.list(domain).await?;
        let publishers = match self.publishers(domain).await? {
            Ok(publishers) => publishers,
            Err(findings) => {
                // What signs goes on to sign.
                let findings = Findings { keys, ..findings };
                return Ok(Outcome { findings, again: interval.min(LONGEST) });
            }
        };
        let memory = MemoryStore::new(&self.client, domain).load().await?;
        let unseen = |memory: Option<Memory>| Some(PolicyFinding { memory, verdict: None });
        let zones = match self.observer.zones(&domain.spec).await {
            Ok(zones) => zones,
            Err(error) => {
                let lookup_failed = Some(told(&error));
                let unknown =
                    Observation { state: RecordState::Unknown, observed: Vec::new(), shown: Vec::new() };
                let records = records_of(domain, &keys, memory.as_ref());
                let records = records.into_iter().map(|record| (record, unknown.clone())).collect();
                let policy = unseen(memory);
                let findings = Findings { records, keys, policy, lookup_failed, ..Findings::default() };
                return Ok(Outcome { findings, again: LONGEST });
            }
        };
        let proof = self.proof(domain, &zones.own).await;
        if let Some(unproven) = proof.iter().find(|(_, seen)| seen.state != RecordState::Verified) {
            let (records, policy) = (vec![unproven.clone()], unseen(memory));
            let findings = Findings { keys, records, proof, policy, ..Findings::default() };
            return Ok(Outcome { findings, again: interval.min(LONGEST) });
        }
        let look = self.look(domain, &zones, &keys, memory.as_ref());
        let mut seen = look.instrument(info_span!("look", dns.zone = %zones.own.zone)).await;
        let pins = self.look_at_tlsa(domain, &zones).await?;
        seen.extend(pins.records);
        let plan = self.plan_policy(domain, &zones.own, memory.as_ref(), &seen);
        let plan = plan.instrument(info_span!("policy")).await;
        let mx_free = plan.as_ref().is_none_or(|plan| plan.mx_free);
        seen.retain(|(record, _)| mx_free || record.purpose != Purpose::Mx);
        let planned = plan.as_ref().and_then(|plan| plan.memory.as_ref());
        let mut publish_failed = None;
        if !domain.spec.suspend {
            let turn = self.turn_keys(domain, &store, &mut keys, &seen, zones.negative_ttl());
            let gone = turn.instrument(info_span!("keys")).await?;
            self.remember(domain, memory.as_ref(), planned).await?;
            let mut records = records_of(domain, &keys, planned);
            records.extend(pinned(&seen));
            records.retain(|record| mx_free || record.purpose != Purpose::Mx);
            publish_failed = self.publish(domain, &publishers, &zones, &records, &gone, &seen).await;
            if publish_failed.is_none() {
                if memory.is_some() && planned.is_none() {
                    MemoryStore::new(&self.client, domain).forget().await?;
                }
                for key in &gone {
                    store.forget(key).await?;
                }
                keys.retain(|key| gone.iter().all(|gone| gone.key.selector != key.key.selector));
            }
        }
        let mut again = again(domain, &keys, &seen, publish_failed.is_some() || pins.waiting, interval);
        let suspended = domain.spec.suspend;
        let policy = match plan {
            Some(plan) => {
                self.warn_of_policy(domain, &plan.verdict).await;
                again = again.min(plan.again.unwrap_or(again));
                let memory = if suspended { memory } else { plan.memory };
                Some(PolicyFinding { memory, verdict: Some(plan.verdict) })
            }
            None => None,
        };
        Ok(Outcome {
            findings: Findings {
                keys,
                records: seen,
                tlsa: pins.state,
                proof,
                policy,
                publish_failed,
                suspended,
                ..Findings::default()
            },
            again,
        })
    }

    /// The record that proves ownership, where that is asked for, and what all name servers say of it.
    pub(crate) async fn proof(
        &self,
        domain: &MailDomain,
        authorities: &Authorities,
    ) -> Option<(Record, Observation)> {
        if !must_be_proven(&domain.spec, self.require_ownership) {
            return None;
        }
        let record = challenge(&domain.spec, &domain.uid().unwrap_or_default());
        let seen = self.observer.look(authorities, &record).await;
        Some((record, seen))
    }

    /// Every record that should be, and what all name servers say of it.
    async fn look(
        &self,
        domain: &MailDomain,
        zones: &Zones,
        keys: &[StoredKey],
        memory: Option<&Memory>,
    ) -> Vec<(Record, Observation)> {
        let records = records_of(domain, keys, memory);
        let looks = records.iter().map(|record| self.observer.look(zones.of(record), record));
        let seen = join_all(looks).await;
        records.into_iter().zip(seen).collect()
    }

    /// Moves keys along their lives. Gives those to be forgotten once their records are gone.
    async fn turn_keys(
        &self,
        domain: &MailDomain,
        store: &KeyStore<'_>,
        keys: &mut Vec<StoredKey>,
        seen: &[(Record, Observation)],
        negative_ttl: Duration,
    ) -> Result<Vec<StoredKey>, Error> {
        let Some(dkim) = &domain.spec.dkim else { return Ok(Vec::new()) };
        for half in keys.iter_mut().filter(|stored| stored.is_half_revoked()) {
            store.bury(domain, half).await?;
        }
        let uid = domain.uid().unwrap_or_default();
        self.waits.tell(&uid, keys);
        let plain: Vec<Key> = keys.iter().map(|stored| stored.key.clone()).collect();
        let shown = |wanted: &str| shown(wanted, &plain, seen);
        let ttl = ttl(&domain.spec);
        let reused = dkim.delegated().map_or(Duration::ZERO, |_| ttl);
        let pace = Pace {
            settled: dkim.rotation.min_propagation.max(negative_ttl).max(reused),
            ttl,
            automatic: mode(domain) != DnsMode::Manual || dkim.delegated().is_some(),
        };
        let now = Timestamp::now();
        let orders = orders(domain);
        let actions = plan(now, dkim, pace, &plain, shown, &orders);
        let mut gone = Vec::new();
        for action in actions {
            match action {
                Action::Generate(algorithm) => {
                    let Some(place) = place(domain, dkim, algorithm, keys, &orders, seen) else {
                        continue;
                    };
                    let order = orders.rotate.clone();
                    let (key, pem) = self.generate(dkim.rsa_bits, algorithm, place, order).await?;
                    self.tell(domain, "KeyGenerated", format!("the key {} was made", key.selector)).await;
                    let span = stage_span(&key.selector, key.stage);
                    keys.push(store.create(domain, key, &pem).instrument(span).await?);
                }
                Action::Move(selector, stage) => {
                    let newest = keys.iter().map(|stored| stored.key.turn).max().unwrap_or(0);
                    if let Some(stored) = keys.iter_mut().find(|stored| stored.key.selector == selector) {
                        (stored.key.stage, stored.key.since, stored.key.missed) = (stage, now, 0);
                        self.waits.note(&uid, &selector, stage);
                        if stage == Stage::Active {
                            stored.key.turn = newest + 1;
                        }
                        store.write(domain, stored).instrument(stage_span(&selector, stage)).await?;
                        let text = format!("the key {selector} is {}", stage.name());
                        self.tell(domain, "KeyStage", text).await;
                    }
                }
                Action::Missed(selector, missed) => {
                    if let Some(stored) = keys.iter_mut().find(|stored| stored.key.selector == selector) {
                        stored.key.missed = missed;
                        store.write(domain, stored).await?;
                    }
                }
                Action::Forget(selector) => {
                    gone.extend(keys.iter().find(|stored| stored.key.selector == selector).cloned());
                }
            }
        }
        Ok(gone)
    }

    /// A new key, in memory alone as yet.
    async fn generate(
        &self,
        bits: u16,
        algorithm: Algorithm,
        (selector, target): (String, Option<String>),
        order: Option<String>,
    ) -> Result<(Key, SecretString), Error> {
        let failed = || keypair::KeyPairError::Generate("new");
        let permit = self.generators.acquire().await.map_err(|_| failed())?;
        let made = tokio::task::spawn_blocking(move || keypair::generate(algorithm, bits)).await;
        drop(permit);
        let pem = made.map_err(|_| failed())??;
        let (stage, since) = (Stage::Generated, Timestamp::now());
        let key = Key {
            selector,
            algorithm,
            stage,
            since,
            waited: None,
            created: since,
            missed: 0,
            turn: 0,
            target,
            order,
        };
        Ok((key, pem))
    }
}

/// What the annotations ask for.
fn orders(domain: &MailDomain) -> Orders {
    let annotations = domain.annotations();
    let mut orders = Orders { rotate: annotations.get(ROTATE_NOW).cloned(), ..Orders::default() };
    if let Some(text) = annotations.get(REVOKE) {
        let (selector, force) = text.split_once(',').unwrap_or((text, ""));
        orders.revoke = Some(selector.trim().to_owned());
        orders.force = force.trim() == "force";
    }
    orders
}

/// The records of a domain with its keys as they stand, but those in a zone that the spec does not name any more.
pub(crate) fn records_of(domain: &MailDomain, keys: &[StoredKey], memory: Option<&Memory>) -> Vec<Record> {
    let base = domain.spec.dkim.as_ref().and_then(Dkim::delegated).map(|one| one.base(&domain.spec.domain));
    let is_reached = |stored: &&StoredKey| match (&stored.key.target, &base) {
        (Some(target), Some(base)) => is_below(target, base),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let shown = keys.iter().filter(|stored| stored.key.stage > Stage::Generated).filter(is_reached);
    let published: Vec<_> = shown.map(StoredKey::published).collect();
    let mut records = desired(&domain.spec, &published);
    records.retain(|record| record.purpose != Purpose::MtaSts);
    if memory.is_some() && Purpose::MtaSts.policy(&domain.spec) != RecordPolicy::Ignore {
        records.extend(policy_record(&domain.spec, memory));
    }
    records
}

/// When to look again: soon while something is on its way.
fn again(
    domain: &MailDomain,
    keys: &[StoredKey],
    seen: &[(Record, Observation)],
    failed: bool,
    interval: Duration,
) -> Duration {
    let managed_is_wrong = seen.iter().any(|(record, observation)| {
        record.purpose.policy(&domain.spec) == RecordPolicy::Manage
            && observation.state != RecordState::Verified
    });
    let Some(dkim) = &domain.spec.dkim else {
        let on_its_way = failed || (managed_is_wrong && mode(domain) != DnsMode::Manual);
        return if on_its_way { interval.min(LONGEST) } else { interval };
    };
    let rotation = &dkim.rotation;
    let moving = keys.iter().any(|stored| stored.key.stage < Stage::Active || stored.key.missed > 0);
    if managed_is_wrong || failed || keys.is_empty() || moving {
        // A record that is there and is to stay there for long need not be looked at each moment.
        let steady = !managed_is_wrong && !failed && !keys.is_empty();
        let longest = if steady { LONGEST * 10 } else { LONGEST };
        return (rotation.min_propagation / 10).clamp(SHORTEST, longest);
    }
    let now = Timestamp::now();
    let due = keys.iter().filter_map(|stored| {
        let lasts = match stored.key.stage {
            Stage::Active => rotation.interval,
            Stage::Retiring => rotation.retire_after,
            Stage::Revoked => rotation.revoke_for,
            _ => return None,
        };
        let lasted: Duration = now.duration_since(stored.key.since).try_into().unwrap_or_default();
        // What stays long overdue does not wait for time: a rotation by hand, say, waits for a person.
        (lasted < lasts.saturating_add(LONGEST)).then(|| lasts.saturating_sub(lasted))
    });
    due.min().unwrap_or(interval).clamp(SHORTEST, interval.max(SHORTEST))
}

/// An error with its causes, in one line.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
