//! The embedding cache: vectors and windows of texts that were embedded before, on disk. Derived data: whatever is wrong
//! with it costs time and never a row.

mod entries;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prost::Message;
use sha2::{Digest, Sha256};

use super::model::{DIMENSION, Vector};
use crate::event::{EmbeddedRow, Window};
use entries::{Entries, Name};

/// Entries of a full cache, about 300 MB on disk and 5 MB in memory.
pub const ENTRIES_MAX: usize = 200_000;

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

    fn entry(&self, kind: u8) -> Name {
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

/// A bounded cache. Clones are the same cache.
#[derive(Clone)]
pub struct Cache {
    store: Option<Arc<Store>>,
    scope: Arc<Scope>,
}

/// Whose forced resyncs are numbered; see [`Cache::for_another`].
#[derive(Default)]
struct Scope {
    name: String,
    /// The last one that was met here.
    met: AtomicU64,
}

struct Store {
    path: PathBuf,
    entries: Entries,
    failed: AtomicBool,
}

impl Cache {
    /// A cache that holds nothing.
    pub fn off() -> Cache {
        Cache { store: None, scope: Arc::default() }
    }

    /// Opens the cache in this folder, or makes one. Where that is not possible, texts are embedded without a cache. Blocks.
    pub fn open(folder: &Path) -> Cache {
        Cache::open_bounded(folder, ENTRIES_MAX)
    }

    /// Like `open`, with this many entries at most.
    pub fn open_bounded(folder: &Path, limit: usize) -> Cache {
        match Entries::open(folder, limit) {
            Ok(entries) => {
                let path = folder.to_owned();
                let store = Store { path, entries, failed: AtomicBool::new(false) };
                Cache { store: Some(Arc::new(store)), scope: Arc::default() }
            }
            Err(fault) => {
                tracing::warn!("open embedding cache {}: {fault}; going on without it", folder.display());
                Cache::off()
            }
        }
    }

    /// The same cache for another pipeline: the texts that were embedded are everybody's, the numbers of forced resyncs each
    /// one's own. What one of them forgets is forgotten for all, and costs them an embedding where it is asked for again.
    pub fn for_another(&self, scope: &str) -> Cache {
        let scope = Scope { name: scope.to_owned(), met: AtomicU64::new(0) };
        Cache { store: self.store.clone(), scope: Arc::new(scope) }
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
        let kept: Vec<(Name, Vec<u8>)> = rows
            .into_iter()
            .filter_map(|row| {
                let entry = Key(<[u8; 16]>::try_from(row.text_hash.as_slice()).ok()?).entry(WINDOWS);
                let kept = EmbeddedRow { windows: row.windows.clone(), ..EmbeddedRow::default() };
                Some((entry, kept.encode_to_vec()))
            })
            .collect();
        store.put(&kept);
    }

    /// Keeps vectors and layouts. They need not be durable before anything else is.
    pub fn keep<'a>(
        &self,
        vectors: impl IntoIterator<Item = (Key, &'a Vector)>,
        layouts: impl IntoIterator<Item = (Key, &'a Layout)>,
    ) {
        let Some(store) = self.usable() else { return };
        let vector = |(key, vector): (Key, &Vector)| {
            (key.entry(VECTOR), vector.iter().flat_map(|component| component.to_le_bytes()).collect())
        };
        let layout = |(key, layout): (Key, &Layout)| (key.entry(LAYOUT), layout.to_bytes());
        let kept: Vec<(Name, Vec<u8>)> =
            vectors.into_iter().map(vector).chain(layouts.into_iter().map(layout)).collect();
        store.put(&kept);
    }

    /// Forgets all that was kept before the resync of this number was met for the first time. What is kept afterwards
    /// serves it, however often its records are read, until one of a greater number is met.
    pub fn begin_anew(&self, number: u64) {
        let Some(store) = self.usable().filter(|_| self.scope.met.load(Ordering::Acquire) < number) else { return };
        if store.guard("empty", || store.entries.begin_anew(&self.scope.name, number)).is_some() {
            self.scope.met.fetch_max(number, Ordering::AcqRel);
        }
    }

    /// Writes what is kept to disk. Blocks.
    pub fn flush(&self) {
        if let Some(store) = self.usable() {
            store.guard("flush", || store.entries.flush());
        }
    }

    fn usable(&self) -> Option<&Store> {
        self.store.as_deref().filter(|store| !store.failed.load(Ordering::Relaxed))
    }

    fn get(&self, entry: Name) -> Option<Vec<u8>> {
        let store = self.usable()?;
        store.guard("read", || store.entries.get(&entry)).flatten()
    }
}

impl Store {
    fn put(&self, kept: &[(Name, Vec<u8>)]) {
        if !kept.is_empty() {
            self.guard("write", || self.entries.put(kept.iter().map(|(name, value)| (*name, value.as_slice()))));
        }
    }

    /// Runs one operation; after a fault the cache is out of use until the next start.
    fn guard<T>(&self, operation: &str, run: impl FnOnce() -> io::Result<T>) -> Option<T> {
        let fault = match run() {
            Ok(value) => return Some(value),
            Err(fault) => fault,
        };
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!("{operation} embedding cache {}: {fault}; going on without it", self.path.display());
        }
        None
    }
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
        let number = |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok();
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
    fn forced_resyncs_of_two_pipelines_are_numbered_apart() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("embeddings");
        let keep = |cache: &Cache, number| cache.keep([(key(number), &vector(number))], []);
        let (first, second) = {
            let cache = Cache::open(&path);
            (cache.clone(), cache.for_another("b"))
        };
        first.begin_anew(1);
        keep(&first, 1);
        assert!(second.vector(&key(1)).is_some(), "a text that was embedded is everybody's");
        // The first forced resync of the other one embeds all of its texts anew, too.
        second.begin_anew(1);
        assert!(second.vector(&key(1)).is_none());
        keep(&second, 2);
        (0..2).for_each(|_| [&first, &second].into_iter().for_each(|cache| cache.begin_anew(1)));
        first.flush();
        drop((first, second));
        let cache = Cache::open(&path);
        cache.begin_anew(1);
        cache.for_another("b").begin_anew(1);
        assert!(cache.vector(&key(2)).is_some());
        cache.for_another("c").begin_anew(1);
        assert!(cache.vector(&key(2)).is_none());
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
    }

    #[test]
    fn of_two_the_second_goes_on_without_it() {
        let folder = tempfile::tempdir().expect("folder");
        let cache = Cache::open(folder.path());
        cache.keep([(key(1), &vector(1))], []);
        let second = Cache::open(folder.path());
        assert!(second.store.is_none(), "another process has it");
        second.keep([(key(2), &vector(2))], []);
        assert_eq!((second.vector(&key(1)), cache.vector(&key(1))), (None, Some(vector(1))));
    }
}
