//! What people are told, as Events of a MailDomain and in the log.

use domains::types::{MailDomain, RecordState, RecordStatus};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};

use crate::observe::Observation;
use crate::reconcile::Context;
use crate::record::Record;

/// What an Event's action may have, in characters.
const LONGEST_ACTION: usize = 128;

impl Context {
    /// Tells of records that were there when the name servers last said anything of them, and are not any more. To be
    /// called before the tally notes what was seen.
    pub(crate) async fn tell_drift(&self, domain: &MailDomain, seen: &[(Record, Observation)]) {
        let uid = domain.uid().unwrap_or_default();
        let before = domain.status.as_ref().map(|status| status.records.as_slice()).unwrap_or_default();
        for (record, now) in seen {
            let is_in_status = |one: &RecordStatus| {
                one.state == RecordState::Verified
                    && one.name == record.name
                    && one.zone_lines == record.zone_lines()
            };
            let was_there = self.tally.was_shown(&uid, record) || before.iter().any(is_in_status);
            let why = match now.state {
                RecordState::Missing => "is gone".to_owned(),
                RecordState::Drifted | RecordState::Conflict => {
                    format!("says {}", now.observed.join(" and "))
                }
                RecordState::Verified | RecordState::Unknown => continue,
            };
            if was_there {
                metrics::counter!("packetboat_operator_drift_total", "purpose" => record.purpose.key())
                    .increment(1);
                let text = format!("{} {} {why}", record.name, record.record_type());
                self.warn(domain, "RecordDrifted", text).await;
            }
        }
    }

    pub(crate) async fn tell(&self, domain: &MailDomain, reason: &str, note: String) {
        tracing::info!(domain = domain.spec.domain, reason, note, "told");
        self.event(domain, EventType::Normal, reason, note).await;
    }

    pub(crate) async fn warn(&self, domain: &MailDomain, reason: &str, note: String) {
        tracing::warn!(domain = domain.spec.domain, reason, note, "told");
        self.event(domain, EventType::Warning, reason, note).await;
    }

    async fn event(&self, domain: &MailDomain, type_: EventType, reason: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            // Events that differ in nothing but their notes are counted as one, and only the first note is kept.
            action: note.chars().take(LONGEST_ACTION).collect(),
            note: Some(note),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &domain.object_ref(&())).await {
            tracing::debug!(%error, "event cannot be written");
        }
    }
}
