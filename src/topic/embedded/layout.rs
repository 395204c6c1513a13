//! How the log lies in its one tree: keys, values and their checksums. No I/O.
//!
//! Numbers are big-endian, so that keys sort as they count. The first byte of a key is its kind:
//!
//! | key | value |
//! | --- | --- |
//! | `F` | format version: u64 |
//! | `T` topic name | topic id: u16, partitions: u16 |
//! | `S` topic | capture's state, JSON |
//! | `E` topic, partition | next offset to give out: u64; kept apart from the records, because pruning may remove the last |
//! | `P` topic, partition | next offset of `changes` that embed reads for this `vectors` topic: u64 |
//! | `R` topic, partition, offset | number of pieces: u32, first piece of the record |
//! | `R` topic, partition, offset, piece: u32 | a further piece, from 1 |
//! | `K` topic, partition, key | latest record of this key: offset, kind, pieces, and the key where it was shortened |
//! | `D` topic, partition, offset | a tombstone or barrier, to be pruned: its time: i64, its key |
//! | `B` topic, partition | a barrier's offset: u64; the records below it are still to be removed |
//! | `X` topic, partition | offset after the last pruned tombstone: u64 |
//! | `G` topic, partition | of `vectors`: what `X` of `changes` was when the topic was made: u64 |
//!
//! Every value begins with the CRC-32 of its key and of what follows, so a value at the wrong place is found too.
//! A record longer than [`PIECE_MAX`] lies in pieces: sled would write a page that holds large values to a file of its
//! own, which it does not sync.

use bytes::{Buf, BufMut, Bytes};
use sha2::{Digest, Sha256};

use super::super::Partition;
use crate::event::Record;

/// A topic's number in this log.
pub(super) type TopicId = u16;

/// The format that this program reads and writes.
pub(super) const FORMAT: u64 = 1;

/// Bytes of a record in one value. sled splits a page at more than 16 values and keeps up to ten changes beside them;
/// 27 of these stay below the quarter of a segment at which a page becomes a file.
pub(super) const PIECE_MAX: usize = SEGMENT / 4 / 28;
/// sled's segment, in bytes.
pub(super) const SEGMENT: usize = 512 * 1024;

/// Keys up to this long are in the tree as they are; of longer ones the beginning and a hash.
const KEY_MAX: usize = 200;
const KEY_HASH: usize = 16;

const CRC: usize = 4;

/// A value that does not have its checksum or its form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

pub(super) mod kind {
    pub const FORMAT: u8 = b'F';
    pub const ID: u8 = b'I';
    pub const TOPIC: u8 = b'T';
    pub const STATE: u8 = b'S';
    pub const END: u8 = b'E';
    pub const POSITION: u8 = b'P';
    pub const RECORD: u8 = b'R';
    pub const KEY: u8 = b'K';
    pub const EXPIRING: u8 = b'D';
    pub const BARRIER: u8 = b'B';
    pub const PRUNED: u8 = b'X';
    pub const BEGAN: u8 = b'G';
    pub const REPLAYED: u8 = b'A';
}

pub(super) fn format_key() -> Vec<u8> {
    vec![kind::FORMAT]
}

pub(super) fn id_key() -> Vec<u8> {
    vec![kind::ID]
}

pub(super) fn topic_key(name: &str) -> Vec<u8> {
    [&[kind::TOPIC], name.as_bytes()].concat()
}

pub(super) fn state_key(topic: TopicId) -> Vec<u8> {
    [&[kind::STATE][..], &topic.to_be_bytes()].concat()
}

/// The key of a value that a partition has once, and the beginning of those it has many of.
pub(super) fn partition_key(kind: u8, topic: TopicId, partition: Partition) -> Vec<u8> {
    let mut key = Vec::with_capacity(17);
    key.put_u8(kind);
    key.put_u16(topic);
    key.put_u16(partition);
    key
}

/// The key of what stands at an offset: a record's first piece, or the mark of an expiring record.
pub(super) fn offset_key(kind: u8, topic: TopicId, partition: Partition, offset: u64) -> Vec<u8> {
    let mut key = partition_key(kind, topic, partition);
    key.put_u64(offset);
    key
}

/// The key of a record's piece; piece 0 is the first.
pub(super) fn piece_key(topic: TopicId, partition: Partition, offset: u64, piece: u32) -> Vec<u8> {
    let mut key = offset_key(kind::RECORD, topic, partition, offset);
    if piece > 0 {
        key.put_u32(piece);
    }
    key
}

const OFFSET_KEY_LEN: usize = 13;

/// The offset in a key that [`offset_key`] made; `None` for a further piece.
pub(super) fn offset_in(key: &[u8]) -> Result<Option<u64>, Malformed> {
    match key.len() {
        OFFSET_KEY_LEN => Ok(Some((&key[OFFSET_KEY_LEN - 8..]).get_u64())),
        len if len == OFFSET_KEY_LEN + 4 => Ok(None),
        _ => Err(Malformed),
    }
}

