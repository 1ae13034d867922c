//! What lies in the store, version 1. `docs/queue.md` describes it for people.
//!
//! A pack is `PBPACK01`, the length of its index (8 octets, big endian), the index (JSON), and the
//! contents one after the other. A part is its octets and their SHA-256. A note is one JSON document.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use message::{Content, QueueId, Recipient};
use object_store::PutPayload;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{MessageRecord, NewEntry, NewMessage, NextHop, PART_SIZE, QueueError, Tenant, Timestamp};

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"PBPACK01";
/// Octets before the index.
pub(super) const PACK_HEAD: u64 = 16;
/// An index longer than this is none. Octets.
pub(super) const INDEX_LIMIT: u64 = 256 * 1024 * 1024;
const DIGEST: usize = 32;

/// Where an inline content lies. It is what the queue keeps in the content's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Locator {
    /// The pack's name.
    pub(super) pack: QueueId,
    /// The first octet, in the pack.
    pub(super) at: u64,
    /// How many.
    pub(super) length: u64,
    /// Their SHA-256, in hexadecimal.
    pub(super) sha256: String,
}

/// A pack's list of what is in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    pub(super) messages: Vec<Indexed>,
}

/// One message in a pack: all that is needed to enqueue it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Indexed {
    /// With the time of acceptance by the clock of who wrote the pack.
    pub(super) record: MessageRecord,
    entries: Vec<IndexedEntry>,
    /// The first octet of its inline content, counted from the end of the index.
    offset: u64,
    sha256: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IndexedEntry {
    next_hop: NextHop,
    tenant: Tenant,
    recipients: Vec<Recipient>,
    max_age_ms: u64,
}

/// Something that was settled, or never was answered for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub(super) enum Note {
    /// Recipients of a message are final: nothing is to be sent to them again.
    Done {
        /// The message.
        id: QueueId,
        /// Their addresses.
        recipients: Vec<String>,
    },
    /// This copy of a message counts for nothing: the queue has another, or never had it.
    Void {
        /// The message.
        id: QueueId,
        /// The copy.
        pack: QueueId,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    version: u32,
    notes: Vec<Note>,
}

pub(super) fn pack_name(pack: QueueId) -> String {
    format!("packs/{pack}")
}

pub(super) fn note_name(note: QueueId) -> String {
    format!("notes/{note}")
}

pub(super) fn part_name(id: QueueId, number: u32) -> String {
    format!("parts/{id}/{number}")
}

/// The id at the end of a name.
pub(super) fn id_in(name: &str) -> Option<QueueId> {
    name.split('/').nth(1)?.parse().ok()
}

