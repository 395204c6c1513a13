//! The mirror's folder: sled, its settings and traps, the lock, quarantine. Knows bytes and files, not rows.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::MirrorError;
use crate::clock::now_ms;

/// Pages that sled may keep in memory; see `PAGE_TOUCHES`. A search reads a handful; the vectors are in the matrix.
const CACHE_BYTES: u64 = 16 << 20;
/// Reads of a page for one that is wanted. sled looks at a shard of its cache (there are 256) only after 64 reads of its
/// pages, however many bytes the shard may hold: read once each, 16,384 pages of 16 rows stay in memory.
const PAGE_TOUCHES: u32 = 4;
/// Larger than sled's own 512 KiB: a page of more than a quarter of a segment goes into a file of its own, and pages
/// of 16 rows of several windows each would.
const SEGMENT_BYTES: usize = 2 << 20;
/// Free space below which nothing is written: a batch, the pages that sled rewrites with it, a snapshot.
const ROOM_BYTES: u64 = 8 * SEGMENT_BYTES as u64;
/// Quarantined folders that are kept.
const QUARANTINES_KEPT: usize = 2;
/// sled lets go of its own lock only when its last background write is done.
const CLOSING_WAIT_MAX: Duration = Duration::from_secs(5);

/// The open folder.
pub(super) struct Store {
    db: sled::Db,
    /// sled's log, a second time: on Linux sled's flush is `sync_file_range`, which makes neither the file's length
    /// nor the disk's cache durable.
    log: File,
    path: PathBuf,
}

impl Store {
    /// Opens or makes the folder.
    pub(super) fn open(path: &Path) -> Result<Store, MirrorError> {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .mode(sled::Mode::LowSpace)
            .flush_every_ms(None);
        let since = Instant::now();
        let db = loop {
            match guarded("open", path, || config.open().map_err(storage("open", path))) {
                Err(error) if error.is_sled_lock() && since.elapsed() < CLOSING_WAIT_MAX => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) if error.is_sled_lock() => return Err(MirrorError::Locked { path: shown(path) }),
                result => break result?,
            }
        };
        let log = File::open(path.join("db")).map_err(files("open", path))?;
        Ok(Store { db, log, path: path.to_owned() })
    }

    /// Writes a batch in one transaction. Not durable yet.
    pub(super) fn write(&self, batch: sled::Batch) -> Result<(), MirrorError> {
        guarded("write", &self.path, || self.db.apply_batch(batch).map_err(storage("write", &self.path)))
    }

    /// What was written before is durable when this returns.
    pub(super) fn sync(&self) -> Result<(), MirrorError> {
        guarded("flush", &self.path, || self.db.flush().map_err(storage("flush", &self.path)))?;
        self.log.sync_data().map_err(files("fsync", &self.path))
    }

    /// The value of one key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, MirrorError> {
        let get = || self.db.get(key).map_err(storage("read", &self.path));
        guarded("read", &self.path, || {
            for _ in 1..PAGE_TOUCHES {
                get()?;
            }
            get()
        })
    }

    /// Keys from this one on, with their values, at most `max`.
    pub(super) fn page(&self, from: &[u8], max: usize) -> Result<Vec<(sled::IVec, sled::IVec)>, MirrorError> {
        guarded("read", &self.path, || {
            let mut page = vec![];
            let first = self.db.range(from..).next().transpose();
            let mut next = first.map_err(storage("read", &self.path))?;
            // Not with an iterator, as in `each`.
            while let Some(entry) = next.filter(|_| page.len() < max) {
                next = self.db.get_gt(&entry.0).map_err(storage("read", &self.path))?;
                page.push(entry);
            }
            Ok(page)
        })
    }

    /// Shows every key and value to `visit`, in the order of the keys.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), MirrorError>,
    ) -> Result<(), MirrorError> {
        guarded("read", &self.path, || {
            // An iterator would touch each page once, and the cache would hold the whole folder: see `PAGE_TOUCHES`.
            let mut next = self.db.first().map_err(storage("read", &self.path))?;
            while let Some((key, value)) = next {
                visit(&key, &value)?;
                next = self.db.get_gt(&key).map_err(storage("read", &self.path))?;
            }
            Ok(())
        })
    }
}

