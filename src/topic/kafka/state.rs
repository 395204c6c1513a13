//! The state topic: one partition, of each key the last record counts. Reads it whole only where it must.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;

use super::super::{LogError, Partition};
use super::Settings;
use super::client::{self, PATIENCE, Quiet};
use super::writer;
use crate::clock::now_ms;
use crate::event::Record;

/// Offsets from the end, within which what is looked for mostly stands.
const TAIL: u64 = 500;
/// How long a partition that is being read may bring nothing.
const SILENCE_MAX: Duration = PATIENCE;

/// A record for the state topic.
pub(super) fn record(key: &str, value: Bytes) -> Record {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Record { key, value: Some(value), headers: vec![], timestamp_ms: now_ms() }
}

/// Writes a record by itself, outside of any transaction: one that was left open would hide capture's state, which
/// stands behind it, from the next capture. Blocks.
pub(super) fn write(settings: &Settings, topic: &str, key: &str, value: &[u8]) -> Result<(), LogError> {
    let placed = [(topic.into(), 0, record(key, Bytes::copy_from_slice(value)))];
    writer::write(settings, &placed).map_err(client::fault("write", topic))
}

/// The last value of a key. Blocks.
pub(super) fn read(settings: &Settings, topic: &str, key: &str) -> Result<Option<Bytes>, LogError> {
    Ok(read_each(settings, topic, &[key])?.remove(key))
}

/// The last values of these keys, of those that have one. Blocks.
pub(super) fn read_each<'k>(
    settings: &Settings,
    topic: &str,
    keys: &[&'k str],
) -> Result<BTreeMap<&'k str, Bytes>, LogError> {
    let fault = client::fault("read", topic);
    let consumer = client::reader(settings).map_err(&fault)?;
    let (low, high) = client::bounds(&consumer, topic, 0).map_err(&fault)?;
    let tail = high.saturating_sub(TAIL).max(low);
    let mut found = BTreeMap::new();
    for from in [tail, low] {
        if from < high {
            scan_messages(&consumer, topic, &BTreeMap::from([(0, from..high)]), |message| {
                let key = message.key().and_then(|key| keys.iter().find(|wanted| wanted.as_bytes() == key));
                match (key, message.payload()) {
                    (Some(key), Some(value)) => drop(found.insert(*key, Bytes::copy_from_slice(value))),
                    (Some(key), None) => drop(found.remove(key)),
                    (None, _) => {}
                }
                Ok::<_, KafkaError>(())
            })
            .map_err(&fault)?;
        }
        if found.len() == keys.len() || from == low {
            break;
        }
    }
    Ok(found)
}

/// Shows every message of these partitions from offsets on up to others at least; the partitions come mixed, each in its
/// order. Where something is written all the time, a partition has no end that could be waited for. Blocks.
pub(super) fn scan_messages<E: From<KafkaError>>(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    ranges: &BTreeMap<Partition, Range<u64>>,
    mut visit: impl FnMut(&BorrowedMessage<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let from = ranges.iter().map(|(partition, range)| (*partition, range.start)).collect();
    consumer.assign(&client::offsets(topic, &from)?)?;
    let mut open: BTreeMap<i32, u64> =
        ranges.iter().map(|(partition, range)| (i32::from(*partition), range.end)).collect();
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                open.remove(&partition);
            }
            Some(Ok(message)) => {
                heard = Instant::now();
                visit(&message)?;
                // The last offsets may be markers of transactions, which nobody is given.
                let next = u64::try_from(message.offset()).unwrap_or_default() + 1;
                open.retain(|partition, end| *partition != message.partition() || next < *end);
            }
            Some(Err(error)) => return Err(error.into()),
            None if heard.elapsed() > SILENCE_MAX => {
                let timed_out = rdkafka::error::RDKafkaErrorCode::OperationTimedOut;
                return Err(KafkaError::MessageConsumption(timed_out).into());
            }
            None => {}
        }
    }
    consumer.unassign()?;
    Ok(())
}