/// The parts that follow the inline content: all but the last are full.
pub(super) fn parts_of(record: &MessageRecord) -> u32 {
    let staged = record.size.saturating_sub(record.inline_size);
    u32::try_from(staged.div_ceil(PART_SIZE as u64)).unwrap_or(u32::MAX)
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn corrupt(
    what: impl Into<String>,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> QueueError {
    QueueError::Corrupt { what: what.into(), cause: cause.into() }
}

/// Puts messages into one pack; gives the object, and where each lies in it.
pub(super) fn pack(
    name: QueueId,
    messages: Vec<(MessageRecord, Vec<NewEntry>, Content)>,
    now: Timestamp,
) -> Result<(PutPayload, Vec<Locator>), QueueError> {
    let mut index = Index { version: VERSION, messages: Vec::with_capacity(messages.len()) };
    let mut contents = Vec::new();
    let mut offset = 0;
    for (mut record, entries, content) in messages {
        let mut sha256 = Sha256::new();
        content.slices().iter().for_each(|slice| sha256.update(slice));
        record.accepted_at = now;
        let length = content.len();
        let entries = entries.into_iter().map(IndexedEntry::from).collect();
        index.messages.push(Indexed { record, entries, offset, sha256: hex(&sha256.finalize()) });
        contents.extend(content.slices().iter().cloned());
        offset += length;
    }
    let json = serde_json::to_vec(&index).map_err(|error| corrupt("an index to write", error))?;
    let mut head = BytesMut::with_capacity(PACK_HEAD as usize);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&(json.len() as u64).to_be_bytes());
    let body = PACK_HEAD + json.len() as u64;
    let locators = index.messages.iter().map(|message| message.locator(name, body)).collect();
    let slices = [head.freeze(), Bytes::from(json)].into_iter().chain(contents);
    Ok((slices.collect(), locators))
}

/// How long the index is, by a pack's first octets.
pub(super) fn index_length(name: &str, head: &[u8]) -> Result<u64, QueueError> {
    let length = head.strip_prefix(MAGIC).and_then(|rest| rest.try_into().ok()).map(u64::from_be_bytes);
    length
        .filter(|length| *length <= INDEX_LIMIT)
        .ok_or_else(|| corrupt(name, "it does not begin as a pack of version 1 does"))
}

pub(super) fn read_index(name: &str, json: &[u8]) -> Result<Index, QueueError> {
    let index: Index = serde_json::from_slice(json).map_err(|error| corrupt(name, error))?;
    if index.version == VERSION { Ok(index) } else { Err(corrupt(name, "its version is not 1")) }
}

pub(super) fn write_notes(notes: Vec<Note>) -> Result<PutPayload, QueueError> {
    let json = serde_json::to_vec(&Notes { version: VERSION, notes });
    json.map(PutPayload::from).map_err(|error| corrupt("notes to write", error))
}

pub(super) fn read_notes(name: &str, json: &[u8]) -> Result<Vec<Note>, QueueError> {
    let read: Notes = serde_json::from_slice(json).map_err(|error| corrupt(name, error))?;
    if read.version == VERSION { Ok(read.notes) } else { Err(corrupt(name, "its version is not 1")) }
}

/// A part as it is written.
pub(super) fn seal(octets: Bytes) -> PutPayload {
    let digest = Bytes::copy_from_slice(&Sha256::digest(&octets));
    [octets, digest].into_iter().collect()
}

/// The length of a sealed part's content.
pub(super) fn unsealed(size: u64) -> u64 {
    size.saturating_sub(DIGEST as u64)
}

/// A part as it was given to [`seal`].
pub(super) fn unseal(name: &str, mut sealed: Bytes) -> Result<Bytes, QueueError> {
    let digest = sealed.split_off(sealed.len().saturating_sub(DIGEST));
    if Sha256::digest(&sealed).as_slice() == digest.as_ref() {
        Ok(sealed)
    } else {
        Err(corrupt(name, "its SHA-256 is not that of its octets"))
    }
}

impl Locator {
    pub(super) fn to_bytes(&self) -> Result<Bytes, QueueError> {
        serde_json::to_vec(self).map(Bytes::from).map_err(|error| corrupt("a place in the spool", error))
    }

    pub(super) fn from_bytes(id: QueueId, json: &[u8]) -> Result<Self, QueueError> {
        serde_json::from_slice(json)
            .map_err(|error| corrupt(format!("the place of {id} in the spool"), error))
    }

    /// Fails unless these are the octets that were written.
    pub(super) fn verify(&self, octets: &[u8]) -> Result<(), QueueError> {
        if hex(&Sha256::digest(octets)) == self.sha256 {
            Ok(())
        } else {
            Err(corrupt(pack_name(self.pack), "the SHA-256 of a message is not that of its octets"))
        }
    }
}

impl Indexed {
    /// The recipients of all its entries.
    pub(super) fn recipients(&self) -> impl Iterator<Item = &Recipient> {
        self.entries.iter().flat_map(|entry| &entry.recipients)
    }

    /// Where its inline content lies, in a pack whose contents begin at `body`.
    pub(super) fn locator(&self, pack: QueueId, body: u64) -> Locator {
        Locator { pack, at: body + self.offset, length: self.record.inline_size, sha256: self.sha256.clone() }
    }

    /// The message as it is accepted again: recipients whom `done` names are left out, and the times of the
    /// entries go on from the first acceptance. `None` when nobody is left.
    pub(super) fn reopened(
        &self,
        done: impl Fn(&str) -> bool,
        now: Timestamp,
        inline: Content,
    ) -> Option<NewMessage> {
        let elapsed = now.since(self.record.accepted_at);
        let open =
            |recipient: &&Recipient| recipient.standing.is_open() && !done(&recipient.address.to_string());
        let entries = self.entries.iter().filter_map(|entry| {
            let recipients: Vec<Recipient> = entry.recipients.iter().filter(open).cloned().collect();
            (!recipients.is_empty()).then(|| NewEntry {
                next_hop: entry.next_hop.clone(),
                tenant: entry.tenant.clone(),
                recipients,
                max_age: Duration::from_millis(entry.max_age_ms).saturating_sub(elapsed),
            })
        });
        let entries: Vec<NewEntry> = entries.collect();
        (!entries.is_empty()).then(|| NewMessage { record: self.record.clone(), inline, entries })
    }
}

impl From<NewEntry> for IndexedEntry {
    fn from(entry: NewEntry) -> Self {
        Self {
            next_hop: entry.next_hop,
            tenant: entry.tenant,
            recipients: entry.recipients,
            max_age_ms: u64::try_from(entry.max_age.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
