//! What reading a topic that Debezium writes takes: the offsets that a truncate reaches to, and heartbeats, of which such
//! a topic has none. Writes nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::Message;
use rdkafka::error::KafkaError;
use serde::Deserialize;

use super::super::{LogError, Offsets, Partition, Stored};
use super::Settings;
use super::client;
use super::{state, vectors};
use crate::clock::now_ms;
use crate::event::ChangeEvent;

/// How old a truncate's record is before the other partitions are looked at: what the connector sent before it and a broker
/// was slow to take has arrived by then.
const SETTLED_MS: i64 = 2_000;
/// Records of other partitions that are that much older or younger than the truncate's are before it or after it.
const AROUND_MS: i64 = 60_000;
/// Between two heartbeats of a partition.
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(1);

/// The truncates of a batch whose reach is not known, each with its place in the batch and its LSN.
pub(super) fn truncates(batch: &[Stored]) -> Vec<(usize, u64)> {
    let keyless = batch.iter().enumerate().filter(|(_, stored)| stored.record.key.is_empty());
    let truncates = keyless.filter_map(|(place, stored)| match ChangeEvent::from_record(&stored.record) {
        Ok(ChangeEvent::Truncate { change, fences }) if fences.is_empty() => {
            // Without an LSN all that is there now is before it.
            Some((place, change.source.lsn.unwrap_or(u64::MAX)))
        }
        _ => None,
    });
    truncates.collect()
}

/// How long until a truncate's reach can be found out.
pub(super) fn unsettled(stored: &Stored) -> Duration {
    let left_ms = stored.record.timestamp_ms.saturating_add(SETTLED_MS).saturating_sub(now_ms());
    Duration::from_millis(u64::try_from(left_ms.min(SETTLED_MS)).unwrap_or(0))
}

/// The record of a truncate with what it reaches to: in each partition the offset behind the last record that was changed
/// before it. A connector that was restarted sends records again, and then all that followed them, the truncate too: so
/// what counts is the last record before it and not the first after it. Blocks.
pub(super) fn fenced(settings: &Settings, topic: &str, truncate: &Stored, lsn: u64) -> Result<Stored, LogError> {
    let fault = client::fault("find what a truncate reaches to in", topic);
    let consumer = client::reader(settings).map_err(&fault)?;
    let (partitions, at_ms) = (usize::from(settings.partitions), truncate.record.timestamp_ms);
    let starts = vectors::first_after(&consumer, topic, partitions, at_ms - AROUND_MS).map_err(&fault)?;
    let stops = vectors::first_after(&consumer, topic, partitions, at_ms + AROUND_MS).map_err(&fault)?;
    let (mut fences, mut ranges) = (Offsets::new(), BTreeMap::new());
    for partition in 0..settings.partitions {
        if partition == truncate.partition {
            fences.push(truncate.offset);
            continue;
        }
        let (low, high) = client::bounds(&consumer, topic, partition).map_err(&fault)?;
        let start = starts.get(&partition).copied().unwrap_or(high).max(low);
        let stop = stops.get(&partition).copied().unwrap_or(high);
        fences.push(start);
        if start < stop {
            ranges.insert(partition, start..stop);
        }
    }
    if !ranges.is_empty() {
        let scanned = state::scan_messages(&consumer, topic, &ranges, |message| {
            let offset = u64::try_from(message.offset()).unwrap_or_default();
            let partition = Partition::try_from(message.partition()).unwrap_or_default();
            let inside = ranges.get(&partition).is_some_and(|range| range.contains(&offset));
            if inside && lsn_of(message.payload()).is_some_and(|found| found < lsn) {
                fences[usize::from(partition)] = offset + 1;
            }
            Ok::<_, KafkaError>(())
        });
        scanned.map_err(&fault)?;
    }
    tracing::info!(partition = truncate.partition, offset = truncate.offset, ?fences, "the table was truncated");
    let read = ChangeEvent::from_record(&truncate.record);
    let record = match read {
        Ok(ChangeEvent::Truncate { change, .. }) => {
            ChangeEvent::Truncate { change, fences }.to_record(truncate.record.timestamp_ms)
        }
        _ => truncate.record.clone(),
    };
    Ok(Stored { record, ..*truncate })
}

/// As much of a value as tells where it comes from, with its schema or without.
#[derive(Deserialize)]
struct Place {
    source: Option<PlaceSource>,
    payload: Option<Box<Place>>,
}

#[derive(Deserialize)]
struct PlaceSource {
    lsn: Option<u64>,
}

fn lsn_of(value: Option<&[u8]>) -> Option<u64> {
    let place: Place = serde_json::from_slice(value?).ok()?;
    place.source.or(place.payload.and_then(|payload| payload.source))?.lsn
}

/// Marks in the partitions of a topic: a moment, and the end of the partition then. When all below is committed, a
/// heartbeat of that moment may follow it.
#[derive(Debug, Default)]
pub(super) struct Marks(BTreeMap<Partition, (i64, u64)>);

impl Marks {
    /// Takes out the marks that were passed, with their moments. `committed` are the next offsets to read where they are
    /// known, `drained` the partitions of which nothing is left to be done.
    pub fn passed(
        &mut self,
        committed: &BTreeMap<Partition, u64>,
        drained: &BTreeSet<Partition>,
    ) -> Vec<(Partition, i64)> {
        let mut passed = vec![];
        self.0.retain(|partition, (as_of_ms, end)| {
            let is_passed =
                drained.contains(partition) || committed.get(partition).is_some_and(|offset| *offset >= *end);
            if is_passed {
                passed.push((*partition, *as_of_ms));
            }
            !is_passed
        });
        passed
    }

    /// The partitions among these that have none.
    pub fn without<'a>(&self, partitions: &'a [Partition]) -> impl Iterator<Item = Partition> + use<'_, 'a> {
        partitions.iter().copied().filter(|partition| !self.0.contains_key(partition))
    }

    /// Marks the end of a partition at a moment.
    pub fn set(&mut self, partition: Partition, as_of_ms: i64, end: u64) {
        self.0.insert(partition, (as_of_ms, end));
    }

    /// Forgets all but these partitions.
    pub fn keep(&mut self, partitions: &[Partition]) {
        self.0.retain(|partition, _| partitions.contains(partition));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_passed_when_all_below_it_is_committed_or_nothing_is_left() {
        let mut marks = Marks::default();
        marks.set(0, 100, 5);
        marks.set(1, 100, 7);
        marks.set(2, 100, 9);
        assert_eq!(marks.passed(&BTreeMap::from([(0, 4), (1, 7)]), &BTreeSet::from([2])), [(1, 100), (2, 100)]);
        assert_eq!(marks.without(&[0, 1, 2]).collect::<Vec<_>>(), [1, 2]);
        marks.keep(&[1]);
        assert_eq!(marks.passed(&BTreeMap::from([(0, 50)]), &BTreeSet::new()), []);
    }

    #[test]
    fn where_a_value_comes_from_is_read_with_its_schema_and_without() {
        for (value, wanted) in [
            (&br#"{"before":null,"source":{"lsn":7,"x":{}},"op":"c"}"#[..], Some(7)),
            (br#"{"schema":{"fields":[]},"payload":{"source":{"lsn":8}}}"#, Some(8)),
            (br#"{"source":{"lsn":null}}"#, None),
            (b"{", None),
        ] {
            assert_eq!(lsn_of(Some(value)), wanted);
        }
        assert_eq!(lsn_of(None), None);
    }
}
