//! Opens what a pipeline's configuration names: log, revision, and the settings of each room. Starts no task.

use tokio::task::spawn_blocking;

use super::qdrant::Qdrant;
use super::{AppError, joined};
use crate::capture::{self, Capture, ColumnCheck};
use crate::clock::now_ms;
use crate::config::{self, Config, Database};
use crate::embed;
use crate::freshness::Freshness;
use crate::index::{self, Arrivals, Generations, MirrorSettings, Primary, QdrantError, QdrantSettings};
use crate::metrics::PipelineMetrics;
use crate::topic::{EmbedLog, Log, LogError, Offsets, embedded, kafka};

/// Deleted keys are remembered this long, so that a reader that was away learns of the delete.
const TOMBSTONE_RETENTION: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Opens the log.
pub(super) async fn open_log(config: &Config) -> Result<Log, AppError> {
    if let Some(settings) = kafka_settings(config) {
        return Ok(Log::Kafka(kafka::Log::new(settings)));
    }
    let settings = embedded_settings(config);
    let opening = spawn_blocking(move || embedded::Log::open(settings));
    Ok(Log::Embedded(joined("open the log", opening.await)??))
}

/// A log that is complete has a store that will be, when it has taken what the log holds. `is_whole`: the mirror was, before.
pub(super) fn freshness_at_start(log: &Log, is_whole: bool) -> Result<Freshness, AppError> {
    let mut freshness = Freshness::default();
    match log {
        Log::Embedded(log) => {
            if log.capture_state()?.is_some_and(|state| state.is_whole()) {
                freshness.started_complete(log.changes_ends());
            }
        }
        Log::Kafka(_) if !is_whole => freshness.fills(now_ms()),
        Log::Kafka(_) => {}
    }
    Ok(freshness)
}

/// Opens the log, embed's side of it, and names the revision.
pub(super) async fn open_log_for_run(config: &Config) -> Result<(Log, EmbedLog, String), AppError> {
    let revision = revision_of(config);
    let log = open_log(config).await?;
    let (revision, embed_log) = match &log {
        Log::Embedded(log) => {
            let (revision, embed_log) = take_up(log, revision)?;
            (revision, EmbedLog::Embedded(embed_log))
        }
        Log::Kafka(log) => {
            let embed_log = log.embedder(&revision);
            (revision, EmbedLog::Kafka(Box::new(embed_log)))
        }
    };
    Ok((log, embed_log, revision))
}

/// The revision that this configuration asks for.
pub(super) fn revision_of(config: &Config) -> String {
    let revision = embed::revision(&config.model, &config.pipeline.document);
    // Offsets of another topic are other versions.
    match &config.pipeline.source.topic {
        Some(topic) => embed::revision_of_topic(&revision, topic),
        None => revision,
    }
}

/// As `revision_of`, under the name that it has in the embedded log: see `take_up`.
pub(super) fn revision_at_work(config: &Config) -> String {
    let revision = revision_of(config);
    let seen = index::generations::seen(&config.data_dir.join("mirror")).filter(|_| config.kafka.is_none());
    let is_later = |name: &str| name.strip_prefix(&revision)?.strip_prefix('-')?.parse::<u32>().ok();
    seen.map(|seen| seen.revision).filter(|name| is_later(name).is_some()).unwrap_or(revision)
}

/// Takes up a revision where it stopped. One that stood still for so long that deletes which it had not seen are
/// forgotten is left as it is; a fresh one takes its place and is filled from `changes`, its texts from the cache.
pub(super) fn take_up(log: &embedded::Log, revision: String) -> Result<(String, embedded::EmbedLog), LogError> {
    let (mut name, mut attempt) = (revision.clone(), 1);
    loop {
        match log.embedder(&name) {
            Err(LogError::Expired { .. }) => {
                tracing::warn!(revision = name, "stood still for too long and is filled anew");
                attempt += 1;
                name = format!("{revision}-{attempt}");
            }
            taken => return taken.map(|embed_log| (name, embed_log)),
        }
    }
}

pub(super) fn make_data_dir(config: &Config) -> Result<(), AppError> {
    let path = &config.data_dir;
    std::fs::create_dir_all(path).map_err(|source| AppError::DataDir { path: path.clone(), source })
}

pub(super) fn embedded_settings(config: &Config) -> embedded::Settings {
    embedded::Settings {
        dir: config.data_dir.join("log"),
        prefix: config.topics.prefix.clone(),
        pipeline: config.pipeline.name.clone(),
        partitions: config.topics.partitions,
        tombstone_retention: TOMBSTONE_RETENTION,
    }
}

/// How the brokers are reached; `None`: the log is on this machine.
pub(super) fn kafka_settings(config: &Config) -> Option<kafka::Settings> {
    let kafka = config.kafka.as_ref()?;
    Some(kafka::Settings {
        brokers: kafka.brokers.clone(),
        security: kafka.security.clone(),
        prefix: config.topics.prefix.clone(),
        pipeline: config.pipeline.name.clone(),
        source_topic: config.pipeline.source.topic.clone(),
        partitions: config.topics.partitions,
        replication: config.topics.replication,
        tombstone_retention: TOMBSTONE_RETENTION,
        scratch: config.data_dir.join("scratch"),
    })
}

pub(super) fn positions(generations: &Generations) -> Offsets {
    generations.current().mirror.positions()
}

/// The primary store, where one is configured and this process writes to it or asks it.
pub(super) fn qdrant_of(
    config: &Config,
    revision: &str,
    log: &Log,
    metrics: &PipelineMetrics,
    arrivals: &Arrivals,
    stores: bool,
) -> Result<Option<Qdrant>, QdrantError> {
    let Some(server) = config.qdrant.as_ref().filter(|_| stores) else { return Ok(None) };
    let settings = qdrant_settings(config, server, revision);
    let primary = Primary::new(settings, log.clone(), metrics.clone(), arrivals.clone())?;
    Ok(Some(Qdrant::new(primary, metrics.clone(), config.server.hedge_delay)))
}

pub(super) fn qdrant_settings(config: &Config, server: &config::Qdrant, revision: &str) -> QdrantSettings {
    QdrantSettings {
        server: server.clone(),
        collection: server.collection.clone(),
        pipeline: config.pipeline.name.clone(),
        revision: revision.to_owned(),
        partitions: config.topics.partitions,
        log: None,
        payload: config.pipeline.document.payload.clone(),
        filters: config.pipeline.filters.clone(),
    }
}

pub(super) fn mirror_settings(config: &Config, revision: &str) -> MirrorSettings {
    MirrorSettings {
        dir: config.data_dir.join("mirror"),
        pipeline: config.pipeline.name.clone(),
        revision: revision.to_owned(),
        partitions: config.topics.partitions,
        filters: config.pipeline.filters.clone(),
    }
}

pub(super) fn capture_of(
    config: &Config,
    database: &Database,
    check_columns: ColumnCheck,
    log: &Log,
    metrics: &PipelineMetrics,
) -> Capture {
    Capture {
        database: database.clone(),
        source: config.pipeline.source.clone(),
        pipeline: config.pipeline.name.clone(),
        check_columns,
        log: log.clone(),
        metrics: metrics.clone(),
        received: capture::Received::default(),
        behind: None,
    }
}
