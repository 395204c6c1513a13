//! `vecsync sync`: has capture read the table again, waits until the log and then the stores have all of it, and counts what
//! is where. Reads no row and writes none itself.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::LOCAL;
use super::serving::Shared;
use crate::capture::survey::Survey;
use crate::capture::{self, CaptureError, ColumnCheck, Phase, Status, Wanted};
use crate::clock::{age_ms, now_ms};
use crate::config::{Database, Source};
use crate::control::Passed;
use crate::index::primary::STORE;
use crate::metrics::{Done, PipelineMetrics};
use crate::retry::Chain;
use crate::topic::{Log, LogError, Partition};

/// How long a fault may last that keeps a resync, or a store from having it. Then who waits is told.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Keys of the log that are counted at a time.
const KEYS_PER_PAGE: usize = 10_000;
const ENDED: &str = "capture has ended";

/// Answers for one process. Clones are the same.
#[derive(Clone)]
pub(super) struct Resyncs(Arc<Parts>);

/// What it takes.
pub(super) struct Parts {
    pub captures: mpsc::Sender<capture::Request>,
    pub shared: Arc<Shared>,
    pub log: Log,
    pub revision: String,
    pub metrics: PipelineMetrics,
    /// Whether what is embedded is embedded here.
    pub embeds: bool,
    pub database: Option<Database>,
    pub source: Source,
    pub check_columns: ColumnCheck,
    /// Held by the one that runs.
    pub busy: Mutex<()>,
}

/// What a resync has brought into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resynced {
    /// Rows of the table that were read.
    pub rows: u64,
    /// Of them those that changed meanwhile and came with the stream.
    pub superseded: u64,
    /// Rows that the log had and the table has not.
    pub deleted: u64,
    /// All that was committed before this moment, and all of the resync, is in the log: milliseconds since the Unix epoch.
    pub as_of_ms: i64,
}

/// How far the stores of a process are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Each store with the reason why it is not waited for any longer; none: it has all.
    pub stores: Vec<(String, Option<String>)>,
    /// What this process has done since it started.
    pub done: Done,
    /// Whether it embeds, so that its numbers of texts count.
    pub embeds: bool,
}

/// What is at the source and in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceStats {
    /// The table, with its schema.
    pub table: String,
    /// Its rows, as the publication has them; none where it cannot be asked.
    pub rows: Option<u64>,
    /// WAL that was written and is not confirmed to the slot, bytes.
    pub lag_bytes: Option<u64>,
    /// Rows of which the log holds a state; none while a snapshot writes it.
    pub log_rows: Option<u64>,
    /// Records of the log that are not embedded yet; none where nobody here knows.
    pub log_lag_records: Option<u64>,
    /// What could not be asked, and why.
    pub faults: Vec<String>,
}

/// What is in a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreStats {
    /// `qdrant` or `local`.
    pub store: String,
    /// Its rows; none where only points are counted.
    pub rows: Option<u64>,
    /// Its points.
    pub points: Option<u64>,
    /// Records that it has not taken yet.
    pub lag_records: Option<u64>,
    /// How old at most what it holds may be, milliseconds.
    pub staleness_ms: Option<u64>,
    /// What is wrong with it.
    pub error: Option<String>,
}

impl Resyncs {
    pub fn new(parts: Parts) -> Resyncs {
        Resyncs(Arc::new(parts))
    }

    /// Has the table read again; returns when all of it is in the log.
    pub async fn resync(&self, wanted: Wanted, passed: &Passed) -> Result<Resynced, String> {
        let parts = &self.0;
        let Ok(_busy) = parts.busy.try_lock() else {
            return Err("another resync is at work; `vecsync status` shows how far it is".to_owned());
        };
        let Some(mut status) = parts.shared.status.clone() else {
            return Err("this process does not capture".to_owned());
        };
        let (done, answered) = oneshot::channel();
        parts.captures.send(capture::Request::Resync(wanted, done)).await.map_err(|_| ENDED)?;
        let answered = answered.await.map_err(|_| ENDED)?;
        let before = answered.map_err(|reason| format!("the resync did not begin: {reason}"))?;
        wait_for_snapshot(&mut status, before, passed).await
    }

