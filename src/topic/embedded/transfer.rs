//! The log as a file of a backup, and back: the records of `changes`, of one revision's `vectors` and the dead letters at their
//! offsets, and embed's positions, all as of one moment. Capture's state is not in it: see [`Log::import`].
//!
//! The file's frames are protobuf messages [`Frame`]: a head, records, a tail. Of several records of one key in a partition the
//! last one counts, as in the log itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as threads;

use bytes::Bytes;
use prost::Message;
use tokio::sync::oneshot;

use super::super::{LogError, Offsets, Partition, Stored};
use super::Log;
use super::layout::kind;
use super::shared::Topic;
use super::writer::Command;
use crate::archive::{ArchiveError, FileInfo, Pace, Reader, Writer};
use crate::event;

/// What the head says.
const KIND: &str = "vecsync log";
const FORMAT: u32 = 1;
/// Offsets that are read while the writer waits, at most: milliseconds.
const REST_MAX: u64 = 1000;
/// Rounds of reading what has come meanwhile, before the writer waits for what is left all the same.
const ROUNDS_MAX: usize = 8;
/// Records that are written back at once, and their bytes.
const BATCH_RECORDS_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// The topics in a file, by their numbers there.
const TOPICS: usize = 3;
/// Numbers that a partition of a topic has besides its end.
const KINDS: [u8; 5] = [kind::END, kind::POSITION, kind::REPLAYED, kind::PRUNED, kind::BEGAN];

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
    #[prost(uint32, tag = "3")]
    partitions: u32,
}

/// A record at its place. Topic 0 is `changes`, 1 `vectors`, 2 the dead letters.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    topic: u32,
    #[prost(uint32, tag = "2")]
    partition: u32,
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(sint64, tag = "4")]
    timestamp_ms: i64,
    #[prost(bytes = "bytes", tag = "5")]
    key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "6")]
    value: Option<Bytes>,
    #[prost(message, repeated, tag = "7")]
    headers: Vec<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// The last one: the numbers of each topic, in the order of `KINDS`, of each kind one a partition.
#[derive(Clone, PartialEq, Message)]
struct Tail {
    #[prost(message, repeated, tag = "1")]
    numbers: Vec<Numbers>,
}

#[derive(Clone, PartialEq, Message)]
struct Numbers {
    #[prost(uint32, tag = "1")]
    topic: u32,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint64, repeated, tag = "3")]
    numbers: Vec<u64>,
}

/// What a file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Records of `changes`, `vectors` and the dead letters, with those that later ones replace.
    pub records: [u64; TOPICS],
    /// The end of each partition of `changes`.
    pub changes: Offsets,
    /// The end of each partition of `vectors`.
    pub vectors: Offsets,
}

