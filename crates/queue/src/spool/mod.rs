//! The object-store spool: contents, and all that is needed to make the queue again, lie in a store beside it.
//!
//! [`SpooledQueue`] stands before another queue, its *index*. A message is written to the store first, then
//! accepted by the index, which keeps in the content's place where it lies. Before the index forgets a
//! recipient, a note in the store says so. So [`rebuild`] makes the index again from the store alone:
//! whatever was answered for and not noted as settled.

mod batch;
mod config;
mod format;
mod index;
mod open;
mod queue;
mod rebuild;
mod store;
mod sweep;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use message::{Content, QueueId};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use config::Config;
pub use index::Index;
pub use rebuild::{Rebuilt, rebuild};
pub use sweep::Swept;

use self::batch::{Batcher, Limits};
use self::format::{Locator, Note};
use self::open::OpenPacks;
use self::store::Store;
use crate::{MessageRecord, NewEntry, NewMessage, QueueError, Timestamp};

/// A probe of the store counts for so long.
const PROBE_COUNTS: Duration = Duration::from_secs(10);
/// Deletions that may wait; what comes then is left to the sweep.
const RELEASES: usize = 1024;
/// Requests of one sweep, release or rebuild on their way at a time.
const AT_A_TIME: usize = 16;
/// A settlement that fails recipients has its lease moved so far first.
const SETTLES_WITHIN: Duration = Duration::from_secs(120);
/// The mark's name in the store.
const MARK: &str = "mark";

type Packed = (MessageRecord, Vec<NewEntry>, Content);

/// A queue whose contents lie in an object store.
pub struct SpooledQueue {
    shared: Arc<Shared>,
    packer: Batcher<Packed, Locator>,
    notes: Batcher<Note, ()>,
    sweeper: tokio::task::JoinHandle<()>,
}

/// What the sweeper shares with the queue.
struct Shared {
    index: Arc<dyn Index>,
    store: Store,
    config: Config,
    open: OpenPacks,
    release: mpsc::Sender<String>,
    probed: Mutex<Option<Instant>>,
}

impl SpooledQueue {
    /// Opens the store, makes sure that it belongs to the index, and starts to sweep it.
    ///
    /// An index that has been lost is no error, so that new mail is accepted meanwhile; it is logged, and nothing
    /// is swept until [`rebuild`] has run.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] when store or index cannot be reached or used; [`QueueError::Mismatch`] when
    /// the index belongs to another spool, or holds messages of a time without one.
    pub async fn open(index: Arc<dyn Index>, config: &Config) -> Result<Self, QueueError> {
        let store = Store::open(config)?;
        agree(&*index, &store).await?;
        let (release, released) = mpsc::channel(RELEASES);
        let shared = Arc::new(Shared {
            index,
            store: store.clone(),
            config: config.clone(),
            open: OpenPacks::default(),
            release,
            probed: Mutex::new(None),
        });
        tokio::spawn(delete_released(store, released));
        let sweeper = tokio::spawn(sweep::run(Arc::downgrade(&shared), config.sweep_interval));
        Ok(Self { packer: packer(&shared), notes: notes(&shared), shared, sweeper })
    }

    /// Removes from the store what is settled, or was never answered for. It runs by itself, in one process of
    /// the queue every `sweep_interval`.
    ///
    /// # Errors
    /// [`QueueError::Mismatch`] when the index has been lost: nothing is removed then.
    pub async fn sweep(&self) -> Result<Swept, QueueError> {
        sweep::sweep(&self.shared).await
    }

    /// Writes a message to the store. Gives it as the index is to have it, and where it lies.
    async fn spool(&self, message: NewMessage) -> Result<(NewMessage, Locator), QueueError> {
        let NewMessage { mut record, inline, entries } = message;
        record.inline_size = inline.len();
        let octets = inline.len();
        let place = self.packer.write((record.clone(), entries.clone(), inline), octets).await?;
        Ok((indexed(record, entries, &place)?, place))
    }

    async fn note(&self, note: Note) -> Result<(), QueueError> {
        self.notes.write(note, 0).await
    }

    /// A copy turned out not to be wanted. Where that cannot be noted, the sweep finds it.
    async fn void(&self, id: QueueId, place: &Locator) {
        if let Err(error) = self.note(Note::Void { id, pack: place.pack }).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(queue_id = %id, error, "a copy in the spool that is not wanted stays until it is swept");
        }
        self.shared.release(self.shared.open.void(place.pack));
    }
}

impl Drop for SpooledQueue {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

impl Shared {
    fn release(&self, names: Vec<String>) {
        for name in names {
            // A full channel leaves it to the sweep.
            let _ = self.release.try_send(name);
        }
    }

