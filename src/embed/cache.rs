//! The embedding cache: vectors and windows of texts that were embedded before, on sled. Derived data: whatever is wrong
//! with it costs time and never a row.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};

use super::model::{DIMENSION, Vector};
use crate::event::{EmbeddedRow, Window};

/// Entries of a full cache, about 300 MB on disk.
pub const ENTRIES_MAX: u64 = 200_000;
/// Pages that sled keeps in memory.
const MEMORY_BYTES: u64 = 8 << 20;
/// What was written in the last second may be missing after a crash, and is embedded again.
const FLUSH_MS: u64 = 1000;
/// sled's threads hold the folder for a moment after the last handle is gone.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// In the tree of names: which of the trees is filled now.
const CURRENT: &[u8] = b"current";
/// In the tree of names: the number of the last resync that was forced; what was embedded before is not here.
const ANEW: &[u8] = b"anew";

/// The name of an entry: the first 16 bytes of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 16]);

impl Key {
    /// Takes what was hashed.
    pub fn of(hasher: Sha256) -> Key {
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize()[..16]);
        Key(key)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, as many as they are.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    fn entry(&self, kind: u8) -> [u8; 17] {
        let mut entry = [kind; 17];
        entry[1..].copy_from_slice(&self.0);
        entry
    }
}

/// How a document was cut into windows, and which vectors they have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The title's own vector, where it has a part in the points.
    pub title: Option<Key>,
    /// Each window's bytes in the document's text, and its vector.
    pub windows: Vec<(Range<usize>, Key)>,
}

const VECTOR: u8 = b'v';
const LAYOUT: u8 = b'l';
/// Of rows that came from a backup.
const WINDOWS: u8 = b'w';

/// A bounded cache. It has two trees: one is filled, and when it holds half the limit the other one is dropped and
/// filled in its place; what is found in the older tree moves to the newer. So an entry that is in use stays, one
/// that nobody asked for while half the limit was written goes, and nothing is ever searched for what to remove.
///
/// Clones are the same cache.
#[derive(Clone)]
pub struct Cache(Option<Arc<Store>>);

struct Store {
    path: PathBuf,
    database: sled::Db,
    names: sled::Tree,
    trees: RwLock<Trees>,
    entries: AtomicU64,
    limit: u64,
    anew: AtomicU64,
    failed: AtomicBool,
}

struct Trees {
    number: u64,
    newer: sled::Tree,
    older: sled::Tree,
}

impl Cache {
    /// A cache that holds nothing.
    pub fn off() -> Cache {
        Cache(None)
    }

    /// Opens the cache in this folder, or makes one. A damaged one is set aside (as `<folder>.damaged`, replacing the
    /// one before) and an empty one begun; where neither can be opened, texts are embedded without a cache. Blocks.
    pub fn open(folder: &Path) -> Cache {
        Cache::open_bounded(folder, ENTRIES_MAX)
    }

    /// Like `open`, with this many entries at most.
    pub fn open_bounded(folder: &Path, limit: u64) -> Cache {
        let fault = match open(folder, limit) {
            Ok(store) => return Cache(Some(Arc::new(store))),
            Err(fault) => fault,
        };
        if !fault.damaged {
            tracing::warn!("open embedding cache {}: {}; going on without it", folder.display(), fault.text);
            return Cache::off();
        }
        let mut aside = folder.as_os_str().to_owned();
        aside.push(".damaged");
        tracing::warn!("open embedding cache {}: {}; set aside, beginning an empty one", folder.display(), fault.text);
        let _ = std::fs::remove_dir_all(&aside);
        let renamed = std::fs::rename(folder, &aside).map_err(|fault| fault.to_string());
        match renamed.and_then(|()| open(folder, limit).map_err(|fault| fault.text)) {
            Ok(store) => Cache(Some(Arc::new(store))),
            Err(fault) => {
                tracing::warn!("open embedding cache {}: {fault}; going on without it", folder.display());
                Cache::off()
            }
        }
    }

