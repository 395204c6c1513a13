//! The keys that a partition of `changes` holds, for a resync that looks for rows that are gone. Held on the disk, so
//! that memory does not grow with the table.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::{LogError, Partition};
use super::client::{self, PATIENCE, Quiet};
use super::{Settings, state};
use crate::event::{BARRIER_KEY, Record};

/// Memory that sled may use for pages, in bytes.
const CACHE: u64 = 16 << 20;

/// Between two looks whether all that was written can be read.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Partitions that this process has read.
static READ: AtomicU64 = AtomicU64::new(0);

/// Keys of a partition, each with the offset of its last record, if that is a row's.
pub(super) struct LiveKeys {
    partition: Partition,
    /// Keys below are gone.
    barrier: u64,
    db: sled::Db,
    topic: String,
}

enum Fault {
    Kafka(KafkaError),
    Disk(sled::Error),
}

impl From<KafkaError> for Fault {
    fn from(error: KafkaError) -> Fault {
        Fault::Kafka(error)
    }
}

impl LiveKeys {
    /// Reads a partition from its beginning to its end, at least to `end`, up to where the caller has written. Blocks.
    pub fn read(settings: &Settings, topic: &str, partition: Partition, end: u64) -> Result<LiveKeys, LogError> {
        let disk = |source| LogError::Storage { operation: "list the keys of", path: topic.to_owned(), source };
        let broker = client::fault("list the keys of", topic);
        let nth = READ.fetch_add(1, Ordering::Relaxed);
        if nth == 0 {
            // What a killed process left is of no use to anybody.
            let _ = std::fs::remove_dir_all(&settings.scratch);
        }
        // A folder of its own each: sled's threads remove the last one's files at a time of their own.
        let config =
            sled::Config::new().path(settings.scratch.join(nth.to_string())).temporary(true).cache_capacity(CACHE);
        let db = config.open().map_err(disk)?;
        let consumer = client::reader(settings).map_err(&broker)?;
        let (low, high) = visible_upto(&consumer, topic, partition, end).map_err(&broker)?;
        let mut barrier = 0;
        if low < high {
            // Nothing is appended meanwhile: who asks is the one who appends.
            let scanned =
                state::scan_messages(&consumer, topic, &BTreeMap::from([(partition, low..high)]), |message| {
                    let (offset, key) =
                        (u64::try_from(message.offset()).unwrap_or_default(), message.key().unwrap_or_default());
                    match message.payload() {
                        Some(_) if key == BARRIER_KEY => barrier = offset,
                        _ if Record::is_reserved(key) || key.is_empty() => {}
                        Some(_) => drop(db.insert(key, &offset.to_be_bytes()).map_err(Fault::Disk)?),
                        None => drop(db.remove(key).map_err(Fault::Disk)?),
                    }
                    Ok(())
                });
            scanned.map_err(|fault| match fault {
                Fault::Kafka(error) => broker(error),
                Fault::Disk(error) => disk(error),
            })?;
        }
        Ok(LiveKeys { partition, barrier, db, topic: topic.to_owned() })
    }

    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Keys after `after` whose last record stands below `offset`, with that record's offset; at most `limit`.
    pub fn below(&self, offset: u64, after: Option<&[u8]>, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let disk = |source| LogError::Storage { operation: "list the keys of", path: self.topic.clone(), source };
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_vec()));
        let mut page = vec![];
        for entry in self.db.range((start, Bound::Unbounded)) {
            let (key, value) = entry.map_err(disk)?;
            let at = value.as_ref().try_into().map_or(0, u64::from_be_bytes);
            if (self.barrier..offset).contains(&at) {
                page.push((at, Bytes::copy_from_slice(&key)));
            }
            if page.len() == limit {
                break;
            }
        }
        Ok(page)
    }
}

/// The bounds of a partition when all below `end` can be read. Brokers confirm a transaction before they have marked its
/// records as committed; to go by what can be read until then would be to miss the newest record of a key.
fn visible_upto(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partition: Partition,
    end: u64,
) -> Result<(u64, u64), KafkaError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (low, high) = client::bounds(consumer, topic, partition)?;
        if high >= end {
            return Ok((low, high));
        }
        if Instant::now() > deadline {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
