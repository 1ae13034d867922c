//! What a change writes: its rows are added to the batch, memory follows once the batch is on disk.

use super::committer::{Books, Committer, Settled, Written};
use super::first_entry;
use super::store::Changes;
use crate::{
    Closing, Doubt, Entry, EntryId, EntryState, EventKind, Lease, NewMessage, Next, QueueError, Scope,
    Settlement, Suspension, Target, Timestamp, Verb, VerbRecord,
};

impl Committer {
    pub(super) fn write_doubt(
        &self,
        lease: &Lease,
        peer: String,
        changes: &mut Changes,
        books: &mut Books,
        now: Timestamp,
    ) -> Result<(), QueueError> {
        if !self.shared.state().schedule.holds(lease, now) {
            return Err(QueueError::StaleLease);
        }
        let before = self.shared.store.entry(lease.entry)?.ok_or(QueueError::Gone(lease.entry.message))?;
        let mut entry = before.clone();
        books.outbox.emit(&self.shared.store, changes, (now, EventKind::InDoubt), lease.entry, &peer)?;
        entry.doubt = Some(Doubt { peer, since: now });
        entry.epoch = lease.epoch;
        self.shared.store.change_entry(changes, &before, &entry)
    }

    /// Adds what an operator asks for to the batch; gives the entries it concerns.
    pub(super) fn write_verb(
        &self,
        target: Target,
        verb: &Verb,
        by: &str,
        changes: &mut Changes,
        books: &mut Books,
        now: Timestamp,
    ) -> Result<Vec<EntryId>, QueueError> {
        let store = &self.shared.store;
        let (entries, all, parts) = self.concerned(target, verb);
        for id in &entries {
            let event = match verb {
                Verb::Hold { .. } => EventKind::Held,
                Verb::Bounce { .. } => EventKind::Doomed,
                Verb::Release => EventKind::Released,
                Verb::RetryNow => EventKind::Retried,
                Verb::Remove => EventKind::Removed,
            };
            books.outbox.emit(store, changes, (now, event), id, verb.why())?;
            if *verb == Verb::Remove {
                store.remove_entry(changes, *id);
                continue;
            }
            let Some(before) = store.entry(*id)? else { continue };
            let mut entry = before.clone();
            match verb {
                Verb::Hold { why } => entry.held = Some(why.clone()),
                Verb::Bounce { why } => (entry.held, entry.doomed) = (None, Some(why.clone())),
                Verb::Release => entry.held = None,
                Verb::RetryNow | Verb::Remove => {}
            }
            entry.due = now;
            store.change_entry(changes, &before, &entry)?;
        }
        if *verb == Verb::Remove {
            books.ledger.removed += entries.len() as u64;
            if all {
                store.remove_message(changes, target.message(), parts);
            }
        }
        if !entries.is_empty() && !by.is_empty() {
            let (verb, why) = (verb.name().to_owned(), verb.why().to_owned());
            let (by, target, entries) = (by.to_owned(), target.to_string(), entries.len() as u64);
            store.put_verb(changes, &VerbRecord { at: now, by, verb, target, why, entries })?;
        }
        Ok(entries)
    }

    /// The entries that a verb concerns; whether they are all of their message; and its parts.
    fn concerned(&self, target: Target, verb: &Verb) -> (Vec<EntryId>, bool, u32) {
        let state = self.shared.state();
        let concerned = |entry: &EntryId| {
            let Some(slot) = state.schedule.slot(*entry) else { return false };
            match verb {
                Verb::RetryNow => slot.state() == EntryState::Queued,
                Verb::Release => slot.held.is_some(),
                Verb::Hold { .. } | Verb::Bounce { .. } | Verb::Remove => true,
            }
        };
        let message = target.message();
        let entries: Vec<EntryId> =
            state.schedule.entries(message).filter(|entry| target.is(*entry)).filter(concerned).collect();
        let all = entries.len() == state.schedule.entries(message).count();
        (entries, all, state.parts.get(&message).copied().unwrap_or(0))
    }