/// The partition in a key of a kind that a partition has once.
pub(super) fn partition_in(key: &[u8]) -> Result<(TopicId, Partition), Malformed> {
    let mut rest = key.get(1..5).ok_or(Malformed)?;
    Ok((rest.get_u16(), rest.get_u16()))
}

/// The key under which the latest record of `key` is found. Its last byte says whether the key was shortened, so that
/// no short key can equal a shortened one.
pub(super) fn latest_key(topic: TopicId, partition: Partition, key: &[u8]) -> Vec<u8> {
    let mut place = partition_key(kind::KEY, topic, partition);
    if key.len() <= KEY_MAX {
        place.put_slice(key);
        place.put_u8(0);
    } else {
        place.put_slice(&key[..KEY_MAX - KEY_HASH]);
        place.put_slice(&Sha256::digest(key)[..KEY_HASH]);
        place.put_u8(1);
    }
    place
}

/// What a record means for what the log still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RecordKind {
    Live = 0,
    Tombstone = 1,
    Barrier = 2,
}

/// Where the latest record of a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    pub offset: u64,
    pub kind: RecordKind,
    pub pieces: u32,
}

impl Latest {
    pub fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut value = vec![0; CRC];
        value.put_u64(self.offset);
        value.put_u8(self.kind as u8);
        value.put_u32(self.pieces);
        if key.len() > KEY_MAX {
            value.put_slice(key);
        }
        value
    }

    /// Reads the value and the record's key.
    pub fn decode(place: &[u8], value: &[u8]) -> Result<(Latest, Bytes), Malformed> {
        let mut rest = unseal(place, value)?;
        let offset = rest.try_get_u64().map_err(|_| Malformed)?;
        let kind = match rest.try_get_u8().map_err(|_| Malformed)? {
            0 => RecordKind::Live,
            1 => RecordKind::Tombstone,
            2 => RecordKind::Barrier,
            _ => return Err(Malformed),
        };
        let pieces = rest.try_get_u32().map_err(|_| Malformed)?;
        let key = match place.split_last() {
            Some((0, short)) => short.get(5..).ok_or(Malformed)?,
            _ => rest,
        };
        Ok((Latest { offset, kind, pieces }, Bytes::copy_from_slice(key)))
    }
}

/// A number as a sealed value.
pub(super) fn number(key: &[u8], number: u64) -> Vec<u8> {
    let mut value = vec![0; CRC];
    value.put_u64(number);
    seal(key, value)
}

pub(super) fn read_number(key: &[u8], value: &[u8]) -> Result<u64, Malformed> {
    unseal(key, value)?.try_get_u64().map_err(|_| Malformed)
}

/// A topic's id and partitions as a sealed value.
pub(super) fn topic_value(key: &[u8], id: TopicId, partitions: u16) -> Vec<u8> {
    let mut value = vec![0; CRC];
    value.put_u16(id);
    value.put_u16(partitions);
    seal(key, value)
}

pub(super) fn read_topic(key: &[u8], value: &[u8]) -> Result<(TopicId, u16), Malformed> {
    let mut rest = unseal(key, value)?;
    Ok((rest.try_get_u16().map_err(|_| Malformed)?, rest.try_get_u16().map_err(|_| Malformed)?))
}

/// When a tombstone or barrier was made, and its key, as a sealed value.
pub(super) fn expiring(place: &[u8], timestamp_ms: i64, key: &[u8]) -> Vec<u8> {
    let mut value = vec![0; CRC];
    value.put_i64(timestamp_ms);
    value.put_slice(key);
    seal(place, value)
}

pub(super) fn read_expiring<'a>(place: &[u8], value: &'a [u8]) -> Result<(i64, &'a [u8]), Malformed> {
    let mut rest = unseal(place, value)?;
    Ok((rest.try_get_i64().map_err(|_| Malformed)?, rest))
}

/// Bytes as a sealed value.
pub(super) fn sealed(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    seal(key, [&[0; CRC], bytes].concat())
}

/// Puts the checksum into the place kept for it at the value's beginning.
pub(super) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = checksum(key, &value[CRC..]);
    value[..CRC].copy_from_slice(&crc.to_be_bytes());
    value
}

/// What stands behind a value's checksum, if that is right.
pub(super) fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], Malformed> {
    let (crc, rest) = value.split_at_checked(CRC).ok_or(Malformed)?;
    if crc == checksum(key, rest).to_be_bytes() { Ok(rest) } else { Err(Malformed) }
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// A record's pieces with their keys.
pub(super) fn pieces(topic: TopicId, partition: Partition, offset: u64, record: &Record) -> Vec<(Vec<u8>, Vec<u8>)> {
    let body = encode(record);
    let count = body.len().div_ceil(PIECE_MAX) as u32;
    let piece = |(number, part): (usize, &[u8])| {
        let key = piece_key(topic, partition, offset, number as u32);
        let mut value = Vec::with_capacity(CRC + 4 + part.len());
        value.put_bytes(0, CRC);
        if number == 0 {
            value.put_u32(count);
        }
        value.put_slice(part);
        let value = seal(&key, value);
        (key, value)
    };
    body.chunks(PIECE_MAX).enumerate().map(piece).collect()
}

/// The number of pieces and the part of the record in the first one.
pub(super) fn first_piece<'a>(key: &[u8], value: &'a [u8]) -> Result<(u32, &'a [u8]), Malformed> {
    let mut rest = unseal(key, value)?;
    let count = rest.try_get_u32().map_err(|_| Malformed)?;
    if count == 0 { Err(Malformed) } else { Ok((count, rest)) }
}

