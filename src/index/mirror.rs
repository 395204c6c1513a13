//! The local store: rows in sled, vectors in memory, positions in the same transaction as the rows that they cover.
//! Takes events that others have read from `vectors`; it reads no log.
//!
//! **Invariant:** an older version never replaces a newer one, nor comes back after a delete or a truncate; what is on
//! the disk is either checked and whole or put into quarantine and built anew.

mod error;
mod held;
mod load;
mod pending;
pub mod reading;
mod record;
mod search;
mod store;
#[cfg(test)]
mod tests;
mod transfer;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

pub use self::error::MirrorError;
use self::load::Loaded;
pub use self::pending::Prepared;
use self::pending::{Pending, Step, TRANSACTION_RECORDS_MAX, parse_payload};
use self::record::{Damage, MirrorState, Record, Stored};
use self::search::Recent;
pub use self::search::{Begun, Search};
use self::store::{FolderLock, Store, guarded, shown};
pub use self::transfer::{TransferError, Transferred};
use super::matrix::Matrix;
use super::scan::{DIMENSION, Vector};
use crate::clock::now_ms;
use crate::event::{Row, RowKey, VectorEvent, Version};
use crate::metrics::PipelineMetrics;
use crate::topic::{Offsets, Partition};

/// The mirror in the metrics' label `store`, and in answers.
pub const STORE: &str = "local";

/// What a mirror is made for.
#[derive(Clone, Debug)]
pub struct MirrorSettings {
    /// The mirror's own folder. Its lock and its quarantined predecessors stand beside it.
    pub dir: PathBuf,
    /// The pipeline's name.
    pub pipeline: String,
    /// Revision of the embedding.
    pub revision: String,
    /// Partitions of `vectors`.
    pub partitions: Partition,
    /// Fields of the payload that searches may filter by.
    pub filters: Vec<String>,
}

/// The local store of one pipeline and revision. Clones are the same store.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    settings: MirrorSettings,
    /// Taken before `store` and `matrix`; one writer at a time.
    writer: Mutex<MirrorState>,
    store: RwLock<Option<Store>>,
    /// Held by a writer while the store is ahead of the matrix. Taken before both.
    ahead: RwLock<()>,
    matrix: RwLock<Matrix>,
    /// A copy of the writer's, so that looking does not wait for a write.
    positions: RwLock<Offsets>,
    /// A copy as well.
    as_of_ms: RwLock<Option<i64>>,
    /// The disk failed or is damaged: nothing is written until `recover`.
    faulty: AtomicBool,
    fault: Notify,
    lock: Mutex<Option<FolderLock>>,
    recent: Recent,
    metrics: PipelineMetrics,
}

/// What a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows stored.
    pub upserts: u64,
    /// Of them those that say something else than before, or are new.
    pub changed: u64,
    /// Tombstones stored.
    pub deletes: u64,
    /// Rows and tombstones that a barrier removed.
    pub purged: u64,
    /// Events that something newer had overtaken.
    pub stale: u64,
    /// Rows that cannot be stored: no window, a vector that is not of `DIMENSION` finite numbers, a payload that is
    /// not a JSON object. Logged with their place and stepped over: they will never be different.
    pub refused: u64,
}

/// Two mirrors row by row: by key, version and stored bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Rows of the newer mirror.
    pub rows: u64,
    /// Its points.
    pub points: u64,
    /// Rows that are the same in both.
    pub same: u64,
    /// Rows in both that differ.
    pub different: u64,
    /// Rows that only the older one has.
    pub only_old: u64,
    /// Rows that only the newer one has.
    pub only_new: u64,
}

/// A row that a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The row's key.
    pub key: RowKey,
    /// Dot product of the query and the row's best window; for unit vectors the cosine.
    pub score: f32,
    /// The text of that window.
    pub passage: String,
    /// The row's payload.
    pub payload: Row,
    /// The row's version.
    pub version: Version,
}

