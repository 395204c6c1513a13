//! How a row and the mirror's own state are written in bytes, each with its checksum. No I/O.

use prost::Message;

use crate::event::{EmbeddedRow, RowKey, Version};
use crate::topic::{Offsets, Partition};

/// Version of the layout of this file. Another one is not read but rebuilt from `vectors`.
pub(super) const FORMAT: u32 = 1;

/// Where the state is.
pub(super) const STATE_KEY: &[u8] = b"s";
/// What a row's key begins with.
const ROW_PREFIX: u8 = b'r';

/// checksum u32, flags u8, version u64, partition u16, time of the tombstone i64; little-endian.
const HEAD_BYTES: usize = 4 + 1 + 8 + 2 + 8;
const CHECKSUM_BYTES: usize = 4;
const FLAG_LIVE: u8 = 0;
const FLAG_DELETED: u8 = 1;

/// A row's state as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) version: Version,
    pub(super) partition: Partition,
    pub(super) body: Stored,
}

/// A row or its tombstone.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stored {
    Live(EmbeddedRow),
    /// When the tombstone was stored, milliseconds since the Unix epoch.
    Deleted(i64),
}

/// What the mirror says of itself. Written with every batch, in the same transaction.
///
/// The rows' checksums find a row that is damaged; `records` and `digest` find one that is missing or older than the
/// positions say, which is how a store that lost a page would look.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MirrorState {
    #[prost(uint32, tag = "1")]
    pub(super) format: u32,
    #[prost(string, tag = "2")]
    pub(super) pipeline: String,
    #[prost(string, tag = "3")]
    pub(super) revision: String,
    /// The next offset of `vectors` to take, one a partition.
    #[prost(uint64, repeated, tag = "4")]
    pub(super) positions: Offsets,
    /// Rows below this version are gone, one a partition; 0: none are.
    #[prost(uint64, repeated, tag = "5")]
    pub(super) barriers: Vec<u64>,
    /// Rows and tombstones.
    #[prost(uint64, tag = "6")]
    pub(super) records: u64,
    /// Sum of all fingerprints, modulo 2^64.
    #[prost(fixed64, tag = "7")]
    pub(super) digest: u64,
    /// The last heartbeat, one a partition, milliseconds since the Unix epoch; empty or 0: there was none.
    #[prost(sint64, repeated, tag = "8")]
    pub(super) heartbeats: Vec<i64>,
}

/// Why bytes cannot be what was stored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damage(pub(super) String);

/// The stored key of a row.
pub(super) fn row_key(key: &RowKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.as_str().len());
    bytes.push(ROW_PREFIX);
    bytes.extend_from_slice(key.as_str().as_bytes());
    bytes
}

/// Reads a row's stored key; `None` where it is no row's.
pub(super) fn parse_row_key(stored: &[u8]) -> Option<RowKey> {
    let (&ROW_PREFIX, key) = stored.split_first()? else { return None };
    RowKey::from_bytes(key).ok()
}

impl Record {
    /// The stored bytes and the fingerprint that stands for them in the digest.
    pub(super) fn encode(&self, key: &[u8]) -> (Vec<u8>, u64) {
        let (flag, time_ms, row) = match &self.body {
            Stored::Live(row) => (FLAG_LIVE, 0, Some(row)),
            Stored::Deleted(at_ms) => (FLAG_DELETED, *at_ms, None),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + row.map_or(0, Message::encoded_len));
        bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
        bytes.push(flag);
        bytes.extend_from_slice(&self.version.0.to_le_bytes());
        bytes.extend_from_slice(&self.partition.to_le_bytes());
        bytes.extend_from_slice(&time_ms.to_le_bytes());
        if let Some(row) = row {
            bytes.extend_from_slice(&row.encode_to_vec());
        }
        let checksum = seal(key, &mut bytes);
        (bytes, fingerprint(checksum, self.version))
    }