    /// A text's vector.
    pub fn vector(&self, key: &Key) -> Option<Vector> {
        let value = self.get(key.entry(VECTOR))?;
        let vector: Vector = value.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (vector.len() == DIMENSION).then_some(vector)
    }

    /// A document's windows.
    pub fn layout(&self, key: &Key) -> Option<Layout> {
        Layout::read(&self.get(key.entry(LAYOUT))?)
    }

    /// A document's windows as they were embedded in another place, with their mixed vectors.
    pub fn windows(&self, key: &Key) -> Option<Vec<Window>> {
        let row = EmbeddedRow::decode(self.get(key.entry(WINDOWS))?.as_slice()).ok()?;
        let is_whole = |window: &Window| window.vector_bytes.len() == DIMENSION * size_of::<f32>();
        (!row.windows.is_empty() && row.windows.iter().all(is_whole)).then_some(row.windows)
    }

    /// Keeps the windows of rows, by the hashes of their texts, for who will be given the same texts and has no vectors of them.
    pub fn keep_windows<'a>(&self, rows: impl IntoIterator<Item = &'a EmbeddedRow>) {
        let Some(store) = self.usable() else { return };
        let (mut batch, mut count) = (sled::Batch::default(), 0);
        for row in rows {
            let Ok(hash) = <[u8; 16]>::try_from(row.text_hash.as_slice()) else { continue };
            let entry = Key(hash).entry(WINDOWS);
            let kept = EmbeddedRow { windows: row.windows.clone(), ..EmbeddedRow::default() };
            batch.insert(&entry[..], sealed(&entry, kept.encode_to_vec()));
            count += 1;
        }
        if count > 0 {
            store.guard("write", || store.write(batch, count));
        }
    }

    /// Keeps vectors and layouts. They need not be durable before anything else is.
    pub fn keep<'a>(
        &self,
        vectors: impl IntoIterator<Item = (Key, &'a Vector)>,
        layouts: impl IntoIterator<Item = (Key, &'a Layout)>,
    ) {
        let Some(store) = self.usable() else { return };
        let mut batch = sled::Batch::default();
        let mut count = 0;
        let mut add = |entry: [u8; 17], value: Vec<u8>| {
            batch.insert(&entry[..], sealed(&entry, value));
            count += 1;
        };
        for (key, vector) in vectors {
            add(key.entry(VECTOR), vector.iter().flat_map(|component| component.to_le_bytes()).collect());
        }
        for (key, layout) in layouts {
            add(key.entry(LAYOUT), layout.to_bytes());
        }
        if count > 0 {
            store.guard("write", || store.write(batch, count));
        }
    }

    /// Forgets all that was kept before the resync of this number was met for the first time. What is kept afterwards
    /// serves it, however often its records are read, until one of a greater number is met.
    pub fn begin_anew(&self, number: u64) {
        let Some(store) = self.usable().filter(|store| store.anew.load(Ordering::Acquire) < number) else { return };
        store.guard("empty", || store.begin_anew(number));
    }

    /// Writes what is kept to disk. Blocks.
    pub fn flush(&self) {
        if let Some(store) = self.usable() {
            store.guard("flush", || store.database.flush().map(drop));
        }
    }

    fn usable(&self) -> Option<&Store> {
        self.0.as_deref().filter(|store| !store.failed.load(Ordering::Relaxed))
    }

    fn get(&self, entry: [u8; 17]) -> Option<Vec<u8>> {
        let store = self.usable()?;
        store.guard("read", || store.read(&entry)).flatten()
    }
}