    /// Whether the store has taken a write lately.
    fn probed_lately(&self) -> bool {
        let probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        probed.is_some_and(|at| at.elapsed() < PROBE_COUNTS)
    }

    fn probed_now(&self) {
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// A message as the index is to have it: in place of the content, where it lies. No part is in the index.
fn indexed(
    mut record: MessageRecord,
    entries: Vec<NewEntry>,
    place: &Locator,
) -> Result<NewMessage, QueueError> {
    record.parts = 0;
    Ok(NewMessage { record, inline: Content::from(place.to_bytes()?), entries })
}

fn packer(shared: &Arc<Shared>) -> Batcher<Packed, Locator> {
    let limits = Limits {
        window: shared.config.pack_window,
        items: shared.config.pack_messages.clamp(1, 10_000),
        octets: shared.config.pack_bytes,
        writes: shared.config.writes_at_a_time,
    };
    let weak = Arc::downgrade(shared);
    Batcher::start(limits, move |messages| {
        let weak = weak.clone();
        Box::pin(async move {
            let Some(shared) = weak.upgrade() else { return Ok(Vec::new()) };
            let (name, count) = (QueueId::generate(), messages.len());
            let (object, places) = format::pack(name, messages, now())?;
            let started = Instant::now();
            shared.store.put(&format::pack_name(name), object).await?;
            metrics::histogram!("mail_spool_write_seconds").record(started.elapsed().as_secs_f64());
            metrics::histogram!("mail_spool_pack_messages").record(count as f64);
            shared.probed_now();
            shared.open.written(name, count);
            Ok(places)
        })
    })
}

fn notes(shared: &Arc<Shared>) -> Batcher<Note, ()> {
    let limits = Limits {
        window: shared.config.note_window,
        items: shared.config.pack_messages.clamp(1, 10_000),
        octets: u64::MAX,
        writes: shared.config.writes_at_a_time,
    };
    let weak = Arc::downgrade(shared);
    Batcher::start(limits, move |notes| {
        let weak = weak.clone();
        Box::pin(async move {
            let Some(shared) = weak.upgrade() else { return Ok(Vec::new()) };
            let answers = vec![(); notes.len()];
            let object = format::write_notes(notes)?;
            shared.store.put(&format::note_name(QueueId::generate()), object).await?;
            shared.probed_now();
            Ok(answers)
        })
    })
}

/// Deletes what is settled. What cannot be deleted is left to the sweep.
async fn delete_released(store: Store, mut released: mpsc::Receiver<String>) {
    let mut names = Vec::new();
    while released.recv_many(&mut names, AT_A_TIME).await > 0 {
        let deleted = futures::future::join_all(names.iter().map(|name| store.delete(name))).await;
        for error in deleted.into_iter().filter_map(Result::err) {
            tracing::debug!(error = &error as &dyn std::error::Error, "left to the sweep");
        }
        names.clear();
    }
}

/// The mark of a store; made when it has none.
async fn mark_of(store: &Store) -> Result<String, QueueError> {
    if store.get(MARK).await?.is_none() {
        store.put_first(MARK, Bytes::from(QueueId::generate().to_string())).await?;
    }
    let mark = store.get(MARK).await?.unwrap_or_default();
    match String::from_utf8(mark.to_vec()) {
        Ok(mark) if !mark.is_empty() => Ok(mark),
        _ => Err(QueueError::Mismatch("the spool's mark cannot be read".to_owned())),
    }
}

/// Makes sure that index and store belong together, where they are new, and finds out when the index was lost.
async fn agree(index: &dyn Index, store: &Store) -> Result<(), QueueError> {
    let mark = mark_of(store).await?;
    match index.mark().await? {
        Some(found) if found == mark => return Ok(()),
        Some(_) => {
            let why = "the queue belongs to another spool: look at queue.spool and at queue.redis.url";
            return Err(QueueError::Mismatch(why.to_owned()));
        }
        None => {}
    }
    let mut packs = 0_usize;
    store.list("packs", |_| packs += 1).await?;
    if packs > 0 {
        tracing::error!(packs, "the queue was lost, but not its spool: run `packetboat queue rebuild`");
        return Ok(());
    }
    if index.ledger().await?.queued > 0 {
        let why = "the queue holds messages that were kept in it: let it run empty with spool: inline first";
        return Err(QueueError::Mismatch(why.to_owned()));
    }
    index.set_mark(&mark).await
}

/// Milliseconds since the Unix epoch, by the clock of this machine: the index may be lost, and its clock
/// with it.
fn now() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
