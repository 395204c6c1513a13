//! A mirror as a file of a backup, and back: every row and tombstone with its version, and the positions at which that is whole.
//!
//! The file's frames are protobuf messages [`Frame`]: a head, records, a tail. Records stand in the order in which they were
//! stored, so that of several of one key the last one counts; what is below its partition's barrier in the tail is gone.

use std::path::Path;

use prost::Message;

use super::pending::{Prepared, TRANSACTION_RECORDS_MAX};
use super::record::{self, MirrorState, Stored, parse_place, place_key};
use super::store::shown;
use super::{Inner, Mirror, MirrorError, lock};
use crate::archive::{ArchiveError, FileInfo, Pace, Reader, Writer};
use crate::event::{EmbeddedRow, RowKey, VectorEvent, Version};
use crate::topic::{Offsets, Partition};

/// What the head says.
const KIND: &str = "vecsync mirror";
const FORMAT: u32 = 1;
/// Records that are read while writers are kept waiting, at most: milliseconds.
const REST_MAX: u64 = 1000;
/// Rounds of reading what has come meanwhile, before writers wait for what is left all the same.
const ROUNDS_MAX: usize = 8;
/// Records that are read at once.
const PAGE: usize = 256;
/// Bytes of records that are stored at once.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// One frame of the file.
#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(oneof = "Part", tags = "1, 2, 3")]
    part: Option<Part>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Part {
    #[prost(message, tag = "1")]
    Head(Head),
    #[prost(message, tag = "2")]
    Record(Record),
    #[prost(message, tag = "3")]
    Tail(Tail),
}

/// The first one.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(uint32, tag = "2")]
    format: u32,
    #[prost(string, tag = "3")]
    pipeline: String,
    #[prost(string, tag = "4")]
    revision: String,
    #[prost(uint32, tag = "5")]
    partitions: u32,
}

/// A row, or without one a tombstone.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(uint32, tag = "3")]
    partition: u32,
    #[prost(message, optional, tag = "4")]
    row: Option<EmbeddedRow>,
}

/// The last one: what holds for the whole, one number a partition.
#[derive(Clone, PartialEq, Message)]
struct Tail {
    #[prost(uint64, repeated, tag = "1")]
    positions: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    barriers: Vec<u64>,
    #[prost(sint64, repeated, tag = "3")]
    heartbeats: Vec<i64>,
    #[prost(uint64, tag = "4")]
    rows: u64,
    #[prost(uint64, tag = "5")]
    points: u64,
}

/// What a file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Rows that can be found.
    pub rows: u64,
    /// Their windows.
    pub points: u64,
    /// The next offset of `vectors` to take in each partition.
    pub positions: Offsets,
}

/// A mirror was not written to a file, or not read from one.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The file.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl Mirror {
    /// Writes all that it holds at one moment, between two batches of its sink, which waits only for the last part. Blocks.
    pub fn export(&self, mut file: Writer) -> Result<(Transferred, FileInfo), TransferError> {
        let inner = &*self.0;
        let settings = &inner.settings;
        put(
            &mut file,
            Part::Head(Head {
                kind: KIND.to_owned(),
                format: FORMAT,
                pipeline: settings.pipeline.clone(),
                revision: settings.revision.clone(),
                partitions: u32::from(settings.partitions),
            }),
        )?;
        let mut from = 0;
        for _ in 0..ROUNDS_MAX {
            let end = lock(&inner.writer).next_place;
            if end - from <= REST_MAX {
                break;
            }
            inner.pass_on(from, end, &mut file)?;
            from = end;
        }
        let whole = {
            let state: &MirrorState = &lock(&inner.writer);
            inner.pass_on(from, state.next_place, &mut file)?;
            let (rows, points) = (self.rows(), self.points());
            let (positions, barriers) = (state.positions.clone(), state.barriers.clone());
            Tail { positions, barriers, heartbeats: state.heartbeats.clone(), rows, points }
        };
        let Tail { rows, points, positions, .. } = whole.clone();
        put(&mut file, Part::Tail(whole))?;
        Ok((Transferred { rows, points, positions }, file.finish()?))
    }

    /// Takes all that a file has into this mirror, which is empty. `visit` is shown each row, some of which are replaced by
    /// later ones. Blocks.
    pub fn import(
        &self,
        path: &Path,
        pace: Pace,
        mut visit: impl FnMut(&EmbeddedRow),
    ) -> Result<Transferred, TransferError> {
        let inner = &*self.0;
        let mut file = Reader::open(path, pace)?;
        let head = match take(&mut file)? {
            Part::Head(head) if head.kind == KIND && head.format == FORMAT => head,
            _ => return Err(file.damaged(format!("wanted a {KIND} of format {FORMAT}")).into()),
        };
        if head.partitions != u32::from(inner.settings.partitions) {
            return Err(file.damaged(format!("it has {} partitions", head.partitions)).into());
        }
        let (mut batch, mut bytes) = (vec![], 0);
        let tail = loop {
            match take(&mut file)? {
                Part::Record(record) => {
                    if let Some(row) = &record.row {
                        visit(row);
                    }
                    bytes += record.encoded_len();
                    let (partition, event) = event(record).ok_or_else(|| file.damaged("a record without a key"))?;
                    batch.push(inner.prepared(partition, event));
                }
                Part::Tail(tail) => break tail,
                Part::Head(_) => return Err(file.damaged("a second head").into()),
            }
            if batch.len() >= TRANSACTION_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
                bytes = 0;
                inner.store_all(std::mem::take(&mut batch), &Offsets::new())?;
            }
        };
        for (partition, version) in (0..).zip(&tail.barriers).filter(|(_, version)| **version > 0) {
            let version = Version(*version);
            batch.push(inner.prepared(partition, VectorEvent::Barrier { version, commit_ts_ms: 0, of: None }));
        }
        for (partition, as_of_ms) in (0..).zip(&tail.heartbeats).filter(|(_, as_of_ms)| **as_of_ms > 0) {
            batch.push(inner.prepared(partition, VectorEvent::Heartbeat { as_of_ms: *as_of_ms }));
        }
        inner.store_all(batch, &tail.positions)?;
        let found = Transferred { rows: self.rows(), points: self.points(), positions: self.positions() };
        let wanted = Transferred { rows: tail.rows, points: tail.points, positions: tail.positions };
        if found != wanted {
            return Err(file.damaged(format!("it gave {found:?}, wanted {wanted:?}")).into());
        }
        Ok(found)
    }
}

