//! How a row and the mirror's own state are written in bytes, each with its checksum. No I/O.

use prost::Message;

use crate::clock::later_ms;
use crate::event::{EmbeddedRow, RowKey, Version};
use crate::topic::{Offsets, Partition};

/// Version of the layout of this file. Another one is not read but rebuilt from `vectors`.
pub(super) const FORMAT: u32 = 2;

/// Where the state is.
pub(super) const STATE_KEY: &[u8] = b"s";
/// What the key of every record begins with.
const PLACE_PREFIX: u8 = b'r';
/// Bytes of a record's key.
const PLACE_BYTES: usize = 1 + 8;

/// checksum u32, flags u8, version u64, partition u16, time of the tombstone i64, bytes of the key u32; little-endian.
const HEAD_BYTES: usize = 4 + 1 + 8 + 2 + 8 + 4;
const CHECKSUM_BYTES: usize = 4;
const FLAG_LIVE: u8 = 0;
const FLAG_DELETED: u8 = 1;

/// A row's state as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) key: RowKey,
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
    /// The next record's place.
    #[prost(uint64, tag = "9")]
    pub(super) next_place: u64,
}

/// What stands before a record's row.
struct Head {
    flag: u8,
    version: Version,
    partition: Partition,
    time_ms: i64,
    key: RowKey,
}

impl Head {
    /// Takes it off the front; `None` where it is not all there.
    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let flag = *bytes.split_off_first()?;
        let version = Version(u64::from_le_bytes(take(bytes)?));
        let partition = u16::from_le_bytes(take(bytes)?);
        let time_ms = i64::from_le_bytes(take(bytes)?);
        let key_bytes = u32::from_le_bytes(take(bytes)?) as usize;
        let key = RowKey::from_bytes(bytes.split_off(..key_bytes)?).ok()?;
        Some(Head { flag, version, partition, time_ms, key })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.try_into().ok()
}

/// Why bytes cannot be what was stored.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damage(pub(super) String);

/// The key under which sled has a record. Records stand in the order in which they came, not by their rows' keys, and one
/// that replaces another stands at the end: sled rewrites a page for every few keys put between others, which is three
/// times the work.
pub(super) fn place_key(place: u64) -> [u8; PLACE_BYTES] {
    let mut key = [PLACE_PREFIX; PLACE_BYTES];
    key[1..].copy_from_slice(&place.to_be_bytes());
    key
}

/// Reads what `place_key` wrote; `None` where it is no record's.
pub(super) fn parse_place(key: &[u8]) -> Option<u64> {
    let (&PLACE_PREFIX, place) = key.split_first()? else { return None };
    Some(u64::from_be_bytes(place.try_into().ok()?))
}

/// A record in bytes, ready for any place.
#[derive(Debug)]
pub(super) struct Sealed {
    bytes: Vec<u8>,
    /// Of the body.
    checksum: u32,
    /// Stands for it in the digest, wherever it is.
    pub(super) fingerprint: u64,
}

impl Sealed {
    /// The bytes for a place.
    pub(super) fn at(mut self, place: u64) -> Vec<u8> {
        let checksum = self.checksum ^ crc32fast::hash(&place_key(place));
        self.bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.bytes
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Record {
    /// Writes it as bytes.
    pub(super) fn seal(&self) -> Sealed {
        let (flag, time_ms, row) = match &self.body {
            Stored::Live(row) => (FLAG_LIVE, 0, Some(row)),
            Stored::Deleted(at_ms) => (FLAG_DELETED, *at_ms, None),
        };
        let key = self.key.as_str().as_bytes();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + key.len() + row.map_or(0, Message::encoded_len));
        bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
        bytes.push(flag);
        bytes.extend_from_slice(&self.version.0.to_le_bytes());
        bytes.extend_from_slice(&self.partition.to_le_bytes());
        bytes.extend_from_slice(&time_ms.to_le_bytes());
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key);
        if let Some(row) = row {
            // A vector grows as it needs to, so this cannot fail.
            let _grows = row.encode(&mut bytes);
        }
        let checksum = crc32fast::hash(&bytes[CHECKSUM_BYTES..]);
        Sealed { bytes, checksum, fingerprint: fingerprint(checksum, self.version) }
    }

