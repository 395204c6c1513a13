//! Moves what is elsewhere into Qdrant: a local store, or a collection that has the alias's name. Needs no running vecsync.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};

use super::{AppError, make_data_dir, qdrant_generations};
use crate::config::Config;
use crate::index::lines::{self, LinesError};
use crate::index::local::{self, LocalStore, NotLocal};
use crate::index::mirror::reading::{KeptRow, Reading};
use crate::index::{Adopted, Begun, Kept, LoadedRow, MirrorError, QdrantError, QdrantGenerations, Settled, qdrant};

/// Rows or points that are written at once.
const BATCH_MAX: usize = 100;
/// Bytes of those, beyond which a batch is closed.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Batches that wait while one is being written.
const BATCHES_WAITING: usize = 2;
/// Where a mirror is copied to, in the data directory.
const SCRATCH: &str = "migrating";

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Migrated {
    /// There was nothing to do; what the alias is.
    Nothing {
        /// The collection that it names.
        named: Option<String>,
    },
    /// A collection was taken over.
    Adopted(Adopted),
    /// Qdrant has the mirror's rows already.
    There {
        /// The collection, which the alias names.
        collection: String,
        /// Its rows.
        rows: u64,
    },
    /// A local store was loaded.
    Loaded {
        /// What is there now.
        settled: Settled,
        /// Whether it is known which log it was filled from.
        is_log_known: bool,
        /// How long it took.
        took: Duration,
    },
}

/// Nothing was migrated, or not all. What was there answers as before.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Qdrant or the data directory is not configured as they could be used.
    #[error(transparent)]
    App(#[from] AppError),
    /// The path is no local store.
    #[error(transparent)]
    NotLocal(#[from] NotLocal),
    /// The file's lines are not as they should be.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// A vecsync has the mirror open.
    #[error("load {path}: a running vecsync has it open; that vecsync fills Qdrant by itself once QDRANT_HOST is set")]
    Held {
        /// The mirror.
        path: PathBuf,
    },
    /// The mirror cannot be read.
    #[error(transparent)]
    Mirror(MirrorError),
    /// The mirror is one of another pipeline or revision.
    #[error(
        "load {path}: it is a mirror of {found}, wanted {wanted}: its vectors are others; `vecsync sync` fills Qdrant from the table"
    )]
    Another {
        /// The mirror.
        path: PathBuf,
        /// What it is of.
        found: String,
        /// What the configuration is of.
        wanted: String,
    },
    /// Another process migrates with this data directory.
    #[error("use data directory {path}: another migration is at work with it")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// Qdrant did not do it.
    #[error(transparent)]
    Qdrant(#[from] QdrantError),
    /// Qdrant cannot be reached, and its ports tell why.
    #[error("{error}; {remedy}")]
    Way {
        /// What failed.
        error: QdrantError,
        /// What probably mends it.
        remedy: String,
    },
    /// A defect.
    #[error("read what is to be loaded")]
    Task(#[from] JoinError),
}

/// Loads a local store, or without a path takes over a collection that has the alias's name. `told` hears how much of how
/// much is done. `None`: no Qdrant is configured.
pub async fn migrate(
    config: &Config,
    path: Option<&Path>,
    told: impl FnMut(u64, u64) + Send,
) -> Result<Option<Migrated>, MigrateError> {
    let Some(generations) = qdrant_generations(config)? else { return Ok(None) };
    let migrated = match path {
        None => adopt(&generations, told).await,
        Some(path) => {
            let recognised = path.to_owned();
            match spawn_blocking(move || local::recognise(&recognised)).await?? {
                LocalStore::Lines => load_lines(&generations, path, told).await,
                LocalStore::Mirror { dir, log } => load_mirror(config, &generations, dir, log, told).await,
            }
        }
    };
    match migrated {
        Err(MigrateError::Qdrant(error)) => match qdrant::remedy(&generations.settings().server, &error).await {
            Some(remedy) => Err(MigrateError::Way { error, remedy }),
            None => Err(error.into()),
        },
        migrated => migrated.map(Some),
    }
}

async fn adopt(generations: &QdrantGenerations, told: impl FnMut(u64, u64) + Send) -> Result<Migrated, MigrateError> {
    generations.version().await?;
    if let Some(adopted) = generations.adopt(told).await? {
        return Ok(Migrated::Adopted(adopted));
    }
    let named = generations.inventory().await?.into_iter().find(|listed| listed.is_named);
    Ok(Migrated::Nothing { named: named.map(|listed| listed.collection) })
}

async fn load_lines(
    generations: &QdrantGenerations,
    path: &Path,
    mut told: impl FnMut(u64, u64) + Send,
) -> Result<Migrated, MigrateError> {
    let since = Instant::now();
    let pipeline = generations.settings().pipeline.clone();
    let (file, of) = (path.to_owned(), pipeline.clone());
    // All of it, before anything is written or even asked.
    let checked = spawn_blocking(move || lines::check(&file, &of)).await??;
    let mut loading = generations.begin_lines(&checked.hash).await?;
    let total = 2 * checked.points;
    let mut done = 0;
    for is_written in [false, true] {
        let (file, of, checked) = (path.to_owned(), pipeline.clone(), checked.clone());
        let mut points = batches(prost::Message::encoded_len, move |visit| lines::each(&file, &of, &checked, visit));
        while let Some(batch) = points.next().await {
            let count = batch.len() as u64;
            match is_written {
                false => loading.write(batch).await?,
                true => loading.compare(&batch).await?,
            }
            done += count;
            told(done, total);
        }
        points.ended().await??;
    }
    let settled = loading.finish().await?;
    Ok(Migrated::Loaded { settled, is_log_known: false, took: since.elapsed() })
}

async fn load_mirror(
    config: &Config,
    generations: &QdrantGenerations,
    dir: PathBuf,
    log: Option<String>,
    mut told: impl FnMut(u64, u64) + Send,
) -> Result<Migrated, MigrateError> {
    let since = Instant::now();
    make_data_dir(config)?;
    let _alone = alone(&config.data_dir)?;
    let (from, scratch) = (dir.clone(), config.data_dir.join(SCRATCH));
    let reading = spawn_blocking(move || {
        let reading = Reading::open(&from, &scratch);
        reading.map_err(|error| match error {
            MirrorError::Locked { .. } => MigrateError::Held { path: from },
            error => MigrateError::Mirror(error),
        })
    });
    let reading = Arc::new(Copied { reading: reading.await??, _gone: Scratch(config.data_dir.join(SCRATCH)) });
    check_origin(&reading.reading, generations, &dir)?;
    let kept = kept(Arc::clone(&reading), log.unwrap_or_default()).await?;
    let is_log_known = !kept.log.is_empty();
    generations.version().await?;
    let mut loading = match generations.begin_rows(&kept).await? {
        Begun::There { collection, rows } => return Ok(Migrated::There { collection, rows }),
        Begun::Loading(loading) => loading,
    };
    let total = 2 * reading.reading.records();
    let mut done = 0;
    for is_written in [false, true] {
        let mut rows = rows(Arc::clone(&reading));
        while let Some(batch) = rows.next().await {
            let count = batch.len() as u64;
            match is_written {
                false => loading.write(batch).await?,
                true => loading.compare(batch).await?,
            }
            done += count;
            told(done, total);
        }
        rows.ended().await?.map_err(MigrateError::Mirror)?;
    }
    let settled = loading.finish().await?;
    Ok(Migrated::Loaded { settled, is_log_known, took: since.elapsed() })
}

/// A mirror's copy, and the folder that it is in.
struct Copied {
    reading: Reading,
    _gone: Scratch,
}

/// Removed at the end, when it is empty.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Holds the data directory against another migration, which would use the same place for its copy.
fn alone(data_dir: &Path) -> Result<File, MigrateError> {
    let failed = |source| AppError::DataDir { path: data_dir.to_owned(), source };
    let folder = File::open(data_dir).map_err(failed)?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => Err(MigrateError::Busy { path: data_dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error).into()),
    }
}

