//! Keeps the mirror up with `vectors`: reads, applies, tells how far it is. Decides nothing about versions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};

use super::arrivals::Arrivals;
use super::batch::{Counts, Working, decode, lag, next};
use super::mirror::{self, Mirror, MirrorError, Prepared, STORE};
use crate::clock::now_ms;
use crate::metrics::PipelineMetrics;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{LogError, Offsets, Partition, Stored, VectorsReader};

/// Records taken from the log at once: enough to share one fsync, few enough for a search to see the first soon.
const BATCH_RECORDS_MAX: usize = 2048;
/// Bytes taken from the log at once. Three batches are at work at a time (read, decoded, applied), each held in memory up
/// to three times over (record, row, vectors).
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How often a run that has an end looks whether it is reached.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two prunings of tombstones.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Tombstones are kept this long. The mirror has one reader, which reads in order, so an older upsert can come after a
/// delete only when positions go back; then the log's own tombstones, which are younger, come with it.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

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
    /// The log is another one than the mirror was filled from, and brokers keep it: what it lacks has to be embedded again.
    #[error("follow vectors")]
    Lost(#[source] LogError),
    /// Decoding panicked: a defect.
    #[error("decode records of vectors")]
    Task(#[from] JoinError),
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

impl From<JoinError> for Fault {
    fn from(error: JoinError) -> Self {
        Fault::Fatal(error.into())
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

/// What of the log a run takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// From the mirror's positions on, until shutdown.
    Follow,
    /// From the mirror's positions up to these, and nothing behind them.
    UpTo(Offsets),
    /// From the beginning up to these, over what is there.
    Again(Offsets),
}

impl Span {
    /// Where it ends.
    pub fn until(&self) -> Option<&Offsets> {
        match self {
            Span::Follow => None,
            Span::UpTo(until) | Span::Again(until) => Some(until),
        }
    }
}

/// Who is told of what is durable.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The positions up to which all is.
    pub positions: watch::Sender<Offsets>,
    /// What came by; of a run that follows only.
    pub seen: watch::Sender<Seen>,
    /// The last changes; of a run that follows only.
    pub arrivals: Arrivals,
}

/// What came by in `vectors`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Rows.
    pub upserts: u64,
    /// The last replay that each partition has the whole of.
    pub replayed: BTreeMap<Partition, u64>,
}

impl Seen {
    /// Says whether there was anything.
    fn take(&mut self, counts: &Counts) -> bool {
        self.upserts += counts.upserts;
        self.replayed.extend(counts.replayed.iter().copied());
        counts.upserts > 0 || !counts.replayed.is_empty()
    }
}

/// Runs until shutdown or to the end of its span. `told` has the positions up to which all is durable whenever they
/// move; a run from the beginning starts at 0 there. Faults of the disk and of the log are tried again for ever, with the
/// mirror opened and checked anew and the log taken up at its positions. A mirror that is ahead of the log belongs to
/// another one: it is emptied and filled again, or, where brokers keep the log and it lost the topic, [`SinkError::Lost`].
///
/// A record that cannot be read is logged with its place, counted as a dead letter and stepped over. It will never be
/// readable; `vectors` is derived, so its row comes right with the row's next change, a resync or a repair.
pub async fn run(
    mirror: Mirror,
    reader: VectorsReader,
    span: Span,
    metrics: PipelineMetrics,
    shutdown: Shutdown,
    told: Told,
) -> Result<(), SinkError> {
    let mut sink = Sink { mirror, reader, span, metrics, told, pruned: Instant::now() };
    let mut retry = Retry::new("mirror");
    loop {
        let fault = match sink.follow(&mut retry, &shutdown).await {
            Ok(()) => return Ok(()),
            Err(Fault::Fatal(error)) => return Err(error),
            Err(Fault::Log(error)) => Chain(&error).to_string(),
            Err(Fault::Mirror(error)) => Chain(&error).to_string(),
        };
        sink.report_lag();
        if !retry.wait(&fault, &shutdown).await {
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
    span: Span,
    metrics: PipelineMetrics,
    told: Told,
    pruned: Instant,
}

/// A batch that was read: what is in it, and the positions behind it.
struct Batch {
    events: Vec<Prepared>,
    counts: Counts,
    positions: Offsets,
}

/// A batch that was applied, or was not, and how long it took.
struct Applied {
    result: Result<mirror::Applied, MirrorError>,
    took: Duration,
    counts: Counts,
    positions: Offsets,
}

impl Sink {
    /// Takes the log up where the span begins and follows it until shutdown, the span's end or a fault. While a batch is
    /// being applied the next one is decoded and the one after it read; what is being applied is finished first.
    async fn follow(&mut self, retry: &mut Retry, shutdown: &Shutdown) -> Result<(), Fault> {
        self.take_up().await?;
        let mut applying: Option<Working<Applied>> = None;
        let mut decoded: Option<Batch> = None;
        let mut decoding: Option<Working<Result<Batch, JoinError>>> = None;
        loop {
            if applying.is_none() {
                self.report_lag();
                self.prune().await?;
                match decoded.take() {
                    Some(batch) => applying = Some(self.apply(batch)),
                    None if decoding.is_none() && self.is_done() => return self.finish().await,
                    None => {}
                }
            }
            tokio::select! {
                biased;
                Some(applied) = next(&mut applying) => {
                    self.applied(applied)?;
                    retry.reset();
                }
                Some(batch) = next(&mut decoding), if decoded.is_none() => decoded = Some(batch?),
                () = shutdown.raised() => break,
                // A search found damage, and there may be nothing to write for hours: mend it now.
                fault = self.mirror.faulted() => return Err(fault.into()),
                stored = self.reader.next(BATCH_RECORDS_MAX, BATCH_BYTES_MAX), if decoding.is_none() => {
                    decoding = Some(self.decode(stored?));
                }
                // Nothing may come any more, and then the log's end is the span's.
                () = tokio::time::sleep(LOOK_EVERY), if self.span.until().is_some() => {}
            }
        }
        match applying {
            Some(applying) => self.applied(applying.await),
            None => Ok(()),
        }
    }

    async fn take_up(&mut self) -> Result<(), Fault> {
        let (log, mirror) = (self.reader.ends().len(), usize::from(self.mirror.partitions()));
        if log != mirror {
            return Err(Fault::Fatal(SinkError::Partitions { log, mirror }));
        }
        if let Span::Again(_) = self.span {
            // After a fault it begins again: what was applied once more is there, and nothing is lost by it.
            let beginning = vec![0; log];
            self.reader.seek(&beginning).await?;
            self.told.positions.send_replace(beginning);
            return Ok(());
        }
        match self.reader.seek(&self.mirror.positions()).await {
            // A log on this machine is lost together with `changes`, and then the table is read again.
            Err(error @ LogError::Ahead { .. })
                if matches!(self.reader, VectorsReader::Kafka(_)) && self.mirror.rows() > 0 =>
            {
                return Err(Fault::Fatal(SinkError::Lost(error)));
            }
            Err(error @ (LogError::Ahead { .. } | LogError::Expired { .. })) => {
                self.mirror.reset(&error.to_string()).await?;
                self.reader.seek(&self.mirror.positions()).await?;
            }
            sought => sought?,
        }
        self.told.positions.send_replace(self.mirror.positions());
        Ok(())
    }

    /// Whether the span's end is reached: a partition whose log ends earlier has nothing more to give.
    fn is_done(&self) -> bool {
        let Some(until) = self.span.until() else { return false };
        let (positions, ends) = (self.reader.positions(), self.reader.ends());
        let places = positions.iter().zip(until).zip(&ends);
        places.into_iter().all(|((position, until), end)| position >= until || position >= end)
    }

    async fn finish(&mut self) -> Result<(), Fault> {
        if let Span::UpTo(until) = &self.span {
            self.mirror.apply_upto(vec![], until.clone()).await?;
        }
        if let Some(until) = self.span.until() {
            self.told.positions.send_replace(until.clone());
        }
        Ok(())
    }

    /// Begins to decode what was read; what stands behind the span's end is left out.
    fn decode(&self, mut stored: Vec<Stored>) -> Working<Result<Batch, JoinError>> {
        let mut positions = self.reader.positions();
        if let Some(until) = self.span.until() {
            stored.retain(|stored| until.get(usize::from(stored.partition)).is_some_and(|end| stored.offset < *end));
            positions = positions.iter().zip(until).map(|(position, end)| *position.min(end)).collect();
        }
        let (mirror, metrics) = (self.mirror.clone(), self.metrics.clone());
        let arrivals = (self.span == Span::Follow).then(|| self.told.arrivals.clone());
        let decoding = spawn_blocking(move || {
            let ready = |partition, offset, event| mirror.prepare(partition, offset, event);
            let (events, counts) = decode(stored, Some(&metrics), arrivals.as_ref(), ready);
            Batch { events, counts, positions }
        });
        Box::pin(decoding)
    }

    /// Begins to apply a batch.
    fn apply(&self, batch: Batch) -> Working<Applied> {
        let mirror = self.mirror.clone();
        Box::pin(async move {
            let Batch { events, counts, positions } = batch;
            let since = Instant::now();
            let result = mirror.apply_upto(events, positions.clone()).await;
            Applied { result, took: since.elapsed(), counts, positions }
        })
    }

    /// Counts what was applied.
    fn applied(&self, applied: Applied) -> Result<(), Fault> {
        let Applied { result, took, mut counts, positions } = applied;
        self.metrics.store_request(STORE, "upsert", result.is_ok(), took);
        let stored = result?;
        counts.log(&self.metrics, STORE, &self.mirror.name());
        match self.span {
            Span::Follow => {
                self.metrics.rows_changed(stored.changed);
                counts.report(&self.metrics);
                counts.report_latency(&self.metrics, STORE);
                self.told.arrivals.reached(STORE, std::mem::take(&mut counts.last));
                self.told.seen.send_if_modified(|seen| seen.take(&counts));
                self.told.positions.send_replace(self.mirror.positions());
            }
            // These rows were counted when they came first.
            Span::UpTo(_) | Span::Again(_) => drop(self.told.positions.send_replace(positions)),
        }
        Ok(())
    }

    fn report_lag(&self) {
        if self.span == Span::Follow {
            let lag = lag(&self.reader.ends(), &self.mirror.positions());
            self.metrics.sink_lag(STORE, lag);
            self.told.arrivals.lags(STORE, lag);
        }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::event::{EmbeddedRow, Record, RowKey, VectorEvent, Version, Window};
    use crate::index::scan::DIMENSION;
    use crate::index::{Filter, MirrorSettings};
    use crate::topic::Outgoing;
    use crate::topic::embedded::{Log, Settings};

    const PARTITIONS: Partition = 2;
    const REVISION: &str = "rev";

    fn log(dir: &Path) -> Log {
        let settings = Settings {
            dir: dir.join("log"),
            prefix: "vecsync".into(),
            pipeline: "faq".into(),
            partitions: PARTITIONS,
            tombstone_retention: Duration::from_secs(3600),
        };
        Log::open(settings).expect("the log opens")
    }

    fn mirror(dir: &Path) -> Mirror {
        let settings = MirrorSettings {
            dir: dir.join("mirror").join(REVISION),
            pipeline: "faq".into(),
            revision: REVISION.into(),
            partitions: PARTITIONS,
            filters: vec![],
        };
        Mirror::open(settings).expect("the mirror opens")
    }

    fn key(id: u64) -> RowKey {
        RowKey::from_bytes(json!({ "id": id }).to_string().as_bytes()).expect("a key")
    }

    fn upsert(id: u64, version: u64) -> Outgoing {
        let mut vector = vec![0.0; DIMENSION];
        vector[id as usize % DIMENSION] = 1.0;
        let windows = vec![Window::new(&vector, format!("row {id}"))];
        let row = EmbeddedRow { version, payload: "{}".into(), windows, ..EmbeddedRow::default() };
        Outgoing::ByKey(VectorEvent::Upsert { key: key(id), row }.to_record(1))
    }

    fn delete(id: u64, version: u64) -> Outgoing {
        let delete = VectorEvent::Delete { key: key(id), version: Version(version), commit_ts_ms: Some(1) };
        Outgoing::ByKey(delete.to_record(1))
    }

    async fn publish(log: &Log, vectors: Vec<Outgoing>) {
        let mut embedder = log.embedder(REVISION).expect("an embedder");
        let upto = embedder.committed();
        embedder.commit(vectors, vec![], &upto).await.expect("committed");
    }

    /// A sink at work.
    struct Running {
        mirror: Mirror,
        progress: watch::Receiver<Offsets>,
        shutdown: Shutdown,
        task: tokio::task::JoinHandle<Result<(), SinkError>>,
    }

    impl Running {
        fn start(dir: &Path, log: &Log) -> Self {
            let (mirror, shutdown) = (mirror(dir), Shutdown::new());
            let told = Told::default();
            let progress = told.positions.subscribe();
            let reader = VectorsReader::Embedded(log.vectors(REVISION).expect("a reader"));
            let metrics = PipelineMetrics::new("faq");
            let task = tokio::spawn(run(mirror.clone(), reader, Span::Follow, metrics, shutdown.clone(), told));
            Running { mirror, progress, shutdown, task }
        }

        async fn reaches_the_end(&mut self, log: &Log) {
            let ends = log.vectors(REVISION).expect("a reader").ends();
            let there = self.progress.wait_for(|positions| *positions == ends);
            tokio::time::timeout(Duration::from_secs(20), there).await.expect("in time").expect("the sink runs");
        }

        async fn stop(self) {
            self.shutdown.raise();
            self.task.await.expect("no panic").expect("no error");
            self.mirror.close().await;
        }
    }

    #[tokio::test]
    async fn the_mirror_follows_the_log_and_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = log(dir.path());
        publish(&log, (0..20).map(|id| upsert(id, 1 + id)).collect()).await;
        let mut sink = Running::start(dir.path(), &log);
        sink.reaches_the_end(&log).await;
        assert_eq!(sink.mirror.rows(), 20);
        publish(&log, vec![delete(3, 30), upsert(40, 31)]).await;
        sink.reaches_the_end(&log).await;
        assert_eq!(sink.mirror.rows(), 20);
        sink.stop().await;

        publish(&log, vec![delete(4, 32)]).await;
        let mut sink = Running::start(dir.path(), &log);
        sink.reaches_the_end(&log).await;
        assert_eq!(sink.mirror.rows(), 19);
        let mut query = vec![0.0; DIMENSION];
        query[40] = 1.0;
        let hits = sink.mirror.search(&query, 1, 0.5, &Filter::none()).expect("a search");
        assert_eq!((hits.len(), hits[0].passage.as_str()), (1, "row 40"));
        sink.stop().await;
    }

    #[tokio::test]
    async fn a_mirror_that_is_ahead_of_the_log_is_filled_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = log(dir.path());
        publish(&log, vec![upsert(1, 1)]).await;
        let other = mirror(dir.path());
        let Outgoing::ByKey(record) = upsert(7, 900) else { unreachable!("by key") };
        let event = VectorEvent::from_record(&record).expect("readable");
        other.apply(vec![(0, 1000, event)]).await.expect("applied");
        other.close().await;
        let mut sink = Running::start(dir.path(), &log);
        sink.reaches_the_end(&log).await;
        let hits = sink.mirror.search(&[1.0; DIMENSION], 10, 0.0, &Filter::none()).expect("a search");
        assert_eq!(hits.into_iter().map(|hit| hit.key).collect::<Vec<_>>(), [key(1)]);
        sink.stop().await;
    }

    #[tokio::test]
    async fn a_span_ends_where_it_should_and_again_brings_back_what_is_missing() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = log(dir.path());
        publish(&log, (0..20).map(|id| upsert(id, 1 + id)).collect()).await;
        let level = log.vectors(REVISION).expect("a reader").ends();
        publish(&log, vec![upsert(40, 41)]).await;
        let mirror = mirror(dir.path());
        let run = async |span| {
            let reader = VectorsReader::Embedded(log.vectors(REVISION).expect("a reader"));
            let told = Told::default();
            let ended = run(mirror.clone(), reader, span, PipelineMetrics::new("faq"), Shutdown::new(), told.clone());
            tokio::time::timeout(Duration::from_secs(20), ended).await.expect("in time").expect("no error");
            told.positions.borrow().clone()
        };
        assert_eq!(run(Span::UpTo(level.clone())).await, level);
        assert_eq!((mirror.positions(), mirror.rows()), (level.clone(), 20));
        // It says that it has everything, and has nothing.
        mirror.reset("a test").await.expect("empty");
        mirror.apply_upto(vec![], level.clone()).await.expect("applied");
        assert_eq!(run(Span::UpTo(level.clone())).await, level);
        assert_eq!(mirror.rows(), 0);
        assert_eq!(run(Span::Again(level.clone())).await, level);
        assert_eq!((mirror.positions(), mirror.rows()), (level, 20));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_stepped_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = log(dir.path());
        let garbage = |key: &'static [u8], value: &'static [u8]| {
            let (key, value) = (Bytes::from_static(key), Some(Bytes::from_static(value)));
            Outgoing::To(0, Record { key, value, headers: vec![], timestamp_ms: 1 })
        };
        publish(&log, vec![garbage(b"{\"id\":1}", b"\xff\xff"), garbage(b"7", b""), upsert(2, 5)]).await;
        let mut sink = Running::start(dir.path(), &log);
        sink.reaches_the_end(&log).await;
        assert_eq!(sink.mirror.rows(), 1);
        publish(&log, vec![garbage(b"{\"id\":9}", b"\xff")]).await;
        sink.reaches_the_end(&log).await;
        sink.stop().await;
        assert_eq!(mirror(dir.path()).positions(), log.vectors(REVISION).expect("a reader").ends());
    }

    #[tokio::test]
    async fn damage_that_a_search_finds_is_mended_from_the_log() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = log(dir.path());
        publish(&log, (0..5).map(|id| upsert(id, 1 + id)).collect()).await;
        let mut sink = Running::start(dir.path(), &log);
        sink.reaches_the_end(&log).await;
        sink.mirror.damage_row(&key(3));
        let found = sink.mirror.search(&[1.0; DIMENSION], 10, 0.0, &Filter::none());
        assert!(matches!(found, Err(MirrorError::Damaged { .. })), "{found:?}");
        // Put aside, empty at first, then filled from the beginning.
        let mended = async {
            while sink.mirror.search(&[1.0; DIMENSION], 10, 0.0, &Filter::none()).map_or(0, |hits| hits.len()) < 5 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), mended).await.expect("in time");
        sink.reaches_the_end(&log).await;
        sink.stop().await;
    }
}
