//! Reads `changes`, hands batches to the embedder, commits what they became, in order. Decides nothing about rows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::Embedder;
use super::cache::Cache;
use super::completion::Completion;
use super::document::{Document, DocumentError};
use super::model::EmbedError;
use super::rows::{self, Processed, Reason, Rows};
use super::trail::Report;
use crate::clock::now_ms;
use crate::config;
use crate::metrics::{PipelineMetrics, Stage};
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{EmbedLog, LogError, OpenLetters, Stored};

/// Batches that are worked on at a time: while one is in the model, the next is read and split and waits before it.
const DEPTH: usize = 2;
/// How long what is under way may take at the end; then it is given up, and done again after the next start.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// Rows of a batch when there was nothing to do: few, so that the first rows of a backfill are searchable at once.
const ROWS_MIN: usize = 8;
/// Rows of a batch under load: enough texts of like length to fill the model's calls without padding.
const ROWS_MAX: usize = 128;
/// Bytes of records for each row of the limit: a batch of long texts has fewer rows, and no more tokens (some 8,000
/// to 20,000, a second or two of the model) than the batch of short ones.
const BYTES_PER_ROW: usize = 768;

/// How often it is asked how far embed is, where brokers know it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Open dead letters whose keys are kept in memory, some 200 bytes each.
const OPEN_LETTERS_MAX: usize = 100_000;

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

    /// For a topic that others write: rows whose records lack columns that did not change are completed.
    pub fn completed_by(mut self, completion: Completion) -> Worker {
        if let Some(rows) = Arc::get_mut(&mut self.rows) {
            rows.completed_by(completion);
        }
        self
    }

    /// What a batch becomes, for a log that takes records of any size. Touches no log. An error says that the model is
    /// out of order.
    pub async fn process(&self, batch: Vec<Stored>) -> Result<Processed, EmbedError> {
        rows::process(&self.rows, batch, usize::MAX).await
    }

    /// Embeds until shutdown; then finishes the batches that are under way. A model that is out of order, a full disk and
    /// a broker that is away are tried again, from the committed positions.
    pub async fn run(&self, mut log: EmbedLog, shutdown: Shutdown) -> Result<(), WorkerError> {
        let mut retries = Retries { model: Retry::new("model"), log: Retry::new("log") };
        let mut rows_max = ROWS_MIN;
        let mut under_way: VecDeque<Batch> = VecDeque::new();
        let mut give_up_at: Option<Instant> = None;
        let mut letters = Letters::default();
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let depth = if self.rows.take_turns() { 1 } else { DEPTH };
        // Over Kafka the partitions that are ours come later.
        let open = match &log {
            EmbedLog::Embedded(_) => letters.current(&mut log).await.ok().map(|open| open.len() as u64),
            EmbedLog::Kafka(_) => None,
        };
        self.metrics.open_letters(open);
        while give_up_at.is_none() || !under_way.is_empty() {
            self.metrics.embed_stands(log.lag(), log.position());
            if letters.are_of_others(&log) {
                self.metrics.open_letters(None);
            }
            if log.has_replay() && under_way.is_empty() && give_up_at.is_none() {
                // Nothing of the partitions is under way, so nothing can overtake their beginning.
                if let Err(fault) = log.begin_replay().await
                    && !retries.go_back(&mut log, Fault::Log(fault), &shutdown).await?
                {
                    return Ok(());
                }
                continue;
            }
            let reads = give_up_at.is_none() && under_way.len() < depth && !log.has_replay();
            let looks_on = give_up_at.is_none() && log.can_look();
            let fault = tokio::select! {
                biased;
                // 1. Shutdown ends the intake, not what is under way.
                () = shutdown.raised(), if give_up_at.is_none() => {
                    give_up_at = Some(Instant::now() + STOP_PATIENCE);
                    continue;
                }
                () = until(give_up_at) => return Ok(()),
                // 2. What is done is committed before more is begun.
                Some(done) = first(&mut under_way) => match done? {
                    Ok(processed) => match self.commit(&mut log, &mut letters, processed).await {
                        Ok(()) => {
                            retries.model.reset();
                            retries.log.reset();
                            continue;
                        }
                        Err(fault) => Fault::Log(fault),
                    },
                    Err(fault) => Fault::Model(fault),
                },
                // 3. What is there is taken as it is: no waiting for a fuller batch.
                batch = log.next(rows_max, rows_max * BYTES_PER_ROW), if reads => {
                    match batch {
                        Ok(batch) if batch.is_empty() => continue,
                        Ok(batch) => {
                            rows_max = if log.fetched() > 0 { (rows_max * 2).min(ROWS_MAX) } else { ROWS_MIN };
                            let (rows, bytes_max) = (Arc::clone(&self.rows), log.record_bytes_max());
                            let task = tokio::spawn(async move { rows::process(&rows, batch, bytes_max).await });
                            under_way.push_back(AbortOnDropHandle::new(task));
                            continue;
                        }
                        Err(fault) => Fault::Log(fault),
                    }
                }
                // 4. What nobody tells is asked for.
                _ = looks.tick(), if looks_on => {
                    tokio::select! {
                        biased;
                        () = shutdown.raised() => {}
                        () = self.look(&mut log, &mut letters) => {}
                    }
                    continue;
                }
            };
            // What was read and is not committed is read again, by whoever has its partition then.
            under_way.clear();
            letters = Letters::default();
            if !retries.go_back(&mut log, fault, &shutdown).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Finds out how far embed is and which letters are open, before there is a record to be taken. A fault is met again by whoever
    /// reads or commits.
    async fn look(&self, log: &mut EmbedLog, letters: &mut Letters) {
        match log.look().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::debug!(%error, "ask how far embed is");
                return;
            }
        }
        match letters.current(log).await {
            Ok(open) => self.metrics.open_letters(Some(open.len() as u64)),
            Err(error) => tracing::debug!(%error, "read the open dead letters"),
        }
    }

    async fn commit(
        &self,
        log: &mut EmbedLog,
        letters: &mut Letters,
        mut processed: Processed,
    ) -> Result<(), LogError> {
        let open = letters.current(log).await?;
        let report = Report::of(&mut processed);
        // After the batch's own letters: one of its rows may be put aside and, further on, be readable again.
        processed.dead_letters.iter().for_each(|letter| open.offer(letter));
        let mut dead_letters = processed.dead_letters;
        dead_letters.extend(open.close(&processed.settled, now_ms()));
        let places = log.commit(processed.vectors, dead_letters, &processed.ends).await?;
        if let Some(report) = report {
            report.committed(self.metrics.pipeline(), &places);
        }
        self.metrics.open_letters(Some(open.len() as u64));
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

/// The open dead letters, as far as they are known. After a commit that failed they are read anew.
#[derive(Default)]
struct Letters {
    /// With the tenure that they were read in.
    open: Option<(u64, OpenLetters)>,
}

impl Letters {
    /// Whether those that were read are of partitions that may not be ours any more.
    fn are_of_others(&self, log: &EmbedLog) -> bool {
        self.open.as_ref().is_some_and(|(tenure, _)| *tenure != log.tenures())
    }

    /// Those that the log holds now for the partitions that are ours.
    async fn current(&mut self, log: &mut EmbedLog) -> Result<&mut OpenLetters, LogError> {
        let tenure = log.tenures();
        let known = self.open.take().filter(|(read_in, _)| *read_in == tenure);
        let open = match known {
            Some((_, open)) => open,
            None => {
                let open = log.open_letters(OPEN_LETTERS_MAX).await?;
                if open.is_full() {
                    tracing::warn!(
                        "more than {OPEN_LETTERS_MAX} dead letters are open: the others stay listed when their rows are mended"
                    );
                }
                open
            }
        };
        Ok(&mut self.open.insert((tenure, open)).1)
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What stops a batch.
enum Fault {
    Model(EmbedError),
    Log(LogError),
}

struct Retries {
    model: Retry,
    log: Retry,
}

impl Retries {
    /// Waits as the fault asks for, then goes back to the committed positions. `false`: shutdown. An error is a fault that
    /// does not pass.
    async fn go_back(&mut self, log: &mut EmbedLog, fault: Fault, shutdown: &Shutdown) -> Result<bool, LogError> {
        let mut fault = match fault {
            Fault::Model(fault) if !self.model.wait(&Chain(&fault).to_string(), shutdown).await => return Ok(false),
            Fault::Model(_) => None,
            Fault::Log(fault) => Some(fault),
        };
        loop {
            match fault {
                // Others have them now, and that is no fault.
                None | Some(LogError::Revoked { .. }) => {}
                Some(fault) if !fault.is_passing() => return Err(fault),
                Some(fault) => {
                    if !self.log.wait(&Chain(&fault).to_string(), shutdown).await {
                        return Ok(false);
                    }
                }
            }
            match log.rewind().await {
                Ok(()) => return Ok(true),
                Err(again) => fault = Some(again),
            }
        }
    }
}

/// Waits for the oldest batch and takes it out; none when nothing is under way. Cancel-safe.
async fn first(under_way: &mut VecDeque<Batch>) -> Option<Result<Result<Processed, EmbedError>, JoinError>> {
    let done = under_way.front_mut()?.await;
    under_way.pop_front();
    Some(done)
}