impl Mirror {
    /// Opens the folder or makes it; blocking. Every record is checked while the vectors are loaded. A folder that is
    /// damaged, or made by another format, pipeline or revision, is put into quarantine and an empty mirror with all
    /// positions 0 takes its place. Errors are those that trying again may mend: locked by another process, disk full.
    pub fn open(settings: MirrorSettings) -> Result<Mirror, MirrorError> {
        Mirror::open_by(settings, Loaded::open_or_rebuild)
    }

    /// As `open`, but what is damaged or of another origin is an error, and stays as it is.
    pub fn open_whole(settings: MirrorSettings) -> Result<Mirror, MirrorError> {
        Mirror::open_by(settings, |settings| guarded("open", &settings.dir, || Loaded::open(settings)))
    }

    fn open_by(
        settings: MirrorSettings,
        load: impl FnOnce(&MirrorSettings) -> Result<Loaded, MirrorError>,
    ) -> Result<Mirror, MirrorError> {
        let taken = FolderLock::take(&settings.dir).and_then(|lock| Ok((lock, load(&settings)?)));
        let metrics = PipelineMetrics::new(&settings.pipeline);
        metrics.store_connection(STORE, taken.is_ok());
        let (lock, loaded) = taken?;
        Ok(Mirror(Arc::new(Inner {
            positions: RwLock::new(loaded.state.positions.clone()),
            as_of_ms: RwLock::new(loaded.state.as_of_ms()),
            writer: Mutex::new(loaded.state),
            store: RwLock::new(Some(loaded.store)),
            ahead: RwLock::new(()),
            matrix: RwLock::new(loaded.matrix),
            faulty: AtomicBool::new(false),
            fault: Notify::new(),
            lock: Mutex::new(Some(lock)),
            recent: Recent::new(),
            metrics,
            settings,
        })))
    }

    /// The next offset of `vectors` to take in each partition; all before is durable.
    pub fn positions(&self) -> Offsets {
        read(&self.0.positions).clone()
    }

    /// The moment up to which it holds everything that was committed in the source, milliseconds since the Unix epoch,
    /// as the heartbeats in `vectors` say it; `None`: no load was complete yet, or the log has no heartbeats.
    pub fn as_of_ms(&self) -> Option<i64> {
        *read(&self.0.as_of_ms)
    }

    /// Does all that can be done for an event from this place in `vectors` before it is its turn. Any number of threads
    /// may, beside a writer.
    pub fn prepare(&self, partition: Partition, offset: u64, event: VectorEvent) -> Prepared {
        Prepared::new(partition, offset, event, &self.0.settings.filters)
    }

    /// Applies events, each with its place in `vectors`, in their order. When it returns they and the positions behind
    /// them are durable and searches see them (searches may see them a little earlier). A dropped future does not stop
    /// a batch half-way. After an error the caller calls `recover` and takes up the log at `positions` again: they may
    /// have gone back.
    pub async fn apply(&self, batch: Vec<(Partition, u64, VectorEvent)>) -> Result<Applied, MirrorError> {
        let prepare = |(partition, offset, event)| self.prepare(partition, offset, event);
        self.apply_upto(batch.into_iter().map(prepare).collect(), Offsets::new()).await
    }

    /// As `apply`; the positions move on to `upto` at least, for what was read and holds no event: records that could
    /// not be decoded, gaps that compaction left.
    pub async fn apply_upto(&self, batch: Vec<Prepared>, upto: Offsets) -> Result<Applied, MirrorError> {
        self.blocking("apply", move |inner| inner.write(|inner, state| inner.apply(state, batch, &upto))).await
    }

    /// Forgets tombstones that were stored before this time, milliseconds since the Unix epoch, and says how many.
    /// An older upsert that comes later than that would bring its row back.
    pub async fn prune(&self, older_than_ms: i64) -> Result<u64, MirrorError> {
        self.blocking("prune", move |inner| inner.write(|inner, state| inner.prune(state, older_than_ms))).await
    }

    /// Opens and checks the folder again after a fault; without one it does nothing. Searches are answered `Closed`
    /// meanwhile. Where the disk is full it is an error, and searches go on over what is there.
    pub async fn recover(&self) -> Result<(), MirrorError> {
        self.blocking("recover", Inner::reload).await
    }

