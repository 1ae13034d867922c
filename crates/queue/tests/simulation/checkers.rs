//! Whether what the queue shows is what the model says, and whether its invariants hold.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, ensure};
use queue::invariants::Witness;
use queue::{Entry, EntryId, EntryState, EventKind, Queue, QueueError, Scope};

use crate::model::{Known, Model};

/// Looks at the whole queue: its invariants hold, and it is what the model says.
pub(crate) async fn look(witness: &mut Witness, queue: &dyn Queue, model: &Model) -> Result<()> {
    let entries = witness.look(queue).await.map_err(|broken| anyhow!("{broken}"))?;
    agrees(&entries, model)?;
    let told = queue.ledger().await?;
    let mut expected = model.ledger;
    expected.queued = model.entries.len() as u64;
    ensure!(told == expected, "the account is {told:?}, and has to be {expected:?}");
    let suspended: BTreeSet<Scope> = queue.suspensions().await?.into_iter().map(|one| one.scope).collect();
    let known = model.suspended.iter().filter(|scope| !suspended.contains(scope));
    ensure!(known.count() == 0, "{:?} are suspended, not {suspended:?}", model.suspended);
    let unknown =
        suspended.iter().filter(|scope| **scope != crate::run::probe() && !model.suspended.contains(scope));
    ensure!(unknown.count() == 0, "{suspended:?} are suspended, not {:?}", model.suspended);
    Ok(())
}

/// Whether these are the entries of the model.
pub(crate) fn agrees(entries: &[Entry], model: &Model) -> Result<()> {
    let found: BTreeMap<EntryId, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
    for (id, known) in &model.entries {
        let entry = found.get(id).with_context(|| format!("{id} is lost, it was {known:?}"))?;
        is(entry, known).with_context(|| format!("{entry:?} is not {known:?}"))?;
    }
    for id in found.keys() {
        ensure!(model.entries.contains_key(id), "{id} is there, and must not be");
    }
    Ok(())
}

fn is(entry: &Entry, known: &Known) -> Result<()> {
    ensure!(entry.state == known.state(), "another state");
    ensure!(entry.state == EntryState::Held || entry.due.0 == known.due, "due at another time");
    ensure!(entry.epoch == known.epoch, "another epoch");
    ensure!(entry.attempts == known.attempts, "other attempts");
    ensure!(entry.expires.0 == known.expires, "another end of its age");
    ensure!(entry.held.is_some() == known.held && entry.doomed.is_some() == known.doomed, "held or doomed");
    ensure!(entry.doubt.as_ref().map(|doubt| &doubt.peer) == known.doubt.as_ref(), "another doubt");
    ensure!(entry.recipients[0].standing.is_open() != known.halfway, "another standing");
    Ok(())
}

/// Each message that is open has its record and all of its content, and nothing is left of the others (3).
pub(crate) async fn contents(queue: &dyn Queue, model: &Model, long: &[message::QueueId]) -> Result<()> {
    for id in model.seen.keys() {
        let (shown, inline) = (queue.show(*id).await?, queue.inline_content(*id).await);
        let open = model.is_open(*id);
        ensure!(
            shown.is_some() == open && inline.is_ok() == open,
            "{id}, open {open}: {shown:?}, {inline:?}"
        );
        if long.contains(id) {
            let part = queue.part(*id, 0).await;
            ensure!(part.is_ok() == open, "{id}, open {open}, has a part: {part:?}");
        }
        ensure!(open || matches!(inline, Err(QueueError::Gone(_))), "{id}: {inline:?}");
    }
    Ok(())
}

/// The outbox tells what happened to each entry, in order (and when it was held, which is not asked here).
pub(crate) async fn outbox(queue: &dyn Queue, reader: &str, model: &Model) -> Result<()> {
    let told = queue.events(reader, 10_000).await?;
    ensure!(!told.lost, "events were dropped");
    let mut found: BTreeMap<String, Vec<EventKind>> = BTreeMap::new();
    for event in told.events.into_iter().filter(|event| event.kind != EventKind::Held) {
        found.entry(event.entry).or_default().push(event.kind);
    }
    let mut expected: BTreeMap<String, Vec<EventKind>> = BTreeMap::new();
    for (id, kind) in &model.events {
        expected.entry(id.to_string()).or_default().push(*kind);
    }
    for (id, kinds) in &expected {
        let found = found.remove(id).unwrap_or_default();
        ensure!(found == *kinds, "the outbox tells {found:?} of {id}, it was {kinds:?}");
    }
    ensure!(found.is_empty(), "the outbox tells what never was: {found:?}");
    Ok(())
}