    /// Waits until every store of this process holds all that was committed before this moment; without one says how they
    /// are. A store that something keeps from it is named.
    pub async fn arrive(&self, as_of_ms: Option<i64>, passed: &Passed) -> Arrived {
        let parts = &self.0;
        let mut waiting: Vec<(&str, Instant)> = parts.stores().map(|store| (store, Instant::now())).collect();
        let mut stores: Vec<(String, Option<String>)> = vec![];
        let mut total = 0;
        loop {
            waiting.retain_mut(|(store, well_at)| {
                let has_it = as_of_ms.is_none_or(|as_of_ms| parts.has(store, as_of_ms));
                let fault = parts.fault(store);
                if fault.is_none() {
                    *well_at = Instant::now();
                }
                let given_up = fault.filter(|_| !has_it && well_at.elapsed() > PATIENCE);
                let ends = has_it || given_up.is_some();
                if ends {
                    stores.push(((*store).to_owned(), given_up));
                }
                !ends
            });
            if waiting.is_empty() || passed.is_closed() {
                return Arrived { stores, done: parts.metrics.done(), embeds: parts.embeds };
            }
            let lag = parts.lag().unwrap_or_default();
            total = total.max(lag);
            passed.send_replace((total.saturating_sub(lag), total));
            sleep(LOOK_EVERY).await;
        }
    }

    /// Counts the table and the log.
    pub async fn source_stats(&self) -> SourceStats {
        let parts = &self.0;
        let mut faults = vec![];
        let mut note = |what: &str, error: &dyn std::error::Error| faults.push(format!("{what}: {}", Chain(error)));
        let (mut rows, mut lag_bytes) = (None, None);
        if let Some(database) = &parts.database {
            match count_source(database, &parts.source, &parts.check_columns).await {
                Ok((counted, lag)) => (rows, lag_bytes) = (Some(counted), lag),
                Err(error) => note("source", &error),
            }
        }
        let is_written = parts.shared.status.as_ref().is_some_and(|status| !status.borrow().snapshot.complete);
        let counted = if is_written { None } else { Some(count_log(&parts.log, parts.shared.partitions).await) };
        let log_rows = match counted.transpose() {
            Ok(rows) => rows,
            Err(error) => {
                note("log", &error);
                None
            }
        };
        let log_lag_records = parts.embed_lag();
        let table = format!("{}.{}", parts.source.schema, parts.source.table);
        SourceStats { table, rows, lag_bytes, log_rows, log_lag_records, faults }
    }

    /// Counts the stores of this process.
    pub fn store_stats(&self) -> Vec<StoreStats> {
        let parts = &self.0;
        let stats = |store: &'static str| {
            let (rows, points) = match (&parts.shared.qdrant, parts.shared.mirror()) {
                (_, Some(mirror)) if store == LOCAL => (Some(mirror.rows()), Some(mirror.points())),
                (Some(qdrant), _) => (None, qdrant.primary.state().points),
                _ => (None, None),
            };
            let as_of_ms = parts.shared.standing(store).as_of_ms;
            StoreStats {
                store: store.to_owned(),
                rows,
                points,
                lag_records: parts.shared.arrivals.lag(store),
                staleness_ms: as_of_ms.and_then(|as_of_ms| age_ms(as_of_ms, now_ms())),
                error: parts.fault(store),
            }
        };
        parts.stores().map(stats).collect()
    }
}

