//! What is managed is published, in each zone, and withdrawn or left when its MailDomain goes.

use domains::types::{DeletionPolicy, MailDomain, RecordPolicy, RecordState};
use jiff::Timestamp;
use kube::ResourceExt;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use crate::contests::LIMIT;
use crate::error::Error;
use crate::memory::MemoryStore;
use crate::observe::{Observation, Zones};
use crate::policy::Memory;
use crate::publisher::{Applied, Publisher, Publishers};
use crate::reconcile::{Context, is_claimed_by_another, records_of, told};
use crate::record::Record;
use crate::status::{Reason, selector_of};
use crate::store::StoredKey;
use crate::update::Change;

impl Context {
    /// Publishes what is managed, in each zone; what went wrong, in words.
    pub(crate) async fn publish(
        &self,
        domain: &MailDomain,
        publishers: &Publishers,
        zones: &Zones,
        records: &[Record],
        gone: &[StoredKey],
        seen: &[(Record, Observation)],
    ) -> Option<(Reason, String)> {
        let is_gone = |record: &Record| {
            record.values.is_empty()
                || gone.iter().any(|key| selector_of(record) == Some(key.key.selector.as_str()))
        };
        let managed =
            records.iter().filter(|record| record.purpose.policy(&domain.spec) == RecordPolicy::Manage);
        let (target, own): (Vec<_>, Vec<_>) = managed
            .map(|record| Change { record, remove: is_gone(record) })
            .partition(|change| zones.is_delegated(change.record));
        let mut failed = None;
        if let Some(publisher) = &publishers.own {
            let at = (zones.own.zone.as_str(), domain.spec.domain.as_str());
            failed = self.publish_at(domain, publisher, at, own, seen).await;
        }
        if let (Some(publisher), Some((base, authorities))) = (&publishers.target, &zones.target) {
            let at = (authorities.zone.as_str(), base.as_str());
            failed = failed.or(self.publish_at(domain, publisher, at, target, seen).await);
        }
        failed
    }

    /// Publishes in one zone what lies below a name.
    async fn publish_at(
        &self,
        domain: &MailDomain,
        publisher: &Publisher,
        (zone, base): (&str, &str),
        changes: Vec<Change<'_>>,
        seen: &[(Record, Observation)],
    ) -> Option<(Reason, String)> {
        let (uid, now) = (domain.uid().unwrap_or_default(), Timestamp::now());
        let (contested, changes): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .partition(|change| !change.remove && self.contests.is_contested(&uid, change.record, now));
        let shown = |change: &Change<'_>| {
            let is = |(record, seen): &(Record, Observation)| {
                record == change.record && seen.state == RecordState::Verified
            };
            !change.remove && seen.iter().any(is)
        };
        let span = info_span!(
            "update",
            otel.kind = "client",
            otel.status_code = Empty,
            dns.zone = %zone,
            dns.changed = Empty,
        );
        let applied = match publisher.is_seen_in_dns() && changes.iter().all(shown) {
            true => Ok(Applied::default()),
            false => {
                let applying = publisher.apply(zone, base, &changes);
                applying.instrument(span.clone()).await
            }
        };
        match &applied {
            Ok(applied) => span.record("dns.changed", applied.changed),
            Err(_) => span.record("otel.status_code", "error"),
        };
        match applied {
            Ok(applied) => {
                if applied.changed {
                    metrics::counter!("packetboat_operator_dns_updates_total").increment(1);
                    let wrong = seen.iter().filter(|(record, seen)| {
                        matches!(seen.state, RecordState::Missing | RecordState::Drifted)
                            && changes.iter().any(|change| change.record == record)
                    });
                    wrong.for_each(|(record, _)| self.contests.note(&uid, record, now));
                }
                if let Some(change) = contested.first() {
                    let text = format!(
                        "{} {} was written {LIMIT} times within an hour, and something else changed it back \
                        each time: find what writes it; an hour later, or with another wish, it is tried again",
                        change.record.name,
                        change.record.record_type()
                    );
                    return Some((Reason::Contested, text));
                }
                let interval = domain.spec.dns.as_ref()?.verification.interval;
                let late = applied.overdue(seen, interval)?;
                Some((Reason::NotObserved, format!("{late}: {}", publisher.hint())))
            }
            Err(error) => {
                self.ways.doubt();
                Some((Reason::PublishFailed, told(&error)))
            }
        }
    }

    /// Takes back, or leaves, what was made for a domain that goes. What cannot be taken back is told.
    pub(crate) async fn clean_up(&self, domain: &MailDomain) -> Result<(), Error> {
        if is_claimed_by_another(domain, &self.domains.state(), self.require_ownership) {
            // Nothing was made for this one: the keys in its namespace may be those of the domain's holder.
            return Ok(());
        }
        let store = self.key_store(domain);
        let keys = store.list(domain).await?;
        let memories = MemoryStore::new(&self.client, domain);
        let memory = memories.load().await?;
        self.warn_of_senders(domain, memory.as_ref()).await;
        if domain.spec.deletion_policy == DeletionPolicy::Retain {
            for key in &keys {
                store.release(key).await?;
            }
            if memory.is_some() {
                memories.release().await?;
            }
            return self.release_endpoints(domain).await;
        }
        if let Err(why) = self.withdraw(domain, &keys, memory.as_ref()).await {
            let text = format!("records were not withdrawn: {why}; remove them by hand");
            self.warn(domain, "RecordsLeft", text).await;
        }
        for key in &keys {
            store.delete(key).await?;
        }
        match memory {
            Some(_) => memories.forget().await,
            None => Ok(()),
        }
    }

    async fn withdraw(
        &self,
        domain: &MailDomain,
        keys: &[StoredKey],
        memory: Option<&Memory>,
    ) -> Result<(), String> {
        let publishers = match self.publishers(domain).await.map_err(|error| told(&error))? {
            Ok(publishers) if publishers.are_none() => return Ok(()),
            Ok(publishers) => publishers,
            Err(findings) => return Err(findings.refused.map(|(_, text)| text).unwrap_or_default()),
        };
        let zones = self.observer.zones(&domain.spec).await.map_err(|error| told(&error))?;
        let proof = self.proof(domain, &zones.own).await;
        if proof.is_some_and(|(_, seen)| seen.state != RecordState::Verified) {
            return Err("the domain's ownership is not proven".to_owned());
        }
        let mut records = records_of(domain, keys, memory);
        let pins = self.look_at_tlsa(domain, &zones).await.map_err(|error| told(&error))?;
        records.extend(pins.records.into_iter().map(|(record, _)| record));
        let managed =
            records.iter().filter(|record| record.purpose.policy(&domain.spec) == RecordPolicy::Manage);
        let (target, own): (Vec<_>, Vec<_>) = managed
            .map(|record| Change { record, remove: true })
            .partition(|change| zones.is_delegated(change.record));
        if let Some(publisher) = &publishers.own {
            let applied = publisher.apply(&zones.own.zone, &domain.spec.domain, &own).await;
            applied.map_err(|error| told(&error))?;
        }
        if let (Some(publisher), Some((base, authorities))) = (&publishers.target, &zones.target) {
            let applied = publisher.apply(&authorities.zone, base, &target).await;
            applied.map_err(|error| told(&error))?;
        }
        Ok(())
    }
}
