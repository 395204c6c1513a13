//! Keeps Qdrant up with `vectors`, and knows how Qdrant is: whether it answers, which generation searches may ask, how far
//! that one is. Decides nothing about versions, and nothing about who is asked.
//!
//! **Invariant:** searches ask only the generation that the alias names, and only where it is of this process's revision;
//! another one takes its place when it is whole.

mod rebuild;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::arrivals::Arrivals;
use super::batch::{Counts, Working, decode, lag, next};
use super::qdrant::{Look, QdrantError, QdrantGeneration, QdrantGenerations, QdrantSettings, QdrantStore};
use crate::clock::now_ms;
use crate::event::VectorEvent;
use crate::metrics::PipelineMetrics;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{Log, LogError, Offsets, Partition, Stored, VectorsReader};

pub use rebuild::{RebuildRequest, Rebuilt, SearchesCompared};

/// Qdrant in the metrics' label `store`, and in answers.
pub const STORE: &str = "qdrant";

/// Records taken from the log at once: enough for several full requests, few enough for a search to see the first soon.
const BATCH_RECORDS_MAX: usize = 1000;
/// Bytes taken from the log at once. Three batches are in memory at a time: read, decoded, on its way.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// How often Qdrant is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a look may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long a count may take.
const COUNT_PATIENCE: Duration = Duration::from_millis(1500);
/// Looks between two countings of the points: an exact count goes over them all.
const COUNT_EVERY: u32 = 5;
/// How often a sink that has nothing to do looks after what it owes.
const TEND_EVERY: Duration = Duration::from_millis(500);
/// Between two prunings of tombstones.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// Tombstones are kept this long: longer than any write can be on its way.
const TOMBSTONES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the end of the process waits for a write that is on its way. One that is given up is made again.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Qdrant as one process sees it. Clones are the same.
#[derive(Clone)]
pub struct Primary(Arc<Inner>);

struct Inner {
    /// Made when it is known which log it is.
    generations: OnceCell<QdrantGenerations>,
    log: Log,
    settings: QdrantSettings,
    metrics: PipelineMetrics,
    arrivals: Arrivals,
    state: watch::Sender<PrimaryState>,
}

/// How Qdrant is.
#[derive(Clone, Debug, Default)]
pub struct PrimaryState {
    /// What the last look that was answered has shown.
    pub look: Option<Look>,
    /// The generation that searches may ask.
    pub searchable: Option<QdrantGeneration>,
    /// Whether that one has all that the mirror had a look before.
    pub is_current: bool,
    /// Points that can be found in it.
    pub points: Option<u64>,
    /// Why it cannot be asked.
    pub fault: Option<String>,
    /// Why nothing is written; of a process that writes.
    pub sink_fault: Option<String>,
    /// How far it is filled; of a process that writes.
    pub taken: Option<Taken>,
}

impl PrimaryState {
    /// The points as they are now; `None` while it cannot be asked.
    pub fn points_now(&self) -> Option<u64> {
        self.points.filter(|_| self.fault.is_none())
    }
}

/// How far a generation is filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Which.
    pub generation: u32,
    /// Whether it is the one that the alias names, and not one that is being filled.
    pub is_asked: bool,
    /// The positions up to which all is durable.
    pub positions: Offsets,
    /// The moment up to which it holds everything, by the log's heartbeats; milliseconds since the Unix epoch.
    pub as_of_ms: Option<i64>,
    /// Records of `vectors` that it has not taken.
    pub lag: u64,
}

/// Says of a generation, given by its number, that it has held the whole table at some moment, and how many rows it must have
/// at least; `None`: not yet.
pub type IsWhole = Arc<dyn Fn(u32) -> Option<u64> + Send + Sync>;

