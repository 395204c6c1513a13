//! What the log's writer and its readers share: the tree, the topics, what is durable. Reads; writes nothing but
//! the names of new topics.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::{CaptureState, LogError, Offsets, Partition, Stored, lock};
use super::layout::{self, Malformed, TopicId, kind};
use crate::event::Record;

/// Each revision has a topic, and revisions come one by one over months.
const TOPICS_MAX: usize = 1000;
/// Free space that is left alone, in bytes: room for the largest transactions, and for what the mirror on the same disk
/// wants free for itself.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// A topic of this log.
pub(super) struct Topic {
    pub id: TopicId,
    pub name: String,
    /// The next offsets to be given out, of what is durable. Readers wait on this.
    pub ends: watch::Sender<Offsets>,
    /// A `vectors` topic: what embed has read of `changes`, as far as durable.
    pub committed: Mutex<Offsets>,
    /// A `vectors` topic: number of the embedder that was opened last.
    pub epoch: AtomicU64,
}

pub(super) struct Shared {
    pub path: String,
    /// What tells this log from every other.
    pub id: u64,
    pub db: sled::Db,
    /// The same file as sled's: sled itself starts the write-out and waits for it, but does not sync the file.
    pub file: File,
    pub partitions: u16,
    pub topics: Mutex<BTreeMap<String, Arc<Topic>>>,
    pub changes: Arc<Topic>,
    pub dead: Arc<Topic>,
    /// Capture's state, as far as durable.
    pub state: Mutex<Option<CaptureState>>,
    /// Raised when the writer has ended: nothing will be appended any more.
    pub stopped: CancellationToken,
    /// Why it has ended, if by a fault.
    pub failure: OnceLock<String>,
}

impl Shared {
    /// The topic of this name; made if there is none. Its registration needs no flush of its own: the storage recovers
    /// writes in their order, so whatever durable write comes to stand in the topic, the topic is there.
    pub fn topic(&self, name: &str) -> Result<Arc<Topic>, LogError> {
        let mut topics = lock(&self.topics);
        if let Some(topic) = topics.get(name) {
            return Ok(topic.clone());
        }
        let topic = make_topic(&self.db, &self.path, &mut topics, name, self.partitions)?;
        // Who begins at the beginning has missed nothing of what was dropped before, and has no need of a replay that was
        // asked for before.
        for (partition, end) in (0..self.partitions).zip(self.changes.ends()) {
            let pruned = self.number(kind::PRUNED, self.changes.id, partition)?;
            for (kind, number) in [(kind::BEGAN, pruned), (kind::REPLAYED, end)] {
                if number > 0 {
                    let mark = layout::partition_key(kind, topic.id, partition);
                    let value = layout::number(&mark, number);
                    self.db.insert(mark, value).map_err(self.storage("add topic to"))?;
                }
            }
        }
        Ok(topic)
    }