impl Inner {
    /// Writes the records that stand from one place to below another.
    fn pass_on(&self, from: u64, end: u64, file: &mut Writer) -> Result<(), TransferError> {
        let mut next = Some(place_key(from).to_vec());
        while let Some(at) = next.take() {
            let page = self.with_store(|store| store.page(&at, PAGE)).inspect_err(|error| {
                if error.is_fault() {
                    self.mark_faulty();
                }
            })?;
            // What stands behind the last one.
            next = page.last().filter(|_| page.len() == PAGE).map(|(key, _)| [key.as_ref(), &[0]].concat());
            for (key, value) in page {
                let Some(place) = parse_place(&key).filter(|place| *place < end) else { return Ok(()) };
                let (stored, _) = record::Record::decode(place, &value).map_err(|damage| {
                    self.mark_faulty();
                    self.damaged(damage)
                })?;
                put(file, Part::Record(Record::of(stored)))?;
            }
        }
        Ok(())
    }

    /// Makes what a file has of a partition ready. Positions come at the end.
    fn prepared(&self, partition: Partition, event: VectorEvent) -> Prepared {
        Prepared::new(partition, 0, event, &self.settings.filters)
    }

    fn store_all(&self, batch: Vec<Prepared>, upto: &Offsets) -> Result<(), TransferError> {
        let applied = self.write(|inner, state| inner.apply(state, batch, upto))?;
        if applied.refused > 0 {
            let what = format!("{} rows of the file cannot be stored", applied.refused);
            return Err(MirrorError::Damaged { path: shown(&self.settings.dir), what }.into());
        }
        Ok(())
    }
}

impl Record {
    fn of(stored: record::Record) -> Record {
        let record::Record { key, version, partition, body } = stored;
        let row = match body {
            Stored::Live(row) => Some(row),
            Stored::Deleted(_) => None,
        };
        Record { key: key.as_str().to_owned(), version: version.0, partition: u32::from(partition), row }
    }
}

fn event(record: Record) -> Option<(Partition, VectorEvent)> {
    let key = RowKey::from_bytes(record.key.as_bytes()).ok()?;
    let partition = Partition::try_from(record.partition).ok()?;
    Some(match record.row {
        Some(row) => (partition, VectorEvent::Upsert { key, row }),
        None => (partition, VectorEvent::Delete { key, version: Version(record.version), commit_ts_ms: None }),
    })
}

fn put(file: &mut Writer, part: Part) -> Result<(), ArchiveError> {
    file.frame(&Frame { part: Some(part) }.encode_to_vec())
}

