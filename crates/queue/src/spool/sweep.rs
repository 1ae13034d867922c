//! Removes from the store what is settled, and what was never answered for.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use message::QueueId;

use super::format::{
    Index, Indexed, Note, PACK_HEAD, id_in, index_length, pack_name, part_name, parts_of, read_index,
    read_notes,
};
use super::store::{Listed, Store};
use super::{AT_A_TIME, Shared, mark_of};
use crate::QueueError;

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Packs that were looked at.
    pub packs: usize,
    /// Packs removed.
    pub removed: usize,
    /// Messages among them that the queue never had: they were not answered for.
    pub orphans: usize,
    /// Parts removed that belonged to no message.
    pub parts: usize,
    /// Objects with notes that nothing needs any more, removed.
    pub notes: usize,
    /// Packs and notes that cannot be read. They stay.
    pub unreadable: usize,
}

/// What the notes of a store say.
#[derive(Default)]
pub(super) struct Settled {
    done: HashMap<QueueId, HashSet<String>>,
    void: HashSet<(QueueId, QueueId)>,
    /// Which messages each object of notes is about.
    objects: Vec<(String, Vec<QueueId>)>,
    pub(super) unreadable: usize,
}

impl Settled {
    /// Reads all notes.
    pub(super) async fn read(store: &Store) -> Result<Self, QueueError> {
        let mut names = Vec::new();
        store.list("notes", |listed| names.push(listed.name)).await?;
        let mut settled = Self::default();
        let mut read = stream::iter(names)
            .map(|name| async move {
                let json = store.get(&name).await?;
                Ok::<_, QueueError>((name, json))
            })
            .buffer_unordered(AT_A_TIME);
        while let Some((name, json)) = read.try_next().await? {
            // What another process has swept meanwhile was needed no more.
            let Some(json) = json else { continue };
            match read_notes(&name, &json) {
                Ok(notes) => settled.add(name, notes),
                Err(error) => {
                    settled.unreadable += 1;
                    tracing::error!(error = &error as &dyn std::error::Error, "notes cannot be read");
                }
            }
        }
        Ok(settled)
    }

    fn add(&mut self, name: String, notes: Vec<Note>) {
        let mut about = Vec::with_capacity(notes.len());
        for note in notes {
            match note {
                Note::Done { id, recipients } => {
                    about.push(id);
                    self.done.entry(id).or_default().extend(recipients);
                }
                Note::Void { id, pack } => {
                    about.push(id);
                    self.void.insert((id, pack));
                }
            }
        }
        self.objects.push((name, about));
    }

    pub(super) fn is_void(&self, id: QueueId, pack: QueueId) -> bool {
        self.void.contains(&(id, pack))
    }

    /// Whether an address of a message is final. An address that two of its entries have is not, as far as
    /// notes can tell: they do not say which entry it was.
    pub(super) fn is_done(&self, message: &Indexed, recipient: &str) -> bool {
        self.done.get(&message.record.id).is_some_and(|done| done.contains(recipient))
            && message.recipients().filter(|one| one.address.to_string() == recipient).count() == 1
    }

    fn is_settled(&self, message: &Indexed) -> bool {
        let Some(done) = self.done.get(&message.record.id) else { return false };
        message.recipients().all(|one| done.contains(&one.address.to_string()))
    }
}

/// The index of a pack, and where its contents begin; `None` when the pack is gone.
pub(super) async fn index_of(store: &Store, pack: QueueId) -> Result<Option<(Index, u64)>, QueueError> {
    let name = pack_name(pack);
    let Some(head) = store.range(&name, 0..PACK_HEAD).await? else { return Ok(None) };
    let body = PACK_HEAD + index_length(&name, &head)?;
    let Some(json) = store.range(&name, PACK_HEAD..body).await? else { return Ok(None) };
    Ok(Some((read_index(&name, &json)?, body)))
}

/// Sweeps at intervals, until the queue is dropped.
pub(super) async fn run(shared: Weak<Shared>, interval: Duration) {
    // A little earlier than the next look, so that the turn has come round by then.
    let lasts = interval.mul_f64(0.9);
    loop {
        tokio::time::sleep(interval).await;
        let Some(shared) = shared.upgrade() else { return };
        let swept = match shared.index.turn(lasts).await {
            Ok(true) => sweep(&shared).await,
            Ok(false) => continue,
            Err(error) => Err(error),
        };
        match swept {
            Ok(swept) => tracing::info!(
                packs = swept.packs,
                removed = swept.removed,
                orphans = swept.orphans,
                parts = swept.parts,
                notes = swept.notes,
                unreadable = swept.unreadable,
                "spool swept"
            ),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the spool cannot be swept");
            }
        }
    }
}

