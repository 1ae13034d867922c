//! Over how many shards the queue is spread, and since when.
//!
//! The shard of a message depends on the time in its id, and on how many shards there were for ids of that time.
//! So shards can be added while mail flows: those of older messages stay where they are. A change is written
//! down with a moment that lies ahead by [`MARGIN`]; every process reads the layout each [`EVERY`], and one
//! that could not for too long accepts nothing, so nobody is surprised by the moment.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use message::QueueId;
use tokio::time::Instant;

use super::client::{Call, Client};
use super::millis;
use crate::QueueError;

/// So long before it holds a change is written down.
const MARGIN: Duration = Duration::from_secs(20);
/// How often the layout is read.
pub(super) const EVERY: Duration = Duration::from_secs(4);
/// Shards at most.
pub(super) const MOST_SHARDS: usize = 1024;

/// What this process knows of the layout.
pub(super) struct Layout {
    known: RwLock<Known>,
}

struct Known {
    /// Since which time of ids (ms) how many shards, in order.
    eras: Vec<(u64, usize)>,
    read_at: Option<Instant>,
}

/// Hashes a name (FNV-1a).
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn part(number: u64, of: usize) -> usize {
    usize::try_from(number % of.max(1) as u64).unwrap_or_default()
}

impl Layout {
    pub(super) fn unread(shards: usize) -> Self {
        Self { known: RwLock::new(Known { eras: vec![(0, shards)], read_at: None }) }
    }

    fn with<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many shards there are, those included that are about to come into use.
    pub(super) fn shards(&self) -> usize {
        self.with(|known| known.eras.last().map_or(1, |era| era.1))
    }

    /// The shard of a message. A bounce, whose id keeps the time of the message it is about, lies in the
    /// same shard and can be accepted in the same step.
    pub(super) fn shard_of(&self, id: QueueId) -> usize {
        let time = id.millis();
        self.with(|known| {
            let era = known.eras.iter().rev().find(|(since, _)| *since <= time).or(known.eras.first());
            part(id.spread(), era.map_or(1, |era| era.1))
        })
    }

    /// The shard of something that is known by name alone; it is one of the first, and stays.
    pub(super) fn shard_of_name(&self, name: &str) -> usize {
        self.with(|known| part(hash(name), known.eras.first().map_or(1, |era| era.1)))
    }

    /// Whether it was read lately enough that no change can have been missed.
    pub(super) fn is_known(&self) -> bool {
        self.with(|known| known.read_at.is_some_and(|at| at.elapsed() < MARGIN / 2))
    }
}

impl Client {
    /// Reads the layout, and has it grow to the number of shards that the settings ask for. Shards that are
    /// about to come into use are told what holds for the queue.
    pub(super) async fn read_layout(&self, wanted: usize) -> Result<(), QueueError> {
        let asked = Instant::now();
        let mut call = self.call(0, Call::Layout);
        call.arg(wanted).arg(millis(MARGIN));
        let (now, rows): (u64, Vec<String>) = self.run("reading the layout of shards", call).await?;
        let mut eras = Vec::with_capacity(rows.len());
        for row in rows {
            let read = row
                .split_once(':')
                .and_then(|(since, shards)| Some((since.parse().ok()?, shards.parse::<usize>().ok()?)));
            let era = read.filter(|(_, shards)| (1..=MOST_SHARDS).contains(shards));
            eras.push(era.ok_or_else(|| QueueError::Corrupt {
                what: "the layout of shards".to_owned(),
                cause: format!("{row:?} is not a time and a number of shards").into(),
            })?);
        }
        let ahead = match eras.as_slice() {
            [.., (_, before), (since, after)] if *since > now => Some(*before..*after),
            _ => None,
        };
        if let Some(ahead) = ahead {
            self.hand_down(ahead).await?;
        }
        let mut known = self.layout.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = Known { eras, read_at: Some(asked) };
        Ok(())
    }

    async fn hand_down(&self, shards: std::ops::Range<usize>) -> Result<(), QueueError> {
        let mut rows: Vec<Vec<String>> = Vec::with_capacity(3);
        for name in ["suspended", "policy", "readers"] {
            let mut command = redis::cmd("HGETALL");
            command.arg(self.key(0, name));
            let fields: Vec<(String, String)> =
                self.query("reading what new shards inherit", command).await?;
            rows.push(fields.into_iter().flat_map(|(field, value)| [field, value]).collect());
        }
        for shard in shards {
            let mut call = self.call(shard, Call::Inherit);
            for fields in &rows {
                call.arg(fields.len()).arg(fields);
            }
            self.run::<()>("readying a new shard", call).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_messages_stay_in_their_shard_when_shards_are_added() {
        let id = QueueId::generate();
        let few = Layout::unread(4);
        let later =
            Layout { known: RwLock::new(Known { eras: vec![(0, 4), (id.millis() + 1, 16)], read_at: None }) };
        assert_eq!(few.shard_of(id), later.shard_of(id));
        assert_eq!(later.shards(), 16);
        let sooner =
            Layout { known: RwLock::new(Known { eras: vec![(0, 4), (id.millis(), 1024)], read_at: None }) };
        assert_eq!(sooner.shard_of(id), part(id.spread(), 1024));
        assert_eq!(few.shard_of_name("mx:a"), sooner.shard_of_name("mx:a"));
        assert!(!few.is_known());
    }
}
