//! What a batch of events comes to: which rows to write, what to purge, how far the positions are. No I/O.

use std::collections::BTreeMap;

use qdrant_client::qdrant::{Condition, PointStruct};

use super::point::{self, Origin, Progress};
use crate::clock::later_ms;
use crate::event::{EmbeddedRow, Row, RowKey, VectorEvent, Version};
use crate::index::mirror::Applied;
use crate::index::scan::Vector;
use crate::topic::{Offsets, Partition};

/// Points in one write, as far as a row is not larger itself: more gain nothing, and hold up the searches beside it.
const POINTS_MAX: usize = 100;

/// What is to be done, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Rows and deletes; each key once.
    Write(BTreeMap<RowKey, Pending>),
    /// All of a partition that is older than the barrier is gone.
    Purge(Partition, u64),
}

/// The last that a batch says of a key.
#[derive(Debug, PartialEq)]
pub(super) struct Pending {
    pub(super) version: Version,
    pub(super) partition: Partition,
    /// `None`: deleted.
    pub(super) row: Option<(EmbeddedRow, Row)>,
}

/// A batch that is to be applied.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) applied: Applied,
}

/// Reads a batch, and moves `progress`, one of each partition, on behind it.
pub(super) fn plan(
    batch: Vec<(Partition, u64, VectorEvent)>,
    upto: &Offsets,
    progress: &mut [Progress],
    now_ms: i64,
) -> Plan {
    let mut plan = Plan::default();
    let mut pending = BTreeMap::new();
    for (partition, offset, event) in batch {
        let place = &mut progress[usize::from(partition)];
        place.position = place.position.max(offset + 1);
        let mut overtaken = |key: &RowKey, version: Version| {
            let known = pending.get(key).is_some_and(|known: &Pending| known.version > version);
            plan.applied.stale += u64::from(known || version.0 < place.barrier);
            known || version.0 < place.barrier
        };
        match event {
            VectorEvent::Upsert { key, row } if overtaken(&key, Version(row.version)) => {}
            VectorEvent::Upsert { key, row } => match searchable(&row) {
                Ok(payload) => {
                    let version = Version(row.version);
                    pending.insert(key, Pending { version, partition, row: Some((row, payload)) });
                }
                Err(why) => {
                    plan.applied.refused += 1;
                    tracing::error!(partition, offset, "embedded row refused: {why}");
                }
            },
            VectorEvent::Delete { key, version, .. } if overtaken(&key, version) => {}
            VectorEvent::Delete { key, version, .. } => {
                pending.insert(key, Pending { version, partition, row: None });
            }
            VectorEvent::Heartbeat { as_of_ms } => place.as_of_ms = later_ms(place.as_of_ms, as_of_ms, now_ms),
            VectorEvent::Replayed { .. } => {}
            VectorEvent::Barrier { version, .. } if version.0 <= place.barrier => plan.applied.stale += 1,
            VectorEvent::Barrier { version, .. } => {
                place.barrier = version.0;
                if !pending.is_empty() {
                    plan.steps.push(Step::Write(std::mem::take(&mut pending)));
                }
                plan.steps.push(Step::Purge(partition, version.0));
            }
        }
    }
    if !pending.is_empty() {
        plan.steps.push(Step::Write(pending));
    }
    for (place, upto) in progress.iter_mut().zip(upto) {
        place.position = place.position.max(*upto);
    }
    plan
}

/// The payload of a row that can be stored, or why it cannot.
pub(super) fn searchable(row: &EmbeddedRow) -> Result<Row, String> {
    if row.windows.is_empty() {
        return Err("no window".to_owned());
    }
    if !row.windows.iter().all(|window| Vector::from_le_bytes(&window.vector_bytes).is_some()) {
        return Err("a vector is not of the dimension, or not finite".to_owned());
    }
    serde_json::from_str(&row.payload).map_err(|error| format!("the payload is not a JSON object: {error}"))
}

/// One write: points, and for each the branch under which it may take the place of one that is there.
#[derive(Debug, Default)]
pub(super) struct Write {
    pub(super) points: Vec<PointStruct>,
    pub(super) branches: Vec<Condition>,
}

impl Write {
    pub(super) fn add(&mut self, points: Vec<PointStruct>, field: &str, number: u64) {
        let ids = points.iter().filter_map(|point| point.id.clone()).collect();
        self.branches.push(point::unless_newer(ids, field, number));
        self.points.extend(points);
    }
}