/// The lock on a mirror's folder, held as long as the mirror is open. It stands beside the folder, because the folder
/// itself may be put into quarantine meanwhile; the operating system lets go of it when the process ends.
pub(super) struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone would not do while a child that is being started still has a copy of the handle.
        if let Err(error) = self.0.unlock() {
            tracing::warn!("unlock mirror: {error}");
        }
    }
}

impl FolderLock {
    /// Takes the lock, or says at once that another has it.
    pub(super) fn take(path: &Path) -> Result<Self, MirrorError> {
        let beside = sibling(path, ".lock");
        if let Some(parent) = beside.parent() {
            fs::create_dir_all(parent).map_err(files("make", path))?;
        }
        let file =
            File::options().create(true).truncate(false).write(true).open(&beside).map_err(files("lock", path))?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock(file)),
            Err(TryLockError::WouldBlock) => Err(MirrorError::Locked { path: shown(path) }),
            Err(TryLockError::Error(error)) => Err(files("lock", path)(error)),
        }
    }
}

/// Puts the folder aside under a name with the time in it and forgets the oldest ones. Nothing may have it open.
pub(super) fn quarantine(path: &Path) -> Result<PathBuf, MirrorError> {
    let mut at_ms = now_ms();
    let aside = loop {
        let aside = sibling(path, &format!(".quarantine-{at_ms}"));
        if !aside.exists() {
            break aside;
        }
        at_ms += 1;
    };
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => result.map_err(files("put aside", path))?,
    }
    let mut kept = quarantined(path).map_err(files("list", path))?;
    kept.sort_unstable_by_key(|(at_ms, _)| std::cmp::Reverse(*at_ms));
    for (_, old) in kept.into_iter().skip(QUARANTINES_KEPT) {
        fs::remove_dir_all(&old).map_err(files("remove", &old))?;
    }
    Ok(aside)
}

/// The quarantined folders beside `path`, each with its time, milliseconds since the Unix epoch.
pub(super) fn quarantined(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.quarantine-");
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let time = entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        found.extend(time.map(|at_ms| (at_ms, entry.path())));
    }
    Ok(found)
}

/// Refuses what would run into a full disk. sled does not survive one: it takes no more writes, and pages that were
/// being written can no longer be read, until it is opened anew, which takes room as well.
pub(super) fn ensure_room(path: &Path) -> Result<(), MirrorError> {
    let disk = rustix::fs::statvfs(path).map_err(|error| files("find room for", path)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < ROOM_BYTES { Err(MirrorError::Full { path: shown(path), free, wanted: ROOM_BYTES }) } else { Ok(()) }
}

/// Bytes that the folder takes on the disk.
pub(super) fn size_on_disk(path: &Path) -> Result<u64, MirrorError> {
    fn blocks(path: &Path) -> io::Result<u64> {
        let mut total = 0;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            total += match entry.metadata() {
                Ok(meta) if meta.is_dir() => blocks(&entry.path())?,
                Ok(meta) => meta.blocks(),
                // sled removes files of its own while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
        }
        Ok(total)
    }
    /// The unit of `st_blocks`, whatever the file system's own.
    const BLOCK_BYTES: u64 = 512;
    blocks(path).map(|blocks| blocks * BLOCK_BYTES).map_err(files("measure", path))
}

/// Runs something that sled does: its panics become errors.
pub(super) fn guarded<T>(
    operation: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, MirrorError>,
) -> Result<T, MirrorError> {
    // What `work` leaves half-done is thrown away: after such an error the folder is opened and checked anew.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(MirrorError::Panicked { operation, path: shown(path), text })
    })
}

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn storage(operation: &'static str, path: &Path) -> impl Fn(sled::Error) -> MirrorError {
    move |source| MirrorError::Storage { operation, path: shown(path), source }
}

fn files(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> MirrorError {
    move |source| MirrorError::Files { operation, path: shown(path), source }
}
