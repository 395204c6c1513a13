//! Records of `changes` to what is left to do: the last event of each key, barriers, and what cannot be read. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::completion;
use super::trail::{self, Trail};
use crate::event::{ChangeEvent, EventError, Op, Record, Row, RowKey, Version};
use crate::topic::{Partition, Stored};

/// What a batch of records comes to.
#[derive(Debug, Default)]
pub struct Intake {
    /// The last event of each key, and the last barrier and heartbeat of each partition, by partition and offset.
    pub items: Vec<Item>,
    /// Records that are no events.
    pub unreadable: Vec<(Stored, EventError)>,
    /// Records by what they are, as the metrics' label `op` says it.
    pub counts: BTreeMap<&'static str, u64>,
    /// The offset after the last record of each partition that is in the batch.
    pub ends: BTreeMap<Partition, u64>,
    /// What it is made of, where that is logged.
    pub trail: Option<Trail>,
}

/// An event that no later one of the batch has overtaken.
#[derive(Debug)]
pub struct Item {
    /// Its partition.
    pub partition: Partition,
    /// Its offset: the version of the row.
    pub version: Version,
    /// When it was committed in the source, milliseconds since the Unix epoch, if known.
    pub commit_ts_ms: Option<i64>,
    /// The record itself, for the dead letters.
    pub record: Record,
    /// What it says.
    pub event: Event,
    /// Columns of the row that are used and were not sent, because they did not change.
    pub missing: Vec<String>,
    /// The transaction that changed the row, if known.
    pub tx_id: Option<u64>,
}

/// What an event says about the index.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// The row is this.
    Row(RowKey, Row),
    /// The row is gone.
    Gone(RowKey),
    /// All rows of the partition are gone.
    Barrier,
    /// All rows are gone that stand before these offsets, one a partition.
    Truncate(Vec<u64>),
    /// Nothing.
    Nothing,
    /// Everything before this moment, milliseconds since the Unix epoch, stands before it.
    Heartbeat(i64),
    /// Everything before it in the partition was embedded again, for this replay.
    Replayed(u64),
}

/// Reads a batch, in the order in which the log gave it. `used` are the columns that must be whole, where records may
/// lack some: what the record before has of them is taken over.
pub fn intake(batch: Vec<Stored>, used: Option<&BTreeSet<String>>) -> Intake {
    let mut intake = Intake { trail: trail::begin(), ..Intake::default() };
    let mut latest: HashMap<(Partition, RowKey), Item> = HashMap::new();
    let mut barriers: BTreeMap<Partition, Item> = BTreeMap::new();
    let mut heartbeats: BTreeMap<Partition, Item> = BTreeMap::new();
    let mut replays: BTreeMap<Partition, Item> = BTreeMap::new();
    for stored in batch {
        intake.ends.insert(stored.partition, stored.offset + 1);
        let event = ChangeEvent::from_record(&stored.record);
        if let Some(trail) = &mut intake.trail {
            trail.note(event.as_ref().ok(), (stored.partition, stored.offset));
        }
        let event = match event {
            Ok(ChangeEvent::Nothing) => {
                *intake.counts.entry("message").or_default() += 1;
                continue;
            }
            // Whose topic this is writes barriers instead.
            Ok(ChangeEvent::Truncate { fences, .. }) if fences.is_empty() => {
                *intake.counts.entry("unreadable").or_default() += 1;
                intake.unreadable.push((stored, EventError::EmptyKey));
                continue;
            }
            Ok(event) => event,
            Err(fault) => {
                *intake.counts.entry("unreadable").or_default() += 1;
                intake.unreadable.push((stored, fault));
                continue;
            }
        };
        let Stored { partition, offset, record } = stored;
        let (op, mut item) = read(event, partition, offset, record, used);
        *intake.counts.entry(op).or_default() += 1;
        match &item.event {
            Event::Row(key, _) if !item.missing.is_empty() => {
                let key = (partition, key.clone());
                if let Some(Event::Row(_, before)) = latest.get(&key).map(|item| &item.event) {
                    item.fill(before);
                }
                latest.insert(key, item);
            }
            Event::Row(key, _) | Event::Gone(key) => drop(latest.insert((partition, key.clone()), item)),
            Event::Barrier => {
                latest.retain(|(other, _), _| *other != partition);
                barriers.insert(partition, item);
            }
            Event::Truncate(fences) => {
                let fence = |partition: Partition| fences.get(usize::from(partition)).copied().unwrap_or_default();
                latest.retain(|(partition, _), item| item.version.0 >= fence(*partition));
                barriers.insert(partition, item);
            }
            Event::Heartbeat(_) => drop(heartbeats.insert(partition, item)),
            Event::Nothing => {}
            Event::Replayed(_) => drop(replays.insert(partition, item)),
        }
    }
    let marks = [barriers, heartbeats, replays].into_iter().flat_map(BTreeMap::into_values);
    intake.items.extend(marks.chain(latest.into_values()));
    intake.items.sort_by_key(|item| (item.partition, item.version));
    intake
}

