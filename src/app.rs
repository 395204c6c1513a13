//! Puts the rooms together and owns every task. The only file that knows them all; holds no logic of theirs.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::capture::{self, Capture, CaptureError, Phase, ResyncRequest};
use crate::clock::now_ms;
use crate::config::Config;
use crate::control::{self, ControlError, Reply, Request};
use crate::embed::{Cache, Document, DocumentError, EmbedError, Embedder, LoadError, Worker, WorkerError};
use crate::freshness::{Freshness, Positions};
use crate::index::{self, Filter, Mirror, MirrorError, MirrorSettings, sink};
use crate::metrics::{self, PipelineMetrics};
use crate::progress_bar::Progress;
use crate::retry::Chain;
use crate::serve::health::{Component, Report, Status};
use crate::serve::{self, FilterValue, SearchAnswer, SearchError, SearchRequest, SearchResult, ServeError, Service};
use crate::shutdown::{self, Shutdown};
use crate::topic::embedded::{Log, Settings as LogSettings};
use crate::topic::{LogError, Offsets, SnapshotMarker};

/// Tasks have this long to drain after the signal.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);
/// Deleted keys are remembered this long, so that a reader that was away learns of the delete.
const TOMBSTONE_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// How often sizes are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How often what nobody needs any more is removed.
const PRUNE_EVERY: Duration = Duration::from_secs(10 * 60);
/// Resync requests that wait for capture: a person makes them one at a time.
const RESYNCS_WAITING: usize = 1;
/// The name of the store beside the process, in metrics and answers.
const LOCAL: &str = "local";