    /// Adds a suspension, or its end, to the batch.
    pub(super) fn write_suspension(
        &self,
        scope: &Scope,
        by: String,
        why: Option<String>,
        changes: &mut Changes,
        now: Timestamp,
    ) -> Result<Option<Suspension>, QueueError> {
        let store = &self.shared.store;
        let verb = if why.is_some() { "suspend" } else { "resume" }.to_owned();
        let record = VerbRecord {
            at: now,
            by: by.clone(),
            verb,
            target: scope.key(),
            why: why.clone().unwrap_or_default(),
            entries: 0,
        };
        store.put_verb(changes, &record)?;
        let Some(why) = why else {
            store.remove_suspension(changes, scope);
            return Ok(None);
        };
        let suspension = Suspension { scope: scope.clone(), why, by, since: now };
        store.put_suspension(changes, &suspension)?;
        Ok(Some(suspension))
    }

    /// Adds a message to the batch; `None` when it has been accepted before.
    pub(super) fn write(
        &self,
        mut message: NewMessage,
        changes: &mut Changes,
        books: &mut Books,
        now: Timestamp,
    ) -> Result<Option<Written>, QueueError> {
        let id = message.record.id;
        {
            let state = self.shared.state();
            if state.seen.contains_key(&id) || state.schedule.contains(id) {
                return Ok(None);
            }
            let staged = state.staged.get(&id).map_or(0, |(parts, _)| *parts);
            if staged != message.record.parts {
                return Err(QueueError::Gone(id));
            }
        }
        message.record.accepted_at = now;
        let count = u32::try_from(message.entries.len()).unwrap_or(u32::MAX);
        let entries: Vec<Entry> =
            (0..count).filter_map(|number| first_entry(&message, number, now)).collect();
        self.shared.store.put_message(changes, &message.record)?;
        self.shared.store.put_content(changes, id, 0, message.inline.to_bytes());
        for entry in &entries {
            self.shared.store.put_entry(changes, entry)?;
            books.outbox.emit(&self.shared.store, changes, (now, EventKind::Accepted), entry.id, "")?;
        }
        books.ledger.accepted += entries.len() as u64;
        Ok(Some(Written { record: message.record, inline: message.inline, entries }))
    }

    pub(super) fn write_settlement(
        &self,
        settlement: Settlement,
        changes: &mut Changes,
        books: &mut Books,
        now: Timestamp,
    ) -> Result<Settled, QueueError> {
        let Settlement { lease, recipients, next, bounce } = settlement;
        let id = lease.entry;
        let retry_at = match next {
            Next::Done(closing) => {
                books.ledger.close(closing);
                let event = match closing {
                    Closing::Delivered => EventKind::Delivered,
                    Closing::Bounced => EventKind::Bounced,
                    Closing::Expired => EventKind::Expired,
                };
                books.outbox.emit(&self.shared.store, changes, (now, event), id, "")?;
                self.shared.store.remove_entry(changes, id);
                let state = self.shared.state();
                if state.schedule.entries(id.message).all(|entry| entry == id) {
                    let parts = state.parts.get(&id.message).copied().unwrap_or(0);
                    self.shared.store.remove_message(changes, id.message, parts);
                }
                Err(closing)
            }
            Next::Retry { after, error } => {
                let before = self.shared.store.entry(id)?.ok_or(QueueError::Gone(id.message))?;
                let mut entry = before.clone();
                let due = now.after(after);
                entry.recipients = recipients;
                entry.epoch = lease.epoch;
                entry.attempts += 1;
                entry.due = due;
                books.outbox.emit(&self.shared.store, changes, (now, EventKind::Deferred), id, &error)?;
                entry.last_error = Some(error);
                entry.doubt = None;
                self.shared.store.change_entry(changes, &before, &entry)?;
                Ok(due)
            }
        };
        let bounce = match bounce {
            Some(bounce) => self.write(bounce, changes, books, now)?,
            None => None,
        };
        Ok((lease, retry_at, bounce))
    }
}
