//! What records of the dead-letter topic say, and which of them are open. Pure: reads and writes no log.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Partition;
use crate::event::{Record, RowKey, Version};

/// Headers of a dead letter: why it was put aside, which record of which topic it is, and what was wrong with it.
pub const REASON: &str = "vecsync.reason";
/// See [`REASON`].
pub const TOPIC: &str = "vecsync.topic";
/// See [`REASON`].
pub const PARTITION: &str = "vecsync.partition";
/// See [`REASON`].
pub const OFFSET: &str = "vecsync.offset";
/// See [`REASON`].
pub const ERROR: &str = "vecsync.error";
/// Where the record's end had to be cut off: how many bytes its value had.
pub const CUT: &str = "vecsync.cut";

/// A dead letter's name: the place of its record in `changes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LetterId {
    /// The partition.
    pub partition: Partition,
    /// The offset there: the version that the row would have had.
    pub offset: u64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition, self.offset)
    }
}

impl From<LetterId> for String {
    fn from(id: LetterId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for LetterId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}

impl FromStr for LetterId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let halves = text.split_once('-');
        let id = halves.and_then(|(partition, offset)| {
            Some(LetterId { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        });
        // Another spelling of the same numbers, such as `+1-007`, would not be found as it is written.
        id.filter(|id| id.to_string() == text).ok_or(NotAnId)
    }
}

/// A text that names no dead letter.
#[derive(Debug, thiserror::Error)]
#[error("wanted PARTITION-OFFSET as `vecsync dead-letters list` shows it, such as 3-1027")]
pub struct NotAnId;

/// A dead letter without its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// Its name.
    pub id: LetterId,
    /// The record's key, which may be anything.
    pub key: Bytes,
    /// Why it was put aside.
    pub reason: String,
    /// What was wrong with it. May hold values of the row.
    pub error: String,
    /// The topic that its record was read from.
    pub topic: String,
    /// When it was put aside, milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Size of the record's value.
    pub bytes: usize,
}

impl Letter {
    /// Reads a record of the dead-letter topic. None: it is a tombstone, or nobody's letter.
    pub fn read(record: &Record) -> Option<Letter> {
        let value = record.value.as_ref()?;
        let text = |name| record.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
        Some(Letter {
            id: LetterId { partition: record.header_number(PARTITION)?, offset: record.header_number(OFFSET)? },
            key: record.key.clone(),
            reason: text(REASON).unwrap_or_default(),
            error: text(ERROR).unwrap_or_default(),
            topic: text(TOPIC).unwrap_or_default(),
            at_ms: record.timestamp_ms,
            bytes: value.len(),
        })
    }

    /// The key of the row that it is about, if that can be read.
    pub fn row_key(&self) -> Option<RowKey> {
        row_key(&self.key)
    }
}

fn row_key(key: &[u8]) -> Option<RowKey> {
    if Record::is_reserved(key) { None } else { RowKey::from_bytes(key).ok() }
}

/// The newest letters of a topic.
#[derive(Debug, Default, PartialEq)]
pub struct Letters {
    /// Newest first.
    pub newest: Vec<Letter>,
    /// Whether there are older ones.
    pub more: bool,
}

/// Finds the newest letters of a topic that is read from its beginning. Holds at most twice as many as are wanted.
#[derive(Debug)]
pub(super) struct Newest {
    limit: usize,
    by_key: HashMap<Bytes, Letter>,
    more: bool,
}

impl Newest {
    pub fn new(limit: usize) -> Self {
        Newest { limit, by_key: HashMap::new(), more: false }
    }

    /// The topic's next record. A newer one of a key takes the place of the older one, also where the topic is not
    /// compacted yet.
    pub fn offer(&mut self, record: &Record) {
        self.by_key.remove(&record.key);
        if let Some(letter) = Letter::read(record) {
            self.by_key.insert(slot(&letter), letter);
        }
        if self.by_key.len() > 2 * self.limit {
            let Letters { newest, more } = std::mem::replace(self, Newest::new(self.limit)).finish();
            self.more = more;
            self.by_key = newest.into_iter().map(|letter| (slot(&letter), letter)).collect();
        }
    }

    pub fn finish(self) -> Letters {
        let mut newest: Vec<Letter> = self.by_key.into_values().collect();
        newest.sort_by_key(|letter| Reverse((letter.at_ms, letter.id)));
        let more = self.more || newest.len() > self.limit;
        newest.truncate(self.limit);
        Letters { newest, more }
    }
}

/// What a newer letter takes the place of. A letter without a key stays beside the others.
fn slot(letter: &Letter) -> Bytes {
    if letter.key.is_empty() { letter.id.to_string().into() } else { letter.key.clone() }
}

/// Finds one letter of a topic that is read from its beginning.
#[derive(Debug)]
pub(super) struct Sought {
    id: LetterId,
    pub found: Option<Record>,
}