/// vecsync cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory cannot be used.
    #[error("use VECSYNC_DATA_DIR {path}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address is taken or not ours.
    #[error("listen on VECSYNC_LISTEN {address}: {remedy}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What to do.
        remedy: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The metrics registry cannot be installed.
    #[error("install the metrics registry")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The pipeline's templates are wrong.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The mirror failed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Capture cannot go on.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Embed cannot go on.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The store's sink cannot go on.
    #[error(transparent)]
    Sink(#[from] sink::SinkError),
    /// The query server cannot go on.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The control socket cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A task ended abnormally.
    #[error("the task {task} ended abnormally: {fault}")]
    Task {
        /// Which.
        task: &'static str,
        /// What is known.
        fault: String,
    },
    /// Signals of the operating system cannot be received.
    #[error("listen for signals")]
    Signals(#[source] io::Error),
}

/// Runs the whole pipeline and the query server until a signal or a fault that cannot be mended.
pub async fn run(config: Config) -> Result<(), AppError> {
    let started = Instant::now();
    make_data_dir(&config)?;
    let listener = listen(&config).await?;
    let server_settings = serve::Settings::load(&config.server)?;
    let document = Document::compile(&config.pipeline.document)?;

    // The two slow starts side by side.
    let (model, threads) = (config.model.clone(), cores());
    let loading = spawn_blocking(move || Embedder::load(&model, threads));
    let log_settings = log_settings(&config);
    let opening = spawn_blocking(move || Log::open(log_settings));
    let embedder = joined("load the model", loading.await)??;
    let log = joined("open the log", opening.await)??;
    // The log's lock says that the data directory is ours: now the socket in it may be replaced.
    let control = control::bind(&config.data_dir)?;
    let revision = embedder.revision(&config.pipeline.document);
    let mirror_settings = MirrorSettings {
        dir: config.data_dir.join("mirror").join(&revision),
        pipeline: config.pipeline.name.clone(),
        revision: revision.clone(),
        partitions: config.topics.partitions,
        filters: config.pipeline.filters.clone(),
    };
    let mirror = joined("open the mirror", spawn_blocking(move || Mirror::open(mirror_settings)).await)??;
    let cache = Cache::open(&config.data_dir.join("embeddings"));

    let prometheus = metrics::install(env!("CARGO_PKG_VERSION"), embedder.model_name())?;
    let pipeline_metrics = PipelineMetrics::new(&config.pipeline.name);
    let shutdown = Shutdown::new();
    let (status_sender, status) = watch::channel(capture::Status::default());
    let (stored_sender, stored) = watch::channel(mirror.positions());
    let (resync_sender, resyncs) = mpsc::channel(RESYNCS_WAITING);
    let mut freshness = Freshness::default();
    if log.capture_state()?.is_some_and(|state| state.snapshot == SnapshotMarker::Complete) {
        freshness.started_complete(log.changes_ends());
    }
    let shared = Arc::new(Shared {
        embedder: embedder.clone(),
        mirror: mirror.clone(),
        status: status.clone(),
        freshness: Mutex::new(freshness),
    });

    let mut tasks: JoinSet<(&'static str, Result<(), AppError>)> = JoinSet::new();
    let capture = capture_of(&config, named_columns(&config, &document), &log, &pipeline_metrics);
    spawn(&mut tasks, "capture", capture::run(capture, status_sender, resyncs, shutdown.clone()));
    let topic = format!("{}.{}.changes", config.topics.prefix, config.pipeline.name);
    let worker = Worker::new(embedder.clone(), &config.pipeline.document, cache, pipeline_metrics.clone(), &topic)?;
    spawn(&mut tasks, "embed", worker.run(log.embedder(&revision)?, shutdown.clone()));
    let reader = log.vectors(&revision)?;
    let storing = sink::run(mirror.clone(), reader, pipeline_metrics.clone(), shutdown.clone(), stored_sender);
    spawn(&mut tasks, "index", storing);
    let service = Service {
        pipeline: config.pipeline.name.clone(),
        search: Some(Arc::new({
            let shared = Arc::clone(&shared);
            move |request| {
                let shared = Arc::clone(&shared);
                Box::pin(async move { shared.search(request).await })
            }
        })),
        health: Arc::new({
            let shared = Arc::clone(&shared);
            move || shared.report()
        }),
        metrics: Arc::new({
            let prometheus = prometheus.clone();
            move || prometheus.render()
        }),
    };
    spawn(&mut tasks, "serve", serve::run(listener, service, server_settings, shutdown.clone()));
    let watching = Watching {
        shared: Arc::clone(&shared),
        log: log.clone(),
        revision: revision.clone(),
        stored,
        data_dir: config.data_dir.clone(),
        metrics: pipeline_metrics,
        registry: prometheus,
    };
    spawn(&mut tasks, "freshness", watching.run(shutdown.clone()));
    let handler = control_handler(resync_sender);
    let answering = control::run(control, handler, shutdown.clone());
    spawn(&mut tasks, "control", async { Ok::<_, ControlError>(answering.await) });
    tracing::info!(
        pipeline = config.pipeline.name,
        model = embedder.model_name(),
        revision,
        rows = mirror.rows(),
        "started in {} ms",
        started.elapsed().as_millis()
    );

    let ended = supervise(&mut tasks, &shutdown).await;
    let closed = log.close().await;
    mirror.close().await;
    let _ = std::fs::remove_file(control::path(&config.data_dir));
    ended?;
    closed?;
    Ok(())
}

/// Prepares a resync for the next `run` on this data directory. None may be running on it.
pub async fn prepare_resync(config: Config) -> Result<(), AppError> {
    make_data_dir(&config)?;
    let log_settings = log_settings(&config);
    let log = joined("open the log", spawn_blocking(move || Log::open(log_settings)).await)??;
    let metrics = PipelineMetrics::new(&config.pipeline.name);
    let prepared = capture::prepare_resync(&capture_of(&config, vec![], &log, &metrics)).await;
    log.close().await?;
    Ok(prepared?)
}

/// What the query server and the commands need.
struct Shared {
    embedder: Embedder,
    mirror: Mirror,
    status: watch::Receiver<capture::Status>,
    freshness: Mutex<Freshness>,
}

impl Shared {
    async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, SearchError> {
        let known = self.mirror.fields();
        if let Some((field, _)) = request.filter.iter().find(|(field, _)| !known.contains(field)) {
            return Err(SearchError::UnknownFilter { field: field.clone(), known: known.to_vec() });
        }
        let filter = request.filter.into_iter().map(condition).collect::<Result<_, _>>().map(Filter::new)?;
        let query = match self.embedder.query(&request.query).await {
            Ok(query) => query.vector,
            // Nothing in the query is a word to the model, so nothing is near it.
            Err(EmbedError::Empty) => return Ok(self.answer(vec![])),
            Err(EmbedError::Busy { .. }) => return Err(SearchError::Overloaded),
            Err(error) => return Err(SearchError::Internal(Chain(&error).to_string())),
        };
        let mirror = self.mirror.clone();
        let found = spawn_blocking(move || mirror.search(&query, request.limit, request.min_score, &filter)).await;
        let hits = match found {
            Ok(Ok(hits)) => hits,
            Ok(Err(error)) => {
                return Err(SearchError::Unavailable { reason: format!("the local store: {error}"), retry_after_s: 5 });
            }
            Err(error) => return Err(SearchError::Internal(error.to_string())),
        };
        let results: Vec<_> = hits
            .into_iter()
            .map(|hit| SearchResult { id: hit.key.id(), score: hit.score, passage: hit.passage, payload: hit.payload })
            .collect();
        let answer = self.answer(results);
        if answer.results.is_empty() && !self.freshness().is_loaded() {
            // An index that is still being filled must not say that there is nothing to be found.
            let reason = format!("the initial load is not complete: {} rows are searchable so far", self.mirror.rows());
            return Err(SearchError::Unavailable { reason, retry_after_s: 1 });
        }
        Ok(answer)
    }

    fn answer(&self, results: Vec<SearchResult>) -> SearchAnswer {
        let freshness = self.freshness();
        let staleness_ms = freshness.as_of_ms().map(|as_of| u64::try_from(now_ms() - as_of).unwrap_or(0));
        let degraded = !freshness.is_loaded() || self.status.borrow().phase != Phase::Streaming;
        SearchAnswer { results, served_by: LOCAL, degraded, staleness_ms }
    }

    fn freshness(&self) -> std::sync::MutexGuard<'_, Freshness> {
        self.freshness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Report {
        let status = self.status.borrow().clone();
        let (loaded, as_of_ms) = {
            let freshness = self.freshness();
            (freshness.is_loaded(), freshness.as_of_ms())
        };
        let mut source = match &status.phase {
            Phase::Streaming => Component::new("source", Status::Healthy),
            Phase::Starting => faulty("source", "connecting"),
            Phase::Standby(why) | Phase::Retrying(why) | Phase::Refused(why) => faulty("source", why),
        };
        source.details.insert("snapshot_complete".into(), json!(status.snapshot.complete));
        source.details.insert("snapshot_rows".into(), json!(status.snapshot.rows));
        source.details.insert("snapshot_rows_expected".into(), json!(status.snapshot.expected));
        let mut model = Component::new("model", Status::Healthy);
        model.details.insert("name".into(), json!(self.embedder.model_name()));
        let mut local = if loaded {
            Component::new(serve::health::LOCAL, Status::Healthy)
        } else {
            faulty(serve::health::LOCAL, "the initial load is not complete")
        };
        local.details.insert("rows".into(), json!(self.mirror.rows()));
        local.details.insert("points".into(), json!(self.mirror.points()));
        local.details.insert("loaded".into(), json!(loaded));
        local.details.insert("staleness_ms".into(), json!(as_of_ms.map(|as_of| (now_ms() - as_of).max(0))));
        let qdrant = Component::new(serve::health::QDRANT, Status::Disabled);
        Report { components: vec![source, model, qdrant, local], ready: Ok(()), serves: true }
    }
}

fn condition((field, value): (String, FilterValue)) -> Result<(String, index::FilterValue), SearchError> {
    let value = match value {
        FilterValue::Text(text) => index::FilterValue::from_text(&text),
        FilterValue::Json(value) => match index::FilterValue::from_json(value) {
            Some(value) => value,
            None => return Err(SearchError::BadFilter { field, wanted: "a string, a number or a boolean".into() }),
        },
    };
    Ok((field, value))
}

fn faulty(name: &'static str, why: &str) -> Component {
    Component { error: Some(why.to_owned()), ..Component::new(name, Status::Degraded) }
}

/// Follows how fresh the mirror is, measures, prunes, shows the initial load.
struct Watching {
    shared: Arc<Shared>,
    log: Log,
    revision: String,
    stored: watch::Receiver<Offsets>,
    data_dir: PathBuf,
    metrics: PipelineMetrics,
    registry: metrics_exporter_prometheus::PrometheusHandle,
}

impl Watching {
    async fn run(mut self, shutdown: Shutdown) -> Result<(), LogError> {
        let mut status = self.shared.status.clone();
        let mut measure = tokio::time::interval(MEASURE_EVERY);
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        let mut bar: Option<Progress> = None;
        loop {
            tokio::select! {
                biased;
                () = shutdown.raised() => return Ok(()),
                Ok(()) = status.changed() => {
                    if let Some(current) = status.borrow_and_update().current.clone() {
                        self.shared.freshness().captured(current.as_of_ms, current.ends);
                    }
                }
                Ok(()) = self.stored.changed() => { self.stored.borrow_and_update(); }
                _ = measure.tick() => self.measure().await,
                _ = prune.tick() => {
                    let stored = self.stored.borrow().clone();
                    let removed = self.log.prune(now_ms(), &self.revision, &stored).await?;
                    if removed > 0 {
                        tracing::debug!(removed, "log pruned");
                    }
                }
            }
            let (embedded, vector_ends) = self.log.progress(&self.revision)?;
            let stored = self.stored.borrow().clone();
            self.shared.freshness().advance(&Positions { embedded, vector_ends, stored });
            self.show_load(&mut bar);
        }
    }

    fn show_load(&self, bar: &mut Option<Progress>) {
        let loaded = self.shared.freshness().is_loaded();
        let snapshot = self.shared.status.borrow().snapshot.clone();
        match bar {
            Some(progress) => {
                progress.set_total(snapshot.expected);
                progress.set(self.shared.mirror.rows());
                if loaded && let Some(progress) = bar.take() {
                    progress.finish();
                }
            }
            None if !loaded && snapshot.expected > 0 => {
                *bar = Some(Progress::start(snapshot.expected, "rows searchable"));
            }
            None => {}
        }
    }

    async fn measure(&self) {
        self.registry.run_upkeep();
        let (mirror, data_dir) = (self.shared.mirror.clone(), self.data_dir.clone());
        let measured = spawn_blocking(move || (mirror.size_on_disk().unwrap_or(0), free_bytes(&data_dir))).await;
        if let Ok((bytes, free)) = measured {
            self.metrics.store(LOCAL, self.shared.mirror.points(), bytes);
            metrics::data_dir_free(free);
        }
    }
}

fn control_handler(resyncs: mpsc::Sender<ResyncRequest>) -> control::Handler {
    Arc::new(move |Request::Sync| {
        let resyncs = resyncs.clone();
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            if resyncs.send(answer).await.is_err() {
                return Reply::Failed("the resync did not begin: capture has ended".into());
            }
            match answered.await {
                Ok(Ok(())) => Reply::Done(Value::Null),
                Ok(Err(reason)) => Reply::Failed(format!("the resync did not begin: {reason}")),
                Err(_) => Reply::Failed("the resync did not begin: capture has ended".into()),
            }
        })
    })
}

