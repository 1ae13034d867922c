//! The contract, by way of the index: what is about contents goes to the store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use message::{Content, QueueId, Standing};

use super::format::{Locator, Note, pack_name, part_name, parts_of, seal, unseal, unsealed};
use super::{SETTLES_WITHIN, SpooledQueue};
use crate::{
    Accepted, AuditPage, Depth, Entry, Events, Lease, LeaseRequest, Leased, Ledger, ListFilter,
    MessageRecord, NewMessage, Next, Page, Policy, Queue, QueueError, Scope, Settlement, Suspension, Target,
    Verb, VerbRecord,
};

impl SpooledQueue {
    /// Fails unless the parts that a record speaks of are all in the store.
    async fn require_parts(&self, record: &MessageRecord) -> Result<(), QueueError> {
        if record.parts == 0 {
            return Ok(());
        }
        let (mut found, mut octets) = (0, 0);
        let count = |part: super::store::Listed| {
            found += 1;
            octets += unsealed(part.size);
        };
        self.shared.store.list(&format!("parts/{}", record.id), count).await?;
        if found == record.parts && octets == record.size.saturating_sub(record.inline_size) {
            Ok(())
        } else {
            Err(QueueError::Gone(record.id))
        }
    }

    async fn locate(&self, id: QueueId) -> Result<Locator, QueueError> {
        Locator::from_bytes(id, &self.shared.index.inline_content(id).await?)
    }

    /// Whether the index has this copy of a message. Where it cannot be asked the answer is yes: what is kept
    /// for nothing is swept one day.
    async fn is_in_use(&self, id: QueueId, place: &Locator) -> bool {
        match self.locate(id).await {
            Ok(found) => found.pack == place.pack,
            Err(error) => !matches!(error, QueueError::Gone(_)),
        }
    }

    /// Notes which recipients are final after a settlement, before the index forgets them.
    async fn note_finals(&self, settlement: &Settlement) -> Result<(), QueueError> {
        let done = matches!(settlement.next, Next::Done(_));
        let finals = settlement.recipients.iter().filter(|one| done || !one.standing.is_open());
        let recipients: Vec<String> = finals.map(|one| one.address.to_string()).collect();
        if recipients.is_empty() {
            return Ok(());
        }
        self.note(Note::Done { id: settlement.lease.entry.message, recipients }).await
    }

    fn closed(&self, id: QueueId, entries: u64) {
        self.shared.release(self.shared.open.closed(id, entries));
    }
}

/// The record, as it was accepted.
fn restore(record: &mut MessageRecord) {
    record.parts = parts_of(record);
}

fn restore_leased(leased: &mut Leased, inline: Option<&Content>) {
    restore(Arc::make_mut(&mut leased.message));
    leased.inline = inline.cloned();
}

#[async_trait]
impl Queue for SpooledQueue {
    async fn stage(&self, id: QueueId, number: u32, octets: Bytes) -> Result<(), QueueError> {
        self.shared.store.put(&part_name(id, number), seal(octets)).await
    }

    async fn accept(&self, message: NewMessage, lease: Option<LeaseRequest>) -> Result<Accepted, QueueError> {
        self.require_parts(&message.record).await?;
        let (id, parts, entries) = (message.record.id, message.record.parts, message.entries.len());
        let inline = message.inline.clone();
        let (message, place) = self.spool(message).await?;
        // After an error the index may have it or not: the copy stays, and is swept when it has not.
        let mut accepted = self.shared.index.accept(message, lease).await?;
        // A rebuild that ran meanwhile may have enqueued this very copy.
        if accepted.fresh || self.is_in_use(id, &place).await {
            self.shared.open.enqueued(id, place.pack, entries, parts);
        } else {
            self.void(id, &place).await;
        }
        accepted.leased.iter_mut().for_each(|leased| restore_leased(leased, Some(&inline)));
        Ok(accepted)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        let mut leased = self.shared.index.lease(request).await?;
        leased.iter_mut().for_each(|leased| restore_leased(leased, None));
        Ok(leased)
    }

    async fn renew(&self, lease: &Lease, duration: Duration) -> Result<(), QueueError> {
        self.shared.index.renew(lease, duration).await
    }

    async fn doubt(&self, lease: &Lease, peer: &str) -> Result<(), QueueError> {
        self.shared.index.doubt(lease, peer).await
    }

    async fn hand_back(&self, lease: &Lease) -> Result<(), QueueError> {
        self.shared.index.hand_back(lease).await
    }

