//! All collections, aliases and snapshots of a data folder.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use qdrant_client::qdrant::{
    AliasDescription, CreateCollection, ListAliasesResponse, SnapshotDescription, alias_operations::Action,
};
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::collection::Collection;
use crate::files::{self, failed};

/// How long a collection that is to go waits for those who read it.
const READERS_PATIENCE: Duration = Duration::from_secs(30);

pub struct Store {
    folder: PathBuf,
    delay: Duration,
    table: RwLock<Table>,
    /// Held by who makes, removes or replaces a collection, from its first step to its last.
    changing: Mutex<()>,
    scratch: AtomicU64,
    _lock: File,
}

#[derive(Default)]
struct Table {
    collections: BTreeMap<String, Arc<Collection>>,
    aliases: BTreeMap<String, String>,
}

impl Table {
    fn found(&self, name: &str) -> Result<&Arc<Collection>, Status> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.collections.get(name).ok_or_else(|| missing(name))
    }
}

fn missing(name: &str) -> Status {
    Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"))
}

fn exists(name: &str) -> Status {
    Status::already_exists(format!("Wrong input: Collection `{name}` already exists!"))
}

impl Store {
    /// Opens a data folder, which one process may have at a time. Each write is held back by `delay`.
    pub fn open(folder: &Path, delay: Duration) -> Result<Store, Status> {
        for name in ["collections", "snapshots"] {
            fs::create_dir_all(folder.join(name)).map_err(failed)?;
        }
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Status::internal("another process has the data folder")),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        match fs::remove_dir_all(folder.join("scratch")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => fs::create_dir(folder.join("scratch")).map_err(failed)?,
        }
        let mut table = Table::default();
        for name in files::names(&folder.join("collections")).map_err(failed)? {
            let collection = Collection::open(&folder.join("collections").join(&name), delay)?;
            table.collections.insert(name, Arc::new(collection));
        }
        if let Ok(bytes) = fs::read(folder.join("aliases")) {
            let list =
                ListAliasesResponse::decode(bytes.as_slice()).map_err(|error| Status::internal(error.to_string()))?;
            table.aliases = list.aliases.into_iter().map(|alias| (alias.alias_name, alias.collection_name)).collect();
        }
        Ok(Store {
            folder: folder.to_owned(),
            delay,
            table: RwLock::new(table),
            changing: Mutex::new(()),
            scratch: AtomicU64::new(0),
            _lock: lock,
        })
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collection of this name or behind this alias.
    pub fn collection(&self, name: &str) -> Result<Arc<Collection>, Status> {
        self.table().found(name).cloned()
    }

    pub fn names(&self) -> Vec<String> {
        self.table().collections.keys().cloned().collect()
    }

    /// Every alias, or those of one collection.
    pub fn aliases(&self, of: Option<&str>) -> Vec<AliasDescription> {
        let table = self.table();
        let aliases = table.aliases.iter().filter(|(_, collection)| of.is_none_or(|of| of == *collection));
        aliases
            .map(|(alias, collection)| AliasDescription {
                alias_name: alias.clone(),
                collection_name: collection.clone(),
            })
            .collect()
    }

    pub fn create(&self, request: &CreateCollection) -> Result<(), Status> {
        let name = &request.collection_name;
        valid_name(name)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.table().collections.contains_key(name) {
            return Err(exists(name));
        }
        if self.table().aliases.contains_key(name) {
            return Err(Status::invalid_argument(format!(
                "Wrong input: Can't create collection with name {name}. Alias with the same name already exists"
            )));
        }
        let scratch = self.scratch();
        Collection::create(&scratch, request)?;
        self.adopt(name, &scratch)
    }