fn take(file: &mut Reader) -> Result<Part, ArchiveError> {
    let frame = file.frame()?;
    let part = Frame::decode(frame.as_slice()).map_err(|error| file.damaged(error.to_string()))?.part;
    part.ok_or_else(|| file.damaged("an empty frame"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::watch;

    use super::*;
    use crate::event::Window;
    use crate::index::MirrorSettings;
    use crate::index::scan::DIMENSION;

    const PARTITIONS: u16 = 2;
    /// Files that are read again, of those that were written.
    const FILES_READ: usize = 10;
    const BATCHES: u64 = 400;

    fn open(dir: &Path) -> Mirror {
        Mirror::open(MirrorSettings {
            dir: dir.to_owned(),
            pipeline: "faq".into(),
            revision: "rev".into(),
            partitions: PARTITIONS,
            filters: vec![],
        })
        .expect("it opens")
    }

    /// What stands at an offset of a partition: rows of few keys, so that most replace another, some deletes, few barriers.
    fn event(partition: Partition, offset: u64) -> VectorEvent {
        let draw = (offset * 2 + u64::from(partition)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let key = format!(r#"{{"id":{}}}"#, (draw % 50) * 2 + u64::from(partition));
        let key = RowKey::from_bytes(key.as_bytes()).expect("a key");
        let version = Version(offset + 1);
        match draw % 997 {
            0 | 1 => VectorEvent::Barrier { version, commit_ts_ms: 1, of: None },
            2..200 => VectorEvent::Delete { key, version, commit_ts_ms: None },
            200..210 => VectorEvent::Heartbeat { as_of_ms: offset as i64 + 1 },
            _ => {
                let windows = vec![Window::new(&[1.0; DIMENSION], format!("{offset}"))];
                let row = EmbeddedRow { version: version.0, payload: "{}".into(), windows, ..EmbeddedRow::default() };
                VectorEvent::Upsert { key, row }
            }
        }
    }

    fn events(from: &[u64], to: &[u64]) -> Vec<(Partition, u64, VectorEvent)> {
        let ranges =
            (0..PARTITIONS).map(|partition| (partition, from[usize::from(partition)]..to[usize::from(partition)]));
        ranges.flat_map(|(partition, offsets)| offsets.map(move |o| (partition, o, event(partition, o)))).collect()
    }

    #[track_caller]
    fn expect_same(one: &Mirror, other: &Mirror) {
        let difference = one.compare(other);
        assert_eq!((difference.different, difference.only_old, difference.only_new), (0, 0, 0), "{difference:?}");
        assert_eq!((one.positions(), one.rows(), one.as_of_ms()), (other.positions(), other.rows(), other.as_of_ms()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_written_under_writes_has_the_mirror_of_one_moment() {
        let dir = tempfile::tempdir().expect("a folder");
        let mirror = open(&dir.path().join("mirror"));
        let (passed, _told) = watch::channel((0, 0));
        let pace = Pace::new(passed);
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let (ended, writing, at) =
            (done.clone(), mirror.clone(), |batch: u64| vec![batch * 7; usize::from(PARTITIONS)]);
        let writer = tokio::spawn(async move {
            for batch in 0..BATCHES {
                writing
                    .apply_upto(
                        events(&at(batch), &at(batch + 1))
                            .into_iter()
                            .map(|(p, o, e)| writing.prepare(p, o, e))
                            .collect(),
                        at(batch + 1),
                    )
                    .await
                    .expect("applied");
            }
            ended.store(true, Ordering::Release);
        });
        let mut files = vec![];
        while !done.load(Ordering::Acquire) || files.len() < 2 {
            let path = dir.path().join(format!("file-{}", files.len()));
            let file = Writer::create(&path, pace.clone()).expect("made");
            let exporting = mirror.clone();
            let (held, _) =
                tokio::task::spawn_blocking(move || exporting.export(file)).await.expect("ran").expect("written");
            files.push((path, held));
        }
        writer.await.expect("it wrote");
        assert!(files.iter().any(|(_, held)| held.positions[0] > 0 && held.positions[0] < BATCHES * 7), "{files:?}");
        // A fast disk makes many of them. These are spread over the whole time.
        for (number, (path, held)) in files.iter().enumerate().step_by(files.len().div_ceil(FILES_READ)) {
            let read = open(&dir.path().join(format!("read-{number}")));
            let (importing, path, pace) = (read.clone(), path.clone(), pace.clone());
            let import = move || importing.import(&path, pace, |_| ());
            assert_eq!(&tokio::task::spawn_blocking(import).await.expect("ran").expect("read"), held);
            // As of that moment, and then as the one that it is a copy of.
            let then = open(&dir.path().join(format!("then-{number}")));
            then.apply(events(&[0, 0], &held.positions)).await.expect("applied");
            expect_same(&then, &read);
            read.apply(events(&held.positions, &at(BATCHES))).await.expect("applied");
            expect_same(&mirror, &read);
        }
    }
}