/// The writes of rows and deletes, after what is `known` of each key in the store. What the store has newer is left out.
///
/// Of a row with very many windows the first write has window 0, which says how many there are, and the tombstones of
/// those that are no more; so whoever finds window 0 knows all that may be there, also when a kill came in between.
pub(super) fn writes(
    origin: Origin<'_>,
    rows: BTreeMap<RowKey, Pending>,
    known: impl Fn(&RowKey) -> Option<(Version, usize)>,
    now_ms: i64,
    applied: &mut Applied,
) -> Vec<Write> {
    let mut writes = vec![];
    let mut write = Write::default();
    for (key, Pending { version, partition, row }) in rows {
        let (stored, windows_before) = known(&key).unwrap_or_default();
        if stored > version {
            applied.stale += 1;
            continue;
        }
        let windows = row.as_ref().map_or(0, |(row, _)| row.windows.len());
        let gone = if windows == 0 { 0..windows_before.max(1) } else { windows..windows_before };
        let mut points: Vec<PointStruct> =
            gone.map(|place| point::tombstone(origin, &key, partition, version, (place, windows), now_ms)).collect();
        match &row {
            Some((row, payload)) => {
                applied.upserts += 1;
                points.push(point::window(origin, &key, partition, row, payload, 0));
                points.extend((1..windows).map(|place| point::window(origin, &key, partition, row, payload, place)));
            }
            None => applied.deletes += 1,
        }
        let rest = points.split_off(points.len().min(POINTS_MAX.max(points.len() - windows.saturating_sub(1))));
        if write.points.len() + points.len() > POINTS_MAX && !write.points.is_empty() {
            writes.push(std::mem::take(&mut write));
        }
        write.add(points, point::VERSION, version.0);
        let mut rest = rest.into_iter().peekable();
        while rest.peek().is_some() {
            writes.push(std::mem::take(&mut write));
            write.add(rest.by_ref().take(POINTS_MAX).collect(), point::VERSION, version.0);
        }
    }
    if !write.points.is_empty() {
        writes.push(write);
    }
    writes
}

