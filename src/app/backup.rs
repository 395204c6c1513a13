//! `vecsync backup`: Qdrant's serving generation, the mirror and the embedded log as files of one folder, which appears whole or
//! not at all. The rooms write their own files; this says which, in which order, and what the manifest says of them.
//!
//! The order matters: stores first, then the log, which therefore reaches at least as far as every position in a store.

mod manifest;
mod restore;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

pub use self::manifest::Manifest;
use self::manifest::{FORMAT, LOG, LogHeld, LogKind, LogPart, MIRROR, MirrorPart, QDRANT, QdrantPart};
pub(super) use self::restore::is_broken_off;
pub use self::restore::{Only, restore};
use super::{AppError, embedded_settings, mirror_settings, open_log, qdrant_settings, revision_of};
use crate::archive::{ArchiveError, FileInfo, Pace, Writer, ensure_room, files};
use crate::config::Config;
use crate::control::{self, ControlError, Door, Passed};
use crate::embed;
use crate::index::{
    Generations, MirrorError, QdrantError, QdrantGenerations, QdrantSettings, SnapshotError, Snapshots, TransferError,
};
use crate::topic::embedded::TransferError as LogTransferError;
use crate::topic::{Log, LogError, Partition};

/// A backup was not made, or not restored. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be made there, or from that.
    #[error("back up to {dir}: {what}", dir = dir.display())]
    Refused {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It cannot be restored from there, or to what is configured.
    #[error("restore from {dir}: {what}", dir = dir.display())]
    NotRestored {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The mirror.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The mirror's file.
    #[error("the mirror")]
    MirrorFile(#[from] TransferError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log's file.
    #[error("the log")]
    LogFile(#[from] LogTransferError),
    /// Qdrant.
    #[error(transparent)]
    Qdrant(#[from] QdrantError),
    /// Qdrant's snapshot.
    #[error(transparent)]
    Snapshot(#[from] Box<SnapshotError>),
    /// The data directory is in use.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something that is opened or closed around it.
    #[error(transparent)]
    App(#[from] Box<AppError>),
    /// A blocking part panicked: a defect.
    #[error("{0} ended abnormally")]
    Task(&'static str),
}

/// What was written or put back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The backup's folder.
    pub dir: PathBuf,
    /// What it has.
    pub parts: Vec<PartReport>,
    /// What there is to say besides.
    pub notes: Vec<String>,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// One part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartReport {
    /// `qdrant`, `mirror` or `log`.
    pub part: String,
    /// What it is, for people.
    pub what: String,
    /// Rows in it; `None`: not known exactly.
    pub rows: Option<u64>,
    /// The file's size.
    pub bytes: u64,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// What is backed up.
pub(super) struct Sources {
    pub pipeline: String,
    pub model: &'static str,
    /// As the configuration gives it.
    pub revision: String,
    /// As the log calls it.
    pub vectors_revision: String,
    pub partitions: Partition,
    pub log: Log,
    pub generations: Generations,
    pub qdrant: Option<QdrantSettings>,
}

/// Makes backups in a running vecsync, one at a time.
#[derive(Clone)]
pub(super) struct Backups {
    sources: Arc<Sources>,
    busy: Arc<Mutex<()>>,
}

impl Backups {
    pub fn new(sources: Sources) -> Self {
        Backups { sources: Arc::new(sources), busy: Arc::default() }
    }

    pub async fn make(&self, dir: &Path, passed: Passed) -> Result<Report, BackupError> {
        let Ok(_busy) = self.busy.try_lock() else {
            let what = "another backup is being made; try again when it is done".to_owned();
            return Err(BackupError::Refused { dir: dir.to_owned(), what });
        };
        make(&self.sources, dir, passed).await
    }
}

impl Sources {
    pub fn new(config: &Config, log: &Log, generations: &Generations, vectors_revision: &str) -> Self {
        Sources {
            pipeline: config.pipeline.name.clone(),
            model: embed::model_name(&config.model),
            revision: revision_of(config),
            vectors_revision: vectors_revision.to_owned(),
            partitions: config.topics.partitions,
            log: log.clone(),
            generations: generations.clone(),
            qdrant: config.qdrant.as_ref().map(|server| qdrant_settings(config, server, vectors_revision)),
        }
    }
}

/// Makes a backup where no vecsync runs on the data directory.
pub async fn backup_alone(config: Config, dir: &Path, passed: Passed) -> Result<Report, BackupError> {
    let refused = |what: String| BackupError::Refused { dir: dir.to_owned(), what };
    let nothing = || {
        let (data_dir, revision) = (config.data_dir.display(), revision_of(&config));
        refused(format!(
            "VECSYNC_DATA_DIR {data_dir} has no log and mirror of this pipeline file and model (revision {revision}): `vecsync \
             run` makes them"
        ))
    };
    if !config.data_dir.is_dir() || (config.kafka.is_none() && !embedded_settings(&config).dir.is_dir()) {
        return Err(nothing());
    }
    let _doors = lock(&config)?;
    let revision = revision_of(&config);
    let settings = mirror_settings(&config, &revision);
    // A revision that stood still for too long has a number behind it.
    let fits = move |found: &str| {
        let rest = found.strip_prefix(revision.as_str()).map(|rest| rest.strip_prefix('-').unwrap_or(rest));
        rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let opened = blocking("open the mirror", move || Generations::open_as_is(settings, fits)).await??;
    let Some((generations, vectors_revision)) = opened else { return Err(nothing()) };
    let log = open_log(&config).await.map_err(Box::new)?;
    let made = make(&Sources::new(&config, &log, &generations, &vectors_revision), dir, passed).await;
    generations.close().await;
    log.close().await?;
    made
}

/// Keeps every other vecsync out of the data directory.
fn lock(config: &Config) -> Result<[File; 2], ControlError> {
    Ok([control::lock(&config.data_dir, Door::Capture)?, control::lock(&config.data_dir, Door::Store)?])
}

async fn make(sources: &Sources, dir: &Path, passed: Passed) -> Result<Report, BackupError> {
    let since = Instant::now();
    let refused = |what: String| BackupError::Refused { dir: dir.to_owned(), what };
    let is_filled_anew = sources.generations.current().lost.or_else(|| {
        let earlier = sources.generations.earlier_revision()?;
        Some(format!("revision {earlier} stays until that of revision {} is whole", sources.revision))
    });
    if let Some(reason) = is_filled_anew {
        return Err(refused(format!("the mirror is being filled anew, try again when it is whole: {reason}")));
    }
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(refused("it has no name: wanted a folder that is not there yet, or is empty".to_owned()));
    };
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            return Err(refused("it is not empty: wanted a folder that is not there yet, or is empty".to_owned()));
        }
        Ok(false) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(files("look into", dir)(error).into()),
    }
    fs::create_dir_all(parent).map_err(files("make", parent))?;
    let partial = parent.join(format!(".{}.vecsync-partial", name.to_string_lossy()));
    let Some(_held) = begin(&partial)? else {
        return Err(refused("another backup is being written there; try again when it is done".to_owned()));
    };
    let written = async {
        let parts = write(sources, &partial, Pace::new(passed)).await?;
        let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all()).map_err(files("sync", path));
        sync(&partial)?;
        fs::rename(&partial, dir).map_err(files("make", dir))?;
        sync(parent)?;
        Ok(parts)
    };
    let parts = match written.await {
        Ok(parts) => parts,
        Err(error) => {
            if let Err(left) = remove(&partial) {
                tracing::warn!("{}", crate::retry::Chain(&left));
            }
            return Err(error);
        }
    };
    let report = Report { dir: dir.to_owned(), parts, notes: vec![], took_ms: ms(since) };
    tracing::info!(dir = %dir.display(), "backed up in {} ms", report.took_ms);
    Ok(report)
}

/// Makes the folder of an unfinished backup, and gives a lock on it. What was broken off before goes; `None`: it is at work.
fn begin(partial: &Path) -> Result<Option<File>, ArchiveError> {
    let held = |folder: &File| match folder.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(files("lock", partial)(error)),
    };
    match File::open(partial) {
        Ok(left) if !held(&left)? => return Ok(None),
        Ok(_) => remove(partial)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(files("open", partial)(error)),
    }
    DirBuilder::new().mode(0o700).create(partial).map_err(files("make", partial))?;
    let folder = File::open(partial).map_err(files("open", partial))?;
    Ok(held(&folder)?.then_some(folder))
}

async fn write(sources: &Sources, dir: &Path, pace: Pace) -> Result<Vec<PartReport>, BackupError> {
    let created = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let current = sources.generations.current();
    let mirror_bytes = current.mirror.size_on_disk()?;
    let log_bytes = match &sources.log {
        Log::Embedded(log) => log.size_on_disk()?,
        Log::Kafka(_) => 0,
    };
    ensure_room(dir, mirror_bytes + log_bytes)?;
    pace.expect(mirror_bytes + log_bytes);
    let id = sources.log.id().await?;
    let (mut parts, mut infos) = (vec![], BTreeMap::new());

    let qdrant = match &sources.qdrant {
        Some(settings) => {
            let settings = QdrantSettings { log: Some(id.clone()), ..settings.clone() };
            let (part, report, info) = write_qdrant(settings, &dir.join(QDRANT), &pace).await?;
            parts.push(report);
            infos.insert(QDRANT.to_owned(), info);
            Some(part)
        }
        None => None,
    };

    let since = Instant::now();
    let file = Writer::create(&dir.join(MIRROR), pace.clone())?;
    let mirror = current.mirror.clone();
    let (held, info) = blocking("writing the mirror", move || mirror.export(file)).await??;
    parts.push(PartReport {
        part: "mirror".to_owned(),
        what: format!("{} rows ({} points)", held.rows, held.points),
        rows: Some(held.rows),
        bytes: info.bytes,
        took_ms: ms(since),
    });
    infos.insert(MIRROR.to_owned(), info);
    let mirror = MirrorPart { rows: held.rows, points: held.points, positions: held.positions };

    let (kind, held) = match &sources.log {
        Log::Kafka(_) => (LogKind::Kafka, None),
        Log::Embedded(log) => {
            let since = Instant::now();
            let file = Writer::create(&dir.join(LOG), pace.clone())?;
            let (log, revision) = (log.clone(), sources.vectors_revision.clone());
            let (held, info) = blocking("writing the log", move || log.export(&revision, file)).await??;
            let [changes, vectors, dead_letters] = held.records;
            parts.push(PartReport {
                part: "log".to_owned(),
                what: format!("{changes} changes, {vectors} vectors, {dead_letters} dead letters"),
                rows: Some(changes),
                bytes: info.bytes,
                took_ms: ms(since),
            });
            infos.insert(LOG.to_owned(), info);
            let (changes_ends, vectors_ends) = (held.changes, held.vectors);
            (LogKind::Embedded, Some(LogHeld { changes, vectors, dead_letters, changes_ends, vectors_ends }))
        }
    };
    let manifest = Manifest {
        format: FORMAT,
        vecsync: env!("CARGO_PKG_VERSION").to_owned(),
        created,
        pipeline: sources.pipeline.clone(),
        model: sources.model.to_owned(),
        revision: sources.revision.clone(),
        partitions: sources.partitions,
        log: LogPart { kind, id, vectors_revision: sources.vectors_revision.clone(), held },
        mirror,
        qdrant,
        files: infos,
    };
    manifest.write(dir)?;
    Ok(parts)
}

/// Has Qdrant make a snapshot of the generation that searches ask, and fetches it.
async fn write_qdrant(
    settings: QdrantSettings,
    path: &Path,
    pace: &Pace,
) -> Result<(QdrantPart, PartReport, FileInfo), BackupError> {
    let since = Instant::now();
    let (server, alias) = (settings.server.clone(), settings.collection.clone());
    let generations = QdrantGenerations::new(settings)?;
    let Some(generation) = generations.current().await? else {
        return Err(QdrantError::Missing { collection: alias }.into());
    };
    let (store, seen) = (generation.store, generations.generation(generation.number).store);
    let (rows, points) = (store.rows().await?, store.points().await?);
    let snapshots = Snapshots::of(&server, store.collection());
    let snapshot = snapshots.make().await.map_err(Box::new)?;
    pace.expect(snapshot.bytes);
    let fetched = async {
        ensure_room(path.parent().unwrap_or(path), snapshot.bytes)?;
        let file = Writer::create(path, pace.clone())?;
        Ok::<_, BackupError>(snapshots.fetch(&snapshot, file).await.map_err(Box::new)?)
    };
    let fetched = fetched.await;
    // Also of what was not fetched nothing stays in Qdrant, which may be away by now.
    if let Err(error) = snapshots.remove(&snapshot).await {
        tracing::warn!("{}", crate::retry::Chain(&error));
    }
    let info = fetched?;
    // Where nothing was written from before the counting until now, the snapshot has what was counted.
    seen.open().await?;
    let is_exact = seen.positions() == store.positions();
    let part = QdrantPart {
        collection: store.collection().to_owned(),
        rows: is_exact.then_some(rows),
        points: is_exact.then_some(points),
        positions: store.positions(),
    };
    let about = if is_exact { "" } else { "about " };
    let report = PartReport {
        part: "qdrant".to_owned(),
        what: format!("{}, {about}{rows} rows ({points} points)", part.collection),
        rows: part.rows,
        bytes: info.bytes,
        took_ms: ms(since),
    };
    Ok((part, report, info))
}

/// Removes a folder that may not be there.
fn remove(dir: &Path) -> Result<(), ArchiveError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(files("remove", dir)(error)),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BackupError> {
    spawn_blocking(work).await.map_err(|_| BackupError::Task(what))
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
