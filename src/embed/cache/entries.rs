//! Entries under names of 17 bytes, on disk, bounded: they are appended to a file, and where each is stands in memory. Knows
//! nothing of what is in them.
//!
//! There are two files: one is filled, and when it holds half the limit the other one is removed and a new one filled in its
//! place; what is asked for and found in the older file is written to the newer. So an entry that is in use stays, one that
//! nobody asked for while half the limit was written goes, and nothing is ever searched for what to remove.
//!
//! A file `<number>.entries` begins with `MAGIC` and the number of the last resync that was forced (u64 LE), and goes on with
//! records: checksum (CRC-32 of the rest, u32 LE), name, value. Beside it `<number>.places` has for each record, in their order, 16
//! bytes: eight that stand for the name, and offset and length of the record (u64 LE each), which is all that has to be read at
//! the start. Nothing is synced but on request: what a crash of the machine takes with it, or leaves of it in pieces, is a miss.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// What an entry is called: its kind, and 16 bytes of a hash.
pub type Name = [u8; 17];

const MAGIC: &[u8; 8] = b"vsembed1";
/// `MAGIC` and a number.
const HEAD: usize = 16;
/// Checksum and name.
const RECORD_HEAD: usize = 4 + size_of::<Name>();
/// Bits of a record's length in a place; the rest is its offset. A longer record is not kept.
const LENGTH_BITS: u32 = 24;
const RECORD_MAX: usize = 1 << LENGTH_BITS;
/// One lock for all: two processes would write over each other's records.
const LOCK: &str = "lock";
/// What the files begin with that have, each for one scope, the number of its last resync that was forced. That of the scope
/// without a name stands in the files of entries.
const ANEW: &str = "anew.";

/// A bounded store of entries in a folder.
pub struct Entries {
    folder: PathBuf,
    limit: usize,
    files: RwLock<Files>,
    /// Held as long as this is open.
    _lock: File,
}

struct Files {
    number: u64,
    newer: Filled,
    older: Option<Filled>,
    /// The number of the last resync that was forced; what was embedded before is not here.
    anew: u64,
}

/// One file of entries and the places in it.
struct Filled {
    entries: File,
    /// Where the next record goes.
    end: u64,
    places: File,
    by_name: HashMap<u64, Place>,
}

/// Where a record is: its offset, and its length in the last bits.
#[derive(Clone, Copy)]
struct Place(u64);

