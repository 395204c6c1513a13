//! The embedded log: compacted topics with partitions on one machine, in sled. Serves one process; knows no row and no vector.
//!
//! **Invariants.** An append is acknowledged, and its records are read, only after its files are synced; appends that
//! come together share one sync. All that belongs together is one batch in one tree (see `layout`), and sled recovers
//! batches whole and in their order. So after a crash the log is as it was after some transaction that is not older
//! than the last one acknowledged.
//!
//! A newer record of a key removes the older one in the same transaction. A reader may therefore miss an older record
//! whose successor a crash then undoes. Nothing is lost by that: such a successor was never acknowledged, so
//! capture or embed, whose position stands in the same transaction, writes the key anew.
//!
//! Limits. Between two syncs sled may reuse space within the file: a disk that loses power and reorders its own writes
//! can damage the log in these milliseconds. Damage is mostly found when the log is opened or the record is read; but a
//! damaged stretch of sled's file can also look like a torn tail, and then the log is silently as it was after an earlier
//! transaction. Its neighbours see that: the slot is ahead of capture's state, a store's positions are past the ends.

mod layout;
mod reader;
mod shared;
mod transfer;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::trail::Place;
use super::{CaptureState, LogError, Offsets, Outgoing, Partition, lock};
use crate::event::Record;
use layout::{Latest, RecordKind, TopicId, kind};
pub use reader::{EmbedLog, VectorsReader};
use shared::{Shared, Topic, make_topic, storage};
pub use transfer::{TransferError, Transferred};
use writer::{Command, Done, PRUNE_STEP, Writer};

/// Memory that sled may use for pages, in bytes. The topics are read once in order, so a small cache serves as well.
const CACHE: u64 = 32 * 1024 * 1024;
/// Transactions that may wait for the writer; those who bring more wait.
const QUEUE: usize = 64;
/// sled's threads hold the folder for a moment after the last handle is gone.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What a log is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder; made if it does not exist.
    pub dir: PathBuf,
    /// Prefix of the topics' names.
    pub prefix: String,
    /// The pipeline's name, the second part of the topics' names.
    pub pipeline: String,
    /// Partitions of each topic; fixed when the log is made.
    pub partitions: u16,
    /// How long tombstones and barriers are kept at least.
    pub tombstone_retention: Duration,
}

/// An open log. Clones are the same log; the folder is free again when the last handle and the last reader are gone.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
    name: Arc<str>,
    retention_ms: i64,
}

struct Inner {
    shared: Arc<Shared>,
    /// Taken out only when the last handle goes.
    queue: Option<mpsc::Sender<Command>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log, or makes it: topics `<prefix>.<pipeline>.changes` and `.dead-letter`. Recovers what a killed
    /// process left. Blocks, so call it on a blocking thread.
    pub fn open(settings: Settings) -> Result<Log, LogError> {
        let path = settings.dir.display().to_string();
        // sled panics on some damaged files instead of saying so.
        match std::panic::catch_unwind(|| open(&settings, &path)) {
            Ok(opened) => opened,
            Err(_) => Err(LogError::Damaged { path, what: "a page".to_owned() }),
        }
    }

    /// Finishes what is waiting, syncs, and ends the writer. Later appends and waiting readers get [`LogError::Closed`].
    pub async fn close(&self) -> Result<(), LogError> {
        let closed = match self.inner.ask(|done| Command::Close { done }).await {
            Err(LogError::Closed { .. }) => Ok(()),
            closed => closed,
        };
        if let Some(writer) = lock(&self.inner.writer).take() {
            // The thread has nothing left to do but to return, so this does not block.
            let _ = writer.join();
        }
        closed
    }

    /// What tells this log from every other.
    pub fn id(&self) -> u64 {
        self.inner.shared.id
    }

    /// Capture's state, as far as durable; none before the first append.
    pub fn capture_state(&self) -> Result<Option<CaptureState>, LogError> {
        Ok(lock(&self.inner.shared.state).clone())
    }

    /// Appends events to `changes` and sets capture's state, in one transaction; returns when both are durable.
    /// If the future is dropped, the transaction may be written all the same. Gives the records' places, in their order.
    pub async fn append_changes(&self, records: Vec<Outgoing>, state: &CaptureState) -> Result<Vec<Place>, LogError> {
        self.inner.shared.ensure_room()?;
        let state = Some(state.clone());
        self.inner.ask(|done| Command::Append { records, state, done }).await
    }

