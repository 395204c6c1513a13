//! Puts the rooms together and owns every task. The only room that knows them all; holds no logic of theirs.

mod serving;
mod watching;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::capture::{self, Capture, CaptureError, ColumnCheck, ResyncRequest};
use crate::config::Config;
use crate::control::{self, ControlError, Reply, Request};
use crate::embed::{Cache, Document, DocumentError, Embedder, LoadError, Worker, WorkerError};
use crate::freshness::Freshness;
use crate::index::{Mirror, MirrorError, MirrorSettings, sink};
use crate::metrics::{self, PipelineMetrics};
use crate::serve::{self, ServeError, Service};
use crate::shutdown::{self, Shutdown};
use crate::topic::embedded::{EmbedLog, Log, Settings as LogSettings};
use crate::topic::{LogError, SnapshotMarker};

use serving::Shared;
use watching::Watching;

/// Tasks have this long to drain after the signal.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);
/// Deleted keys are remembered this long, so that a reader that was away learns of the delete.
const TOMBSTONE_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
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
    /// Capture cannot go on. Boxed: it is much larger than the others.
    #[error(transparent)]
    Capture(Box<CaptureError>),
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

impl From<CaptureError> for AppError {
    fn from(error: CaptureError) -> Self {
        AppError::Capture(Box::new(error))
    }
}

/// Runs the whole pipeline and the query server until a signal or a fault that cannot be mended.
pub async fn run(config: Config) -> Result<(), AppError> {
    let started = Instant::now();
    raise_file_limit();
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
    let (revision, embed_log) = take_up(&log, embedder.revision(&config.pipeline.document))?;
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
    let filters = config.pipeline.filters.clone();
    let check_columns = Arc::new(move |columns: &[&str]| document.check_columns(columns, &filters));
    let capture = capture_of(&config, check_columns, &log, &pipeline_metrics);
    spawn(&mut tasks, "capture", capture::run(capture, status_sender, resyncs, shutdown.clone()));
    let topic = format!("{}.{}.changes", config.topics.prefix, config.pipeline.name);
    let worker = Worker::new(embedder.clone(), &config.pipeline.document, cache, pipeline_metrics.clone(), &topic)?;
    spawn(&mut tasks, "embed", worker.run(embed_log, shutdown.clone()));
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
    spawn(&mut tasks, "control", async {
        answering.await;
        Ok::<(), ControlError>(())
    });
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
    let prepared = capture::prepare_resync(&capture_of(&config, Arc::new(|_| vec![]), &log, &metrics)).await;
    log.close().await?;
    Ok(prepared?)
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

/// Takes up a revision where it stopped. One that stood still for so long that deletes which it had not seen are
/// forgotten is left as it is; a fresh one takes its place and is filled from `changes`, its texts from the cache.
fn take_up(log: &Log, revision: String) -> Result<(String, EmbedLog), LogError> {
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

/// Connections are files: the soft limit is often 1,024, and every process may raise its own to the hard one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, current = limit.current, "raise the limit of open files");
    }
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

fn capture_of(config: &Config, check_columns: ColumnCheck, log: &Log, metrics: &PipelineMetrics) -> Capture {
    Capture {
        database: config.database.clone(),
        source: config.pipeline.source.clone(),
        pipeline: config.pipeline.name.clone(),
        check_columns,
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

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