/// What stops a round. Each is tried again.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Qdrant(#[from] QdrantError),
    #[error("decode records of vectors")]
    Task(#[from] JoinError),
    #[error(
        "fill a new generation in Qdrant: the log gave {found} rows where {wanted} are searchable, so nothing was switched: \
         `vecsync sync` publishes the table again"
    )]
    TooFew { found: u64, wanted: u64 },
    #[error("write Qdrant collection {0}: the alias does not name it any more")]
    Unnamed(String),
    #[error("another vecsync, of another revision or log, has put its own generation there, and this one stands down")]
    Superseded(#[source] QdrantError),
    #[error("write Qdrant collection {0}: it is as it was earlier, or was emptied")]
    WentBack(String),
}

/// Until when a generation is written to; shutdown ends it in any case.
enum Until<'a> {
    /// Until somebody asks for another generation.
    Asked(&'a mut mpsc::Receiver<RebuildRequest>),
    /// Until it is whole.
    Whole(&'a IsWhole),
    /// Until it has all below these positions; nothing behind them is taken. Told how much of how much is passed.
    Reached(&'a Offsets, &'a watch::Sender<(u64, u64)>),
}

/// Why a run of writes ended.
enum Ended {
    Shutdown,
    Whole,
    Reached,
    Asked(RebuildRequest),
}

/// A batch that was read: what is in it, and the positions behind it.
struct Batch {
    events: Vec<(Partition, u64, VectorEvent)>,
    counts: Counts,
    positions: Offsets,
}

/// A batch that was applied, or was not, and how long it took.
struct Applied {
    result: Result<(), QdrantError>,
    took: Duration,
    counts: Counts,
}

impl Primary {
    /// Prepares a connection; makes none. Called inside of a runtime. `settings.collection` is the alias; `arrivals` are told
    /// of what it has.
    pub fn new(
        settings: QdrantSettings,
        log: Log,
        metrics: PipelineMetrics,
        arrivals: Arrivals,
    ) -> Result<Primary, QdrantError> {
        // What is wrong with the address is told at once.
        QdrantGenerations::new(settings.clone())?;
        let (state, _) = watch::channel(PrimaryState::default());
        Ok(Primary(Arc::new(Inner { generations: OnceCell::new(), log, settings, metrics, arrivals, state })))
    }

    /// How it is now.
    pub fn state(&self) -> PrimaryState {
        self.0.state.borrow().clone()
    }

    /// Told whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<PrimaryState> {
        self.0.state.subscribe()
    }

    /// What it was made for.
    pub fn settings(&self) -> &QdrantSettings {
        &self.0.settings
    }

    /// The store that searches may ask now: it answers, and is not behind.
    pub fn searchable(&self) -> Option<QdrantStore> {
        let state = self.0.state.borrow();
        let generation = state.searchable.as_ref().filter(|_| state.is_current && state.fault.is_none());
        generation.map(|generation| generation.store.clone())
    }

    /// Looks at Qdrant until shutdown. `mirror` gives the positions of the mirror.
    pub async fn watch(self, mirror: impl Fn() -> Offsets, shutdown: Shutdown) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut open, mut before, mut round) = (None, mirror(), 0_u32);
        loop {
            tokio::select! {
                biased;
                () = shutdown.raised() => return,
                _ = ticks.tick() => {}
            }
            let seen = timeout(LOOK_PATIENCE, self.0.look(&mut open, round.is_multiple_of(COUNT_EVERY))).await;
            let seen = seen.unwrap_or_else(|_| {
                let (operation, collection) = ("look at", self.0.settings.collection.clone());
                Err(QdrantError::Silent { operation, collection, after: LOOK_PATIENCE }.into())
            });
            let now = mirror();
            self.0.state.send_modify(|state| match seen {
                Ok((look, points)) => {
                    if let Some(fault) = state.fault.take() {
                        tracing::info!("Qdrant answers again; the fault was: {fault}");
                    }
                    let has = |generation: &QdrantGeneration| {
                        let positions = generation.store.positions();
                        positions.len() == before.len() && positions.iter().zip(&before).all(|(has, had)| has >= had)
                    };
                    state.is_current = open.as_ref().is_some_and(has);
                    state.searchable.clone_from(&open);
                    (state.look, state.points) = (Some(look), points.or(state.points).filter(|_| open.is_some()));
                }
                Err(error) => {
                    let fault = Chain(&error).to_string();
                    if state.fault.is_none() {
                        tracing::warn!("{fault}");
                    }
                    state.fault = Some(fault);
                }
            });
            (before, round) = (now, round.wrapping_add(1));
        }
    }

    /// Writes what comes in `vectors` until shutdown. Faults are tried again for ever: Qdrant may be away as long as it
    /// likes. Another generation is filled beside the current one where that is of another revision, or where the log has
    /// forgotten what it lacks; it takes the place of the current one when `is_whole` says so. Who asks for a new generation
    /// gets one that is filled from the beginning of the log.
    pub async fn follow(self, is_whole: IsWhole, mut requests: mpsc::Receiver<RebuildRequest>, shutdown: Shutdown) {
        let (mut retry, mut had_it) = (Retry::new(STORE), false);
        let given_up = async || {
            shutdown.raised().await;
            tokio::time::sleep(END_PATIENCE).await;
        };
        loop {
            let ended = tokio::select! {
                ended = self.0.follow(&is_whole, &mut requests, &mut retry, &mut had_it, &shutdown) => ended,
                // A call that hangs does not hold the end up: what it did is found out at the next start.
                () = given_up() => return,
            };
            let fault = match ended {
                Ok(()) => return,
                Err(fault) => Chain(&fault).to_string(),
            };
            self.0.state.send_modify(|state| state.sink_fault = Some(fault.clone()));
            tokio::select! {
                waited = retry.wait(&fault, &shutdown) => if !waited {
                    return;
                },
                () = self.is_back() => {}
            }
        }
    }

    /// Waits until Qdrant, which did not answer, answers again.
    async fn is_back(&self) {
        let mut state = self.0.state.subscribe();
        let away = state.wait_for(|state| state.fault.is_some()).await.is_ok();
        if !away || state.wait_for(|state| state.fault.is_none()).await.is_err() {
            std::future::pending().await
        }
    }
}

