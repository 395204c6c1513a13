//! Keeps the mirror up with `vectors`: reads, applies, tells how far it is. Decides nothing about versions.

use std::error::Error;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::mirror::{Mirror, MirrorError};
use crate::event::VectorEvent;
use crate::metrics::{PipelineMetrics, Stage};
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::embedded::VectorsReader;
use crate::topic::{LogError, Offsets, Partition, Stored};

/// Records taken from the log at once: enough to share one fsync, few enough for a search to see the first soon.
const BATCH_RECORDS_MAX: usize = 512;
/// Bytes taken from the log at once, held in memory about three times over (record, row, vectors).
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Between two measurements of the folder's size, which looks at every file.
const MEASURE_EVERY: Duration = Duration::from_secs(15);
/// Between two prunings of tombstones.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Tombstones are kept this long. The mirror has one reader, which reads in order, so an older upsert can come after a
/// delete only when positions go back; then the log's own tombstones, which are younger, come with it.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// The mirror in the metrics' label `store`.
const STORE: &str = "local";

/// The sink cannot go on; trying again would not help.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The log has another number of partitions than the mirror was made for.
    #[error("read vectors into the mirror: the log has {log} partitions, the mirror {mirror}")]
    Partitions {
        /// Partitions of the log.
        log: usize,
        /// Partitions of the mirror.
        mirror: usize,
    },
    /// The mirror was closed under the sink.
    #[error("write the mirror")]
    Closed(#[source] MirrorError),
}

/// What stops a round; each is tried again, except `Fatal`.
enum Fault {
    Log(LogError),
    Mirror(MirrorError),
    Fatal(SinkError),
}

impl From<LogError> for Fault {
    fn from(error: LogError) -> Self {
        Fault::Log(error)
    }
}

impl From<MirrorError> for Fault {
    fn from(error: MirrorError) -> Self {
        match error {
            MirrorError::Closed { .. } => Fault::Fatal(SinkError::Closed(error)),
            error => Fault::Mirror(error),
        }
    }
}

/// Runs until shutdown. `progress` has the mirror's positions whenever they move; they are durable. Faults of the disk
/// and of the log are tried again for ever, with the mirror opened and checked anew and the log taken up at its
/// positions. A mirror that is ahead of the log belongs to another one: it is emptied and filled again.
///
/// A record that cannot be read is logged with its place, counted as a dead letter and stepped over. It will never be
/// readable; `vectors` is derived, so its row comes right with the row's next change, a resync or a repair.
pub async fn run(
    mirror: Mirror,
    reader: VectorsReader,
    metrics: PipelineMetrics,
    shutdown: Shutdown,
    progress: watch::Sender<Offsets>,
) -> Result<(), SinkError> {
    let mut sink = Sink { mirror, reader, metrics, progress, measured: None, pruned: Instant::now() };
    let mut retry = Retry::new("mirror");
    loop {
        let fault = match sink.follow(&mut retry, &shutdown).await {
            Ok(()) => return Ok(()),
            Err(Fault::Fatal(error)) => return Err(error),
            Err(Fault::Log(error)) => Box::new(error) as Box<dyn Error + Send + Sync>,
            Err(Fault::Mirror(error)) => Box::new(error),
        };
        sink.report_lag();
        if !retry.wait(&Chain(&*fault), &shutdown).await {
            return Ok(());
        }
        if let Err(error) = sink.mirror.recover().await {
            tracing::warn!("{}", Chain(&error));
        }
    }
}

struct Sink {
    mirror: Mirror,
    reader: VectorsReader,
    metrics: PipelineMetrics,
    progress: watch::Sender<Offsets>,
    measured: Option<Instant>,
    pruned: Instant,
}

impl Sink {
    /// Takes the log up at the mirror's positions and follows it until shutdown or a fault. A batch that is being
    /// applied is finished first.
    async fn follow(&mut self, retry: &mut Retry, shutdown: &Shutdown) -> Result<(), Fault> {
        self.take_up().await?;
        loop {
            self.report_lag();
            self.measure().await?;
            self.prune().await?;
            let stored = tokio::select! {
                biased;
                () = shutdown.raised() => return Ok(()),
                // A search found damage, and there may be nothing to write for hours: mend it now.
                fault = self.mirror.faulted() => return Err(fault.into()),
                stored = self.reader.next(BATCH_RECORDS_MAX, BATCH_BYTES_MAX) => stored?,
            };
            self.take(stored).await?;
            retry.reset();
        }
    }

