//! What commands do with a data directory on which no vecsync runs, or with Qdrant alone.

use std::sync::Arc;

use super::opening::{capture_of, embedded_settings, make_data_dir, open_log, qdrant_settings, revision_at_work};
use super::{AppError, foreign, letters};
use crate::capture;
use crate::config::Config;
use crate::control::{self, Door, Reply, Request};
use crate::index::QdrantGenerations;
use crate::metrics::PipelineMetrics;

/// Prepares a resync for the next `run` on this data directory. None may be running on it.
pub async fn prepare_resync(config: Config, wanted: capture::Wanted) -> Result<(), AppError> {
    if config.pipeline.source.topic.is_some() {
        return Err(AppError::Foreign(foreign::NO_SYNC));
    }
    make_data_dir(&config)?;
    // Over brokers nothing else keeps one out that starts at this moment.
    let _alone = control::lock(&config.data_dir, Door::Capture)?;
    let Some(database) = &config.database else {
        return Err(AppError::Task { task: "resync", fault: "DATABASE_URL is not set".into() });
    };
    let log = open_log(&config).await?;
    let metrics = PipelineMetrics::new(&config.pipeline.name);
    let capture = capture_of(&config, database, Arc::new(|_| vec![]), &log, &metrics);
    let prepared = capture::prepare_resync(&capture, wanted).await;
    log.close().await?;
    Ok(prepared?)
}

/// The generations in Qdrant that a `run` with this configuration would write to; `None`: it has no Qdrant. Makes no
/// connection. Called inside of a runtime.
pub fn qdrant_generations(config: &Config) -> Result<Option<QdrantGenerations>, AppError> {
    let Some(server) = &config.qdrant else { return Ok(None) };
    Ok(Some(QdrantGenerations::new(qdrant_settings(config, server, &revision_at_work(config)))?))
}

/// What a running vecsync would answer, where none runs on this data directory: requests that only read the log.
/// `None`: there is no log either.
pub async fn answer_from_log(config: Config, request: Request) -> Result<Option<Reply>, AppError> {
    if config.kafka.is_none() && !embedded_settings(&config).dir.is_dir() {
        return Ok(None);
    }
    let log = open_log(&config).await?;
    let answered = letters::answer(&log, request).await;
    log.close().await?;
    Ok(Some(answered))
}
