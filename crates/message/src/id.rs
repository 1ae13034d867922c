//! The id of an accepted message.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const LEN: usize = 26;

/// The id of one message in Packetboat: chosen by the edge when a transaction begins, told in the
/// `250` reply, written in `Received`, and the name of the message in the queue.
///
/// 48 bits of milliseconds and 80 random bits in Crockford's base 32, lower case: 26 characters,
/// safe in file names, header fields and URLs, and sorted by time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId([u8; LEN]);

/// The text is not 26 characters of Crockford's base 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a queue id: 26 characters of 0-9 a-z without i, l, o, u are wanted")]
pub struct QueueIdError;

impl QueueId {
    /// A new id at the present time.
    #[must_use]
    pub fn generate() -> Self {
        // A wrong clock only spoils the sort order; uniqueness rests on the random bits.
        let millis = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_millis() & 0xffff_ffff_ffff);
        let random = rand::random::<u128>() >> 48;
        Self::from_bits(millis << 80 | random)
    }

    /// The id of the same moment with other random bits (80 of `random` count): for a message that
    /// is made from another, and must have the same id when it is made again.
    #[must_use]
    pub fn with_random(&self, random: u128) -> Self {
        let bits = self.0.iter().fold(0, |sum, byte| sum << 5 | digit(*byte) as u128);
        Self::from_bits(bits >> 80 << 80 | random << 48 >> 48)
    }

    fn from_bits(mut bits: u128) -> Self {
        let mut text = [0; LEN];
        for slot in text.iter_mut().rev() {
            *slot = ALPHABET[(bits & 31) as usize];
            bits >>= 5;
        }
        Self(text)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// When it was made, in milliseconds since 1970 by the clock of its maker.
    #[must_use]
    pub fn millis(&self) -> u64 {
        let millis = self.0.iter().fold(0u128, |sum, byte| sum << 5 | digit(*byte) as u128) >> 80;
        millis as u64
    }

    /// A number spread evenly over the times of ids, for choosing a shard: an id and those made from
    /// it by [`QueueId::with_random`] share it.
    #[must_use]
    pub fn spread(&self) -> u64 {
        // The finaliser of MurmurHash3: neighbouring milliseconds land far apart.
        let mut mixed = self.millis();
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

fn digit(byte: u8) -> usize {
    ALPHABET.iter().position(|c| *c == byte).unwrap_or_default()
}

impl FromStr for QueueId {
    type Err = QueueIdError;

    fn from_str(text: &str) -> Result<Self, QueueIdError> {
        let bytes: [u8; LEN] = text.as_bytes().try_into().map_err(|_| QueueIdError)?;
        let known = bytes.iter().all(|byte| ALPHABET.contains(byte));
        if known { Ok(Self(bytes)) } else { Err(QueueIdError) }
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for QueueId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for QueueId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_sort_by_time() {
        let first = QueueId::from_bits(1 << 80);
        let second = QueueId::from_bits(2 << 80);
        assert!(first < second);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert_eq!(second.with_random(u128::MAX), QueueId::from_bits((2 << 80) + (1 << 80) - 1));
        assert!("short".parse::<QueueId>().is_err());
        assert!("0000000000000000000000000u".parse::<QueueId>().is_err());
    }
}
