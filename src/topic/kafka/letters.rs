//! Reads the topic of dead letters, whole or some of its partitions, and places what goes into it.

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;

use super::super::letter::{CUT, OFFSET, PARTITION};
use super::super::partition::partition_of;
use super::super::{LogError, Partition};
use super::client::{self, Names};
use super::writer::Placed;
use super::{Settings, message, state};
use crate::event::Record;

/// Shows every record of these partitions, at least up to their ends as they are at the beginning. Blocks.
pub(super) fn visit(
    settings: &Settings,
    names: &Names,
    partitions: impl IntoIterator<Item = Partition>,
    mut visit: impl FnMut(&Record),
) -> Result<(), LogError> {
    let topic = &names.dead_letters;
    let fault = client::fault("read", topic);
    let consumer = client::reader(settings).map_err(&fault)?;
    let mut ranges = BTreeMap::new();
    for partition in partitions {
        let (low, high) = client::bounds(&consumer, topic, partition).map_err(&fault)?;
        if low < high {
            ranges.insert(partition, low..high);
        }
    }
    if ranges.is_empty() {
        return Ok(());
    }
    let scanned = state::scan_messages(&consumer, topic, &ranges, |found| {
        if let Some(stored) = message::stored(found) {
            visit(&stored.record);
        }
        Ok::<_, KafkaError>(())
    });
    scanned.map_err(&fault)
}

/// A dead letter keeps its key, so that a newer one of the same row takes its place; one without a key gets a name of
/// its own, since a compacted topic takes none without. Bytes that the topic would not take are cut off, and a header
/// says how many there were.
pub(super) fn place(settings: &Settings, names: &Names, mut letter: Record, bytes_max: usize) -> Placed {
    if letter.key.is_empty() {
        let place: Vec<String> = [PARTITION, OFFSET]
            .iter()
            .filter_map(|name| letter.header(name))
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .collect();
        letter.key = format!(r#"{{"":"dead-letter {}"}}"#, place.join("/")).into();
    }
    let room = bytes_max.saturating_sub(letter.key.len());
    if let Some(value) = &mut letter.value
        && value.len() > room
    {
        letter.headers.push((CUT.to_owned(), value.len().to_string().into()));
        value.truncate(room);
    }
    let partition = partition_of(&letter.key, settings.partitions);
    (names.dead_letters.as_str().into(), partition, letter)
}