    /// Puts everything aside and begins empty, with all positions 0: for a mirror that does not belong to its log.
    pub async fn reset(&self, reason: &str) -> Result<(), MirrorError> {
        let reason = reason.to_owned();
        self.blocking("reset", move |inner| inner.reset(&reason)).await
    }

    /// Waits until the disk has failed or damage was found, also by a search; `recover` is needed then.
    pub async fn faulted(&self) -> MirrorError {
        loop {
            let told = self.0.fault.notified();
            if self.0.faulty.load(Ordering::Acquire) {
                return MirrorError::Faulty { path: shown(&self.0.settings.dir) };
            }
            told.await;
        }
    }

    /// A row's payload, if it is held. May read the disk: call it on a blocking thread.
    pub fn payload(&self, key: &RowKey) -> Result<Option<Row>, MirrorError> {
        match self.0.with_store(|store| self.0.latest(store, key))? {
            Some(Record { body: Stored::Live(row), .. }) => {
                parse_payload(&row.payload).map(Some).map_err(|why| self.0.damaged(Damage(why)))
            }
            Some(Record { body: Stored::Deleted(_), .. }) | None => Ok(None),
        }
    }

    /// Whether searches are answered. They are not while the folder is opened again after damage.
    pub fn is_open(&self) -> bool {
        read(&self.0.store).is_some()
    }

    /// The name of its folder: revision and number.
    pub fn name(&self) -> Cow<'_, str> {
        self.0.settings.dir.file_name().unwrap_or_default().to_string_lossy()
    }

    /// Rows that can be found.
    pub fn rows(&self) -> u64 {
        read(&self.0.matrix).rows()
    }

    /// Windows that can be found.
    pub fn points(&self) -> u64 {
        read(&self.0.matrix).points()
    }

    /// What `newer` holds otherwise than this one. Takes both out of use for writers meanwhile, for milliseconds.
    pub fn compare(&self, newer: &Mirror) -> Difference {
        let (old, new) = (read(&self.0.matrix), read(&newer.0.matrix));
        let mut difference = Difference { rows: new.rows(), points: new.points(), ..Difference::default() };
        for document in old.documents().filter(|document| document.is_live()) {
            match new.get(&document.key).filter(|document| document.is_live()) {
                None => difference.only_old += 1,
                Some(other) if other.fingerprint != document.fingerprint => difference.different += 1,
                Some(_) => difference.same += 1,
            }
        }
        difference.only_new = difference.rows - difference.same - difference.different;
        difference
    }

    /// Bytes that the folder takes on the disk, without quarantined ones. Blocking: looks at every file.
    pub fn size_on_disk(&self) -> Result<u64, MirrorError> {
        store::size_on_disk(&self.0.settings.dir)
    }

    /// Fields that searches may filter by.
    pub fn fields(&self) -> &[String] {
        &self.0.settings.filters
    }

    /// Partitions of `vectors` that it was made for.
    pub fn partitions(&self) -> Partition {
        self.0.settings.partitions
    }

    /// Waits for the write under way and closes the folder; later calls are answered `Closed`.
    pub async fn close(&self) {
        let closed = self.blocking("close", |inner| {
            let _writer = lock(&inner.writer);
            drop(write(&inner.store).take());
            drop(lock(&inner.lock).take());
            Ok(())
        });
        if let Err(error) = closed.await {
            tracing::warn!("{error}");
        }
    }

    /// Writes a row whose checksum is wrong, for tests of what follows.
    #[cfg(test)]
    pub(super) fn damage_row(&self, key: &RowKey) {
        let place = read(&self.0.matrix).get(key).expect("a row").place;
        let mut batch = sled::Batch::default();
        batch.insert(&record::place_key(place), b"not what was stored");
        self.0.with_store(|store| store.write(batch)).expect("written");
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, MirrorError> + Send + 'static,
    ) -> Result<T, MirrorError> {
        let inner = Arc::clone(&self.0);
        let path = shown(&inner.settings.dir);
        let task = tokio::task::spawn_blocking(move || guarded(operation, &inner.settings.dir, || work(&inner)));
        task.await.unwrap_or(Err(MirrorError::Closed { path }))
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("dir", &self.0.settings.dir).field("positions", &self.positions()).finish()
    }
}