fn encode(record: &Record) -> Vec<u8> {
    let headers: usize = record.headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
    let value_len = record.value.as_ref().map_or(0, Bytes::len);
    let mut body = Vec::with_capacity(17 + record.key.len() + headers + value_len);
    body.put_i64(record.timestamp_ms);
    put_bytes(&mut body, &record.key);
    body.put_u32(record.headers.len() as u32);
    for (name, value) in &record.headers {
        put_bytes(&mut body, name.as_bytes());
        put_bytes(&mut body, value);
    }
    body.put_u8(u8::from(record.value.is_some()));
    body.put_slice(record.value.as_deref().unwrap_or_default());
    body
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    body.put_u32(bytes.len() as u32);
    body.put_slice(bytes);
}

/// Reads a record from its joined pieces; the parts share the memory of `body`.
pub(super) fn decode(mut body: Bytes) -> Result<Record, Malformed> {
    let timestamp_ms = body.try_get_i64().map_err(|_| Malformed)?;
    let key = take_bytes(&mut body)?;
    let count = body.try_get_u32().map_err(|_| Malformed)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = String::from_utf8(take_bytes(&mut body)?.to_vec()).map_err(|_| Malformed)?;
        headers.push((name, take_bytes(&mut body)?));
    }
    let value = match body.try_get_u8().map_err(|_| Malformed)? {
        0 if body.is_empty() => None,
        1 => Some(body),
        _ => return Err(Malformed),
    };
    Ok(Record { key, value, headers, timestamp_ms })
}

fn take_bytes(body: &mut Bytes) -> Result<Bytes, Malformed> {
    let len = body.try_get_u32().map_err(|_| Malformed)? as usize;
    if len > body.len() { Err(Malformed) } else { Ok(body.split_to(len)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key_len: usize, value_len: Option<usize>) -> Record {
        Record {
            key: Bytes::from(vec![b'k'; key_len]),
            value: value_len.map(|len| Bytes::from(vec![b'v'; len])),
            headers: vec![("a".into(), Bytes::from_static(b"1")), (String::new(), Bytes::new())],
            timestamp_ms: -5,
        }
    }

    #[test]
    fn records_survive_a_round_trip_in_pieces() {
        for (record, wanted) in [
            (record(0, None), 1),
            (record(5, Some(0)), 1),
            (record(5, Some(PIECE_MAX)), 2),
            (record(PIECE_MAX, Some(2 * PIECE_MAX)), 4),
        ] {
            let pieces = pieces(1, 2, 3, &record);
            assert_eq!(pieces.len(), wanted);
            assert!(pieces.iter().all(|(_, value)| value.len() <= PIECE_MAX + CRC + 4));
            let (count, first) = first_piece(&pieces[0].0, &pieces[0].1).expect("sealed");
            assert_eq!(count as usize, wanted);
            let mut body = first.to_vec();
            for (key, value) in &pieces[1..] {
                body.extend_from_slice(unseal(key, value).expect("sealed"));
            }
            assert_eq!(decode(body.into()), Ok(record));
        }
    }

    #[test]
    fn a_changed_or_moved_value_is_malformed() {
        let (key, value) = pieces(1, 2, 3, &record(4, Some(9))).remove(0);
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 1;
            assert_eq!(first_piece(&key, &changed), Err(Malformed), "byte {at}");
        }
        assert_eq!(first_piece(&piece_key(1, 2, 4, 0), &value), Err(Malformed));
        assert_eq!(unseal(&key, &value[..3]), Err(Malformed));
    }

    #[test]
    fn bodies_cut_short_are_malformed_and_do_not_panic() {
        let body = Bytes::from(encode(&record(4, None)));
        for len in 0..body.len() {
            assert_eq!(decode(body.slice(..len)), Err(Malformed), "{len} bytes");
        }
    }

    #[test]
    fn long_keys_are_found_again_and_kept_apart() {
        let long = vec![b'x'; KEY_MAX + 1];
        let mut other = long.clone();
        other[KEY_MAX] = b'y';
        let places: Vec<_> = [&long, &other, &long[..KEY_MAX].to_vec()].map(|key| latest_key(1, 2, key)).into();
        assert!(places[0] != places[1] && places[0] != places[2]);
        for (key, place) in [&long, &other, &long[..KEY_MAX].to_vec()].into_iter().zip(&places) {
            let latest = Latest { offset: 9, kind: RecordKind::Tombstone, pieces: 3 };
            let value = seal(place, latest.encode(key));
            assert_eq!(Latest::decode(place, &value), Ok((latest, Bytes::copy_from_slice(key))));
        }
    }
}