    /// Appends to `changes` what is no event of the source; returns when it is durable.
    pub async fn append_marks(&self, records: Vec<Outgoing>) -> Result<(), LogError> {
        self.inner.shared.ensure_room()?;
        self.inner.ask(|done| Command::Append { records, state: None, done }).await.map(drop)
    }

    /// The durable ends of `changes`.
    pub fn changes_ends(&self) -> Offsets {
        self.inner.shared.changes.ends()
    }

    /// Keys of `changes` whose latest record is a row's (no tombstone, no mark, nothing below a barrier) and stands
    /// below `offset`, each with that record's offset: at most `limit`, in the log's own order, after the key `after`.
    /// Reads the disk; call it on a blocking thread.
    pub fn live_keys_below(
        &self,
        partition: Partition,
        offset: u64,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, LogError> {
        let shared = &self.inner.shared;
        let topic = shared.changes.id;
        // What a barrier has made void may still lie there.
        let barrier = shared.number(kind::BARRIER, topic, partition)?;
        let beginning = layout::partition_key(kind::KEY, topic, partition);
        let start = match after {
            Some(key) => Bound::Excluded(layout::latest_key(topic, partition, key)),
            None => Bound::Included(beginning.clone()),
        };
        let entries = shared.db.range((start, Bound::Unbounded));
        let mut keys = Vec::new();
        for entry in entries {
            let (place, value) = entry.map_err(shared.storage("read"))?;
            if keys.len() == limit || !place.starts_with(&beginning) {
                break;
            }
            let (latest, key) = Latest::decode(&place, &value).map_err(|_| shared.damaged("the index of keys"))?;
            let is_row = latest.kind == RecordKind::Live && !Record::is_reserved(&key);
            if is_row && (barrier..offset).contains(&latest.offset) {
                keys.push((latest.offset, key));
            }
        }
        Ok(keys)
    }

    /// Embed's side for a revision. Makes topic `vectors.<revision>`; the first time it starts at the beginning of
    /// `changes`. [`LogError::Expired`] if it stood still for so long that tombstones it has not read were pruned.
    pub fn embedder(&self, revision: &str) -> Result<EmbedLog, LogError> {
        EmbedLog::new(self.inner.clone(), self.vectors_topic(revision)?)
    }

    /// A store's side for a revision, at the beginning of topic `vectors.<revision>`, which is made if there is none.
    pub fn vectors(&self, revision: &str) -> Result<VectorsReader, LogError> {
        Ok(VectorsReader::new(self.inner.shared.clone(), self.vectors_topic(revision)?))
    }

    /// How far a revision is, given what its store has taken of `vectors.<revision>`. Offsets at which compaction has
    /// left nothing count as passed. Reads the disk where something is behind.
    pub fn progress(&self, revision: &str, stored: &Offsets) -> Result<Progress, LogError> {
        let (shared, vectors) = (&self.inner.shared, self.vectors_topic(revision)?);
        // The writer publishes ends before positions, so they are read the other way round.
        let committed = lock(&vectors.committed).clone();
        let embedded = shared.past_gaps(&shared.changes, &committed)?;
        let vector_ends = vectors.ends();
        let stored = shared.past_gaps(&vectors, stored)?;
        Ok(Progress { embedded, vector_ends, stored })
    }

    /// Shows every dead letter, partition by partition, oldest first. Reads the disk; call it on a blocking thread.
    pub fn visit_dead_letters(&self, visit: impl FnMut(&Record)) -> Result<(), LogError> {
        self.inner.shared.visit_dead_letters(visit)
    }

    /// Drops tombstones and barriers that are older than the retention: from `changes` those that embed of this revision
    /// has committed, from `vectors.<revision>` those below `stores`, which are the positions that every store of this
    /// revision has passed, and from the dead letters all. Says how many.
    pub async fn prune(&self, now_ms: i64, revision: &str, stores: &Offsets) -> Result<u64, LogError> {
        let shared = &self.inner.shared;
        shared.check_len("prune", stores)?;
        let vectors = self.vectors_topic(revision)?;
        let embedded = lock(&vectors.committed).clone();
        let before_ms = now_ms.saturating_sub(self.retention_ms);
        let mut sum = 0;
        let places = [
            (&shared.changes, embedded),
            (&vectors, stores.clone()),
            // Nobody keeps a position in it.
            (&shared.dead, shared.dead.ends()),
        ];
        for (topic, passed) in places {
            for (partition, below) in (0..).zip(passed) {
                loop {
                    let topic = topic.clone();
                    let command = |done| Command::Prune { topic, partition, below, before_ms, done };
                    let count = self.inner.ask(command).await?;
                    sum += count;
                    if count < PRUNE_STEP as u64 {
                        break;
                    }
                }
            }
        }
        Ok(sum)
    }

    /// Size of the log's files, in bytes.
    pub fn size_on_disk(&self) -> Result<u64, LogError> {
        self.inner.shared.db.size_on_disk().map_err(self.inner.shared.storage("measure"))
    }

    fn vectors_topic(&self, revision: &str) -> Result<Arc<Topic>, LogError> {
        self.inner.shared.topic(&format!("{}.vectors.{revision}", self.name))
    }
}

impl Inner {
    async fn ask<T>(&self, command: impl FnOnce(Done<T>) -> Command) -> Result<T, LogError> {
        let (done, answer) = oneshot::channel();
        let queue = self.queue.as_ref().expect("the queue is taken only when the last handle is dropped");
        if queue.send(command(done)).await.is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        // The writer has ended; it says why before it raises this.
        self.shared.stopped.cancelled().await;
        Err(self.shared.stopped_error())
    }
}

impl Drop for Inner {
    /// Ends the writer also where nobody called `close`; waits for its last sync.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = lock(&self.writer).take() {
            let _ = writer.join();
        }
    }
}

