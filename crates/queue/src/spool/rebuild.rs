//! Makes a queue again that was lost, from its spool.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt, stream};
use message::{Content, QueueId};
use smtp::Mailbox;

use super::config::Config;
use super::format::{Indexed, id_in, parts_of};
use super::store::Store;
use super::sweep::{Settled, index_of};
use super::{AT_A_TIME, Index, indexed, mark_of, now};
use crate::{NewMessage, QueueError};

/// What a rebuild found, and did. Messages are in one of the columns `restored`, `present`, `settled`, `void`
/// and `incomplete`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Packs in the store.
    pub packs: usize,
    /// Packs dealt with so far.
    pub read: usize,
    /// Messages enqueued.
    pub restored: usize,
    /// Messages that the queue has, or had within two hours.
    pub present: usize,
    /// Messages that the queue had, and of which something vanished from it: what it had left was replaced by
    /// what the store has. A recipient whom a worker was at may get a copy more.
    pub vanished: usize,
    /// Messages whose recipients are all noted as final.
    pub settled: usize,
    /// Copies noted as not wanted.
    pub void: usize,
    /// Messages of which parts are missing: not enqueued.
    pub incomplete: usize,
    /// Packs and notes that cannot be read.
    pub unreadable: usize,
}

/// What becomes of one message.
enum Fate {
    Restored,
    Present,
    /// The queue had it, and does not show all that has to be there.
    Suspect(Box<Suspect>),
    Settled,
    Void,
    Incomplete,
}

/// A message that may have been settled a moment ago, or have vanished.
struct Suspect {
    message: Indexed,
    pack: QueueId,
    body: u64,
}

/// Enqueues whatever a spool holds that is not noted as settled, and marks the queue as belonging to it. It may
/// be repeated, and run beside processes that use the queue. `progress` is called after each pack.
///
/// # Errors
/// [`QueueError::Unavailable`] when store or queue cannot be reached: repeat it.
/// [`QueueError::Mismatch`] when the queue belongs to another spool, or holds entries and `merge` is false.
pub async fn rebuild(
    index: &dyn Index,
    config: &Config,
    merge: bool,
    mut progress: impl FnMut(&Rebuilt) + Send,
) -> Result<Rebuilt, QueueError> {
    let store = Store::open(config)?;
    let mark = mark_of(&store).await?;
    if index.mark().await?.is_some_and(|found| found != mark) {
        return Err(QueueError::Mismatch("the queue belongs to another spool".to_owned()));
    }
    let queued = index.ledger().await?.queued;
    if queued > 0 && !merge {
        return Err(QueueError::Mismatch(format!(
            "the queue holds {queued} entries: with --merge what is missing is added to them"
        )));
    }
    let mut packs: Vec<QueueId> = Vec::new();
    store.list("packs", |pack| packs.extend(id_in(&pack.name))).await?;
    packs.sort_unstable();
    // After the packs: what is settled meanwhile is noted, or known to the queue for two hours.
    let settled = Settled::read(&store).await?;
    let parts = Parts::read(&store).await?;
    let mut rebuilt = Rebuilt { packs: packs.len(), unreadable: settled.unreadable, ..Rebuilt::default() };
    let mut suspects = Vec::new();
    for pack in packs {
        match index_of(&store, pack).await {
            Ok(Some((listing, body))) => {
                let mut fates = stream::iter(&listing.messages)
                    .map(|message| restore(index, &settled, &parts, message, pack, body))
                    .buffer_unordered(AT_A_TIME);
                while let Some(fate) = fates.try_next().await? {
                    match fate {
                        Fate::Suspect(suspect) => suspects.push(suspect),
                        fate => rebuilt.count(&fate),
                    }
                }
            }
            Ok(None) => {}
            Err(error @ QueueError::Corrupt { .. }) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a pack cannot be read");
                rebuilt.unreadable += 1;
            }
            Err(error) => return Err(error),
        }
        rebuilt.read += 1;
        progress(&rebuilt);
    }
    if !suspects.is_empty() {
        // A recipient is noted before the queue forgets it. So whom the queue did not show, and who is not noted
        // even now, has vanished.
        let settled = Settled::read(&store).await?;
        for suspect in suspects {
            let vanished = replace(index, &settled, &suspect).await?;
            if vanished { rebuilt.vanished += 1 } else { rebuilt.present += 1 }
        }
    }
    index.set_mark(&mark).await?;
    Ok(rebuilt)
}

/// Puts what the store has of a message in the place of what the queue has left; false when all is well with it.
async fn replace(index: &dyn Index, settled: &Settled, suspect: &Suspect) -> Result<bool, QueueError> {
    let Suspect { message, pack, body } = suspect;
    let id = message.record.id;
    let again = message.reopened(|one| settled.is_done(message, one), now(), Content::new());
    let Some(reopened) = again.filter(|_| !settled.is_void(id, *pack)) else { return Ok(false) };
    if is_whole(index, &reopened).await? {
        return Ok(false);
    }
    tracing::warn!(queue_id = %id, "a message has vanished from the queue, it is restored from its spool");
    index.forget(id).await?;
    let again = indexed(reopened.record, reopened.entries, &message.locator(*pack, *body))?;
    Ok(index.accept(again, None).await?.fresh)
}

/// Whether the queue shows all recipients that are left.
async fn is_whole(index: &dyn Index, left: &NewMessage) -> Result<bool, QueueError> {
    let Some((_, entries)) = index.show(left.record.id).await? else { return Ok(false) };
    let there: HashSet<&Mailbox> =
        entries.iter().flat_map(|entry| &entry.recipients).map(|one| &one.address).collect();
    let mut wanted = left.entries.iter().flat_map(|entry| &entry.recipients);
    Ok(wanted.all(|one| there.contains(&one.address)))
}

async fn restore(
    index: &dyn Index,
    settled: &Settled,
    parts: &Parts,
    message: &Indexed,
    pack: QueueId,
    body: u64,
) -> Result<Fate, QueueError> {
    let id = message.record.id;
    if settled.is_void(id, pack) {
        return Ok(Fate::Void);
    }
    let Some(reopened) = message.reopened(|one| settled.is_done(message, one), now(), Content::new()) else {
        return Ok(Fate::Settled);
    };
    if !parts.has_all(id, parts_of(&message.record)) {
        tracing::error!(queue_id = %id, "parts of a message are missing in the spool");
        return Ok(Fate::Incomplete);
    }
    let again = indexed(reopened.record.clone(), reopened.entries.clone(), &message.locator(pack, body))?;
    if index.accept(again, None).await?.fresh {
        return Ok(Fate::Restored);
    }
    let whole = is_whole(index, &reopened).await?;
    Ok(if whole {
        Fate::Present
    } else {
        Fate::Suspect(Box::new(Suspect { message: message.clone(), pack, body }))
    })
}

/// Which parts there are.
struct Parts(HashSet<String>);

impl Parts {
    async fn read(store: &Store) -> Result<Self, QueueError> {
        let mut names = HashSet::new();
        store.list("parts", |part| names.extend([part.name])).await?;
        Ok(Self(names))
    }

    fn has_all(&self, id: QueueId, count: u32) -> bool {
        (0..count).all(|number| self.0.contains(&super::format::part_name(id, number)))
    }
}

impl Rebuilt {
    fn count(&mut self, fate: &Fate) {
        match fate {
            Fate::Restored => self.restored += 1,
            Fate::Present | Fate::Suspect(_) => self.present += 1,
            Fate::Settled => self.settled += 1,
            Fate::Void => self.void += 1,
            Fate::Incomplete => self.incomplete += 1,
        }
    }
}