impl Parts {
    fn stores(&self) -> impl Iterator<Item = &'static str> {
        let qdrant = self.shared.qdrant.as_ref().map(|_| STORE);
        qdrant.into_iter().chain(self.shared.mirror().map(|_| LOCAL))
    }

    fn has(&self, store: &str, as_of_ms: i64) -> bool {
        let standing = self.shared.standing(store);
        standing.is_loaded && standing.as_of_ms.is_some_and(|has| has >= as_of_ms)
    }

    /// What keeps a store from what is in the log, or the log from what is committed.
    fn fault(&self, store: &str) -> Option<String> {
        if store == STORE
            && let Some(qdrant) = &self.shared.qdrant
        {
            let state = qdrant.primary.state();
            if let Some(fault) = state.fault.or(state.sink_fault) {
                return Some(fault);
            }
        }
        if store == LOCAL && self.shared.mirror().is_some_and(|mirror| !mirror.is_open()) {
            return Some("the local store is being opened again after a fault of its files".to_owned());
        }
        let told =
            |fault: &std::sync::Mutex<Option<String>>| fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = self.shared.status.as_ref().map(|status| status.borrow().phase.clone());
        let capture = match status {
            Some(Phase::Standby(why) | Phase::Retrying(why) | Phase::Refused(why)) => Some(why),
            Some(Phase::Starting | Phase::Streaming) | None => None,
        };
        let elsewhere = || {
            let is_fed = self.shared.is_fed(self.shared.standing(store).as_of_ms);
            (!is_fed && self.shared.status.is_none())
                .then(|| "no changes arrive from who captures and embeds".to_owned())
        };
        capture.or_else(|| told(&self.shared.log_fault)).or_else(|| told(&self.shared.embed_fault)).or_else(elsewhere)
    }

    /// Records that the mirror does not have yet, as far as they are known.
    fn lag(&self) -> Option<u64> {
        let stored = self.shared.arrivals.lag(LOCAL);
        match self.embed_lag() {
            Some(lag) => Some(lag + stored.unwrap_or_default()),
            None => stored,
        }
    }

    /// Records that are not embedded yet.
    fn embed_lag(&self) -> Option<u64> {
        let Log::Embedded(log) = &self.log else { return None };
        let stored = self.shared.mirror()?.positions();
        let embedded = log.progress(&self.revision, &stored).ok()?.embedded;
        Some(log.changes_ends().iter().zip(embedded).map(|(end, done)| end.saturating_sub(done)).sum())
    }
}

async fn wait_for_snapshot(
    status: &mut watch::Receiver<Status>,
    before: u64,
    passed: &Passed,
) -> Result<Resynced, String> {
    // Since when something is in the way. A session that begins well and breaks again each time is no progress.
    let (mut faulty, mut well): (Option<Instant>, Option<Instant>) = (None, None);
    loop {
        if passed.is_closed() {
            return Err("who asked has gone".to_owned());
        }
        {
            let now = status.borrow_and_update();
            let finished = now.finished;
            if finished.number > before {
                let (rows, superseded, deleted) = (finished.rows, finished.superseded, finished.gone);
                return Ok(Resynced { rows, superseded, deleted, as_of_ms: finished.at_ms });
            }
            let rows = now.snapshot.rows;
            passed.send_replace((rows, now.snapshot.expected.unwrap_or(0).max(rows)));
            match &now.phase {
                Phase::Refused(reason) => return Err(format!("the resync was given up: {reason}")),
                Phase::Standby(reason) | Phase::Retrying(reason) => {
                    well = None;
                    if faulty.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        return Err(format!("the resync is made as soon as this has passed: {reason}"));
                    }
                }
                Phase::Starting | Phase::Streaming => {
                    if well.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        faulty = None;
                    }
                }
            }
        }
        tokio::select! {
            changed = status.changed() => changed.map_err(|_| ENDED)?,
            () = sleep(PATIENCE / 10) => {}
        }
    }
}

/// Rows of the table, and the WAL that is not confirmed to the slot.
async fn count_source(
    database: &Database,
    source: &Source,
    check: &ColumnCheck,
) -> Result<(u64, Option<u64>), CaptureError> {
    let survey = Survey::open(database, source, check).await?;
    Ok((survey.count().await?, survey.lag_bytes(&source.slot).await?))
}

async fn count_log(log: &Log, partitions: Partition) -> Result<u64, LogError> {
    let mut rows = 0;
    for partition in 0..partitions {
        let mut after = None;
        loop {
            let page = log.live_keys_below(partition, u64::MAX, after.take(), KEYS_PER_PAGE).await?;
            let Some((_, last)) = page.last() else { break };
            after = Some(last.clone());
            rows += page.len() as u64;
        }
    }
    Ok(rows)
}