impl std::fmt::Debug for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Primary").field("alias", &self.0.settings.collection).finish_non_exhaustive()
    }
}

impl Inner {
    /// The generations that are filled from this log.
    async fn generations(&self) -> Result<&QdrantGenerations, Fault> {
        let make = async || {
            let log = Some(self.log.id().await?);
            Ok(QdrantGenerations::new(QdrantSettings { log, ..self.settings.clone() })?)
        };
        self.generations.get_or_try_init(make).await
    }

    /// Looks what the alias names and how far that is; `open` is what it named before.
    async fn look(&self, open: &mut Option<QdrantGeneration>, counts: bool) -> Result<(Look, Option<u64>), Fault> {
        let generations = self.generations().await?;
        let look = generations.look().await?;
        let known = open.take().filter(|known| Some(known.number) == look.named);
        let generation = known.or_else(|| look.named.map(|number| generations.generation(number)));
        let Some(generation) = generation else { return Ok((look, None)) };
        match generation.store.open().await {
            Ok(()) => {}
            // Of another revision: no query of this process fits it.
            Err(QdrantError::Outdated { .. }) => return Ok((look, None)),
            Err(error) => return Err(error.into()),
        }
        // Not known for once is no fault: on a large collection it takes its time.
        let points = match counts {
            true => timeout(COUNT_PATIENCE, generation.store.points()).await.ok().and_then(Result::ok),
            false => None,
        };
        *open = Some(generation);
        Ok((look, points))
    }