    /// Reads what `encode` wrote under this key; the fingerprint with it.
    pub(super) fn decode(key: &[u8], bytes: &[u8]) -> Result<(Self, u64), Damage> {
        let name = || String::from_utf8_lossy(key).into_owned();
        let (checksum, body) = unseal(key, bytes).ok_or_else(|| Damage(format!("checksum of row {}", name())))?;
        let head = || -> Option<(u8, u64, u16, i64, &[u8])> {
            let (flag, rest) = body.split_first_chunk::<1>()?;
            let (version, rest) = rest.split_first_chunk::<8>()?;
            let (partition, rest) = rest.split_first_chunk::<2>()?;
            let (time_ms, rest) = rest.split_first_chunk::<8>()?;
            let (version, partition) = (u64::from_le_bytes(*version), u16::from_le_bytes(*partition));
            Some((flag[0], version, partition, i64::from_le_bytes(*time_ms), rest))
        };
        let (flag, version, partition, time_ms, rest) =
            head().ok_or_else(|| Damage(format!("length of row {}", name())))?;
        let body = match flag {
            FLAG_LIVE => Stored::Live(
                EmbeddedRow::decode(rest).map_err(|error| Damage(format!("content of row {}: {error}", name())))?,
            ),
            FLAG_DELETED => Stored::Deleted(time_ms),
            other => return Err(Damage(format!("flag {other} of row {}", name()))),
        };
        let version = Version(version);
        Ok((Record { version, partition, body }, fingerprint(checksum, version)))
    }
}

impl MirrorState {
    /// The state of an empty mirror.
    pub(super) fn empty(pipeline: &str, revision: &str, partitions: Partition) -> Self {
        let zeros = vec![0; usize::from(partitions)];
        MirrorState {
            format: FORMAT,
            pipeline: pipeline.to_owned(),
            revision: revision.to_owned(),
            positions: zeros.clone(),
            barriers: zeros,
            records: 0,
            digest: 0,
            heartbeats: vec![],
        }
    }

    /// Notes a heartbeat of a partition.
    pub(super) fn heard(&mut self, partition: Partition, as_of_ms: i64) {
        self.heartbeats.resize(self.positions.len(), 0);
        let last = &mut self.heartbeats[usize::from(partition)];
        *last = as_of_ms.max(*last);
    }

    /// The moment up to which all partitions have everything; `None` before each has had a heartbeat.
    pub(super) fn as_of_ms(&self) -> Option<i64> {
        self.heartbeats.iter().min().copied().filter(|as_of_ms| *as_of_ms > 0)
    }

    /// The stored bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; CHECKSUM_BYTES];
        bytes.extend_from_slice(&self.encode_to_vec());
        seal(STATE_KEY, &mut bytes);
        bytes
    }

    /// Reads what `to_bytes` wrote.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Damage> {
        let (_, body) = unseal(STATE_KEY, bytes).ok_or_else(|| Damage("checksum of the state".to_owned()))?;
        MirrorState::decode(body).map_err(|error| Damage(format!("content of the state: {error}")))
    }
}

/// Fills in the checksum of key and body, so that a value under another key's name does not pass.
fn seal(key: &[u8], bytes: &mut [u8]) -> u32 {
    let checksum = checksum(key, &bytes[CHECKSUM_BYTES..]);
    bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

fn unseal<'a>(key: &[u8], bytes: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (stored, body) = bytes.split_first_chunk::<CHECKSUM_BYTES>()?;
    let stored = u32::from_le_bytes(*stored);
    (stored == checksum(key, body)).then_some((stored, body))
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

/// Spreads checksum and version over 64 bits (the finaliser of SplitMix64), so that sums do not cancel out.
fn fingerprint(checksum: u32, version: Version) -> u64 {
    let mut x = version.0.rotate_left(32) ^ u64::from(checksum);
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Window;

    #[test]
    fn what_was_stored_is_read_and_every_flipped_bit_is_noticed() {
        let key = RowKey::from_bytes(br#"{"id":1}"#).expect("a key");
        let stored = row_key(&key);
        assert_eq!(parse_row_key(&stored), Some(key));
        let row = EmbeddedRow {
            version: 3,
            payload: r#"{"id":1}"#.into(),
            windows: vec![Window { vector: vec![0.5; 4], passage: "p".into() }],
            ..EmbeddedRow::default()
        };
        for body in [Stored::Live(row), Stored::Deleted(77)] {
            let record = Record { version: Version(3), partition: 5, body };
            let (bytes, fingerprint) = record.encode(&stored);
            assert_eq!(Record::decode(&stored, &bytes), Ok((record, fingerprint)));
            assert!(Record::decode(b"r{\"id\":2}", &bytes).is_err(), "another key");
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&stored, &bytes).is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(Record::decode(&stored, &bytes[..length]).is_err(), "length {length}");
            }
        }
        let state = MirrorState { records: 9, digest: 8, ..MirrorState::empty("faq", "abc", 4) };
        let mut bytes = state.to_bytes();
        assert_eq!(MirrorState::from_bytes(&bytes), Ok(state));
        bytes[6] ^= 1;
        assert!(MirrorState::from_bytes(&bytes).is_err());
    }
}