impl Entries {
    /// Opens the entries in this folder, or makes it. What is not readable there is removed: this is derived data. Blocks.
    ///
    /// # Errors
    /// `ResourceBusy`: another process has it; everything else is the system's.
    pub fn open(folder: &Path, limit: usize) -> io::Result<Entries> {
        std::fs::create_dir_all(folder)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(folder.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process has it"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let numbers = numbers(folder)?;
        let number = numbers.iter().copied().max().unwrap_or(0);
        let current = Filled::open(folder, number)?;
        let anew = current.as_ref().map_or(0, |(_, anew)| *anew);
        // What a kill left behind of before a forced resync does not count.
        let before = number.checked_sub(1).map(|older| Filled::open(folder, older)).transpose()?.flatten();
        let before = before.filter(|(_, its)| *its == anew && current.is_some()).map(|(filled, _)| filled);
        let files = match current {
            Some((newer, _)) => Files { number, newer, older: before, anew },
            None => Files { number: number + 1, newer: Filled::create(folder, number + 1, 0)?, older: None, anew: 0 },
        };
        let entries = Entries { folder: folder.to_owned(), limit, files: RwLock::new(files), _lock: lock };
        entries.tidy()?;
        Ok(entries)
    }

    /// A value.
    pub fn get(&self, name: &Name) -> io::Result<Option<Vec<u8>>> {
        let found = {
            let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = files.newer.get(name)? {
                return Ok(Some(value));
            }
            match &files.older {
                Some(older) => older.get(name)?,
                None => None,
            }
        };
        if let Some(value) = &found {
            self.put([(*name, value.as_slice())])?;
        }
        Ok(found)
    }

    /// Keeps values, each in place of the one that had its name.
    pub fn put<'a>(&self, values: impl IntoIterator<Item = (Name, &'a [u8])>) -> io::Result<()> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.newer.append(values)?;
        if files.newer.by_name.len() < self.limit / 2 {
            return Ok(());
        }
        let (number, anew) = (files.number + 1, files.anew);
        let newer = Filled::create(&self.folder, number, anew)?;
        files.older = Some(std::mem::replace(&mut files.newer, newer));
        files.number = number;
        drop(files);
        self.tidy()
    }

    /// Forgets everything, unless this resync or a later one of the same scope has done so. Each scope has numbers of its own.
    pub fn begin_anew(&self, scope: &str, resync: u64) -> io::Result<()> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        // Another batch may have met it meanwhile.
        let path = self.folder.join(format!("{ANEW}{scope}"));
        let met = if scope.is_empty() { files.anew } else { number_in(&path)? };
        if met >= resync {
            return Ok(());
        }
        // Not the next number: what a kill leaves of the file before must not be taken for the older one.
        let number = files.number + 2;
        let anew = if scope.is_empty() { resync } else { files.anew };
        *files = Files { number, newer: Filled::create(&self.folder, number, anew)?, older: None, anew };
        if !scope.is_empty() {
            // Behind it, so that a kill before it begins anew once more.
            std::fs::write(&path, resync.to_string())?;
        }
        drop(files);
        self.tidy()
    }

    /// Writes what is kept to the disk.
    pub fn flush(&self) -> io::Result<()> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.newer.entries.sync_data()?;
        files.newer.places.sync_data()
    }

    /// Removes whatever is not in use.
    fn tidy(&self) -> io::Result<()> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let mut used = vec![LOCK.to_owned()];
        for number in [Some(files.number), files.older.as_ref().and(files.number.checked_sub(1))].into_iter().flatten()
        {
            used.extend([name_of(number, "entries"), name_of(number, "places")]);
        }
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let is_number = entry.file_name().to_string_lossy().starts_with(ANEW);
            if is_number || used.iter().any(|name| entry.file_name() == name.as_str()) {
                continue;
            }
            // Something else may be there, such as the folder of an earlier version.
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// The number in a file; 0 where there is none, or what a crash has left of one.
fn number_in(path: &Path) -> io::Result<u64> {
    match std::fs::read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).parse().unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