    async fn follow(
        &self,
        is_whole: &IsWhole,
        requests: &mut mpsc::Receiver<RebuildRequest>,
        retry: &mut Retry,
        had_it: &mut bool,
        shutdown: &Shutdown,
    ) -> Result<(), Fault> {
        let generations = self.generations().await?;
        let current = match generations.current_or_first().await {
            Ok(current) => Some(current),
            // Who came later, with another revision or log, has put its own generation there: two that take turns would
            // fill one after the other for ever.
            Err(error @ QdrantError::Outdated { .. }) if *had_it => return Err(Fault::Superseded(error)),
            Err(error @ QdrantError::Outdated { .. }) => {
                tracing::info!("{}: another generation is filled beside it", Chain(&error));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let mut reader = self.log.vectors(&self.settings.revision)?;
        let taken_up = match current {
            Some(current) if self.take_up(&current, &mut reader).await? => Some(current),
            _ => None,
        };
        let mut current = match taken_up {
            Some(current) => current,
            None => {
                let next = self.next(&mut reader).await?;
                let filled = tokio::select! {
                    filled = self.write(&next, &mut reader, Until::Whole(is_whole), retry, shutdown) => filled?,
                    () = refuse(requests) => return Ok(()),
                };
                if let Ended::Shutdown = filled {
                    return Ok(());
                }
                self.name(&next).await?;
                let collection = next.store.collection();
                tracing::info!(collection, "a new generation is whole, and searches ask it; the one before is kept");
                next
            }
        };
        *had_it = true;
        loop {
            match self.write(&current, &mut reader, Until::Asked(requests), retry, shutdown).await? {
                // Who asked may have gone meanwhile.
                Ended::Asked(request) if request.done.is_closed() => {}
                Ended::Asked(request) => {
                    (current, reader) = self.rebuild((current, reader), request, retry, shutdown).await?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Lets the alias name a generation, and searches ask it from now on.
    async fn name(&self, generation: &QdrantGeneration) -> Result<(), Fault> {
        let generations = self.generations().await?;
        generations.switch(generation).await?;
        // A store of its own, as a look would open it.
        let seen = generations.generation(generation.number);
        seen.store.open().await?;
        self.state.send_modify(|state| state.searchable = Some(seen));
        Ok(())
    }

    /// Takes the log up where the generation is. `false`: the log has forgotten what it lacks, or is another log.
    async fn take_up(&self, generation: &QdrantGeneration, reader: &mut VectorsReader) -> Result<bool, Fault> {
        match reader.seek(&generation.store.positions()).await {
            Ok(()) => Ok(true),
            Err(error @ (LogError::Ahead { .. } | LogError::Expired { .. })) => {
                tracing::warn!("{}: another generation is filled beside it", Chain(&error));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A generation that is to be filled, and the log at its place: one that was begun before, or a new one.
    async fn next(&self, reader: &mut VectorsReader) -> Result<QdrantGeneration, Fault> {
        let generations = self.generations().await?;
        if let Some(begun) = generations.begun().await? {
            if self.take_up(&begun, reader).await? {
                return Ok(begun);
            }
            generations.discard(begun.number).await?;
        }
        let next = generations.add().await?;
        reader.seek(&next.store.positions()).await?;
        Ok(next)
    }

    /// Writes what the log gives. Ends with the log at the generation's own positions: what was read beyond them, and not
    /// written, is read again by whoever goes on.
    async fn write(
        &self,
        generation: &QdrantGeneration,
        reader: &mut VectorsReader,
        until: Until<'_>,
        retry: &mut Retry,
        shutdown: &Shutdown,
    ) -> Result<Ended, Fault> {
        let ended = self.write_until(generation, reader, until, retry, shutdown).await?;
        if !matches!(ended, Ended::Shutdown) {
            reader.seek(&generation.store.positions()).await?;
        }
        Ok(ended)
    }

    /// As `write`, but for where the log stands. While a batch is being applied the next one is read and decoded.
    async fn write_until(
        &self,
        generation: &QdrantGeneration,
        reader: &mut VectorsReader,
        mut until: Until<'_>,
        retry: &mut Retry,
        shutdown: &Shutdown,
    ) -> Result<Ended, Fault> {
        let mut tend = interval(TEND_EVERY);
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let since = Instant::now();
        let (mut pruned, mut wrote, mut tended) = (since, since, since);
        let mut applying: Option<Working<Applied>> = None;
        let mut decoding: Option<Working<Result<Batch, JoinError>>> = None;
        let mut decoded: Option<Batch> = None;
        self.tell(generation, reader, &until);
        loop {
            if applying.is_none() {
                // Also while there is always something to write.
                if tended.elapsed() >= TEND_EVERY {
                    tended = Instant::now();
                    if let Some(ended) = self.tend(generation, &mut until, (since, wrote), &mut pruned).await? {
                        return Ok(ended);
                    }
                }
                match decoded.take() {
                    Some(batch) => applying = Some(Box::pin(apply(generation.store.clone(), batch))),
                    None if decoding.is_none() && until.is_reached(reader) => return Ok(Ended::Reached),
                    None => {}
                }
            }
            tokio::select! {
                biased;
                Some(applied) = next(&mut applying) => {
                    self.applied(generation, applied, &until)?;
                    self.tell(generation, reader, &until);
                    retry.reset();
                    wrote = Instant::now();
                }
                Some(batch) = next(&mut decoding), if decoded.is_none() => decoded = Some(batch?),
                () = shutdown.raised() => {
                    if let Some(applying) = applying
                        && let Ok(applied) = timeout(END_PATIENCE, applying).await
                    {
                        self.applied(generation, applied, &until)?;
                    }
                    return Ok(Ended::Shutdown);
                }
                stored = reader.next(BATCH_RECORDS_MAX, BATCH_BYTES_MAX), if decoding.is_none() => {
                    decoding = Some(decode_apart(stored?, reader.positions(), until.positions(), self.arrivals.clone()));
                }
                _ = tend.tick() => {}
            }
        }
    }

    /// Looks after what is owed beside the writing, and whether the writing is to end.
    async fn tend(
        &self,
        generation: &QdrantGeneration,
        until: &mut Until<'_>,
        (since, wrote): (Instant, Instant),
        pruned: &mut Instant,
    ) -> Result<Option<Ended>, Fault> {
        let collection = || generation.store.collection().to_owned();
        match until {
            Until::Whole(is_whole) => {
                if let Some(rows_min) = is_whole(generation.number)
                    && generation.store.rows().await? >= rows_min
                {
                    return Ok(Some(Ended::Whole));
                }
            }
            Until::Asked(_) if self.names_another(generation.number, since) => {
                return Err(Fault::Unnamed(collection()));
            }
            // There may be nothing to write for hours, so the writes themselves would not find it.
            Until::Asked(_) if self.went_back(generation, wrote) => return Err(Fault::WentBack(collection())),
            Until::Asked(requests) => {
                if let Ok(request) = requests.try_recv() {
                    return Ok(Some(Ended::Asked(request)));
                }
            }
            Until::Reached(..) => {}
        }
        generation.store.tidy().await?;
        if pruned.elapsed() >= PRUNE_EVERY {
            *pruned = Instant::now();
            let kept_ms = i64::try_from(TOMBSTONES_KEPT.as_millis()).unwrap_or(i64::MAX);
            let count = generation.store.prune(now_ms().saturating_sub(kept_ms)).await?;
            tracing::debug!(count, "tombstones in Qdrant pruned");
        }
        Ok(None)
    }

    /// Whether a look that began later than that has shown that the alias names something else, or is gone.
    fn names_another(&self, generation: u32, since: Instant) -> bool {
        let state = self.state.borrow();
        state.look.as_ref().is_some_and(|look| look.at > since && look.named != Some(generation))
    }

    /// Whether a look that began later than the last write has shown less than was written.
    fn went_back(&self, generation: &QdrantGeneration, wrote: Instant) -> bool {
        let state = self.state.borrow();
        let is_later = state.look.as_ref().is_some_and(|look| look.at > wrote);
        let seen = state.searchable.as_ref().filter(|seen| is_later && seen.number == generation.number);
        seen.is_some_and(|seen| {
            let (seen, written) = (seen.store.positions(), generation.store.positions());
            seen.iter().zip(&written).any(|(seen, written)| seen < written)
        })
    }

    /// Counts what was applied.
    fn applied(&self, generation: &QdrantGeneration, applied: Applied, until: &Until<'_>) -> Result<(), QdrantError> {
        let Applied { result, took, mut counts } = applied;
        self.metrics.store_request(STORE, "upsert", result.is_ok(), took);
        result?;
        counts.log(&self.metrics, STORE, generation.store.collection());
        if let Until::Asked(_) = until {
            counts.report_latency(&self.metrics, STORE);
            self.arrivals.reached(STORE, std::mem::take(&mut counts.last));
        }
        Ok(())
    }

    /// Tells how far a generation is.
    fn tell(&self, generation: &QdrantGeneration, reader: &VectorsReader, until: &Until<'_>) {
        let positions = generation.store.positions();
        if let Until::Reached(all, passed) = until {
            passed.send_replace((positions.iter().sum(), all.iter().sum()));
            return;
        }
        let lag = lag(&reader.ends(), &positions);
        self.metrics.sink_lag(STORE, lag);
        self.arrivals.lags(STORE, lag);
        let is_asked = matches!(until, Until::Asked(_));
        let as_of_ms = generation.store.as_of_ms();
        let taken = Taken { generation: generation.number, is_asked, as_of_ms, lag, positions };
        self.state.send_modify(|state| (state.taken, state.sink_fault) = (Some(taken), None));
    }
}

impl Until<'_> {
    /// Whether all was read that is wanted: a partition whose log ends earlier has nothing more to give.
    fn is_reached(&self, reader: &VectorsReader) -> bool {
        let Until::Reached(wanted, _) = self else { return false };
        let (positions, ends) = (reader.positions(), reader.ends());
        positions.iter().zip(*wanted).zip(&ends).all(|((position, wanted), end)| position >= wanted || position >= end)
    }

    /// Nothing behind these is taken.
    fn positions(&self) -> Option<Offsets> {
        match self {
            Until::Reached(positions, _) => Some((*positions).clone()),
            Until::Asked(_) | Until::Whole(_) => None,
        }
    }
}

/// Answers requests that come while a generation is being filled anyway. Never ends.
async fn refuse(requests: &mut mpsc::Receiver<RebuildRequest>) {
    while let Some(request) = requests.recv().await {
        let reason = "a new generation in Qdrant is being filled already; it is asked when it has the whole table";
        let _ = request.done.send(Err(reason.to_owned()));
    }
    std::future::pending().await
}

async fn apply(store: QdrantStore, batch: Batch) -> Applied {
    let Batch { events, counts, positions } = batch;
    let since = Instant::now();
    let result = store.apply_upto(events, positions).await.map(|_| ());
    Applied { result, took: since.elapsed(), counts }
}

/// Decodes where it holds nobody up; what stands behind `until` is left out.
fn decode_apart(
    mut stored: Vec<Stored>,
    mut positions: Offsets,
    until: Option<Offsets>,
    arrivals: Arrivals,
) -> Working<Result<Batch, JoinError>> {
    if let Some(until) = until {
        stored.retain(|stored| until.get(usize::from(stored.partition)).is_some_and(|end| stored.offset < *end));
        positions = positions.iter().zip(&until).map(|(position, end)| *position.min(end)).collect();
    }
    let decoding = spawn_blocking(move || {
        // The mirror's sink counts what cannot be read.
        let (events, counts) =
            decode(stored, None, Some(&arrivals), |partition, offset, event| (partition, offset, event));
        Batch { events, counts, positions }
    });
    Box::pin(decoding)
}
