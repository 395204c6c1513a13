//! What embedding a topic that Debezium writes takes besides the topic: where rows are completed from. Knows no record.

use std::sync::Arc;

use tokio::sync::watch;

use super::AppError;
use crate::capture::reread::{Present, Rereader};
use crate::config::{Config, Database};
use crate::embed::Document;
use crate::embed::completion::{Completion, Found, Lookup, Wanted};
use crate::index::Generations;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{Log, LogError, Offsets};

/// Why nothing is read from PostgreSQL again where Debezium captures, and what to do instead.
pub const NO_SYNC: &str = "resync: source.topic names a topic that Debezium writes, so vecsync captures nothing: have Debezium \
     take a snapshot (a signal execute-snapshot, or a connector with a new name), whose records bring the index to the table";

/// Why no dead letter can be retried there, and what to do instead.
pub const NO_RETRY: &str = "retry dead letters: source.topic names a topic that Debezium writes, so vecsync reads no row from \
     PostgreSQL to publish it again: change the row, or have Debezium take a snapshot of it (a signal execute-snapshot); a \
     letter goes when its row is embedded";

/// Why nothing that has drifted can be published again there, and what to do instead.
pub const NO_REPAIR: &str = "repair: source.topic names a topic that Debezium writes, so vecsync publishes no rows itself: change \
     the rows, or have Debezium take a snapshot of them (a signal execute-snapshot); what a store has lost is in the log: \
     `vecsync replay`";

/// The rows of a store that this process keeps.
pub(super) struct Held {
    pub generations: Generations,
    pub stored: watch::Receiver<Offsets>,
    pub log: Log,
    pub revision: String,
}

/// Where unchanged columns come from; `None`: records have them all, because capture writes them. With a database its
/// columns are checked; one that cannot be reached now is no reason not to start.
pub(super) async fn completion(
    config: &Config,
    held: Option<Held>,
    shutdown: &Shutdown,
) -> Result<Option<Completion>, AppError> {
    if config.pipeline.source.topic.is_none() {
        return Ok(None);
    }
    Ok(Some(match (&config.database, held) {
        (Some(database), _) => {
            let rereader = rereader(config, database)?;
            match rereader.check().await {
                Err(error) if error.is_for_a_person() => return Err(error.into()),
                Err(error) => tracing::warn!("read the table's columns: {}", Chain(&error)),
                Ok(()) => {}
            }
            Completion::Source(from_source(rereader, shutdown.clone()))
        }
        (None, Some(held)) => Completion::Held(from_store(Arc::new(held), shutdown.clone())),
        (None, None) => Completion::None,
    }))
}

fn rereader(config: &Config, database: &Database) -> Result<Rereader, AppError> {
    let (source, filters) = (&config.pipeline.source, config.pipeline.filters.clone());
    let document = Document::compile(&config.pipeline.document)?;
    let check_columns = Arc::new(move |columns: &[&str]| document.check_columns(columns, &filters));
    Ok(Rereader::new(database.clone(), source.schema.clone(), source.table.clone(), check_columns))
}

fn from_source(rereader: Rereader, shutdown: Shutdown) -> Lookup {
    Arc::new(move |wanted: Vec<Wanted>| {
        let (rereader, shutdown) = (rereader.clone(), shutdown.clone());
        Box::pin(async move {
            let keys: Vec<_> = wanted.iter().map(|wanted| wanted.key.clone()).collect();
            let tx_ids: Vec<u64> = wanted.iter().filter_map(|wanted| wanted.tx_id).collect();
            let mut retry = Retry::new("postgres");
            loop {
                let fault = match rereader.read(&keys, &tx_ids).await {
                    Ok(present) => return Some(present.into_iter().map(found).collect()),
                    Err(fault) => Chain(&fault).to_string(),
                };
                if !retry.wait(&fault, &shutdown).await {
                    return None;
                }
            }
        })
    })
}

fn found(present: Present) -> Found {
    match present {
        Present::Row(row) => Found::Row(row),
        Present::Gone => Found::Gone,
        Present::Unknown => Found::Unknown,
    }
}

fn from_store(held: Arc<Held>, shutdown: Shutdown) -> Lookup {
    Arc::new(move |wanted: Vec<Wanted>| {
        let (held, shutdown) = (Arc::clone(&held), shutdown.clone());
        Box::pin(async move {
            let mut retry = Retry::new("log");
            while let Err(fault) = held.catch_up(&wanted).await {
                if !retry.wait(&Chain(&fault).to_string(), &shutdown).await {
                    return None;
                }
            }
            let mirror = held.generations.current().mirror;
            let look = move || {
                let look = |wanted: &Wanted| match mirror.payload(&wanted.key) {
                    Ok(Some(row)) => Found::Row(row),
                    Ok(None) => Found::Unknown,
                    Err(error) => {
                        tracing::warn!("look up a row: {error}");
                        Found::Unknown
                    }
                };
                wanted.iter().map(look).collect()
            };
            tokio::task::spawn_blocking(look).await.ok()
        })
    })
}

impl Held {
    /// Waits until the store has all that is committed in these rows' partitions: what is asked for stands behind it.
    async fn catch_up(&self, wanted: &[Wanted]) -> Result<(), LogError> {
        let Log::Kafka(log) = &self.log else { return Ok(()) };
        let mut partitions: Vec<_> = wanted.iter().map(|wanted| wanted.partition).collect();
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            let end = log.vectors_end(&self.revision, partition).await?;
            let place = usize::from(partition);
            let mut stored = self.stored.clone();
            let reached = |stored: &Offsets| stored.get(place).is_some_and(|position| *position >= end);
            // Its sender lives as long as the store is fed; then the process ends.
            let _ = stored.wait_for(reached).await;
        }
        Ok(())
    }
}
