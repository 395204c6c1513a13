//! `vecsync restore`: checks a backup, then puts Qdrant's generation back and the data directory together. Nothing that is there
//! is replaced; what was half done is done again.
//!
//! A log that comes from a backup gives offsets out again which the one before it may have given out since, so it has an
//! identity of its own. The mirror comes with it; the generation in Qdrant that comes with it is told to go on from it; every
//! other one is of another log, and `run` fills a new one beside it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::{LOG, LogKind, MIRROR, Manifest, QDRANT};
use super::{BackupError, PartReport, Report, blocking, lock, ms, remove};
use crate::app::{embedded_settings, make_data_dir, mirror_settings, open_log, qdrant_settings, revision_of};
use crate::archive::{Pace, ensure_room, files};
use crate::config::Config;
use crate::control::Passed;
use crate::embed::{self, Cache};
use crate::index::{Generations, MirrorSettings, QdrantGenerations, QdrantSettings, Snapshots};
use crate::topic::{Offsets, embedded};

/// What a restore has begun; stands in the data directory until it is done.
const STATE: &str = "restore.json";
/// Where the data directory's parts are put together.
const BUILDING: &str = "restoring";
const LOG_DIR: &str = "log";
const MIRROR_DIR: &str = "mirror";
/// Rows whose windows are put into the embedding cache at once.
const CACHED_AT_ONCE: usize = 500;

/// The part that is wanted alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    /// The generation in Qdrant.
    Qdrant,
    /// The data directory: mirror, and log where it is embedded.
    Local,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Which backup: the SHA-256 of its manifest.
    backup: String,
    /// The collection that is being put into Qdrant.
    collection: Option<String>,
    /// Everything is put together, and is being moved to its place.
    placing: bool,
}

/// A restore at work.
struct Restore<'a> {
    config: &'a Config,
    dir: &'a Path,
    manifest: Manifest,
    state: State,
    pace: Pace,
    parts: Vec<PartReport>,
}

/// Whether a restore into this data directory has begun and not come to its end.
pub fn is_broken_off(data_dir: &Path) -> bool {
    data_dir.join(STATE).exists() || data_dir.join(BUILDING).exists()
}

/// Restores a backup to what is configured.
pub async fn restore(config: &Config, dir: &Path, only: Option<Only>, passed: Passed) -> Result<Report, BackupError> {
    let since = Instant::now();
    let refused = |what: String| BackupError::NotRestored { dir: dir.to_owned(), what };
    let (manifest, bytes) = Manifest::read(dir).map_err(refused)?;
    check_origin(config, &manifest).map_err(refused)?;
    let mut notes = vec![];
    let wants_local = only != Some(Only::Qdrant);
    let wants_qdrant = only != Some(Only::Local) && {
        let is_numbered = manifest.log.vectors_revision != manifest.revision;
        let why_not = match (&manifest.qdrant, &config.qdrant) {
            (None, None) if only.is_none() => None,
            (None, _) => Some("the backup has nothing of Qdrant"),
            (Some(_), None) => Some("QDRANT_HOST names no Qdrant"),
            (Some(_), Some(_)) if is_numbered && manifest.log.kind == LogKind::Embedded => {
                Some("its generation was made for a topic that is called otherwise after a restore")
            }
            (Some(_), Some(_)) => None,
        };
        match why_not {
            Some(why) if only.is_some() => return Err(refused(format!("Qdrant: {why}"))),
            Some(why) => {
                notes.push(format!("Qdrant is not restored: {why}. `vecsync run` fills it where one is configured."));
                false
            }
            None => manifest.qdrant.is_some() && config.qdrant.is_some(),
        }
    };
    // A running vecsync is told of at once; where the folder is not there yet, nothing is made before all is checked.
    let doors = if config.data_dir.is_dir() { Some(lock(config)?) } else { None };
    let pace = Pace::new(passed);
    check_files(config, dir, &manifest, (wants_local, wants_qdrant), &pace).await?;
    make_data_dir(config).map_err(Box::new)?;
    let _doors = match doors {
        Some(doors) => doors,
        None => lock(config)?,
    };
    let state = State { backup: hex(&bytes), ..State::default() };
    let begun = fs::read(config.data_dir.join(STATE)).ok().and_then(|text| serde_json::from_slice::<State>(&text).ok());
    let state = begun.filter(|begun| begun.backup == state.backup).unwrap_or(state);
    let mut restore = Restore { config, dir, manifest, state, pace, parts: vec![] };
    let done = restore.perform(wants_local, wants_qdrant).await;
    let removed = if restore.state.placing { Ok(()) } else { remove(&config.data_dir.join(BUILDING)) };
    done?;
    removed?;
    restore.forget()?;
    Ok(Report { dir: dir.to_owned(), parts: restore.parts, notes, took_ms: ms(since) })
}