/// A log was not written to a file, or not read from one.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The file.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl Log {
    /// Writes all that it holds of a revision at one moment, between two transactions; who appends waits only for the last
    /// part. Blocks.
    pub fn export(&self, revision: &str, mut file: Writer) -> Result<(Transferred, FileInfo), TransferError> {
        let shared = &self.inner.shared;
        let partitions = u32::from(shared.partitions);
        put(&mut file, Part::Head(Head { kind: KIND.to_owned(), format: FORMAT, partitions }))?;
        let topics = self.topics(revision)?;
        let mut done = [0; TOPICS].map(|_: u64| vec![0; usize::from(shared.partitions)]);
        let mut records = [0; TOPICS];
        for _ in 0..ROUNDS_MAX {
            let ends = topics.each_ref().map(|topic| topic.ends());
            let left = ends.iter().flatten().zip(done.iter().flatten()).map(|(end, done)| end - done);
            if left.sum::<u64>() <= REST_MAX {
                break;
            }
            self.pass_on(&topics, &mut done, &ends, &mut records, &mut file)?;
        }
        let hold = self.hold()?;
        let mut numbers = vec![];
        for (number, topic) in (0..).zip(&topics) {
            for kind in KINDS {
                let of = (0..shared.partitions).map(|partition| shared.number(kind, topic.id, partition));
                numbers.push(Numbers { topic: number, kind: u32::from(kind), numbers: of.collect::<Result<_, _>>()? });
            }
        }
        let ends = topics.each_ref().map(|topic| topic.ends());
        self.pass_on(&topics, &mut done, &ends, &mut records, &mut file)?;
        drop(hold);
        put(&mut file, Part::Tail(Tail { numbers }))?;
        let [changes, vectors, _] = ends;
        Ok((Transferred { records, changes, vectors }, file.finish()?))
    }

    /// Takes all that a file has into this log, which is new and empty, for this revision; it is to be closed then. It keeps
    /// its own identity, since it gives offsets out again that the one in the file may have given out since; and it has no
    /// state of capture, so the next capture reads the table again, whatever has become of the slot. Blocks.
    pub fn import(&self, revision: &str, path: &Path, pace: Pace) -> Result<Transferred, TransferError> {
        let shared = &self.inner.shared;
        let mut file = Reader::open(path, pace)?;
        match take(&mut file)? {
            Part::Head(head) if head.kind == KIND && head.format == FORMAT => {
                if head.partitions != u32::from(shared.partitions) {
                    return Err(file.damaged(format!("it has {} partitions", head.partitions)).into());
                }
            }
            _ => return Err(file.damaged(format!("wanted a {KIND} of format {FORMAT}")).into()),
        }
        let topics = self.topics(revision)?;
        let mut records = [0; TOPICS];
        let (mut batch, mut bytes, mut filled) = (vec![], 0, 0);
        let tail = loop {
            match take(&mut file)? {
                Part::Record(record) => {
                    let topic = record.topic as usize;
                    if topic >= TOPICS || record.partition >= u32::from(shared.partitions) {
                        return Err(file.damaged("a record of no topic").into());
                    }
                    if topic != filled || batch.len() >= BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX {
                        self.take_in(&topics[filled], std::mem::take(&mut batch), vec![])?;
                        (bytes, filled) = (0, topic);
                    }
                    bytes += record.encoded_len();
                    records[topic] += 1;
                    batch.push(record.into_stored());
                }
                Part::Tail(tail) => break tail,
                Part::Head(_) => return Err(file.damaged("a second head").into()),
            }
        };
        self.take_in(&topics[filled], batch, vec![])?;
        let mut ends = [0; TOPICS].map(|_: u64| vec![0; usize::from(shared.partitions)]);
        for Numbers { topic, kind: of, numbers } in tail.numbers {
            let known = KINDS.into_iter().find(|known| u32::from(*known) == of);
            let (Some(of), Some(into)) = (known, topics.get(topic as usize)) else {
                return Err(file.damaged("a number of no kind").into());
            };
            if numbers.len() != usize::from(shared.partitions) {
                return Err(file.damaged("numbers of other partitions").into());
            }
            let placed = (0..).zip(&numbers).map(|(partition, number)| (of, partition, *number));
            self.take_in(into, vec![], placed.collect())?;
            if of == kind::END {
                ends[topic as usize] = numbers;
            }
        }
        let [changes, vectors, _] = ends;
        Ok(Transferred { records, changes, vectors })
    }

    fn topics(&self, revision: &str) -> Result<[Arc<Topic>; TOPICS], LogError> {
        let shared = &self.inner.shared;
        Ok([shared.changes.clone(), self.vectors_topic(revision)?, shared.dead.clone()])
    }

    /// Writes what stands from `done` to below `ends`.
    fn pass_on(
        &self,
        topics: &[Arc<Topic>; TOPICS],
        done: &mut [Offsets; TOPICS],
        ends: &[Offsets; TOPICS],
        records: &mut [u64; TOPICS],
        file: &mut Writer,
    ) -> Result<(), TransferError> {
        for (number, topic) in topics.iter().enumerate() {
            for (partition, end) in (0..).zip(&ends[number]) {
                let from = std::mem::replace(&mut done[number][usize::from(partition)], *end);
                for found in self.inner.shared.records(topic.id, partition, from, *end) {
                    put(file, Part::Record(Record::of(number, found?.stored)))?;
                    records[number] += 1;
                }
            }
        }
        Ok(())
    }

    /// Has the writer wait between two transactions until what is returned is dropped.
    fn hold(&self) -> Result<threads::Sender<()>, LogError> {
        let (go_on, released) = threads::channel();
        self.inner.ask_blocking(|done| Command::Hold { done, released })?;
        Ok(go_on)
    }

    fn take_in(
        &self,
        topic: &Arc<Topic>,
        records: Vec<Stored>,
        numbers: Vec<(u8, Partition, u64)>,
    ) -> Result<(), TransferError> {
        if records.is_empty() && numbers.is_empty() {
            return Ok(());
        }
        self.inner.shared.ensure_room()?;
        let topic = topic.clone();
        Ok(self.inner.ask_blocking(|done| Command::Import { topic, records, numbers, done })?)
    }
}