fn open(settings: &Settings, path: &str) -> Result<Log, LogError> {
    let refused = |reason: String| LogError::Refused { operation: "open", path: path.to_owned(), reason };
    if settings.partitions == 0 {
        return Err(refused("0 partitions asked for, at least 1 is needed".to_owned()));
    }
    let files = |operation| move |source| LogError::Files { operation, path: path.to_owned(), source };
    let db = open_storage(&settings.dir, path)?;
    let name = format!("{}.{}", settings.prefix, settings.pipeline);
    let mut topics = topics(&db, path, settings.partitions)?;
    let mut topic = |name: &str| match topics.get(name) {
        Some(topic) => Ok(topic.clone()),
        None => make_topic(&db, path, &mut topics, name, settings.partitions),
    };
    let (changes, dead) = (topic(&format!("{name}.changes"))?, topic(&format!("{name}.dead-letter"))?);
    let state = read_state(&db, path, changes.id)?;
    let purges = purges(&db, path)?;
    let file = File::open(settings.dir.join("db")).map_err(files("open"))?;
    let shared = Arc::new(Shared {
        path: path.to_owned(),
        id: identity(&db, path)?,
        db,
        file,
        partitions: settings.partitions,
        topics: Mutex::new(topics),
        changes,
        dead,
        state: Mutex::new(state),
        stopped: CancellationToken::new(),
        failure: OnceLock::new(),
    });
    // What a killed process left may be in the operating system's memory only, and readers are about to see it.
    shared.sync()?;
    for file in [settings.dir.join("conf"), settings.dir.clone()] {
        File::open(file).and_then(|file| file.sync_all()).map_err(files("sync"))?;
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = Writer::new(shared.clone(), purges);
    let writer = std::thread::Builder::new()
        .name("vecsync-log".to_owned())
        .spawn(move || writer.run(receiver))
        .map_err(files("start the writer of"))?;
    let inner = Inner { shared, queue: Some(sender), writer: Mutex::new(Some(writer)) };
    let retention_ms = i64::try_from(settings.tombstone_retention.as_millis()).unwrap_or(i64::MAX);
    Ok(Log { inner: Arc::new(inner), name: name.into(), retention_ms })
}

fn open_storage(dir: &Path, path: &str) -> Result<sled::Db, LogError> {
    let mut tries = 0;
    loop {
        let config =
            sled::Config::new().path(dir).cache_capacity(CACHE).segment_size(layout::SEGMENT).flush_every_ms(None);
        match config.open() {
            Ok(db) => return Ok(db),
            // sled has no error of its own for this; the version of sled is pinned, and a test holds the words.
            Err(sled::Error::Io(error)) if error.to_string().starts_with("could not acquire lock") => {
                tries += 1;
                if tries == LOCK_TRIES {
                    return Err(LogError::Locked { path: path.to_owned() });
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(source) => return Err(storage(path, "open", source)),
        }
    }
}

/// What tells this log from every other: drawn by chance when it is made, and on disk before anybody hears of it.
fn identity(db: &sled::Db, path: &str) -> Result<u64, LogError> {
    let key = layout::id_key();
    let failed = |operation| move |source| storage(path, operation, source);
    if let Some(value) = db.get(&key).map_err(failed("open"))? {
        let damaged = |_| LogError::Damaged { path: path.to_owned(), what: "the log's identity".to_owned() };
        return layout::read_number(&key, &value).map_err(damaged);
    }
    // Seeded by the system's randomness.
    let id = RandomState::new().hash_one((std::process::id(), path));
    db.insert(&key, layout::number(&key, id)).map_err(failed("make"))?;
    db.flush().map_err(failed("make"))?;
    Ok(id)
}

/// Reads the topics that the log has; writes the format into a new log.
fn topics(db: &sled::Db, path: &str, partitions: u16) -> Result<BTreeMap<String, Arc<Topic>>, LogError> {
    let damaged = |what: String| LogError::Damaged { path: path.to_owned(), what };
    let failed = |operation| move |source| storage(path, operation, source);
    let key = layout::format_key();
    match db.get(&key).map_err(failed("open"))? {
        Some(value) => match layout::read_number(&key, &value) {
            Ok(format) if format == layout::FORMAT => {}
            Ok(format) => return Err(damaged(format!("the format (it says {format}, wanted {})", layout::FORMAT))),
            Err(_) => return Err(damaged("the format".to_owned())),
        },
        None if db.is_empty() => {
            let value = layout::number(&key, layout::FORMAT);
            db.insert(key, value).map_err(failed("make"))?;
        }
        None => return Err(damaged("the format".to_owned())),
    }
    let mut topics = BTreeMap::new();
    for entry in db.scan_prefix([kind::TOPIC]) {
        let (key, value) = entry.map_err(failed("open"))?;
        let damaged = || damaged("the list of topics".to_owned());
        let (id, found) = layout::read_topic(&key, &value).map_err(|_| damaged())?;
        let name = std::str::from_utf8(&key[1..]).map_err(|_| damaged())?;
        if found != partitions {
            return Err(LogError::Partitions { path: path.to_owned(), found, wanted: partitions });
        }
        let numbers = |kind| -> Result<Offsets, LogError> {
            (0..partitions).map(|partition| shared::number(db, path, kind, id, partition)).collect()
        };
        let topic = Topic::new(id, name, numbers(kind::END)?, Some(numbers(kind::POSITION)?));
        topics.insert(name.to_owned(), Arc::new(topic));
    }
    Ok(topics)
}

fn read_state(db: &sled::Db, path: &str, changes: TopicId) -> Result<Option<CaptureState>, LogError> {
    let key = layout::state_key(changes);
    let Some(value) = db.get(&key).map_err(|source| storage(path, "open", source))? else { return Ok(None) };
    let state = layout::unseal(&key, &value).ok().and_then(|json| serde_json::from_slice(json).ok());
    state.map(Some).ok_or_else(|| LogError::Damaged { path: path.to_owned(), what: "capture's state".to_owned() })
}

/// The barriers that the last process had not finished with.
fn purges(db: &sled::Db, path: &str) -> Result<BTreeMap<(TopicId, Partition), u64>, LogError> {
    let damaged = |_| LogError::Damaged { path: path.to_owned(), what: "the list of barriers".to_owned() };
    let read = |entry: Result<(sled::IVec, sled::IVec), sled::Error>| {
        let (key, value) = entry.map_err(|source| storage(path, "open", source))?;
        let place = layout::partition_in(&key).map_err(damaged)?;
        Ok((place, layout::read_number(&key, &value).map_err(damaged)?))
    };
    db.scan_prefix([kind::BARRIER]).map(read).collect()
}

/// How far a revision is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Next record of `changes` that embed has not committed.
    pub embedded: Offsets,
    /// Durable ends of `vectors.<revision>`: they hold at least what embed had written by then.
    pub vector_ends: Offsets,
    /// Next record of `vectors.<revision>` that the store has not taken.
    pub stored: Offsets,
}

/// A position that is before dropped tombstones has missed them, unless it is the beginning, or they were dropped
/// before its reader `began` there.
fn check_expired(shared: &Shared, topic: &Topic, positions: &Offsets, began: &Offsets) -> Result<(), LogError> {
    for (partition, (&position, &began)) in (0..).zip(positions.iter().zip(began)) {
        let pruned = reader::pruned(shared, topic, partition)?;
        if position > 0 && position < pruned && began < pruned {
            return Err(LogError::Expired { topic: topic.name.clone(), partition, position, pruned });
        }
    }
    Ok(())
}