impl Filled {
    fn create(folder: &Path, number: u64, anew: u64) -> io::Result<Filled> {
        let create = |kind| {
            let path = folder.join(name_of(number, kind));
            OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)
        };
        let (places, entries) = (create("places")?, create("entries")?);
        let head: Vec<u8> = MAGIC.iter().copied().chain(anew.to_le_bytes()).collect();
        entries.write_all_at(&head, 0)?;
        Ok(Filled { entries, end: HEAD as u64, places, by_name: HashMap::new() })
    }

    /// The file of this number, and the forced resync that it says; none if it is not there or was never finished.
    fn open(folder: &Path, number: u64) -> io::Result<Option<(Filled, u64)>> {
        let open = |kind| OpenOptions::new().read(true).write(true).open(folder.join(name_of(number, kind)));
        let (entries, mut places) = match (open("entries"), open("places")) {
            (Ok(entries), Ok(places)) => (entries, places),
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let (mut head, end) = ([0; HEAD], entries.metadata()?.len());
        if end < HEAD as u64 {
            return Ok(None);
        }
        entries.read_exact_at(&mut head, 0)?;
        let (magic, anew) = head.split_at(MAGIC.len());
        let Some(anew) = <[u8; 8]>::try_from(anew).ok().filter(|_| magic == MAGIC).map(u64::from_le_bytes) else {
            return Ok(None);
        };
        let mut bytes = vec![];
        places.read_to_end(&mut bytes)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (known, torn) = bytes.as_chunks::<16>();
        // The next ones are to stand behind whole ones.
        places.set_len((bytes.len() - torn.len()) as u64)?;
        let known = known.iter().map(|bytes| (number(&bytes[..8]), Place(number(&bytes[8..]))));
        let by_name = known.filter(|(_, place)| place.is_within(end)).collect();
        Ok(Some((Filled { entries, end, places, by_name }, anew)))
    }

    fn get(&self, name: &Name) -> io::Result<Option<Vec<u8>>> {
        let Some(place) = self.by_name.get(&short(name)) else { return Ok(None) };
        let mut record = vec![0; place.length()];
        self.entries.read_exact_at(&mut record, place.offset())?;
        // Pieces of it, or another one whose name is the same in short.
        let is_it = record.len() >= RECORD_HEAD
            && record[..4] == crc32fast::hash(&record[4..]).to_le_bytes()
            && record[4..RECORD_HEAD] == *name;
        Ok(is_it.then(|| record.split_off(RECORD_HEAD)))
    }

    fn append<'a>(&mut self, values: impl IntoIterator<Item = (Name, &'a [u8])>) -> io::Result<()> {
        let (mut records, mut places, mut added) = (vec![], vec![], vec![]);
        for (name, value) in values {
            let start = records.len();
            if RECORD_HEAD + value.len() >= RECORD_MAX {
                continue;
            }
            records.extend([0; 4]);
            records.extend(name);
            records.extend(value);
            let checksum = crc32fast::hash(&records[start + 4..]);
            records[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
            let place = Place((self.end + start as u64) << LENGTH_BITS | (records.len() - start) as u64);
            places.extend(short(&name).to_le_bytes());
            places.extend(place.0.to_le_bytes());
            added.push((short(&name), place));
        }
        self.entries.write_all_at(&records, self.end)?;
        self.end += records.len() as u64;
        let end = self.places.metadata()?.len();
        self.places.write_all_at(&places, end)?;
        self.by_name.extend(added);
        Ok(())
    }
}

impl Place {
    fn offset(self) -> u64 {
        self.0 >> LENGTH_BITS
    }

    fn length(self) -> usize {
        (self.0 & (RECORD_MAX as u64 - 1)) as usize
    }

    fn is_within(self, end: u64) -> bool {
        self.length() >= RECORD_HEAD && self.offset() + self.length() as u64 <= end
    }
}

/// Stands for a name: of the hash in it enough to be another for every other name, mostly.
fn short(name: &Name) -> u64 {
    name[1..9].iter().fold(u64::from(name[0]), |short, byte| short.rotate_left(8) ^ u64::from(*byte))
}

fn name_of(number: u64, kind: &str) -> String {
    format!("{number}.{kind}")
}

