//! The state topic: one partition, of each key the last record counts. Reads it whole only where it must.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::super::{LogError, Partition};
use super::Settings;
use super::client::{self, PATIENCE, Quiet};
use crate::clock::now_ms;
use crate::event::Record;

/// Offsets from the end, within which what is looked for mostly stands.
const TAIL: u64 = 500;
/// How long a partition that is being read may bring nothing.
const SILENCE_MAX: Duration = PATIENCE;

/// A record for the state topic.
pub(super) fn record(key: &str, value: Bytes) -> Record {
    super::keyed(key, value, now_ms())
}

/// The last value of a key. Blocks.
pub(super) fn read(settings: &Settings, topic: &str, key: &str) -> Result<Option<Bytes>, LogError> {
    let fault = client::fault("read", topic);
    let consumer = client::reader(settings).map_err(&fault)?;
    let (low, high) = client::bounds(&consumer, topic, 0).map_err(&fault)?;
    let tail = high.saturating_sub(TAIL).max(low);
    for from in [tail, low] {
        let mut found = None;
        if from < high {
            scan(&consumer, topic, 0, from, |message_key, value| {
                if message_key == key.as_bytes() {
                    found = value.map(Bytes::copy_from_slice);
                }
                Ok::<_, KafkaError>(())
            })
            .map_err(&fault)?;
        }
        if found.is_some() || from == low {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Shows key and value of every record of a partition from an offset on, up to the end as it is then. Blocks.
pub(super) fn scan<E: From<KafkaError>>(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partition: Partition,
    from: u64,
    mut visit: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
) -> Result<(), E> {
    scan_places(consumer, topic, partition, from, |_, key, value| visit(key, value))
}

/// As `scan`, with each record's offset.
pub(super) fn scan_places<E: From<KafkaError>>(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partition: Partition,
    from: u64,
    mut visit: impl FnMut(u64, &[u8], Option<&[u8]>) -> Result<(), E>,
) -> Result<(), E> {
    consumer.assign(&client::offsets(topic, &BTreeMap::from([(partition, from)]))?)?;
    let mut heard = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Ok(message)) => {
                heard = Instant::now();
                let offset = u64::try_from(message.offset()).unwrap_or_default();
                visit(offset, message.key().unwrap_or_default(), message.payload())?;
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