    /// Refuses to write while the disk is nearly full: sled does not survive running into its end.
    pub fn ensure_room(&self) -> Result<(), LogError> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|error| LogError::Files {
            operation: "find room for",
            path: self.path.clone(),
            source: error.into(),
        })?;
        let free = disk.f_bavail * disk.f_frsize;
        if free < FREE_BYTES_MIN {
            return Err(LogError::Full { path: self.path.clone(), free, wanted: FREE_BYTES_MIN });
        }
        Ok(())
    }

    /// Positions with the gaps that compaction left behind them skipped: no record stands between the two.
    pub fn past_gaps(&self, topic: &Topic, positions: &Offsets) -> Result<Offsets, LogError> {
        let ends = topic.ends();
        let skipped = (0..).zip(positions.iter().zip(ends)).map(|(partition, (&position, end))| {
            if position >= end {
                return Ok(position);
            }
            match self.records(topic.id, partition, position, end).next() {
                None => Ok(end),
                Some(found) => found.map(|_| position),
            }
        });
        skipped.collect()
    }

    /// A number that a partition has once; 0 if it has none.
    pub fn number(&self, kind: u8, topic: TopicId, partition: Partition) -> Result<u64, LogError> {
        number(&self.db, &self.path, kind, topic, partition)
    }

    /// The records of a partition from one offset to below another, oldest first.
    pub fn records(
        &self,
        topic: TopicId,
        partition: Partition,
        from: u64,
        below: u64,
    ) -> impl Iterator<Item = Result<Found, LogError>> + '_ {
        let range = layout::offset_key(kind::RECORD, topic, partition, from)
            ..layout::offset_key(kind::RECORD, topic, partition, below);
        let mut entries = self.db.range(range);
        std::iter::from_fn(move || {
            loop {
                match self.next_record(&mut entries, topic, partition) {
                    Ok(Next::Record(found)) => return Some(Ok(found)),
                    Ok(Next::Removed) => {}
                    Ok(Next::End) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }

    fn next_record(&self, entries: &mut sled::Iter, topic: TopicId, partition: Partition) -> Result<Next, LogError> {
        let Some(entry) = entries.next() else { return Ok(Next::End) };
        let (key, value) = entry.map_err(self.storage("read"))?;
        // A further piece whose first one is gone: the record was replaced while we read.
        let Some(offset) = layout::offset_in(&key).map_err(|_| self.damaged("a record's place"))? else {
            return Ok(Next::Removed);
        };
        let damaged = |_: Malformed| self.damaged(&format!("record {offset} in partition {partition}"));
        let (pieces, first) = layout::first_piece(&key, &value).map_err(damaged)?;
        let mut body = Vec::with_capacity(if pieces == 1 { first.len() } else { layout::PIECE_MAX * 2 });
        body.extend_from_slice(first);
        for piece in 1..pieces {
            let place = layout::piece_key(topic, partition, offset, piece);
            match self.db.get(&place).map_err(self.storage("read"))? {
                Some(value) => body.extend_from_slice(layout::unseal(&place, &value).map_err(damaged)?),
                None if self.db.get(&key).map_err(self.storage("read"))?.is_none() => return Ok(Next::Removed),
                None => return Err(damaged(Malformed)),
            }
        }
        let size = body.len();
        let record = layout::decode(Bytes::from(body)).map_err(damaged)?;
        Ok(Next::Record(Found { stored: Stored { partition, offset, record }, pieces, size }))
    }

    /// See [`super::Log::visit_dead_letters`].
    pub fn visit_dead_letters(&self, mut visit: impl FnMut(&Record)) -> Result<(), LogError> {
        for (partition, end) in (0..).zip(self.dead.ends()) {
            for found in self.records(self.dead.id, partition, 0, end) {
                visit(&found?.stored.record);
            }
        }
        Ok(())
    }

    /// Makes all that was written before durable.
    pub fn sync(&self) -> Result<(), LogError> {
        self.db.flush().map_err(self.storage("flush"))?;
        let files = |source| LogError::Files { operation: "sync", path: self.path.clone(), source };
        self.file.sync_data().map_err(files)
    }

    /// Turns sled's error into ours.
    pub fn storage(&self, operation: &'static str) -> impl Fn(sled::Error) -> LogError + '_ {
        move |source| storage(&self.path, operation, source)
    }

    pub fn damaged(&self, what: &str) -> LogError {
        LogError::Damaged { path: self.path.clone(), what: what.to_owned() }
    }

    pub fn refused(&self, operation: &'static str, reason: String) -> LogError {
        LogError::Refused { operation, path: self.path.clone(), reason }
    }

    /// Positions have one number for each partition.
    pub fn check_len(&self, operation: &'static str, positions: &Offsets) -> Result<(), LogError> {
        let (found, wanted) = (positions.len(), usize::from(self.partitions));
        if found == wanted {
            return Ok(());
        }
        Err(self.refused(operation, format!("positions of {found} partitions, the log has {wanted}")))
    }

    /// Why nothing can be written or waited for any more.
    pub fn stopped_error(&self) -> LogError {
        match self.failure.get() {
            Some(reason) => LogError::Failed { path: self.path.clone(), reason: reason.clone() },
            None => LogError::Closed { path: self.path.clone() },
        }
    }

    /// Remembers the fault for those who come later.
    pub fn fail(&self, error: &dyn Error) {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        // Only the first fault counts: what comes after it is its consequence.
        let _ = self.failure.set(reason);
    }
}

impl Topic {
    pub fn new(id: TopicId, name: &str, ends: Offsets, committed: Option<Offsets>) -> Topic {
        let committed = committed.unwrap_or_else(|| vec![0; ends.len()]);
        Topic {
            id,
            name: name.to_owned(),
            ends: watch::Sender::new(ends),
            committed: Mutex::new(committed),
            epoch: AtomicU64::new(0),
        }
    }

    pub fn ends(&self) -> Offsets {
        self.ends.borrow().clone()
    }
}

/// A record, the pieces it lies in, and the bytes it takes.
pub(super) struct Found {
    pub stored: Stored,
    pub pieces: u32,
    pub size: usize,
}

enum Next {
    Record(Found),
    Removed,
    End,
}

/// Registers a topic in a log of so many partitions.
pub(super) fn make_topic(
    db: &sled::Db,
    path: &str,
    topics: &mut BTreeMap<String, Arc<Topic>>,
    name: &str,
    partitions: u16,
) -> Result<Arc<Topic>, LogError> {
    let operation = "add topic to";
    let id = topics.values().map(|topic| topic.id.checked_add(1)).max().unwrap_or(Some(0));
    let id = id.filter(|_| topics.len() < TOPICS_MAX).ok_or_else(|| LogError::Refused {
        operation,
        path: path.to_owned(),
        reason: format!("it has {TOPICS_MAX} topics already"),
    })?;
    let key = layout::topic_key(name);
    let value = layout::topic_value(&key, id, partitions);
    db.insert(key, value).map_err(|source| storage(path, operation, source))?;
    let topic = Arc::new(Topic::new(id, name, vec![0; usize::from(partitions)], None));
    topics.insert(name.to_owned(), topic.clone());
    Ok(topic)
}

/// A number that a partition has once; 0 if it has none.
pub(super) fn number(
    db: &sled::Db,
    path: &str,
    kind: u8,
    topic: TopicId,
    partition: Partition,
) -> Result<u64, LogError> {
    let key = layout::partition_key(kind, topic, partition);
    match db.get(&key).map_err(|source| storage(path, "read", source))? {
        None => Ok(0),
        Some(value) => layout::read_number(&key, &value)
            .map_err(|_| LogError::Damaged { path: path.to_owned(), what: "a partition's number".to_owned() }),
    }
}

/// Turns sled's error into ours.
pub(super) fn storage(path: &str, operation: &'static str, source: sled::Error) -> LogError {
    let path = path.to_owned();
    match source {
        sled::Error::Corruption { .. } => LogError::Damaged { path, what: "a page".to_owned() },
        source => LogError::Storage { operation, path, source },
    }
}