    /// Reads what was sealed for this place; the fingerprint with it.
    pub(super) fn decode(place: u64, bytes: &[u8]) -> Result<(Self, u64), Damage> {
        let damage = |what: &str| Damage(format!("{what} of record {place}"));
        let (checksum, body) = unseal(&place_key(place), bytes).ok_or_else(|| damage("checksum"))?;
        let mut rest = body;
        let head = Head::take(&mut rest).ok_or_else(|| damage("head"))?;
        let body = match head.flag {
            FLAG_LIVE => {
                Stored::Live(EmbeddedRow::decode(rest).map_err(|error| damage(&format!("content ({error})")))?)
            }
            FLAG_DELETED => Stored::Deleted(head.time_ms),
            other => return Err(damage(&format!("flag {other}"))),
        };
        let Head { key, version, partition, .. } = head;
        Ok((Record { key, version, partition, body }, fingerprint(checksum, version)))
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
            next_place: 0,
        }
    }

    /// Notes a heartbeat of a partition.
    pub(super) fn heard(&mut self, partition: Partition, as_of_ms: i64, now_ms: i64) {
        self.heartbeats.resize(self.positions.len(), 0);
        let last = &mut self.heartbeats[usize::from(partition)];
        *last = later_ms(*last, as_of_ms, now_ms);
    }

    /// The moment up to which all partitions have everything; `None` before each has had a heartbeat.
    pub(super) fn as_of_ms(&self) -> Option<i64> {
        self.heartbeats.iter().min().copied().filter(|as_of_ms| *as_of_ms > 0)
    }

    /// The stored bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let body = self.encode_to_vec();
        let checksum = crc32fast::hash(&body) ^ crc32fast::hash(STATE_KEY);
        [&checksum.to_le_bytes()[..], &body].concat()
    }

    /// Reads what `to_bytes` wrote.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Damage> {
        let (_, body) = unseal(STATE_KEY, bytes).ok_or_else(|| Damage("checksum of the state".to_owned()))?;
        MirrorState::decode(body).map_err(|error| Damage(format!("content of the state: {error}")))
    }
}

/// Takes the checksum off: the body's own, and the body. The stored one holds the key as well, so that a value under
/// another key's name does not pass.
fn unseal<'a>(key: &[u8], bytes: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (stored, body) = bytes.split_first_chunk::<CHECKSUM_BYTES>()?;
    let checksum = crc32fast::hash(body);
    (u32::from_le_bytes(*stored) == checksum ^ crc32fast::hash(key)).then_some((checksum, body))
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
        assert_eq!((parse_place(&place_key(u64::MAX - 1)), parse_place(STATE_KEY)), (Some(u64::MAX - 1), None));
        let row = EmbeddedRow {
            version: 3,
            payload: r#"{"id":1}"#.into(),
            windows: vec![Window::new(&[0.5; 4], "p".into())],
            ..EmbeddedRow::default()
        };
        for body in [Stored::Live(row), Stored::Deleted(77)] {
            let record = Record { key: key.clone(), version: Version(3), partition: 5, body };
            let fingerprint = record.seal().fingerprint;
            let bytes = record.seal().at(8);
            assert_eq!(Record::decode(8, &bytes), Ok((record, fingerprint)));
            assert!(Record::decode(9, &bytes).is_err(), "another place");
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(8, &bytes).is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(Record::decode(8, &bytes[..length]).is_err(), "length {length}");
            }
        }
        let state = MirrorState { records: 9, digest: 8, ..MirrorState::empty("faq", "abc", 4) };
        let mut bytes = state.to_bytes();
        assert_eq!(MirrorState::from_bytes(&bytes), Ok(state));
        bytes[6] ^= 1;
        assert!(MirrorState::from_bytes(&bytes).is_err());
    }
}
