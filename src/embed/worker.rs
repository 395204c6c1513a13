//! Reads `changes`, hands batches to the embedder, commits what they became, in order. Decides nothing about rows.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use super::Embedder;
use super::cache::Cache;
use super::document::{Document, DocumentError};
use super::model::EmbedError;
use super::rows::{self, Processed, Reason, Rows};
use crate::config;
use crate::metrics::{PipelineMetrics, Stage};
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::embedded::EmbedLog;
use crate::topic::{LogError, Offsets, Stored};

/// Batches that are worked on at a time: while one is in the model, the next is read and split and waits before it.
const DEPTH: usize = 2;
/// Rows of a batch when there was nothing to do: few, so that the first rows of a backfill are searchable at once.
const ROWS_MIN: usize = 8;
/// Rows of a batch under load: enough texts of like length to fill the model's calls without padding.
const ROWS_MAX: usize = 128;
/// Bytes of records for each row of the limit: a batch of long texts has fewer rows, and no more tokens (some 8,000
/// to 20,000, a second or two of the model) than the batch of short ones.
const BYTES_PER_ROW: usize = 768;

/// The worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The log failed. Nothing was stepped over: open it again and go on from the committed positions.
    #[error("embed")]
    Log(#[from] LogError),
    /// A batch's task panicked: a defect.
    #[error("embed a batch")]
    Task(#[from] JoinError),
}

/// Embeds the rows of one pipeline.
pub struct Worker {
    rows: Arc<Rows>,
    metrics: PipelineMetrics,
}

type Batch = AbortOnDropHandle<Result<Processed, EmbedError>>;

impl Worker {
    /// A worker for this document. `topic` is what its dead letters name as the topic they come from.
    pub fn new(
        embedder: Embedder,
        document: &config::Document,
        cache: Cache,
        metrics: PipelineMetrics,
        topic: &str,
    ) -> Result<Worker, DocumentError> {
        let compiled = Document::compile(document)?;
        let rows = Rows::new(embedder, compiled, document.clone(), cache, topic.to_owned());
        metrics.dead_letter_reasons(&Reason::ALL.map(Reason::as_label));
        Ok(Worker { rows: Arc::new(rows), metrics })
    }

    /// What a batch becomes. Touches no log. An error says that the model is out of order.
    pub async fn process(&self, batch: Vec<Stored>) -> Result<Processed, EmbedError> {
        rows::process(&self.rows, batch).await
    }

    /// Embeds until shutdown; then finishes the batches that are under way. A model that is out of order, or a full disk, is tried
    /// again, from the committed positions.
    pub async fn run(self, mut log: EmbedLog, shutdown: Shutdown) -> Result<(), WorkerError> {
        let mut retry = Retry::new("model");
        let mut position = log.committed();
        let mut rows_max = ROWS_MIN;
        let mut under_way: VecDeque<Batch> = VecDeque::new();
        let mut stopping = false;
        while !(stopping && under_way.is_empty()) {
            tokio::select! {
                biased;
                // 1. Shutdown ends the intake, not what is under way.
                () = shutdown.raised(), if !stopping => stopping = true,
                // 2. What is done is committed before more is begun.
                Some(done) = first(&mut under_way) => {
                    let fault = match done? {
                        Ok(processed) => match self.commit(&mut log, processed, &mut position).await {
                            Ok(()) => None,
                            Err(full @ LogError::Full { .. }) => Some(Chain(&full).to_string()),
                            Err(error) => return Err(error.into()),
                        },
                        Err(fault) => Some(Chain(&fault).to_string()),
                    };
                    let Some(fault) = fault else {
                        retry.reset();
                        continue;
                    };
                    under_way.clear();
                    log.rewind();
                    position = log.committed();
                    if !retry.wait(&fault, &shutdown).await {
                        return Ok(());
                    }
                }
                // 3. What is there is taken as it is: no waiting for a fuller batch.
                batch = log.next(rows_max, rows_max * BYTES_PER_ROW), if !stopping && under_way.len() < DEPTH => {
                    let batch = batch?;
                    let backlog = log.lag() > 0;
                    rows_max = if backlog { (rows_max * 2).min(ROWS_MAX) } else { ROWS_MIN };
                    let rows = Arc::clone(&self.rows);
                    let task = tokio::spawn(async move { rows::process(&rows, batch).await });
                    under_way.push_back(AbortOnDropHandle::new(task));
                }
            }
        }
        Ok(())
    }

    async fn commit(&self, log: &mut EmbedLog, processed: Processed, position: &mut Offsets) -> Result<(), LogError> {
        let mut upto = position.clone();
        for (partition, end) in &processed.ends {
            if let Some(offset) = upto.get_mut(usize::from(*partition)) {
                *offset = (*offset).max(*end);
            }
        }
        log.commit(processed.vectors, processed.dead_letters, &upto).await?;
        *position = upto;
        // Counted when durable, so that what is done again after a fault is not counted twice.
        for (op, count) in processed.counts {
            self.metrics.events(Stage::Embed, op, count);
        }
        self.metrics.embeddings(processed.computed, processed.cached);
        self.metrics.texts_split(processed.split);
        self.metrics.titles_cut(processed.titles_cut);
        for reason in processed.reasons {
            self.metrics.dead_letter(reason.as_label());
        }
        if let Some(commit_ts_ms) = processed.commit_ts_ms {
            self.metrics.last_commit(Stage::Embed, commit_ts_ms);
        }
        Ok(())
    }
}

/// Waits for the oldest batch and takes it out; none when nothing is under way. Cancel-safe.
async fn first(under_way: &mut VecDeque<Batch>) -> Option<Result<Result<Processed, EmbedError>, JoinError>> {
    let done = under_way.front_mut()?.await;
    under_way.pop_front();
    Some(done)
}