/// Why a backup is not one of what is configured.
fn check_origin(config: &Config, manifest: &Manifest) -> Result<(), String> {
    let differs = |what: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display, remedy: &str| {
        Err(format!("manifest.json: {what} = {found}, this configuration has {wanted}{remedy}"))
    };
    if manifest.pipeline != config.pipeline.name {
        return differs("pipeline", &manifest.pipeline, &config.pipeline.name, ": VECSYNC_PIPELINE names another file");
    }
    let revision = revision_of(config);
    if manifest.revision != revision {
        let remedy = format!(
            ": model, templates, windows, condition and payload must be those of the backup, which was made with {}",
            manifest.model
        );
        return differs("revision", &manifest.revision, &revision, &remedy);
    }
    if manifest.partitions != config.topics.partitions {
        let remedy = ": set VECSYNC_TOPIC_PARTITIONS to that of the backup";
        return differs("partitions", &manifest.partitions, &config.topics.partitions, remedy);
    }
    match (manifest.log.kind, &config.kafka) {
        (LogKind::Embedded, Some(_)) => {
            Err("manifest.json: log.kind = embedded, this configuration has Kafka (KAFKA_BROKERS)".to_owned())
        }
        (LogKind::Kafka, None) => {
            Err("manifest.json: log.kind = kafka, this configuration has the embedded log: set KAFKA_BROKERS"
                .to_owned())
        }
        _ => Ok(()),
    }
}

/// Compares what is to be restored with what the manifest says, before anything is changed.
async fn check_files(
    config: &Config,
    dir: &Path,
    manifest: &Manifest,
    (local, qdrant): (bool, bool),
    pace: &Pace,
) -> Result<(), BackupError> {
    let mut names = vec![];
    if local {
        names.push(MIRROR);
        names.extend(manifest.log.held.as_ref().map(|_| LOG));
    }
    if qdrant {
        names.push(QDRANT);
    }
    let bytes_of = |name: &str| manifest.files.get(name).map_or(0, |info| info.bytes);
    // Once to be checked, once to be restored.
    pace.expect(names.iter().map(|name| 2 * bytes_of(name)).sum());
    let local_bytes = if local { bytes_of(MIRROR) + bytes_of(LOG) } else { 0 };
    let (manifest, of, pace) = (manifest.clone(), dir.to_owned(), pace.clone());
    let check = move || names.iter().try_for_each(|name| manifest.check_file(&of, name, &pace).map(drop));
    let checked = blocking("checking the files", check).await?;
    checked.map_err(|what| BackupError::NotRestored { dir: dir.to_owned(), what })?;
    // sled takes more room than the rows, and the embedding cache has them, too.
    let is_there = |path: &&Path| path.is_dir();
    let disk = config.data_dir.ancestors().find(is_there).unwrap_or(Path::new("."));
    Ok(ensure_room(disk, 2 * local_bytes)?)
}