impl Inner {
    fn publish(&self, state: &MirrorState) {
        write(&self.positions).clone_from(&state.positions);
        *write(&self.as_of_ms) = state.as_of_ms();
    }

    fn mark_faulty(&self) {
        self.faulty.store(true, Ordering::Release);
        self.fault.notify_waiters();
    }

    /// Runs one writer. It gets a copy of the state; what it leaves there is durable when this returns.
    fn write<T>(&self, work: impl FnOnce(&Self, &mut MirrorState) -> Result<T, MirrorError>) -> Result<T, MirrorError> {
        let mut writer = lock(&self.writer);
        if self.faulty.load(Ordering::Acquire) {
            return Err(MirrorError::Faulty { path: shown(&self.settings.dir) });
        }
        store::ensure_room(&self.settings.dir)?;
        let mut state = writer.clone();
        let result = guarded("write", &self.settings.dir, || {
            let result = work(self, &mut state)?;
            if state != *writer {
                self.with_store(Store::sync)?;
            }
            Ok(result)
        });
        match result {
            Ok(result) => {
                self.publish(&state);
                *writer = state;
                Ok(result)
            }
            Err(error) => {
                // Before the next writer gets its turn: what is stored may be ahead of `writer` now.
                if error.is_fault() {
                    self.mark_faulty();
                }
                Err(error)
            }
        }
    }

    fn apply(&self, state: &mut MirrorState, batch: Vec<Prepared>, upto: &Offsets) -> Result<Applied, MirrorError> {
        let partitions = self.settings.partitions;
        if let Some(event) = batch.iter().find(|event| event.partition >= partitions) {
            return Err(MirrorError::Partition { found: event.partition, partitions });
        }
        let mut applied = Applied::default();
        let mut pending = Pending::default();
        for Prepared { partition, offset, step } in batch {
            let barrier = state.barriers[usize::from(partition)];
            let position = &mut state.positions[usize::from(partition)];
            *position = (*position).max(offset + 1);
            match step {
                Step::Put(key, put) if self.overtaken(&pending, barrier, &key, put.version) => applied.stale += 1,
                Step::Put(key, put) => {
                    *if put.is_live() { &mut applied.upserts } else { &mut applied.deletes } += 1;
                    pending.put(key, put);
                }
                Step::Refused(why) => {
                    applied.refused += 1;
                    tracing::error!(partition, offset, "embedded row refused: {why}");
                }
                Step::Heartbeat(as_of_ms) => state.heard(partition, as_of_ms, now_ms()),
                Step::Nothing => {}
                Step::Barrier(version) if version.0 <= barrier => applied.stale += 1,
                Step::Barrier(version) => {
                    // The barrier and its position first: what a kill leaves below it is purged on the next open.
                    state.barriers[usize::from(partition)] = version.0;
                    applied.changed += self.commit(state, std::mem::take(&mut pending))?;
                    applied.purged += self.purge(state)?;
                }
            }
            if pending.is_full() {
                applied.changed += self.commit(state, std::mem::take(&mut pending))?;
            }
        }
        for (position, upto) in state.positions.iter_mut().zip(upto) {
            *position = (*position).max(*upto);
        }
        applied.changed += self.commit(state, pending)?;
        Ok(applied)
    }

    /// Whether this version of a key is below the barrier, or older than what is known of the key. The same version again
    /// takes its place: embedding it anew is how a row is mended.
    fn overtaken(&self, pending: &Pending, barrier: u64, key: &RowKey, version: Version) -> bool {
        let known = pending.version(key).or_else(|| read(&self.matrix).get(key).map(|document| document.version));
        version.0 < barrier || known.is_some_and(|known| version < known)
    }

    /// Removes every record below its partition's barrier.
    fn purge(&self, state: &mut MirrorState) -> Result<u64, MirrorError> {
        let doomed = keys_below_barriers(&read(&self.matrix), &state.barriers);
        self.forget(state, &doomed)
    }