    async fn take_up(&mut self) -> Result<(), Fault> {
        let (log, mirror) = (self.reader.ends().len(), usize::from(self.mirror.partitions()));
        if log != mirror {
            return Err(Fault::Fatal(SinkError::Partitions { log, mirror }));
        }
        match self.reader.seek(&self.mirror.positions()) {
            Err(error @ (LogError::Ahead { .. } | LogError::Expired { .. })) => {
                self.mirror.reset(&error.to_string()).await?;
                self.reader.seek(&self.mirror.positions())?;
            }
            sought => sought?,
        }
        self.progress.send_replace(self.mirror.positions());
        Ok(())
    }

    /// Applies what was read and counts it.
    async fn take(&mut self, stored: Vec<Stored>) -> Result<(), Fault> {
        let since = Instant::now();
        let (events, counts) = decode(stored, &self.metrics);
        let result = self.mirror.apply_upto(events, self.reader.positions()).await;
        self.metrics.store_request(STORE, "upsert", result.is_ok(), since.elapsed());
        result?;
        counts.report(&self.metrics);
        self.progress.send_replace(self.mirror.positions());
        Ok(())
    }

    fn report_lag(&self) {
        self.metrics.sink_lag(STORE, lag(&self.reader.ends(), &self.mirror.positions()));
    }

    async fn measure(&mut self) -> Result<(), Fault> {
        if self.measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY) {
            let mirror = self.mirror.clone();
            // The only reason for no answer is a runtime that is being shut down.
            if let Ok(bytes) = tokio::task::spawn_blocking(move || mirror.size_on_disk()).await {
                self.metrics.store(STORE, self.mirror.points(), bytes?);
            }
            self.measured = Some(Instant::now());
        }
        Ok(())
    }

    async fn prune(&mut self) -> Result<(), Fault> {
        if self.pruned.elapsed() >= PRUNE_EVERY {
            self.pruned = Instant::now();
            let kept_ms = i64::try_from(TOMBSTONES_KEPT.as_millis()).unwrap_or(i64::MAX);
            let pruned = self.mirror.prune(now_ms().saturating_sub(kept_ms)).await?;
            tracing::debug!(pruned, "tombstones pruned");
        }
        Ok(())
    }
}

/// Records between positions and ends.
fn lag(ends: &Offsets, positions: &Offsets) -> u64 {
    ends.iter().zip(positions).map(|(end, position)| end.saturating_sub(*position)).sum()
}

/// What a batch did, to be counted once it is durable.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    upserts: u64,
    deletes: u64,
    barriers: u64,
    commits_ms: Vec<i64>,
}

type Events = Vec<(Partition, u64, VectorEvent)>;

/// Reads the records; what cannot be read is stepped over.
fn decode(stored: Vec<Stored>, metrics: &PipelineMetrics) -> (Events, Counts) {
    let mut counts = Counts::default();
    let mut events = Events::with_capacity(stored.len());
    for Stored { partition, offset, record } in stored {
        let event = match VectorEvent::from_record(&record) {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(partition, offset, "record of vectors stepped over: {}", Chain(&error));
                metrics.dead_letter("vectors_unreadable");
                continue;
            }
        };
        let (count, commit_ts_ms) = match &event {
            VectorEvent::Upsert { row, .. } => (&mut counts.upserts, Some(row.commit_ts_ms)),
            VectorEvent::Delete { commit_ts_ms, .. } => (&mut counts.deletes, *commit_ts_ms),
            VectorEvent::Barrier { commit_ts_ms, .. } => (&mut counts.barriers, Some(*commit_ts_ms)),
        };
        *count += 1;
        counts.commits_ms.extend(commit_ts_ms);
        events.push((partition, offset, event));
    }
    (events, counts)
}

impl Counts {
    fn report(&self, metrics: &PipelineMetrics) {
        for (op, count) in [("upsert", self.upserts), ("delete", self.deletes), ("truncate", self.barriers)] {
            if count > 0 {
                metrics.events(Stage::Index, op, count);
            }
        }
        let now_ms = now_ms();
        for commit_ms in &self.commits_ms {
            metrics.end_to_end(STORE, *commit_ms, now_ms);
        }
        if let Some(newest_ms) = self.commits_ms.iter().max() {
            metrics.last_commit(Stage::Index, *newest_ms);
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