    /// Whether there was one. Its aliases go with it.
    pub fn delete(&self, name: &str) -> Result<bool, Status> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.aliases.retain(|_, collection| collection != name);
            self.save_aliases(&table)?;
            table.collections.remove(name)
        };
        removed.map(|collection| self.remove(name, collection)).transpose().map(|removed| removed.is_some())
    }

    /// One change after the other; readers see all of them or none. The first that fails ends it, as in Qdrant.
    pub fn change_aliases(&self, actions: Vec<Action>) -> Result<(), Status> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for action in actions {
            match action {
                Action::CreateAlias(create) => {
                    if !table.collections.contains_key(&create.collection_name) {
                        return Err(missing(&create.collection_name));
                    }
                    if table.collections.contains_key(&create.alias_name) {
                        return Err(exists(&create.alias_name));
                    }
                    table.aliases.insert(create.alias_name, create.collection_name);
                }
                Action::DeleteAlias(delete) => {
                    table.aliases.remove(&delete.alias_name);
                }
                Action::RenameAlias(rename) => {
                    let collection = table.aliases.remove(&rename.old_alias_name).ok_or_else(|| {
                        Status::not_found(format!("Not found: Alias {} does not exists!", rename.old_alias_name))
                    })?;
                    table.aliases.insert(rename.new_alias_name, collection);
                }
            }
            self.save_aliases(&table)?;
        }
        Ok(())
    }

    fn save_aliases(&self, table: &Table) -> Result<(), Status> {
        let aliases = table.aliases.iter().map(|(alias, collection)| AliasDescription {
            alias_name: alias.clone(),
            collection_name: collection.clone(),
        });
        let list = ListAliasesResponse { aliases: aliases.collect(), time: 0.0 };
        files::replace(&self.folder.join("aliases"), &list.encode_to_vec()).map_err(failed)
    }

    /// A name for something that is made or removed, not there yet. All of it goes when the server starts.
    pub fn scratch(&self) -> PathBuf {
        let number = self.scratch.fetch_add(1, Ordering::Relaxed);
        self.folder.join("scratch").join(number.to_string())
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.join("collections").join(name)
    }

    /// Makes a folder with a whole collection the one of this name.
    fn adopt(&self, name: &str, scratch: &Path) -> Result<(), Status> {
        fs::rename(scratch, self.place(name)).map_err(failed)?;
        let collection = Arc::new(Collection::open(&self.place(name), self.delay)?);
        self.table.write().unwrap_or_else(PoisonError::into_inner).collections.insert(name.to_owned(), collection);
        Ok(())
    }

    /// Removes the files of a collection that nobody can find any more.
    fn remove(&self, name: &str, mut collection: Arc<Collection>) -> Result<(), Status> {
        let deadline = Instant::now() + READERS_PATIENCE;
        loop {
            match Arc::try_unwrap(collection) {
                Ok(collection) => {
                    collection.close();
                    break;
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(Status::internal(format!("Service internal error: collection `{name}` is in use")));
                }
                Err(shared) => collection = shared,
            }
            thread::sleep(Duration::from_millis(2));
        }
        let scratch = self.scratch();
        fs::rename(self.place(name), &scratch).and_then(|()| fs::remove_dir_all(&scratch)).map_err(failed)
    }

    /// The folder of a collection's snapshots. An alias is as good as its name.
    fn snapshots(&self, name: &str) -> Result<(String, PathBuf), Status> {
        let table = self.table();
        table.found(name)?;
        let name = table.aliases.get(name).map_or(name, String::as_str);
        Ok((name.to_owned(), self.folder.join("snapshots").join(name)))
    }

    /// A copy of the collection as it is now, all its acknowledged writes in it.
    pub fn create_snapshot(&self, name: &str) -> Result<SnapshotDescription, Status> {
        let collection = self.collection(name)?;
        let (name, folder) = self.snapshots(name)?;
        fs::create_dir_all(&folder).map_err(failed)?;
        let millis = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis());
        let file = format!("{name}-{millis}.snapshot");
        let scratch = self.scratch();
        let archive = scratch.clone();
        collection.at_rest(move |folder| pack(folder, &archive))?.map_err(failed)?;
        fs::rename(&scratch, folder.join(&file)).map_err(failed)?;
        describe(&folder.join(&file), file).map_err(failed)
    }

    pub fn list_snapshots(&self, name: &str) -> Result<Vec<SnapshotDescription>, Status> {
        let (_, folder) = self.snapshots(name)?;
        let files = files::names(&folder).map_err(failed)?;
        files.into_iter().map(|file| describe(&folder.join(&file), file).map_err(failed)).collect()
    }

    /// The file of a snapshot.
    pub fn snapshot(&self, name: &str, snapshot: &str) -> Result<PathBuf, Status> {
        let (_, folder) = self.snapshots(name)?;
        // Looked up among those that are there, so that no name leads out of the folder.
        let is_there = files::names(&folder).map_err(failed)?.iter().any(|file| file == snapshot);
        if !is_there {
            return Err(Status::not_found(format!("Not found: Snapshot {snapshot} not found")));
        }
        Ok(folder.join(snapshot))
    }

    pub fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<(), Status> {
        fs::remove_file(self.snapshot(name, snapshot)?).map_err(failed)
    }

    /// Puts a snapshot, which is a part of a file, where the collection of this name is or is to be. It is not done where
    /// the part has another SHA-256 than `wanted`.
    pub fn restore(&self, name: &str, file: &Path, part: Range<u64>, wanted: Option<&str>) -> Result<(), Status> {
        let name = self.table().aliases.get(name).cloned().unwrap_or_else(|| name.to_owned());
        valid_name(&name)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let found = sha256(file, part.clone()).map_err(failed)?;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let what = format!("Bad request: Snapshot checksum mismatch: expected {wanted}, got {found}");
            return Err(Status::invalid_argument(what));
        }
        let scratch = self.scratch();
        unpack(file, part.start, &scratch)
            .map_err(|error| Status::invalid_argument(format!("Bad request: not a snapshot: {error}")))?;
        // What cannot be opened never takes the place of what can.
        Collection::open(&scratch, Duration::ZERO)?.close();
        let old = self.table.write().unwrap_or_else(PoisonError::into_inner).collections.remove(&name);
        if let Some(old) = old {
            self.remove(&name, old)?;
        }
        self.adopt(&name, &scratch)
    }
}

fn pack(folder: &Path, archive: &Path) -> io::Result<()> {
    let mut builder = tar::Builder::new(File::create(archive)?);
    builder.append_dir_all(".", folder)?;
    builder.into_inner()?.sync_all()
}

fn unpack(file: &Path, begin: u64, folder: &Path) -> io::Result<()> {
    let mut file = File::open(file)?;
    file.seek(SeekFrom::Start(begin))?;
    fs::create_dir(folder)?;
    tar::Archive::new(file).unpack(folder)
}

fn describe(path: &Path, name: String) -> io::Result<SnapshotDescription> {
    let details = fs::metadata(path)?;
    Ok(SnapshotDescription {
        name,
        creation_time: Some(details.modified()?.into()),
        size: details.len() as i64,
        checksum: Some(sha256(path, 0..details.len())?),
    })
}

/// Of a part of a file, in hexadecimal digits.
fn sha256(path: &Path, part: Range<u64>) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(part.start))?;
    let mut file = file.take(part.end - part.start);
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        sum.update(&buffer[..read]);
    }
}

/// The characters that Qdrant refuses in a collection's name.
fn valid_name(name: &str) -> Result<(), Status> {
    const FORBIDDEN: &[char] = &['<', '>', ':', '"', '/', '\\', '|', '?', '*', '\0', '\u{1f}'];
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || name.contains(FORBIDDEN) {
        return Err(Status::invalid_argument(format!("Wrong input: Invalid collection name `{name}`")));
    }
    Ok(())
}