    async fn settle(&self, mut settlement: Settlement) -> Result<(), QueueError> {
        let id = settlement.lease.entry.message;
        if settlement.recipients.iter().any(|one| matches!(one.standing, Standing::Failed(_))) {
            // Nobody is to be noted as failed by a worker whose word does not count.
            self.shared.index.renew(&settlement.lease, SETTLES_WITHIN).await?;
        }
        let mut bounced = None;
        if let Some(bounce) = settlement.bounce.take() {
            let (about, entries) = (bounce.record.id, bounce.entries.len());
            let (bounce, place) = self.spool(bounce).await?;
            settlement.bounce = Some(bounce);
            bounced = Some((about, entries, place));
        }
        self.note_finals(&settlement).await?;
        let done = matches!(settlement.next, Next::Done(_));
        let settled = self.shared.index.settle(settlement).await;
        match (&settled, bounced) {
            (Ok(()), Some((bounce, entries, place))) => {
                self.shared.open.enqueued(bounce, place.pack, entries, 0);
            }
            (Err(QueueError::StaleLease), Some((bounce, _, place))) => self.void(bounce, &place).await,
            _ => {}
        }
        if settled.is_ok() && done {
            self.closed(id, 1);
        }
        settled
    }

    async fn inline_content(&self, id: QueueId) -> Result<Bytes, QueueError> {
        let place = self.locate(id).await?;
        let name = pack_name(place.pack);
        let Some(octets) = self.shared.store.range(&name, place.at..place.at + place.length).await? else {
            return Err(QueueError::Corrupt { what: name, cause: "it is not in the spool".into() });
        };
        place.verify(&octets)?;
        Ok(octets)
    }

    async fn part(&self, id: QueueId, number: u32) -> Result<Bytes, QueueError> {
        // Parts of a message that has been settled may be there for a while.
        self.locate(id).await?;
        let name = part_name(id, number);
        let sealed = self.shared.store.get(&name).await?.ok_or(QueueError::Gone(id))?;
        unseal(&name, sealed)
    }

    async fn wait(&self, at_most: Duration) {
        self.shared.index.wait(at_most).await;
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        self.shared.index.depth().await
    }

    async fn list(&self, filter: ListFilter) -> Result<Page, QueueError> {
        let mut page = self.shared.index.list(filter).await?;
        page.entries.iter_mut().for_each(|(_, record)| restore(record));
        Ok(page)
    }

    async fn show(&self, id: QueueId) -> Result<Option<(MessageRecord, Vec<Entry>)>, QueueError> {
        let mut shown = self.shared.index.show(id).await?;
        if let Some((record, _)) = &mut shown {
            restore(record);
        }
        Ok(shown)
    }

    async fn operate(&self, target: Target, verb: &Verb, by: &str) -> Result<u64, QueueError> {
        let id = target.message();
        if *verb != Verb::Remove {
            return self.shared.index.operate(target, verb, by).await;
        }
        let Some((_, entries)) = self.shared.index.show(id).await? else { return Ok(0) };
        let meant = entries.iter().filter(|entry| target.is(entry.id));
        let recipients: Vec<String> =
            meant.flat_map(|entry| &entry.recipients).map(|one| one.address.to_string()).collect();
        if recipients.is_empty() {
            return Ok(0);
        }
        self.note(Note::Done { id, recipients }).await?;
        let removed = self.shared.index.operate(target, verb, by).await?;
        self.closed(id, removed);
        Ok(removed)
    }

    async fn verbs(&self, limit: usize) -> Result<Vec<VerbRecord>, QueueError> {
        self.shared.index.verbs(limit).await
    }

    async fn record(&self, verb: &VerbRecord) -> Result<(), QueueError> {
        self.shared.index.record(verb).await
    }

    async fn suspend(&self, scope: &Scope, why: &str, by: &str) -> Result<(), QueueError> {
        self.shared.index.suspend(scope, why, by).await
    }

    async fn resume(&self, scope: &Scope, by: &str) -> Result<bool, QueueError> {
        self.shared.index.resume(scope, by).await
    }

    async fn suspensions(&self) -> Result<Vec<Suspension>, QueueError> {
        self.shared.index.suspensions().await
    }

    async fn set_policy(&self, policy: &Policy) -> Result<(), QueueError> {
        self.shared.index.set_policy(policy).await
    }

    async fn sharers(
        &self,
        scope: &Scope,
        worker: &str,
        lasts: Duration,
    ) -> Result<(usize, usize), QueueError> {
        self.shared.index.sharers(scope, worker, lasts).await
    }

    async fn events(&self, reader: &str, limit: usize) -> Result<Events, QueueError> {
        self.shared.index.events(reader, limit).await
    }

    async fn passed(&self, reader: &str, cursor: &str) -> Result<(), QueueError> {
        self.shared.index.passed(reader, cursor).await
    }

    async fn forget_reader(&self, reader: &str) -> Result<(), QueueError> {
        self.shared.index.forget_reader(reader).await
    }

    async fn audit(&self, cursor: Option<&str>) -> Result<AuditPage, QueueError> {
        self.shared.index.audit(cursor).await
    }

    async fn ledger(&self) -> Result<Ledger, QueueError> {
        self.shared.index.ledger().await
    }

    async fn check(&self) -> Result<(), QueueError> {
        self.shared.index.check().await?;
        if !self.shared.probed_lately() {
            self.shared.store.put("probe", Bytes::from_static(b"probe").into()).await?;
            self.shared.probed_now();
        }
        Ok(())
    }
}