impl Sought {
    pub fn new(id: LetterId) -> Self {
        Sought { id, found: None }
    }

    /// The topic's next record.
    pub fn offer(&mut self, record: &Record) {
        let replaced = |found: &mut Record| !found.key.is_empty() && found.key == record.key;
        self.found.take_if(replaced);
        if Letter::read(record).is_some_and(|letter| letter.id == self.id) {
            self.found = Some(record.clone());
        }
    }
}

/// What embed has done with a row, or with all rows of a partition: older dead letters of theirs are closed by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The partition.
    pub partition: Partition,
    /// Its version.
    pub version: Version,
    /// The row; none for a barrier, which concerns all of the partition.
    pub key: Option<RowKey>,
}

/// The open dead letters that have a row's key.
#[derive(Debug)]
pub struct OpenLetters {
    limit: usize,
    /// Each with the key as it stands in the topic, which may be spelt in another way.
    by_key: HashMap<RowKey, (LetterId, Bytes)>,
    full: bool,
}

impl OpenLetters {
    /// Keeps at most `limit`; of more than that the rest stays in the topic until it is retried or written again.
    pub fn new(limit: usize) -> Self {
        OpenLetters { limit, by_key: HashMap::new(), full: false }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Whether there were more than it keeps.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The topic's next record, in the topic's order.
    pub fn offer(&mut self, record: &Record) {
        let Some(key) = row_key(&record.key) else { return };
        match Letter::read(record) {
            Some(letter) if self.by_key.len() < self.limit || self.by_key.contains_key(&key) => {
                self.by_key.insert(key, (letter.id, record.key.clone()));
            }
            Some(_) => self.full = true,
            None => drop(self.by_key.remove(&key)),
        }
    }

    /// Takes out the letters that these outputs close, and gives their tombstones. An output of the letter's own version
    /// closes it too: the same record, read again by a mended pipeline.
    pub fn close(&mut self, settled: &[Settled], now_ms: i64) -> Vec<Record> {
        let mut closed = vec![];
        for Settled { partition, version, key } in settled {
            if self.by_key.is_empty() {
                break;
            }
            let is_older = |id: &LetterId| id.partition == *partition && id.offset <= version.0;
            match key {
                Some(key) if self.by_key.get(key).is_some_and(|(id, _)| is_older(id)) => {
                    closed.extend(self.by_key.remove(key).map(|(_, key)| key));
                }
                Some(_) => {}
                None => closed.extend(self.by_key.extract_if(|_, (id, _)| is_older(id)).map(|(_, (_, key))| key)),
            }
        }
        let tombstone = |key| Record { key, value: None, headers: vec![], timestamp_ms: now_ms };
        closed.into_iter().map(tombstone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, place: Option<(Partition, u64)>) -> Record {
        let header = |name: &str, value: String| (name.to_owned(), Bytes::from(value));
        let headers = place.map(|(partition, offset)| {
            vec![
                header(REASON, "template".into()),
                header(TOPIC, "t.changes".into()),
                header(PARTITION, partition.to_string()),
                header(OFFSET, offset.to_string()),
                header(ERROR, "division by zero".into()),
            ]
        });
        Record {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: place.map(|_| Bytes::from_static(b"row")),
            headers: headers.unwrap_or_default(),
            timestamp_ms: place.map_or(0, |(_, offset)| offset as i64),
        }
    }

    /// Records as `key@partition-offset`, tombstones as `key`; a key that is a number is a row's.
    fn records(text: &str) -> Vec<Record> {
        let parse = |word: &str| {
            let (key, id) = word.split_once('@').map_or((word, None), |(key, id)| (key, Some(id)));
            let id = id.map(|id| id.parse::<LetterId>().expect("an id"));
            let key = if key.parse::<u64>().is_ok() { format!(r#"{{"id":{key}}}"#) } else { key.to_owned() };
            record(&key, id.map(|id| (id.partition, id.offset)))
        };
        text.split_whitespace().map(parse).collect()
    }

    #[test]
    fn an_id_is_a_place_in_changes_and_nothing_else() {
        for text in ["0-0", "3-1027", "1023-9007199254740991"] {
            assert_eq!(text.parse::<LetterId>().expect("an id").to_string(), text);
        }
        for text in ["", "-", "3", "3-", "-7", "3-x", "+3-7", "03-7", "3-7-1", "70000-1", "3 -7"] {
            assert!(text.parse::<LetterId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_letter_is_read_from_its_headers() {
        let letter = Letter::read(&record(r#"{"id":5}"#, Some((3, 7)))).expect("a letter");
        assert_eq!((letter.id.to_string().as_str(), letter.at_ms, letter.bytes), ("3-7", 7, 3));
        let texts = [letter.reason.as_str(), &letter.topic, &letter.error];
        assert_eq!(texts, ["template", "t.changes", "division by zero"]);
        assert_eq!(letter.row_key().expect("a key").as_str(), r#"{"id":5}"#);
        for key in ["", "5", "{}", r#"{"":"barrier"}"#, r#"{"":"dead-letter 3/7"}"#] {
            let letter = Letter::read(&record(key, Some((3, 7)))).expect("a letter");
            assert_eq!(letter.row_key(), None, "{key}");
        }
        assert_eq!(Letter::read(&record("k", None)), None);
    }

    #[test]
    fn the_newest_are_listed_and_of_a_key_the_last() {
        let check = |topic: &str, limit: usize, wanted: &str, more: bool| {
            let mut newest = Newest::new(limit);
            records(topic).iter().for_each(|record| newest.offer(record));
            let letters = newest.finish();
            let ids: Vec<String> = letters.newest.iter().map(|letter| letter.id.to_string()).collect();
            assert_eq!((ids.join(" ").as_str(), letters.more), (wanted, more), "{topic}");
        };
        check("", 3, "", false);
        check("1@0-1 2@1-5 3@0-3", 3, "1-5 0-3 0-1", false);
        check("1@0-1 2@1-5 1@0-9", 3, "0-9 1-5", false);
        check("1@0-1 2@1-5 1", 3, "1-5", false);
        check("@0-1 @0-2", 3, "0-2 0-1", false);
        check("1@0-1 2@1-5 3@0-3", 2, "1-5 0-3", true);
        check("1@0-9 2@0-1 3@0-2 4@0-3 5@0-4 6@0-5 7@0-6", 2, "0-9 0-6", true);
    }

    #[test]
    fn one_letter_is_found_while_it_is_open() {
        let check = |topic: &str, wanted: bool| {
            let mut sought = Sought::new(LetterId { partition: 0, offset: 1 });
            records(topic).iter().for_each(|record| sought.offer(record));
            assert_eq!(sought.found.is_some(), wanted, "{topic}");
        };
        check("2@0-2 1@0-1 3@0-3", true);
        check("@0-1 @0-2", true);
        check("1@0-1 1@0-7", false);
        check("1@0-1 1", false);
        check("1@1-1", false);
    }

    #[test]
    fn what_embed_has_done_closes_letters_that_are_not_newer() {
        let check = |topic: &str, settled: &[(Partition, u64, Option<u64>)], wanted: &[&str], left: usize| {
            let mut open = OpenLetters::new(4);
            records(topic).iter().for_each(|record| open.offer(record));
            let settled: Vec<Settled> = settled
                .iter()
                .map(|(partition, version, key)| {
                    let key =
                        key.map(|key| RowKey::from_bytes(format!(r#"{{"id":{key}}}"#).as_bytes()).expect("a key"));
                    Settled { partition: *partition, version: Version(*version), key }
                })
                .collect();
            let closed = open.close(&settled, 8);
            assert!(closed.iter().all(|record| record.value.is_none() && record.timestamp_ms == 8));
            let mut keys: Vec<String> =
                closed.iter().map(|record| String::from_utf8_lossy(&record.key).into_owned()).collect();
            keys.sort();
            assert_eq!((keys.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), open.len()), (wanted, left));
        };
        let one = r#"{"id":1}"#;
        check("1@0-5", &[(0, 6, Some(1))], &[one], 0);
        check("1@0-5", &[(0, 5, Some(1))], &[one], 0);
        check("1@0-5", &[(0, 4, Some(1))], &[], 1);
        check("1@0-5", &[(0, 6, Some(2))], &[], 1);
        check("1@0-5 1@0-7", &[(0, 6, Some(1))], &[], 1);
        check("1@0-5 1", &[(0, 6, Some(1))], &[], 0);
        // A barrier closes what its partition holds below it.
        check("1@0-5 2@1-5 3@0-7", &[(0, 6, None)], &[one], 2);
        check(
            "1@0-1 2@0-2 3@0-3 4@0-4 5@0-5 4@0-6",
            &[(0, 9, None)],
            &[one, r#"{"id":2}"#, r#"{"id":3}"#, r#"{"id":4}"#],
            0,
        );
    }

    #[test]
    fn a_tombstone_has_the_key_as_the_topic_spells_it() {
        let mut open = OpenLetters::new(4);
        open.offer(&record(r#"{ "id": 1 }"#, Some((0, 5))));
        let key = RowKey::from_bytes(br#"{"id":1}"#).expect("a key");
        let closed = open.close(&[Settled { partition: 0, version: Version(6), key: Some(key) }], 8);
        assert_eq!(closed[0].key, &br#"{ "id": 1 }"#[..]);
        assert!(open.is_empty() && !open.is_full());
        for id in 0..5 {
            open.offer(&record(&format!(r#"{{"id":{id}}}"#), Some((0, id))));
        }
        assert!(open.is_full() && open.len() == 4);
    }
}