impl Store {
    /// Runs one operation; after a fault (sled may also panic on a damaged page) the cache is out of use until the
    /// next start, which finds the damage.
    fn guard<T>(&self, operation: &str, run: impl FnOnce() -> sled::Result<T>) -> Option<T> {
        let fault = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(fault)) => fault.to_string(),
            Err(_) => "sled panicked".to_owned(),
        };
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!("{operation} embedding cache {}: {fault}; going on without it", self.path.display());
        }
        None
    }

    fn read(&self, entry: &[u8; 17]) -> sled::Result<Option<Vec<u8>>> {
        let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = trees.newer.get(entry)? {
            return Ok(unsealed(entry, &value));
        }
        let Some(value) = trees.older.get(entry)? else { return Ok(None) };
        let found = unsealed(entry, &value);
        if found.is_some() {
            trees.newer.insert(entry, value)?;
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
        Ok(found)
    }

    fn write(&self, batch: sled::Batch, count: u64) -> sled::Result<()> {
        let entries = {
            let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
            trees.newer.apply_batch(batch)?;
            let entries = self.entries.fetch_add(count, Ordering::Relaxed) + count;
            // An approximation: what is written twice counts twice, what a crash forgets does not count.
            self.names.insert(tree_name(trees.number), &entries.to_le_bytes())?;
            entries
        };
        if entries >= self.limit / 2 { self.turn() } else { Ok(()) }
    }

    /// Drops the older tree and begins a new one.
    fn turn(&self) -> sled::Result<()> {
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        let number = trees.number + 1;
        let newer = self.database.open_tree(tree_name(number))?;
        self.names.insert(CURRENT, &number.to_le_bytes())?;
        let older = std::mem::replace(&mut trees.newer, newer);
        let gone = std::mem::replace(&mut trees.older, older);
        trees.number = number;
        self.entries.store(0, Ordering::Relaxed);
        self.names.remove(gone.name())?;
        self.database.drop_tree(gone.name())?;
        Ok(())
    }
}

impl Store {
    /// Drops both trees and begins new ones.
    fn begin_anew(&self, number: u64) -> sled::Result<()> {
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        // Another batch may have met it meanwhile.
        if self.anew.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        let current = trees.number + 2;
        let (newer, older) =
            (self.database.open_tree(tree_name(current))?, self.database.open_tree(tree_name(current - 1))?);
        self.names.insert(CURRENT, &current.to_le_bytes())?;
        let gone = [std::mem::replace(&mut trees.newer, newer), std::mem::replace(&mut trees.older, older)];
        trees.number = current;
        self.entries.store(0, Ordering::Relaxed);
        for tree in gone {
            self.names.remove(tree.name())?;
            self.database.drop_tree(tree.name())?;
        }
        // Last, so that a crash before it begins anew once more.
        self.names.insert(ANEW, &number.to_le_bytes())?;
        self.anew.store(number, Ordering::Release);
        Ok(())
    }
}

struct OpenFault {
    damaged: bool,
    text: String,
}