    fn prune(&self, state: &mut MirrorState, older_than_ms: i64) -> Result<u64, MirrorError> {
        let is_old =
            |body: &super::matrix::State| matches!(body, super::matrix::State::Deleted(at) if *at < older_than_ms);
        let old: Vec<_> = {
            let matrix = read(&self.matrix);
            matrix.documents().filter(|document| is_old(&document.state)).map(|d| Arc::clone(&d.key)).collect()
        };
        self.forget(state, &old)
    }

    fn forget(&self, state: &mut MirrorState, keys: &[Arc<RowKey>]) -> Result<u64, MirrorError> {
        for keys in keys.chunks(TRANSACTION_RECORDS_MAX) {
            let mut pending = Pending::default();
            for key in keys {
                pending.forget(RowKey::clone(key));
            }
            self.commit(state, pending)?;
        }
        Ok(keys.len() as u64)
    }

    /// Writes the pending records and the state in one transaction and shows them to searches. Gives how many rows say
    /// something else than before, or are new.
    fn commit(&self, state: &mut MirrorState, pending: Pending) -> Result<u64, MirrorError> {
        let (batch, edits, changed) = pending.into_batch(state, &read(&self.matrix));
        let _ahead = write(&self.ahead);
        self.with_store(|store| store.write(batch))?;
        let mut matrix = write(&self.matrix);
        for edit in edits {
            matrix.edit(edit);
        }
        Ok(changed)
    }

    fn with_store<T>(&self, work: impl FnOnce(&Store) -> Result<T, MirrorError>) -> Result<T, MirrorError> {
        match &*read(&self.store) {
            Some(store) => work(store),
            None => Err(MirrorError::Closed { path: shown(&self.settings.dir) }),
        }
    }

    fn damaged(&self, what: Damage) -> MirrorError {
        MirrorError::Damaged { path: shown(&self.settings.dir), what: what.0 }
    }

    fn reload(&self) -> Result<(), MirrorError> {
        let mut writer = lock(&self.writer);
        if self.faulty.load(Ordering::Acquire) || lock(&self.lock).is_none() {
            // On a full disk the folder could be closed but not opened: rather keep it for the searches.
            store::ensure_room(&self.settings.dir)?;
            self.close_store()?;
            let loaded = Loaded::open_or_rebuild(&self.settings);
            self.metrics.store_connection(STORE, loaded.is_ok());
            self.adopt(&mut writer, loaded?);
        }
        Ok(())
    }

    fn reset(&self, reason: &str) -> Result<(), MirrorError> {
        let mut writer = lock(&self.writer);
        self.close_store()?;
        self.adopt(&mut writer, Loaded::rebuild(&self.settings, reason)?);
        Ok(())
    }

    /// Closes the store for opening it anew; an error when the mirror itself is closed.
    fn close_store(&self) -> Result<(), MirrorError> {
        if lock(&self.lock).is_none() {
            return Err(MirrorError::Closed { path: shown(&self.settings.dir) });
        }
        // From here on writers are told that it is faulty, should opening fail.
        self.faulty.store(true, Ordering::Release);
        drop(write(&self.store).take());
        Ok(())
    }

    fn adopt(&self, writer: &mut MirrorState, loaded: Loaded) {
        let old = std::mem::replace(&mut *write(&self.matrix), loaded.matrix);
        *write(&self.store) = Some(loaded.store);
        self.recent.clear();
        self.publish(&loaded.state);
        *writer = loaded.state;
        self.faulty.store(false, Ordering::Release);
        drop(old);
    }
}

fn keys_below_barriers(matrix: &Matrix, barriers: &[u64]) -> Vec<Arc<RowKey>> {
    let below = |partition: Partition, version: Version| {
        barriers.get(usize::from(partition)).is_some_and(|barrier| version.0 < *barrier)
    };
    matrix.documents().filter(|d| below(d.partition, d.version)).map(|d| Arc::clone(&d.key)).collect()
}

// A lock is poisoned when its holder panicked. Writers prepare everything before they take one, and a panic makes the
// mirror faulty, which rebuilds what the lock holds: what is there can be read.

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