impl Restore<'_> {
    fn refused(&self, what: String) -> BackupError {
        BackupError::NotRestored { dir: self.dir.to_owned(), what }
    }

    async fn perform(&mut self, local: bool, qdrant: bool) -> Result<(), BackupError> {
        let config = self.config;
        if local && !self.state.placing {
            self.check_empty()?;
        }
        let is_embedded = self.manifest.log.kind == LogKind::Embedded;
        let mut id = if is_embedded && local { self.manifest.log.id.clone() } else { self.log_id().await? };
        // Before anything is done: what Qdrant has may be in the way.
        let vectors_revision = self.manifest.log.vectors_revision.clone();
        let generations = |id: String| -> Result<Option<QdrantGenerations>, BackupError> {
            let Some(server) = config.qdrant.as_ref().filter(|_| qdrant) else { return Ok(None) };
            let settings = qdrant_settings(config, server, &vectors_revision);
            Ok(Some(QdrantGenerations::new(QdrantSettings { log: Some(id), ..settings })?))
        };
        let is_named = match generations(id.clone())? {
            Some(generations) => self.is_named(&generations).await?,
            None => false,
        };
        let mut vectors_ends = None;
        if local && !self.state.placing {
            let building = config.data_dir.join(BUILDING);
            remove(&building)?;
            fs::create_dir(&building).map_err(files("make", &building))?;
            if is_embedded {
                let (own, ends) = self.build_log(&building).await?;
                (id, vectors_ends) = (own, Some(ends));
            }
            self.build_mirror(&building, vectors_ends.as_ref()).await?;
        }
        // Where the rest is in its place already, Qdrant's part was done before.
        if let Some(generations) = generations(id)?.filter(|_| !self.state.placing) {
            self.put_generation(&generations, is_named, is_embedded && local, vectors_ends.as_ref()).await?;
        }
        if local { self.place() } else { Ok(()) }
    }

    /// Refuses a data directory that holds what is to be restored.
    fn check_empty(&self) -> Result<(), BackupError> {
        let data_dir = &self.config.data_dir;
        for (name, what) in [(LOG_DIR, "a log"), (MIRROR_DIR, "a mirror")] {
            let path = data_dir.join(name);
            if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(self.refused(format!(
                    "VECSYNC_DATA_DIR {} holds {what} already ({}), and nothing is put in its place: `vecsync run` fills what is \
                     missing there; for what the backup has set VECSYNC_DATA_DIR to an empty folder, or move this one away",
                    data_dir.display(),
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// What tells the log that is there from every other. It has to be the backup's.
    async fn log_id(&self) -> Result<String, BackupError> {
        let config = self.config;
        if config.kafka.is_none() && !embedded_settings(config).dir.is_dir() {
            return Err(self.refused(format!(
                "VECSYNC_DATA_DIR {} has no log that Qdrant could go on from: restore without --only",
                config.data_dir.display()
            )));
        }
        let log = open_log(config).await.map_err(Box::new)?;
        let id = log.id().await;
        log.close().await?;
        let (id, wanted) = (id?, &self.manifest.log.id);
        if id != *wanted {
            return Err(self.refused(format!(
                "manifest.json: log.id = {wanted}, the log that is configured is {id}, and positions of two logs do not compare: \
                 `vecsync run` fills mirror and Qdrant from the log that is there"
            )));
        }
        Ok(id)
    }

    /// Whether the alias names what an earlier attempt has put there. Anything else that is in the way is refused.
    async fn is_named(&self, generations: &QdrantGenerations) -> Result<bool, BackupError> {
        let ours = self.state.collection.as_ref().and_then(|name| generations.number_of(name));
        match (generations.named().await?, ours) {
            (Some(named), Some(ours)) if named == ours => Ok(true),
            _ => {
                generations.free().await?;
                Ok(false)
            }
        }
    }

    /// Fills a new log, and gives its identity and the ends of its vectors.
    async fn build_log(&mut self, building: &Path) -> Result<(String, Offsets), BackupError> {
        let since = Instant::now();
        let settings = embedded::Settings { dir: building.join(LOG_DIR), ..embedded_settings(self.config) };
        let (path, revision, pace) = (self.dir.join(LOG), self.manifest.revision.clone(), self.pace.clone());
        let fill = move || -> Result<_, BackupError> {
            let log = embedded::Log::open(settings)?;
            let filled = log.import(&revision, &path, pace)?;
            Ok((log, filled))
        };
        let (log, filled) = blocking("filling the log", fill).await??;
        let id = format!("{:016x}", log.id());
        log.close().await?;
        drop(log);
        let [changes, vectors, dead_letters] = filled.records;
        let found = super::LogHeld {
            changes,
            vectors,
            dead_letters,
            changes_ends: filled.changes,
            vectors_ends: filled.vectors,
        };
        if self.manifest.log.held.as_ref() != Some(&found) {
            return Err(self.refused(format!("{LOG}: it has {found:?}, wanted {:?}", self.manifest.log.held)));
        }
        self.report(
            "log",
            LOG,
            format!("{changes} changes, {vectors} vectors, {dead_letters} dead letters"),
            changes,
            since,
        );
        Ok((id, found.vectors_ends))
    }

    async fn build_mirror(&mut self, building: &Path, ends: Option<&Offsets>) -> Result<(), BackupError> {
        let since = Instant::now();
        let revision = match self.manifest.log.kind {
            LogKind::Embedded => &self.manifest.revision,
            LogKind::Kafka => &self.manifest.log.vectors_revision,
        };
        let settings = MirrorSettings { dir: building.join(MIRROR_DIR), ..mirror_settings(self.config, revision) };
        let (path, pace) = (self.dir.join(MIRROR), self.pace.clone());
        // The table is read again, and what is in it unchanged is not to be embedded again.
        let cached = ends.is_some().then(|| self.config.root_dir.join("embeddings"));
        let space = embed::space(&self.config.model);
        let fill = move || -> Result<_, BackupError> {
            let cache = cached.map_or_else(Cache::off, |folder| Cache::open_bounded(&folder, usize::MAX));
            let mut rows = Vec::with_capacity(CACHED_AT_ONCE);
            let generations = Generations::open(settings, &space, |_| false)?;
            let filled = generations.current().mirror.import(&path, pace, |row| {
                rows.push(row.clone());
                if rows.len() == CACHED_AT_ONCE {
                    cache.keep_windows(&rows);
                    rows.clear();
                }
            })?;
            cache.keep_windows(&rows);
            cache.flush();
            Ok((generations, filled))
        };
        let (generations, filled) = blocking("filling the mirror", fill).await??;
        generations.close().await;
        let is_ahead = ends.is_some_and(|ends| filled.positions.iter().zip(ends).any(|(position, end)| position > end));
        let wanted = &self.manifest.mirror;
        if (filled.rows, filled.points, &filled.positions) != (wanted.rows, wanted.points, &wanted.positions)
            || is_ahead
        {
            return Err(self.refused(format!("{MIRROR}: it gave {filled:?}, wanted {wanted:?}, not beyond {ends:?}")));
        }
        self.report("mirror", MIRROR, format!("{} rows ({} points)", filled.rows, filled.points), filled.rows, since);
        Ok(())
    }

    /// Puts the generation into Qdrant and lets the alias name it.
    async fn put_generation(
        &mut self,
        generations: &QdrantGenerations,
        is_named: bool,
        is_new_log: bool,
        ends: Option<&Offsets>,
    ) -> Result<(), BackupError> {
        let since = Instant::now();
        let Some(wanted) = self.manifest.qdrant.clone() else { return Ok(()) };
        let begun = self.state.collection.as_ref().and_then(|name| generations.number_of(name));
        let number = match begun {
            Some(number) => number,
            None => generations.free().await?,
        };
        let generation = generations.generation(number);
        let collection = generation.store.collection().to_owned();
        if !is_named {
            self.state.collection = Some(collection.clone());
            self.note()?;
            let info = self.manifest.files.get(QDRANT).cloned().unwrap_or_default();
            let snapshots = Snapshots::of(&generations.settings().server, &collection);
            snapshots.put(&self.dir.join(QDRANT), &info, &self.pace).await.map_err(Box::new)?;
        }
        let store = &generation.store;
        if is_new_log {
            store.adopt().await?
        } else {
            store.open().await?
        }
        let (rows, points, positions) = (store.rows().await?, store.points().await?, store.positions());
        let differs = |found: u64, wanted: Option<u64>| wanted.is_some_and(|wanted| found != wanted);
        let is_behind = positions.iter().zip(&wanted.positions).any(|(found, wanted)| found < wanted);
        let is_ahead = ends.is_some_and(|ends| positions.iter().zip(ends).any(|(found, end)| found > end));
        if differs(rows, wanted.rows) || differs(points, wanted.points) || is_behind || is_ahead {
            return Err(self.refused(format!(
                "Qdrant collection {collection} has {rows} rows, {points} points and the positions {positions:?}, wanted \
                 {wanted:?}, not beyond {ends:?}; the alias does not name it, and nobody asks it"
            )));
        }
        if !is_named {
            generations.switch(&generation).await?;
        }
        self.report("qdrant", QDRANT, format!("{collection}, {rows} rows ({points} points)"), rows, since);
        Ok(())
    }

    /// Moves what was put together to its place. After a kill that is gone on with.
    fn place(&mut self) -> Result<(), BackupError> {
        let data_dir = &self.config.data_dir;
        self.state.placing = true;
        self.note()?;
        for name in [LOG_DIR, MIRROR_DIR] {
            let (from, to) = (data_dir.join(BUILDING).join(name), data_dir.join(name));
            if from.is_dir() {
                // An empty folder is no hindrance.
                let _ = fs::remove_dir(&to);
                fs::rename(&from, &to).map_err(files("make", &to))?;
            }
        }
        sync(data_dir)?;
        remove(&data_dir.join(BUILDING)).map_err(BackupError::from)
    }

    /// Keeps the state durably, in one step.
    fn note(&self) -> Result<(), BackupError> {
        let path = self.config.data_dir.join(STATE);
        let beside = path.with_extension("new");
        let text = serde_json::to_vec(&self.state).expect("a state has string keys only");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        write().map_err(files("write", &path))?;
        sync(&self.config.data_dir)
    }

    /// It is done.
    fn forget(&self) -> Result<(), BackupError> {
        let path = self.config.data_dir.join(STATE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(files("remove", &path)(error).into()),
            _ => Ok(()),
        }
    }

    fn report(&mut self, part: &str, file: &str, what: String, rows: u64, since: Instant) {
        let bytes = self.manifest.files.get(file).map_or(0, |info| info.bytes);
        let (part, took_ms) = (part.to_owned(), ms(since));
        self.parts.push(PartReport { part, what, rows: Some(rows), bytes, took_ms });
    }
}

fn sync(folder: &Path) -> Result<(), BackupError> {
    Ok(File::open(folder).and_then(|folder| folder.sync_all()).map_err(files("sync", folder))?)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
