//! A store's side of the log on Kafka: reads all partitions of `vectors.<revision>`, as a member of no group.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use super::super::{LogError, Offsets, Partition, Stored};
use super::Settings;
use super::client::{self, PATIENCE, Quiet};
use super::feed::Feed;
use super::state;
use super::topics::{self, Wanted};
use crate::clock::now_ms;

/// Markers of transactions have offsets too: a reader that has everything may stand this far before the end.
const MARKERS: u64 = 4;
/// Offsets from the end, within which the last record mostly stands.
const TAIL: u64 = 20;

/// Reads `vectors.<revision>`. Connects in `seek`.
pub struct VectorsReader {
    settings: Settings,
    topic: String,
    changes: String,
    feed: Option<Feed>,
    positions: Offsets,
    ends: Offsets,
}

impl VectorsReader {
    /// `changes` is what the topic is made from, with as many partitions.
    pub(super) fn new(settings: Settings, topic: String, changes: String) -> VectorsReader {
        let zeros = vec![0; usize::from(settings.partitions)];
        VectorsReader { settings, topic, changes, feed: None, positions: zeros.clone(), ends: zeros }
    }

    /// See [`super::super::VectorsReader::seek`].
    pub async fn seek(&mut self, positions: &Offsets) -> Result<(), LogError> {
        if let Some(feed) = self.feed.take() {
            // It waits for its thread.
            let closing = spawn_blocking(move || drop(feed));
            closing.await.map_err(LogError::Task)?;
        }
        let [wanted, beside] =
            [&self.topic, &self.changes].map(|name| [Wanted { name, partitions: self.settings.partitions }]);
        // The topic's own setting counts: somebody may have made it, or changed it since.
        let tombstone_retention = topics::ensure(&self.settings, &wanted, &beside).await?.tombstone_retention;
        let (settings, topic, wanted) = (self.settings.clone(), self.topic.clone(), positions.clone());
        let open = move || open(&settings, &topic, &wanted, tombstone_retention);
        let (feed, ends) = spawn_blocking(open).await.unwrap_or_else(|fault| Err(LogError::Task(fault)))?;
        (self.feed, self.ends) = (Some(feed), ends);
        self.positions.clone_from(positions);
        Ok(())
    }

    /// See [`super::super::VectorsReader::next`].
    pub async fn next(&mut self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        let Some(feed) = &self.feed else { return Err(LogError::NotTaken { topic: self.topic.clone() }) };
        let batch = feed.next(max_records, max_bytes, 0).await?;
        let mut passed: BTreeMap<Partition, u64> = BTreeMap::new();
        for stored in &batch {
            passed.insert(stored.partition, stored.offset + 1);
        }
        feed.forget_below(&passed);
        for (partition, end) in passed {
            for known in [&mut self.positions, &mut self.ends] {
                if let Some(offset) = known.get_mut(usize::from(partition)) {
                    *offset = end.max(*offset);
                }
            }
        }
        Ok(batch)
    }

    /// See [`super::super::VectorsReader::positions`].
    pub fn positions(&self) -> Offsets {
        self.positions.clone()
    }

    /// See [`super::super::VectorsReader::ends`]: where all was read, the position, since the markers of transactions
    /// behind it are nothing to be read; else as they were at the last `seek`, or further where records were read.
    pub fn ends(&self) -> Offsets {
        let at_end = |partition| self.feed.as_ref().is_some_and(|feed| feed.is_at_end(partition));
        let places = (0..).zip(self.positions.iter().zip(&self.ends));
        places.map(|(partition, (position, end))| if at_end(partition) { *position } else { *end }).collect()
    }
}

fn open(
    settings: &Settings,
    topic: &str,
    positions: &Offsets,
    tombstone_retention: Duration,
) -> Result<(Feed, Offsets), LogError> {
    let fault = client::fault("read", topic);
    let consumer = client::reader(settings).map_err(&fault)?;
    let half_ms = i64::try_from(tombstone_retention.as_millis() / 2).unwrap_or(i64::MAX);
    let young = first_after(&consumer, topic, positions.len(), now_ms() - half_ms).map_err(&fault)?;
    let (mut from, mut ends) = (BTreeMap::new(), Offsets::new());
    for (partition, &position) in (0..).zip(positions) {
        let (low, high) = client::bounds(&consumer, topic, partition).map_err(&fault)?;
        if position > high {
            return Err(LogError::Ahead { topic: topic.to_owned(), partition, position, end: high });
        }
        // What lies between the position and the first record of that age may have been a tombstone that is dropped by now.
        let pruned = young.get(&partition).copied().unwrap_or(high).max(low);
        if position > 0 && position + MARKERS < pruned {
            return Err(LogError::Expired { topic: topic.to_owned(), partition, position, pruned });
        }
        from.insert(partition, position.max(low));
        ends.push(high);
    }
    drop(consumer);
    let config = client::reading(settings, &format!("{}.{}.reader", settings.prefix, settings.pipeline));
    Ok((Feed::assigned(&config, topic, &from)?, ends))
}

/// The offset behind the last record of a partition; markers of transactions, which have offsets too, do not count.
/// Blocks.
pub(super) fn end(settings: &Settings, topic: &str, partition: Partition) -> Result<u64, LogError> {
    let fault = client::fault("ask for the end of", topic);
    let consumer = client::reader(settings).map_err(&fault)?;
    let (low, high) = client::bounds(&consumer, topic, partition).map_err(&fault)?;
    for from in [high.saturating_sub(TAIL).max(low), low] {
        let mut end = low;
        if from < high {
            state::scan_messages(&consumer, topic, &BTreeMap::from([(partition, from..high)]), |message| {
                end = u64::try_from(message.offset()).unwrap_or_default() + 1;
                Ok::<_, KafkaError>(())
            })
            .map_err(&fault)?;
        }
        if end > low || from == low {
            return Ok(end);
        }
    }
    Ok(low)
}

/// The first offset of each partition whose record is not older than `time_ms`, milliseconds since the Unix epoch.
pub(super) fn first_after(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: usize,
    time_ms: i64,
) -> Result<BTreeMap<Partition, u64>, KafkaError> {
    let mut asked = TopicPartitionList::new();
    for partition in 0..partitions {
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        asked.add_partition_offset(topic, partition, Offset::Offset(time_ms))?;
    }
    let found = consumer.offsets_for_times(asked, PATIENCE)?;
    let offsets = found.elements().into_iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition().try_into().ok()?, offset.try_into().ok()?)),
        _ => None,
    });
    Ok(offsets.collect())
}