/// The numbers of all files of entries.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = vec![];
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".entries")?.parse::<u64>().ok()));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> Name {
        let mut name = [b'v'; 17];
        name[1..9].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        name[9..].copy_from_slice(&number.to_le_bytes());
        name
    }

    fn put(entries: &Entries, number: u64) {
        entries.put([(name(number), number.to_string().as_bytes())]).expect("written");
    }

    fn get(entries: &Entries, number: u64) -> Option<String> {
        let value = entries.get(&name(number)).expect("readable")?;
        Some(String::from_utf8(value).expect("what was written"))
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes_also_over_restarts() {
        let folder = tempfile::tempdir().expect("folder");
        let mut entries = Entries::open(folder.path(), 40).expect("open");
        for number in 0..200 {
            put(&entries, number);
            assert_eq!(get(&entries, 0).as_deref(), Some("0"), "after {number}");
            if number % 17 == 0 {
                drop(entries);
                entries = Entries::open(folder.path(), 40).expect("open");
            }
        }
        let kept: Vec<u64> = (0..200).filter(|number| get(&entries, *number).is_some()).collect();
        assert!((20..=42).contains(&kept.len()) && kept.contains(&199) && !kept.contains(&100), "{kept:?}");
        assert_eq!(files(folder.path()).len(), 5, "{:?}", files(folder.path()));
    }

    #[test]
    fn wherever_the_files_end_or_are_bent_there_is_a_miss_and_never_something_else() {
        let folder = tempfile::tempdir().expect("folder");
        {
            let entries = Entries::open(folder.path(), 1000).expect("open");
            (0..20).for_each(|number| put(&entries, number));
        }
        let kinds = ["entries", "places"];
        let whole = kinds.map(|kind| std::fs::read(folder.path().join(name_of(1, kind))).expect("there"));
        // How many are found in these files.
        let check = |files: [&[u8]; 2], what: &str| {
            let folder = tempfile::tempdir().expect("folder");
            for (kind, bytes) in kinds.into_iter().zip(files) {
                std::fs::write(folder.path().join(name_of(1, kind)), bytes).expect("written");
            }
            let entries = Entries::open(folder.path(), 1000).expect("open");
            let found = (0..20).filter_map(|number| Some((number, get(&entries, number)?)));
            let found = found.inspect(|(number, value)| assert_eq!(*value, number.to_string(), "{what}")).count();
            // It goes on.
            put(&entries, 77);
            drop(entries);
            let entries = Entries::open(folder.path(), 1000).expect("open");
            assert_eq!(get(&entries, 77).as_deref(), Some("77"), "{what}");
            found
        };
        for (file, kind) in kinds.into_iter().enumerate() {
            for place in 0..whole[file].len() {
                let mut files = whole.each_ref().map(Vec::as_slice);
                files[file] = &whole[file][..place];
                check(files, &format!("{kind} cut off at {place}"));
                let mut bent = whole[file].clone();
                bent[place] ^= 0x55;
                let mut files = whole.each_ref().map(Vec::as_slice);
                files[file] = &bent;
                let at_least = if kind == "entries" && place < MAGIC.len() { 0 } else { 19 };
                let found = check(files, &format!("{kind} bent at {place}"));
                assert!(found >= at_least, "{found} with {kind} bent at {place}");
            }
        }
    }

    #[test]
    fn a_forced_resync_forgets_everything_once_also_when_it_was_killed() {
        // The files that are left: the lock, one of each kind, and that with a scope's number.
        for (scope, left) in [("", 3), ("b", 4)] {
            let folder = tempfile::tempdir().expect("folder");
            let entries = Entries::open(folder.path(), 8).expect("open");
            (0..6).for_each(|number| put(&entries, number));
            let before = files(folder.path());
            let copies: Vec<_> =
                before.iter().map(|name| (name, std::fs::read(folder.path().join(name)).expect("there"))).collect();
            entries.begin_anew(scope, 7).expect("written");
            assert_eq!(get(&entries, 5), None);
            put(&entries, 9);
            entries.begin_anew(scope, 7).expect("nothing to do");
            entries.begin_anew(scope, 6).expect("nothing to do");
            drop(entries);
            // Killed between the new file and the removal of the others.
            for (name, bytes) in copies {
                std::fs::write(folder.path().join(name), bytes).expect("written");
            }
            let entries = Entries::open(folder.path(), 8).expect("open");
            entries.begin_anew(scope, 7).expect("nothing to do");
            assert_eq!((get(&entries, 5), get(&entries, 9).as_deref()), (None, Some("9")), "{scope}");
            assert_eq!(files(folder.path()).len(), left, "{:?}", files(folder.path()));
            entries.begin_anew("another", 1).expect("written");
            assert_eq!(get(&entries, 9), None, "{scope}");
        }
    }

    #[test]
    fn one_process_has_it_and_what_else_is_there_goes() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("blobs")).expect("made");
        std::fs::write(folder.path().join("conf"), b"of an earlier version").expect("written");
        let entries = Entries::open(folder.path(), 8).expect("open");
        put(&entries, 1);
        let second = Entries::open(folder.path(), 8).map(drop).map_err(|error| error.kind());
        assert_eq!(second, Err(io::ErrorKind::ResourceBusy));
        assert_eq!(files(folder.path()), ["1.entries", "1.places", "lock"]);
        assert_eq!(get(&entries, 1).as_deref(), Some("1"));
    }
}
