//! Reads a mirror that is not to be changed, whoever made it: from a copy, since opening alone would write to its files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::MirrorError;
use super::record::{FORMAT, MirrorState, Record, STATE_KEY, Stored, parse_place};
use super::store::{Store, guarded, shown, size_on_disk};
use crate::event::{EmbeddedRow, RowKey, Version};
use crate::topic::{Offsets, Partition};

/// What sled keeps its pages in; it is locked as long as somebody has the folder open.
const DATA_FILE: &str = "db";
/// Where a mirror's copy is, in a folder that is given.
const COPY: &str = "mirror-copy";

/// A mirror that is read. Its copy goes with it.
pub struct Reading {
    store: Option<Store>,
    state: MirrorState,
    dir: PathBuf,
    copy: PathBuf,
}

/// A row as a mirror has it.
#[derive(Debug)]
pub struct KeptRow {
    /// Its key.
    pub key: RowKey,
    /// Its version.
    pub version: Version,
    /// The partition of `vectors` that it came from.
    pub partition: Partition,
    /// `None`: deleted.
    pub row: Option<EmbeddedRow>,
}

/// The pipeline that a mirror is of; `None`: it is empty. Opens the folder as it is, for who is about to use it. Blocking.
pub fn pipeline_of(dir: &Path) -> Result<Option<String>, MirrorError> {
    let store = guarded("open", dir, || Store::open(dir))?;
    let Some(state) = store.get(STATE_KEY)? else { return Ok(None) };
    let damaged = |what: String| MirrorError::Damaged { path: shown(dir), what };
    MirrorState::from_bytes(&state).map(|state| Some(state.pipeline)).map_err(|damage| damaged(damage.0))
}

impl Reading {
    /// Copies the folder into `scratch` and opens the copy; blocking. Refused where another process has it open. Only one
    /// may use `scratch` at a time; what a killed one has left there is removed.
    pub fn open(dir: &Path, scratch: &Path) -> Result<Reading, MirrorError> {
        let copy = scratch.join(COPY);
        let failed = |operation, path: &Path| {
            let path = shown(path);
            move |source| MirrorError::Files { operation, path, source }
        };
        match fs::remove_dir_all(&copy) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the copy of", &copy)(error));
            }
            _ => {}
        }
        let _locks = lock(dir)?;
        fs::create_dir_all(scratch).map_err(failed("copy", dir))?;
        let (wanted, free) = (size_on_disk(dir)?, free_bytes(scratch).map_err(failed("find room for a copy of", dir))?);
        if free < wanted {
            return Err(MirrorError::Full { path: shown(&copy), free, wanted });
        }
        let mut reading =
            Reading { store: None, state: MirrorState::default(), dir: dir.to_owned(), copy: copy.clone() };
        copy_folder(dir, &copy).map_err(failed("copy", dir))?;
        let store = guarded("open", &copy, || Store::open(&copy))?;
        let damaged = |what: String| MirrorError::Damaged { path: shown(dir), what };
        let state =
            store.get(STATE_KEY)?.ok_or_else(|| damaged("it has no state: it is empty or no mirror".to_owned()))?;
        reading.state = MirrorState::from_bytes(&state).map_err(|damage| damaged(damage.0))?;
        reading.store = Some(store);
        if reading.state.format != FORMAT {
            return Err(damaged(format!("it is of format {}, wanted {FORMAT}", reading.state.format)));
        }
        Ok(reading)
    }

    /// The pipeline that it is of.
    pub fn pipeline(&self) -> &str {
        &self.state.pipeline
    }

    /// Its revision.
    pub fn revision(&self) -> &str {
        &self.state.revision
    }

    /// The next offset of `vectors` to take in each partition.
    pub fn positions(&self) -> Offsets {
        self.state.positions.clone()
    }

    /// Rows below this version are gone, one a partition.
    pub fn barriers(&self) -> Vec<u64> {
        self.state.barriers.clone()
    }

    /// The last heartbeat of each partition, milliseconds since the Unix epoch; empty or 0: none.
    pub fn heartbeats(&self) -> Vec<i64> {
        self.state.heartbeats.clone()
    }

    /// Rows and tombstones.
    pub fn records(&self) -> u64 {
        self.state.records
    }

    /// A name for its contents: another state has another.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.state.to_bytes())[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Shows every row and tombstone to `visit`, until that says no; blocking. An error at the end: something is missing or
    /// is not what was stored.
    pub fn each(&self, mut visit: impl FnMut(KeptRow) -> bool) -> Result<(), MirrorError> {
        let damaged = |what: String| MirrorError::Damaged { path: shown(&self.dir), what };
        let (mut records, mut digest) = (0, 0_u64);
        let closed = || MirrorError::Closed { path: shown(&self.dir) };
        let store = self.store.as_ref().ok_or_else(closed)?;
        store.each(|key, value| {
            if key == STATE_KEY {
                return Ok(());
            }
            let place = parse_place(key).ok_or_else(|| damaged("a key that is no record's".to_owned()))?;
            let (record, fingerprint) = Record::decode(place, value).map_err(|damage| damaged(damage.0))?;
            records += 1;
            digest = digest.wrapping_add(fingerprint);
            let Record { key, version, partition, body } = record;
            // A kill may have come between a barrier and the end of its purge.
            if self.state.barriers.get(usize::from(partition)).is_some_and(|barrier| version.0 < *barrier) {
                return Ok(());
            }
            let row = match body {
                Stored::Live(row) => Some(row),
                Stored::Deleted(_) => None,
            };
            if visit(KeptRow { key, version, partition, row }) { Ok(()) } else { Err(closed()) }
        })?;
        if (records, digest) != (self.state.records, self.state.digest) {
            return Err(damaged(format!("{records} records where {} were stored, or older ones", self.state.records)));
        }
        Ok(())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        drop(self.store.take());
        if let Err(error) = fs::remove_dir_all(&self.copy)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("remove {}: {error}", self.copy.display());
        }
    }
}

/// Whether a folder is one of sled's.
pub fn is_mirror(dir: &Path) -> bool {
    dir.join(DATA_FILE).is_file() && dir.join("conf").is_file()
}

/// The locks of who has it open: sled's own, and vecsync's beside the folder. Nothing is made.
fn lock(dir: &Path) -> Result<Vec<File>, MirrorError> {
    let mut beside = dir.as_os_str().to_owned();
    beside.push(".lock");
    let mut locks = vec![];
    for path in [PathBuf::from(beside), dir.join(DATA_FILE)] {
        let failed = |source| MirrorError::Files { operation: "lock", path: shown(dir), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock() {
            Ok(()) => locks.push(file),
            Err(TryLockError::WouldBlock) => return Err(MirrorError::Locked { path: shown(dir) }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
    Ok(locks)
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