fn check_origin(reading: &Reading, generations: &QdrantGenerations, dir: &Path) -> Result<(), MigrateError> {
    let settings = generations.settings();
    let shown = |pipeline: &str, revision: &str, partitions: usize| {
        format!("pipeline {pipeline}, revision {revision}, {partitions} partitions")
    };
    let found = shown(reading.pipeline(), reading.revision(), reading.positions().len());
    let wanted = shown(&settings.pipeline, &settings.revision, usize::from(settings.partitions));
    if found == wanted { Ok(()) } else { Err(MigrateError::Another { path: dir.to_owned(), found, wanted }) }
}

/// What the mirror is, but for its rows. Reads all of it, so that damage is found before anything is written.
async fn kept(copied: Arc<Copied>, log: String) -> Result<Kept, MigrateError> {
    let counted = spawn_blocking(move || {
        let (reading, mut rows, mut points) = (&copied.reading, 0, 0);
        reading.each(|row| {
            rows += u64::from(row.row.is_some());
            points += row.row.map_or(0, |row| row.windows.len() as u64);
            true
        })?;
        Ok(Kept {
            mark: Kept::mark(&format!("{} {log}", reading.fingerprint())),
            log,
            positions: reading.positions(),
            barriers: reading.barriers(),
            heartbeats: reading.heartbeats(),
            rows,
            points,
        })
    });
    counted.await?.map_err(MigrateError::Mirror)
}

fn rows(copied: Arc<Copied>) -> Batches<LoadedRow, MirrorError> {
    let bytes = |row: &LoadedRow| row.row.as_ref().map_or(0, prost::Message::encoded_len);
    batches(bytes, move |visit| {
        copied
            .reading
            .each(|KeptRow { key, version, partition, row }| visit(LoadedRow { key, version, partition, row }))
    })
}

/// What is read on a thread of its own, some at a time.
struct Batches<T, E> {
    batches: mpsc::Receiver<Vec<T>>,
    reading: tokio::task::JoinHandle<Result<(), E>>,
}

impl<T, E> Batches<T, E> {
    async fn next(&mut self) -> Option<Vec<T>> {
        self.batches.recv().await
    }

    /// How the reading ended, when there is nothing more.
    async fn ended(self) -> Result<Result<(), E>, JoinError> {
        self.reading.await
    }
}

/// Reads by `read`, which shows each to what it is given until that says no. `bytes` tells how large one is.
fn batches<T: Send + 'static, E: Send + 'static>(
    bytes: impl Fn(&T) -> usize + Send + 'static,
    read: impl FnOnce(&mut dyn FnMut(T) -> bool) -> Result<(), E> + Send + 'static,
) -> Batches<T, E> {
    let (sender, batches) = mpsc::channel(BATCHES_WAITING);
    let reading = spawn_blocking(move || {
        let (mut batch, mut size) = (vec![], 0);
        read(&mut |one| {
            size += bytes(&one);
            batch.push(one);
            if batch.len() < BATCH_MAX && size < BATCH_BYTES_MAX {
                return true;
            }
            size = 0;
            // Who takes them may have gone after a fault.
            sender.blocking_send(std::mem::take(&mut batch)).is_ok()
        })?;
        if !batch.is_empty() {
            let _ = sender.blocking_send(batch);
        }
        Ok(())
    });
    Batches { batches, reading }
}