impl super::Inner {
    /// As `ask`, on a thread that may block.
    fn ask_blocking<T>(&self, command: impl FnOnce(super::Done<T>) -> Command) -> Result<T, LogError> {
        let (done, answer) = oneshot::channel();
        let queue = self.queue.as_ref().expect("the queue is taken only when the last handle is dropped");
        if queue.blocking_send(command(done)).is_ok()
            && let Ok(answer) = answer.blocking_recv()
        {
            return answer;
        }
        Err(self.shared.stopped_error())
    }
}

impl Record {
    fn of(topic: usize, stored: Stored) -> Record {
        let Stored { partition, offset, record } = stored;
        let event::Record { key, value, headers, timestamp_ms } = record;
        let headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
        let partition = u32::from(partition);
        Record { topic: topic as u32, partition, offset, timestamp_ms, key, value, headers }
    }

    /// Its partition was looked at.
    fn into_stored(self) -> Stored {
        let Record { partition, offset, timestamp_ms, key, value, headers, .. } = self;
        let headers = headers.into_iter().map(|Header { name, value }| (name, value)).collect();
        Stored {
            partition: partition as Partition,
            offset,
            record: event::Record { key, value, headers, timestamp_ms },
        }
    }
}

fn put(file: &mut Writer, part: Part) -> Result<(), ArchiveError> {
    file.frame(&Frame { part: Some(part) }.encode_to_vec())
}