/// Adds the positions that have moved, for they belong behind everything else.
pub(super) fn add_positions(writes: &mut Vec<Write>, origin: Origin<'_>, before: &[Progress], after: &[Progress]) {
    for (partition, (before, after)) in (0..).zip(before.iter().zip(after)) {
        if before != after {
            if writes.is_empty() {
                writes.push(Write::default());
            }
            let last = writes.last_mut().expect("there is one");
            last.add(vec![point::position(origin, partition, *after)], point::POSITION, after.position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Window;
    use crate::index::scan::DIMENSION;
    use serde_json::json;

    const ORIGIN: Origin<'static> = Origin { pipeline: "faq", revision: "r", log: "l" };

    fn key(id: u64) -> RowKey {
        RowKey::from_columns(json!({ "id": id }).as_object().expect("an object").clone())
    }

    fn row(version: u64, windows: usize) -> EmbeddedRow {
        let window = Window::new(&[1.0; DIMENSION], String::new());
        EmbeddedRow { version, payload: "{}".to_owned(), windows: vec![window; windows], ..EmbeddedRow::default() }
    }

    fn upsert(id: u64, version: u64, windows: usize) -> VectorEvent {
        VectorEvent::Upsert { key: key(id), row: row(version, windows) }
    }

    fn delete(id: u64, version: u64) -> VectorEvent {
        VectorEvent::Delete { key: key(id), version: Version(version), commit_ts_ms: None }
    }

    fn barrier(version: u64) -> VectorEvent {
        VectorEvent::Barrier { version: Version(version), commit_ts_ms: 0, of: None }
    }

    /// The ids and windows that are written, write by write, and what was counted.
    fn written(batch: Vec<VectorEvent>, known: &[(u64, u64, usize)]) -> (Vec<Vec<String>>, Applied) {
        let batch = (0..).zip(batch).map(|(offset, event)| (0, offset, event)).collect();
        let mut progress = [Progress::default()];
        let plan = plan(batch, &vec![], &mut progress, 0);
        let mut applied = plan.applied;
        let mut shown = vec![];
        for step in plan.steps {
            let rows = match step {
                Step::Write(rows) => rows,
                Step::Purge(partition, version) => {
                    shown.push(vec![format!("purge {partition} below {version}")]);
                    continue;
                }
            };
            let known = |wanted: &RowKey| {
                let found = known.iter().find(|(id, ..)| key(*id) == *wanted)?;
                Some((Version(found.1), found.2))
            };
            for write in writes(ORIGIN, rows, known, 0, &mut applied) {
                assert!(!write.branches.is_empty() && write.points.len() >= write.branches.len());
                let ids: std::collections::HashSet<_> =
                    write.points.iter().map(|p| point::shown(p.id.as_ref())).collect();
                assert_eq!(ids.len(), write.points.len(), "an id twice in a write");
                shown.push(write.points.iter().map(told).collect());
            }
        }
        (shown, applied)
    }

    /// `row/window of windows`, a tombstone with a minus.
    fn told(point: &PointStruct) -> String {
        let reserved = serde_json::Value::from(point.payload[point::RESERVED].clone());
        let sign = if reserved["deleted"] == true { "-" } else { "" };
        let key: serde_json::Value = serde_json::from_str(reserved["key"].as_str().expect("a key")).expect("JSON");
        format!("{sign}{}/{} of {}", key["id"], reserved["window"], reserved["windows"])
    }

    #[track_caller]
    fn check(batch: Vec<VectorEvent>, known: &[(u64, u64, usize)], wanted: &[&[&str]]) {
        assert_eq!(written(batch, known).0, wanted);
    }

    #[test]
    fn each_row_is_written_whole_and_once() {
        check(vec![upsert(1, 5, 2), upsert(1, 6, 1), upsert(2, 7, 1)], &[], &[&["1/0 of 1", "2/0 of 1"]]);
        check(vec![upsert(1, 6, 1), upsert(1, 5, 2)], &[], &[&["1/0 of 1"]]);
        check(vec![upsert(1, 5, 1), delete(1, 6)], &[], &[&["-1/0 of 0"]]);
    }

    #[test]
    fn windows_that_are_no_more_become_tombstones_with_the_row() {
        check(vec![upsert(1, 5, 1)], &[(1, 4, 3)], &[&["-1/1 of 1", "-1/2 of 1", "1/0 of 1"]]);
        check(vec![delete(1, 5)], &[(1, 4, 2)], &[&["-1/0 of 0", "-1/1 of 0"]]);
        check(vec![upsert(1, 5, 2)], &[(1, 4, 1)], &[&["1/0 of 2", "1/1 of 2"]]);
    }

    #[test]
    fn what_is_older_than_the_store_or_the_barrier_is_left_out() {
        let (shown, applied) = written(vec![upsert(1, 5, 1), delete(2, 5), upsert(3, 5, 1)], &[(1, 6, 1), (2, 6, 0)]);
        assert_eq!((shown, applied.stale), (vec![vec!["3/0 of 1".to_owned()]], 2));
        // The same version again takes its place.
        check(vec![upsert(1, 5, 1)], &[(1, 5, 1)], &[&["1/0 of 1"]]);
        let batch = vec![upsert(1, 3, 1), barrier(4), upsert(2, 3, 1), upsert(3, 5, 1), barrier(2)];
        let (shown, applied) = written(batch, &[]);
        assert_eq!(shown, [vec!["1/0 of 1"], vec!["purge 0 below 4"], vec!["3/0 of 1"]]);
        assert_eq!((applied.upserts, applied.stale), (2, 2));
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        let broken = |change: fn(&mut EmbeddedRow)| {
            let mut row = row(1, 1);
            change(&mut row);
            VectorEvent::Upsert { key: key(1), row }
        };
        let batch = vec![
            broken(|row| row.windows.clear()),
            broken(|row| row.windows[0] = Window::new(&[f32::NAN; DIMENSION], String::new())),
            broken(|row| row.windows[0] = Window::new(&[1.0; 3], String::new())),
            broken(|row| row.payload = "[]".to_owned()),
        ];
        let (shown, applied) = written(batch, &[]);
        assert_eq!((shown.len(), applied.refused), (0, 4));
    }

    #[test]
    fn large_batches_and_large_rows_are_split_with_window_0_and_tombstones_first() {
        let (shown, _) = written((0..250).map(|id| upsert(id, id, 1)).collect(), &[]);
        assert_eq!(shown.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        let (shown, _) = written(vec![upsert(1, 1, 1), upsert(2, 5, 250)], &[(2, 4, 252)]);
        assert_eq!(shown.iter().map(Vec::len).collect::<Vec<_>>(), [1, 100, 100, 52]);
        assert_eq!(shown[1][..3], ["-2/250 of 250", "-2/251 of 250", "2/0 of 250"]);
        let (shown, _) = written(vec![upsert(1, 5, 1)], &[(1, 4, 150)]);
        assert_eq!(shown.iter().map(Vec::len).collect::<Vec<_>>(), [150]);
    }

    #[test]
    fn positions_stand_behind_everything() {
        let mut after = [Progress::default(); 3];
        let batch = vec![(1, 7, upsert(1, 5, 1)), (2, 3, VectorEvent::Heartbeat { as_of_ms: 9 })];
        let plan = plan(batch, &vec![0, 0, 20], &mut after, 0);
        assert_eq!(after.map(|progress| (progress.position, progress.as_of_ms)), [(0, 0), (8, 0), (20, 9)]);
        let Some(Step::Write(rows)) = plan.steps.into_iter().next() else { panic!("no rows") };
        let mut writes = writes(ORIGIN, rows, |_| None, 0, &mut Applied::default());
        add_positions(&mut writes, ORIGIN, &[Progress::default(); 3], &after);
        assert_eq!((writes.len(), writes[0].points.len(), writes[0].branches.len()), (1, 3, 3));
        let mut none = vec![];
        add_positions(&mut none, ORIGIN, &after, &after);
        assert!(none.is_empty());
    }
}