fn read(
    event: ChangeEvent,
    partition: Partition,
    offset: u64,
    record: Record,
    used: Option<&BTreeSet<String>>,
) -> (&'static str, Item) {
    let (mut before, mut tx_id) = (None, None);
    let (op, commit_ts_ms, event) = match event {
        ChangeEvent::Row { key, change } => {
            let change = *change;
            (before, tx_id) = (change.before, change.source.tx_id);
            let event = match change.after {
                Some(row) if change.op != Op::Delete => Event::Row(key, row),
                _ => Event::Gone(key),
            };
            (change.op.as_label(), Some(change.source.ts_ms), event)
        }
        ChangeEvent::Tombstone { key, commit_ts_ms } => ("tombstone", commit_ts_ms, Event::Gone(key)),
        ChangeEvent::Barrier { change } => (Op::Truncate.as_label(), Some(change.source.ts_ms), Event::Barrier),
        ChangeEvent::Truncate { change, fences } => {
            (Op::Truncate.as_label(), Some(change.source.ts_ms), Event::Truncate(fences))
        }
        ChangeEvent::Nothing => ("message", None, Event::Nothing),
        ChangeEvent::Heartbeat { as_of_ms } => ("heartbeat", None, Event::Heartbeat(as_of_ms)),
        ChangeEvent::Replay { id } => ("replay", None, Event::Replayed(id)),
    };
    let missing = match (&event, used) {
        (Event::Row(_, row), Some(used)) => completion::missing(row, used),
        _ => vec![],
    };
    let mut item = Item { partition, version: Version(offset), commit_ts_ms, record, event, missing, tx_id };
    if let Some(before) = before.filter(|_| !item.missing.is_empty()) {
        item.fill(&before);
    }
    (op, item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::BARRIER_KEY;
    use bytes::Bytes;

    /// One record: `c7`, `u7`, `d7` (a change of row 7), `t7` (its tombstone), `b` (a barrier),
    /// `h7` (a heartbeat of moment 7), `p7` (replay 7), `x7` (unreadable).
    fn record(text: &str) -> Record {
        let (kind, id) = text.split_at(1);
        let change = |op: &str, after: &str| {
            Some(format!(r#"{{"before":null,"after":{after},"source":{{"ts_ms":5}},"op":"{op}","ts_ms":6}}"#))
        };
        let row = format!(r#"{{"id":{id}}}"#);
        let (key, value) = match kind {
            "c" | "u" | "r" => (row.clone(), change(kind, &row)),
            "d" => (row, change("d", "null")),
            "t" => (row, None),
            "b" => (String::from_utf8_lossy(BARRIER_KEY).into_owned(), change("t", "null")),
            "h" => return ChangeEvent::Heartbeat { as_of_ms: id.parse().expect("a moment") }.to_record(0),
            "p" => return ChangeEvent::Replay { id: id.parse().expect("a number") }.to_record(0),
            _ => (row, Some("{".to_owned())),
        };
        Record { key: key.into(), value: value.map(Bytes::from), headers: vec![], timestamp_ms: 0 }
    }

    /// Reads records written as `partition:record` and gives what is left as `partition:kind id@version`.
    fn check(records: &str, expected: &str) -> Intake {
        let mut offsets: BTreeMap<Partition, u64> = BTreeMap::new();
        let stored = records.split_whitespace().map(|text| {
            let (partition, kind) = text.split_once(':').expect("partition:record");
            let partition = partition.parse().expect("a number");
            let offset = offsets.entry(partition).or_insert(10);
            *offset += 1;
            Stored { partition, offset: *offset - 1, record: record(kind) }
        });
        let used = BTreeSet::from(["answer".to_owned()]);
        let intake = intake(stored.collect(), Some(&used));
        let left = intake.items.iter().map(|item| {
            let event = match &item.event {
                Event::Row(key, row) => format!("row{}={}", key.id(), row["id"]),
                Event::Gone(key) => format!("gone{}", key.id()),
                Event::Barrier => "barrier".to_owned(),
                Event::Heartbeat(as_of_ms) => format!("heartbeat{as_of_ms}"),
                Event::Truncate(fences) => format!("truncate{fences:?}"),
                Event::Nothing => "nothing".to_owned(),
                Event::Replayed(id) => format!("replayed{id}"),
            };
            format!("{}:{event}@{}", item.partition, item.version.0)
        });
        assert_eq!(left.collect::<Vec<_>>().join(" "), expected, "{records}");
        intake
    }

    #[test]
    fn the_last_event_of_a_key_stays() {
        check("", "");
        check("0:c1 0:c2 0:u1", "0:row2=2@11 0:row1=1@12");
        check("0:c1 0:d1 0:t1", "0:gone1@12");
        check("0:c1 0:d1 0:t1 0:r1", "0:row1=1@13");
        check("0:c1 1:d1", "0:row1=1@10 1:gone1@10");
    }

    #[test]
    fn a_barrier_drops_what_is_before_it_in_its_partition() {
        check("0:c1 1:c2 0:b 0:c3", "0:barrier@11 0:row3=3@12 1:row2=2@10");
        check("0:c1 0:b 0:c1 0:b", "0:barrier@13");
    }

    #[test]
    fn the_last_heartbeat_of_a_partition_stays_where_it_stands() {
        check("0:h5 0:c1 0:h6 0:c2 1:h6", "0:row1=1@11 0:heartbeat6@12 0:row2=2@13 1:heartbeat6@10");
        check("0:c1 0:h5 0:b", "0:heartbeat5@11 0:barrier@12");
        check("0:c1 0:p5 0:u1 0:p6 1:p6", "0:row1=1@12 0:replayed6@13 1:replayed6@10");
    }

    #[test]
    fn the_unreadable_is_kept_apart_and_counted() {
        let intake = check("0:c1 0:x1 0:t2 1:b", "0:row1=1@10 0:gone2@12 1:barrier@10");
        assert_eq!(intake.unreadable[0].0.offset, 11);
        assert_eq!(intake.ends, BTreeMap::from([(0, 13), (1, 11)]));
        let counts = [("create", 1), ("tombstone", 1), ("truncate", 1), ("unreadable", 1)];
        assert_eq!(intake.counts, BTreeMap::from(counts));
        assert_eq!(intake.items[0].commit_ts_ms, Some(5));
    }
}