fn take(file: &mut Reader) -> Result<Part, ArchiveError> {
    let frame = Bytes::from(file.frame()?);
    let part = Frame::decode(frame).map_err(|error| file.damaged(error.to_string()))?.part;
    part.ok_or_else(|| file.damaged("an empty frame"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use tokio::sync::watch;

    use super::super::Settings;
    use super::*;
    use crate::event::BARRIER_KEY;
    use crate::topic::{CaptureState, Outgoing, SnapshotMarker};

    const PARTITIONS: u16 = 2;
    /// Files that are read again, of those that were written.
    const FILES_READ: usize = 10;

    fn open(dir: &Path) -> Log {
        let retention = Duration::from_secs(3600);
        let (prefix, pipeline) = ("vecsync".to_owned(), "faq".to_owned());
        let dir = dir.to_owned();
        Log::open(Settings { dir, prefix, pipeline, partitions: PARTITIONS, tombstone_retention: retention })
            .expect("it opens")
    }

    fn record(key: &str, value: Option<String>) -> event::Record {
        let headers = vec![("a".to_owned(), Bytes::from_static(b"1"))];
        let timestamp_ms = crate::clock::now_ms();
        event::Record { key: Bytes::from(key.to_owned()), value: value.map(Bytes::from), headers, timestamp_ms }
    }

    /// The record of each key that counts below these ends, of all that were given out.
    fn latest(all: &[Stored], ends: &Offsets) -> BTreeMap<(Partition, Bytes), (u64, Option<Bytes>)> {
        let mut latest = BTreeMap::new();
        for Stored { partition, offset, record } in all {
            if *offset < ends[usize::from(*partition)] {
                if record.key == BARRIER_KEY {
                    latest.retain(|(other, _), _| other != partition);
                }
                latest.insert((*partition, record.key.clone()), (*offset, record.value.clone()));
            }
        }
        latest
    }

    /// All that a log has in `changes`. What a barrier has made void may still lie there.
    fn held(log: &Log) -> BTreeMap<(Partition, Bytes), (u64, Option<Bytes>)> {
        let shared = &log.inner.shared;
        let mut all = vec![];
        for (partition, end) in (0..).zip(log.changes_ends()) {
            all.extend(shared.records(shared.changes.id, partition, 0, end).map(|found| found.expect("whole").stored));
        }
        latest(&all, &log.changes_ends())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_written_under_writes_has_the_log_of_one_moment_and_no_state_of_capture() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = open(&dir.path().join("log"));
        let mut embed = log.embedder("rev").expect("a revision");
        let (passed, _told) = watch::channel((0, 0));
        let pace = Pace::new(passed);
        let done = Arc::new(AtomicBool::new(false));
        let (ended, writing) = (done.clone(), log.clone());
        let writer = tokio::spawn(async move {
            let state = CaptureState {
                system_id: 1,
                timeline: 1,
                position: event::Position::default(),
                confirm: event::Lsn(1),
                snapshot: SnapshotMarker::Complete,
                whole: false,
                captured: String::new(),
                resync: Default::default(),
            };
            let (mut all, mut next) = (vec![], vec![0; usize::from(PARTITIONS)]);
            for round in 0..300_u64 {
                let mut records = vec![];
                for place in 0..20 {
                    let draw = (round * 20 + place).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                    let partition = (draw % 2) as Partition;
                    let value = (!draw.is_multiple_of(7)).then(|| format!("{draw:x}").repeat((draw % 40) as usize));
                    let one = match draw % 1499 {
                        0 => record(std::str::from_utf8(BARRIER_KEY).expect("text"), Some("b".to_owned())),
                        _ => record(&format!("k{}", draw % 300), value),
                    };
                    let offset = &mut next[usize::from(partition)];
                    all.push(Stored { partition, offset: *offset, record: one.clone() });
                    *offset += 1;
                    records.push(Outgoing::To(partition, one));
                }
                writing.append_changes(records, &state).await.expect("appended");
            }
            ended.store(true, Ordering::Release);
            all
        });
        let embedding = tokio::spawn(async move {
            loop {
                let Ok(batch) = embed.next(50, 1 << 20).await else { return };
                let vectors =
                    batch.iter().map(|stored| Outgoing::To(stored.partition, stored.record.clone())).collect();
                let mut upto = embed.committed();
                batch.iter().for_each(|stored| upto[usize::from(stored.partition)] = stored.offset + 1);
                let letter = record("letter", Some("x".to_owned()));
                embed.commit(vectors, vec![letter], &upto).await.expect("committed");
            }
        });
        let mut files = vec![];
        while !done.load(Ordering::Acquire) || files.len() < 2 {
            let path = dir.path().join(format!("file-{}", files.len()));
            let file = Writer::create(&path, pace.clone()).expect("made");
            let exporting = log.clone();
            let export = move || exporting.export("rev", file);
            files.push((path, tokio::task::spawn_blocking(export).await.expect("ran").expect("written").0));
        }
        let all = writer.await.expect("it wrote");
        let whole: u64 = log.changes_ends().iter().sum();
        assert!(files.iter().any(|(_, held)| (1..whole).contains(&held.changes.iter().sum::<u64>())), "{files:?}");
        // A fast disk makes many of them. These are spread over the whole time.
        let step = files.len().div_ceil(FILES_READ);
        for (number, (path, wanted)) in files.into_iter().enumerate().step_by(step) {
            let folder = dir.path().join(format!("read-{number}"));
            let fresh = open(&folder);
            let (importing, pace) = (fresh.clone(), pace.clone());
            let import = move || importing.import("rev", &path, pace);
            assert_eq!(tokio::task::spawn_blocking(import).await.expect("ran").expect("read"), wanted);
            fresh.close().await.expect("closed");
            drop(fresh);
            let read = open(&folder);
            assert_ne!(read.id(), log.id());
            assert_eq!((read.capture_state().expect("read"), read.changes_ends()), (None, wanted.changes.clone()));
            assert_eq!(held(&read), latest(&all, &wanted.changes));
            // Embed goes on where it was: what it had committed by then is in `vectors`, as it was given out there.
            let topic = read.vectors_topic("rev").expect("a topic");
            assert_eq!(topic.ends(), wanted.vectors);
            let committed: u64 = super::super::lock(&topic.committed).iter().sum();
            assert!(committed > 0 || wanted.vectors.iter().sum::<u64>() == 0, "{wanted:?}");
            assert!(committed <= wanted.changes.iter().sum());
            let mut letters = 0;
            read.visit_dead_letters(|_| letters += 1).expect("read");
            assert_eq!(letters, u64::from(wanted.records[2] > 0));
            read.close().await.expect("closed");
        }
        log.close().await.expect("closed");
        embedding.await.expect("it ended");
    }
}