/// Waits for a signal or for a task that ends too early, then for all tasks to drain.
async fn supervise(
    tasks: &mut JoinSet<(&'static str, Result<(), AppError>)>,
    shutdown: &Shutdown,
) -> Result<(), AppError> {
    let first = tokio::select! {
        signal = shutdown::signal() => {
            tracing::info!("{}: draining", signal.map_err(AppError::Signals)?);
            Ok(())
        }
        Some(ended) = tasks.join_next() => match verdict(ended) {
            Ok(task) => Err(AppError::Task { task, fault: "it ended without being told to".into() }),
            Err(error) => Err(error),
        },
    };
    shutdown.raise();
    let drained = async {
        let mut result = first;
        while let Some(ended) = tasks.join_next().await {
            result = result.and(verdict(ended).map(|_| ()));
        }
        result
    };
    match tokio::time::timeout(DRAIN_DEADLINE, drained).await {
        Ok(result) => result,
        Err(_) => Err(AppError::Task {
            task: "drain",
            fault: format!("tasks were still busy after {} s", DRAIN_DEADLINE.as_secs()),
        }),
    }
}

type Ended = Result<(&'static str, Result<(), AppError>), tokio::task::JoinError>;

fn verdict(ended: Ended) -> Result<&'static str, AppError> {
    let (task, result) = ended.map_err(|error| AppError::Task { task: "of the pipeline", fault: error.to_string() })?;
    result.map(|()| task)
}

fn spawn<E: Into<AppError>>(
    tasks: &mut JoinSet<(&'static str, Result<(), AppError>)>,
    name: &'static str,
    task: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    tasks.spawn(async move { (name, task.await.map_err(Into::into)) });
}

fn joined<T>(task: &'static str, ended: Result<T, tokio::task::JoinError>) -> Result<T, AppError> {
    ended.map_err(|error| AppError::Task { task, fault: error.to_string() })
}

fn make_data_dir(config: &Config) -> Result<(), AppError> {
    let path = &config.data_dir;
    std::fs::create_dir_all(path).map_err(|source| AppError::DataDir { path: path.clone(), source })
}

fn log_settings(config: &Config) -> LogSettings {
    LogSettings {
        dir: config.data_dir.join("log"),
        prefix: config.topics.prefix.clone(),
        pipeline: config.pipeline.name.clone(),
        partitions: config.topics.partitions,
        tombstone_retention: TOMBSTONE_RETENTION,
    }
}

fn capture_of(config: &Config, columns: Vec<(String, String)>, log: &Log, metrics: &PipelineMetrics) -> Capture {
    Capture {
        database: config.database.clone(),
        source: config.pipeline.source.clone(),
        pipeline: config.pipeline.name.clone(),
        columns,
        log: log.clone(),
        metrics: metrics.clone(),
    }
}

async fn listen(config: &Config) -> Result<TcpListener, AppError> {
    let address = config.server.listen;
    TcpListener::bind(address).await.map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::AddrInUse => "another program has it; stop that, or set another port",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege; set a higher one",
            _ => "set another address",
        };
        AppError::Listen { address, remedy, source }
    })
}

/// Every column that the pipeline names, each with where it names it.
fn named_columns(config: &Config, document: &Document) -> Vec<(String, String)> {
    let pipeline = &config.pipeline;
    let mut columns: Vec<(String, String)> =
        document.columns().into_iter().map(|column| ("document".to_owned(), column)).collect();
    columns.extend(pipeline.filters.iter().map(|filter| ("index.filters".to_owned(), filter.clone())));
    columns
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
}