fn open(folder: &Path, limit: u64) -> Result<Store, OpenFault> {
    let mut tries = LOCK_TRIES;
    loop {
        let fault = match catch_unwind(AssertUnwindSafe(|| try_open(folder, limit))) {
            Ok(Ok(store)) => return Ok(store),
            Ok(Err(fault)) => fault,
            Err(_) => return Err(OpenFault { damaged: true, text: "sled panicked".to_owned() }),
        };
        // A lock, a permission or a full disk says nothing about what is stored.
        let damaged = !matches!(fault, sled::Error::Io(_)) || is_damage(&fault);
        tries -= 1;
        if damaged || tries == 0 || !fault.to_string().contains("acquire lock") {
            return Err(OpenFault { damaged, text: fault.to_string() });
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

fn is_damage(fault: &sled::Error) -> bool {
    matches!(fault, sled::Error::Io(fault) if matches!(fault.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof))
}

fn try_open(folder: &Path, limit: u64) -> sled::Result<Store> {
    let database =
        sled::Config::new().path(folder).cache_capacity(MEMORY_BYTES).flush_every_ms(Some(FLUSH_MS)).open()?;
    let names = database.open_tree("names")?;
    let number = names.get(CURRENT)?.as_deref().and_then(read_number).unwrap_or(1);
    let (newer, older) = (tree_name(number), tree_name(number - 1));
    // A crash between two steps of a turn leaves a tree that nobody would drop.
    for name in database.tree_names() {
        if name.starts_with(b"entries.") && name != newer.as_bytes() && name != older.as_bytes() {
            database.drop_tree(name)?;
        }
    }
    let entries = names.get(&newer)?.as_deref().and_then(read_number).unwrap_or(0);
    let anew = names.get(ANEW)?.as_deref().and_then(read_number).unwrap_or(0);
    let trees = Trees { number, newer: database.open_tree(newer)?, older: database.open_tree(older)? };
    Ok(Store {
        path: folder.to_owned(),
        names,
        trees: RwLock::new(trees),
        entries: AtomicU64::new(entries),
        limit,
        anew: AtomicU64::new(anew),
        failed: AtomicBool::new(false),
        database,
    })
}

fn tree_name(number: u64) -> String {
    format!("entries.{number}")
}

fn read_number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes).filter(|number| *number < u64::MAX)
}

/// A value with the checksum of its name and itself at its end.
fn sealed(entry: &[u8; 17], mut value: Vec<u8>) -> Vec<u8> {
    let checksum = checksum(entry, &value);
    value.extend(checksum);
    value
}

/// The value, if its checksum is right. A wrong one is a miss: the text is embedded again and the entry replaced.
fn unsealed(entry: &[u8; 17], sealed: &[u8]) -> Option<Vec<u8>> {
    let (value, found) = sealed.split_last_chunk::<4>()?;
    (checksum(entry, value) == *found).then(|| value.to_vec())
}

fn checksum(entry: &[u8; 17], value: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(entry);
    hasher.update(value);
    hasher.finalize().to_le_bytes()
}

impl Layout {
    /// The title's key (16 bytes, or none: one byte says which), then for each window start and end (u64 LE) and key.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.title.is_some())];
        bytes.extend(self.title.iter().flat_map(|key| key.0));
        for (place, key) in &self.windows {
            bytes.extend((place.start as u64).to_le_bytes());
            bytes.extend((place.end as u64).to_le_bytes());
            bytes.extend(key.0);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Layout> {
        let (titled, mut rest) = bytes.split_first()?;
        let mut title = None;
        if *titled == 1 {
            let (key, windows) = rest.split_first_chunk::<16>()?;
            (title, rest) = (Some(Key(*key)), windows);
        }
        let (records, remainder) = rest.as_chunks::<32>();
        let number = |bytes: &[u8]| usize::try_from(read_number(bytes)?).ok();
        let window = |record: &[u8; 32]| {
            let key = Key(record[16..].try_into().ok()?);
            Some((number(&record[..8])?..number(&record[8..16])?, key))
        };
        let windows = records.iter().map(window).collect::<Option<Vec<_>>>()?;
        (remainder.is_empty() && !windows.is_empty()).then_some(Layout { title, windows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key::of(Sha256::new_with_prefix(number.to_le_bytes()))
    }

    fn vector(number: u64) -> Vector {
        (0..DIMENSION).map(|index| number as f32 + index as f32 / 7.0).collect()
    }

    #[test]
    fn entries_survive_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("embeddings");
        let layouts = [
            Layout { title: None, windows: vec![(0..9, key(1))] },
            Layout { title: Some(key(2)), windows: vec![(0..300, key(1)), (250..700, key(3))] },
        ];
        {
            let cache = Cache::open(&path);
            cache.keep(
                [(key(1), &vector(1))],
                layouts.iter().enumerate().map(|(index, layout)| (key(10 + index as u64), layout)),
            );
            cache.flush();
        }
        let cache = Cache::open(&path);
        assert_eq!(cache.vector(&key(1)), Some(vector(1)));
        assert_eq!(cache.vector(&key(2)), None);
        assert_eq!([cache.layout(&key(10)), cache.layout(&key(11))], layouts.map(Some));
        assert_eq!(cache.layout(&key(1)), None);
    }

    #[test]
    fn the_number_of_entries_is_bounded_and_what_is_used_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("embeddings");
        let mut cache = Cache::open_bounded(&path, 40);
        for number in 0..200 {
            cache.keep([(key(number), &vector(number))], []);
            assert_eq!(cache.vector(&key(0)), Some(vector(0)), "after {number}");
            if number == 101 {
                drop(cache);
                cache = Cache::open_bounded(&path, 40);
            }
        }
        let kept: Vec<u64> = (0..200).filter(|number| cache.vector(&key(*number)).is_some()).collect();
        assert!((20..=42).contains(&kept.len()), "{kept:?}");
        assert!(kept.contains(&199) && !kept.contains(&100), "{kept:?}");
        let store = cache.0.as_ref().expect("open");
        assert!(store.database.tree_names().len() <= 4, "old trees stay");
    }

    #[test]
    fn what_was_kept_before_a_forced_resync_is_forgotten_once() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("embeddings");
        let keep = |cache: &Cache, number| cache.keep([(key(number), &vector(number))], []);
        let kept = |cache: &Cache| (1..=4).filter(|number| cache.vector(&key(*number)).is_some()).collect::<Vec<u64>>();
        let cache = Cache::open(&path);
        keep(&cache, 1);
        cache.begin_anew(7);
        assert_eq!(kept(&cache), [0_u64; 0]);
        keep(&cache, 2);
        // Its records are read again, by the next process, too; and some of one before it.
        cache.begin_anew(7);
        cache.begin_anew(6);
        cache.flush();
        drop(cache);
        let cache = Cache::open(&path);
        cache.begin_anew(7);
        assert_eq!(kept(&cache), [2]);
        keep(&cache, 3);
        cache.begin_anew(8);
        keep(&cache, 4);
        assert_eq!(kept(&cache), [4]);
        let store = cache.0.as_ref().expect("open");
        assert!(store.database.tree_names().len() <= 4, "old trees stay");
    }

    #[test]
    fn a_value_that_is_not_its_own_is_a_miss() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::open(folder.path());
        cache.keep([(key(1), &vector(1)), (key(2), &vector(2))], []);
        {
            let trees = cache.0.as_ref().expect("open").trees.read().expect("whole");
            let mut bent = trees.newer.get(key(1).entry(VECTOR)).expect("readable").expect("there").to_vec();
            bent[5] ^= 1;
            trees.newer.insert(key(1).entry(VECTOR), bent).expect("written");
            let other = trees.newer.get(key(2).entry(VECTOR)).expect("readable").expect("there");
            trees.newer.insert(key(3).entry(VECTOR), other).expect("written");
        }
        assert_eq!((cache.vector(&key(1)), cache.vector(&key(3))), (None, None));
        assert_eq!(cache.vector(&key(2)), Some(vector(2)));
        cache.keep([(key(1), &vector(1))], []);
        assert_eq!(cache.vector(&key(1)), Some(vector(1)));
    }

    #[test]
    fn damage_empties_the_cache_and_a_lock_does_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("embeddings");
        let cache = Cache::open(&path);
        cache.keep([(key(1), &vector(1))], []);
        cache.flush();
        let second = Cache::open(&path);
        assert!(second.0.is_none(), "another process has it");
        assert_eq!(cache.vector(&key(1)), Some(vector(1)));
        drop(cache);
        std::fs::write(path.join("conf"), b"not what sled wrote").expect("write");
        let cache = Cache::open(&path);
        assert!(path.with_extension("damaged").exists());
        assert_eq!(cache.vector(&key(1)), None);
        cache.keep([(key(1), &vector(1))], []);
        assert_eq!(cache.vector(&key(1)), Some(vector(1)));
    }
}