/// One sweep. The order matters: notes are listed before packs, so a note about a message that no listed
/// pack holds is about one whose pack is gone.
pub(super) async fn sweep(shared: &Shared) -> Result<Swept, QueueError> {
    require_mark(shared).await?;
    let settled = Settled::read(&shared.store).await?;
    let mut swept = Swept { unreadable: settled.unreadable, ..Swept::default() };
    let mut packs = Vec::new();
    shared.store.list("packs", |pack| packs.push(pack)).await?;
    swept.packs = packs.len();
    let mut living = HashSet::new();
    for pack in &packs {
        sweep_pack(shared, &settled, pack, &mut living, &mut swept).await?;
    }
    if swept.unreadable == 0 {
        sweep_parts(shared, &living, &mut swept).await?;
        for (name, about) in &settled.objects {
            if !about.iter().any(|id| living.contains(id)) {
                shared.store.delete(name).await?;
                swept.notes += 1;
            }
        }
    }
    metrics::counter!("mail_spool_swept_packs_total").increment(swept.removed as u64);
    metrics::counter!("mail_spool_orphans_total").increment(swept.orphans as u64);
    Ok(swept)
}

/// Removes a pack when all its messages are settled, void or orphans.
async fn sweep_pack(
    shared: &Shared,
    settled: &Settled,
    pack: &Listed,
    living: &mut HashSet<QueueId>,
    swept: &mut Swept,
) -> Result<(), QueueError> {
    let Some(name) = id_in(&pack.name) else { return Ok(()) };
    let index = match index_of(&shared.store, name).await {
        Ok(Some((index, _))) => index,
        Ok(None) => return Ok(()),
        Err(error @ QueueError::Corrupt { .. }) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a pack cannot be read, it stays");
            swept.unreadable += 1;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let own: Vec<&Indexed> =
        index.messages.iter().filter(|message| !settled.is_void(message.record.id, name)).collect();
    let orphans = own.iter().filter(|message| !settled.is_settled(message)).count();
    let ids: Vec<QueueId> = own.iter().map(|message| message.record.id).collect();
    let old = pack.age >= shared.config.orphan_age;
    // What is settled by its notes may still be in the queue: then the settlement did not reach it.
    let removable = (orphans == 0 || old) && !shared.index.known(&ids).await?.contains(&true);
    if !removable {
        living.extend(index.messages.iter().map(|message| message.record.id));
        return Ok(());
    }
    // A queue that was lost between the two questions knows nothing.
    require_mark(shared).await?;
    for message in own {
        for number in 0..parts_of(&message.record) {
            shared.store.delete(&part_name(message.record.id, number)).await?;
        }
    }
    shared.store.delete(&pack.name).await?;
    swept.removed += 1;
    swept.orphans += orphans;
    Ok(())
}

/// Removes parts that belong to no message: their accept never came.
async fn sweep_parts(
    shared: &Shared,
    living: &HashSet<QueueId>,
    swept: &mut Swept,
) -> Result<(), QueueError> {
    let mut old: HashMap<QueueId, Vec<String>> = HashMap::new();
    let orphan_age = shared.config.orphan_age;
    let mut note = |part: Listed| {
        if let Some(id) = id_in(&part.name).filter(|id| part.age >= orphan_age && !living.contains(id)) {
            old.entry(id).or_default().push(part.name);
        }
    };
    shared.store.list("parts", &mut note).await?;
    let ids: Vec<QueueId> = old.keys().copied().collect();
    let known = shared.index.known(&ids).await?;
    require_mark(shared).await?;
    for id in ids.iter().zip(known).filter(|(_, known)| !known).map(|(id, _)| id) {
        for name in &old[id] {
            shared.store.delete(name).await?;
            swept.parts += 1;
        }
    }
    Ok(())
}

async fn require_mark(shared: &Shared) -> Result<(), QueueError> {
    if shared.index.mark().await? == Some(mark_of(&shared.store).await?) {
        return Ok(());
    }
    let why =
        "the queue was lost, but not its spool: nothing is swept until `packetboat queue rebuild` has run";
    Err(QueueError::Mismatch(why.to_owned()))
}
