//! Puts the rooms together and owns every task. The only room that knows them all; holds no logic of theirs.

pub mod backup;
pub mod check;
mod commands;
mod embedding;
mod failover;
pub mod foreign;
mod letters;
mod measures;
pub mod migrate;
mod process;
mod qdrant;
pub mod resync;
mod serving;
mod stand_in;
mod state;
pub mod verify;
mod watching;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};

use crate::capture::{self, Capture, CaptureError, ColumnCheck};
use crate::clock::now_ms;
use crate::config::{self, Config, Database, Role};
use crate::control::{self, ControlError, Door, Reply, Request};
use crate::embed::{self, Cache, Document, DocumentError, Embedder, Expectation, LoadError, Worker, WorkerError};
use crate::freshness::Freshness;
use crate::index::{
    self, Arrivals, Generations, Index, IndexError, MirrorError, MirrorSettings, Primary, QdrantError,
    QdrantGenerations, QdrantSettings,
};
use crate::metrics::{self, PipelineMetrics};
use crate::serve::{self, ServeError, Service};
use crate::shutdown::{self, Shutdown};
use crate::topic::{EmbedLog, Log, LogError, Offsets, SnapshotMarker, embedded, kafka};

use backup::{Backups, Sources};
use commands::Commands;
use measures::Measures;
use qdrant::Qdrant;
use resync::Resyncs;
use serving::Shared;
use stand_in::StandIn;
use verify::Verifier;
use watching::Watching;

/// Tasks have this long to drain after the signal.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);
/// Deleted keys are remembered this long, so that a reader that was away learns of the delete.
const TOMBSTONE_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests that wait for capture: a person makes them one at a time.
const REQUESTS_WAITING: usize = 1;
/// The name of the store beside the process, in metrics and answers.
const LOCAL: &str = index::mirror::STORE;

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
    /// A restore was broken off there.
    #[error(
        "use VECSYNC_DATA_DIR {path}: a restore was broken off there; run it again, or remove restore.json and the folder \
         restoring to begin without what it would bring"
    )]
    Restoring {
        /// The folder.
        path: PathBuf,
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
    /// Qdrant cannot be used as it is configured.
    #[error(transparent)]
    Qdrant(#[from] QdrantError),
    /// The mirror failed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Capture cannot go on. Boxed: it is much larger than the others.
    #[error(transparent)]
    Capture(Box<CaptureError>),
    /// Embed cannot go on.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The store's side cannot go on.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The query server cannot go on.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The control socket cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It takes a capture, and Debezium captures.
    #[error("{0}")]
    Foreign(&'static str),
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

/// Runs what this process has to do until a signal or a fault that cannot be mended.
pub async fn run(config: Config) -> Result<(), AppError> {
    let started = Instant::now();
    process::raise_file_limit();
    process::keep_large_blocks();
    make_data_dir(&config)?;
    if backup::is_broken_off(&config.data_dir) {
        return Err(AppError::Restoring { path: config.data_dir });
    }
    let listener = listen(&config).await?;
    let server_settings = serve::Settings::load(&config.server)?;
    let document = Document::compile(&config.pipeline.document)?;
    let filters = config.pipeline.filters.clone();
    let check_columns: ColumnCheck = Arc::new(move |columns: &[&str]| document.check_columns(columns, &filters));
    let does = |role| config.roles.contains(&role);

    // The two slow starts side by side.
    let loading = (does(Role::Embed) || does(Role::Serve)).then(|| {
        let (model, threads) = (config.model.clone(), cores());
        spawn_blocking(move || Embedder::load(&model, threads))
    });
    let (log, embed_log, revision) = open_log_for_run(&config).await?;
    let embedder = match loading {
        Some(loading) => Some(joined("load the model", loading.await)??),
        None => None,
    };
    let bind = |wanted, door| if wanted { control::bind(&config.data_dir, door).map(Some) } else { Ok(None) };
    let stores = does(Role::Serve) || does(Role::Index);
    let doors = [bind(does(Role::Capture), Door::Capture)?, bind(stores, Door::Store)?];
    let generations = if stores {
        let (settings, model, serves) = (mirror_settings(&config, &revision), config.model.clone(), does(Role::Serve));
        let answers = move |space: &str| serves && embed::model_of_space(&model, space).is_some();
        let space = embed::space(&config.model);
        let opening = spawn_blocking(move || Generations::open(settings, &space, answers));
        Some(joined("open the mirror", opening.await)??)
    } else {
        None
    };
    let stand_in = match (&generations, &embedder) {
        (Some(generations), Some(embedder)) => {
            let (generations, model, embedder) = (generations.clone(), config.model.clone(), embedder.clone());
            let loading = spawn_blocking(move || StandIn::load(&generations, &model, &embedder));
            joined("load the model of the revision before", loading.await)?.map(Arc::new)
        }
        _ => None,
    };

    // Who has nothing to search yet ends with the reason; who has goes on, and health names it.
    let is_empty = |generations: &Generations| generations.current().mirror.rows() == 0;
    if let (Log::Kafka(log), None, true) = (&log, &stand_in, generations.as_ref().is_none_or(is_empty)) {
        log.check_login().await?;
    }

    let model_name = embedder.as_ref().map_or("none", Embedder::model_name);
    let prometheus = metrics::install(env!("CARGO_PKG_VERSION"), model_name)?;
    let pipeline_metrics = PipelineMetrics::new(&config.pipeline.name);
    let shutdown = Shutdown::new();
    let (status_sender, status) = watch::channel(capture::Status::default());
    let (standing_sender, standing) = watch::channel(capture::Standing::default());
    let (stored_sender, stored) = watch::channel(generations.as_ref().map(positions).unwrap_or_default());
    let (request_sender, requests) = mpsc::channel(REQUESTS_WAITING);
    let (replay_sender, replays) = mpsc::channel(REQUESTS_WAITING);
    let (rebuild_sender, rebuilds) = mpsc::channel(REQUESTS_WAITING);
    let arrivals = Arrivals::new(state::title_field(&config.pipeline.document));
    let qdrant = qdrant_of(&config, &revision, &log, &pipeline_metrics, &arrivals, stores)?;
    let shared = Arc::new(Shared {
        embedder: embedder.clone(),
        generations: generations.clone(),
        qdrant: qdrant.clone(),
        status: does(Role::Capture).then_some(status.clone()),
        source: does(Role::Capture).then_some(standing),
        freshness: Mutex::new(freshness_at_start(&log, generations.as_ref().is_some_and(Generations::is_whole))?),
        stand_in: Mutex::new(stand_in.clone()),
        log_fault: Mutex::new(None),
        embed_fault: Mutex::new(None),
        arrivals: arrivals.clone(),
        partitions: config.topics.partitions,
        serves: does(Role::Serve),
        metrics: pipeline_metrics.clone(),
    });
    let measures = Measures { shared: Arc::clone(&shared), registry: prometheus.clone(), started: now_ms() };
    measures.announce(&config.roles);

    let mut tasks: JoinSet<(&'static str, Result<(), AppError>)> = JoinSet::new();
    if let (true, Some(database)) = (does(Role::Capture), &config.database) {
        let capture = capture_of(&config, database, Arc::clone(&check_columns), &log, &pipeline_metrics);
        let watched = capture::watch_source(capture.clone(), status, standing_sender, shutdown.clone());
        spawn(&mut tasks, "look at the source", async {
            watched.await;
            Ok::<(), CaptureError>(())
        });
        spawn(&mut tasks, "capture", capture::run(capture, status_sender, requests, shutdown.clone()));
    }
    let resyncs = Resyncs::new(resync::Parts {
        captures: request_sender.clone(),
        shared: Arc::clone(&shared),
        log: log.clone(),
        revision: revision.clone(),
        metrics: pipeline_metrics.clone(),
        embeds: does(Role::Embed),
        database: config.database.clone(),
        source: config.pipeline.source.clone(),
        check_columns: Arc::clone(&check_columns),
        busy: tokio::sync::Mutex::default(),
    });
    let verifier = Verifier::new(verify::Parts {
        database: config.database.clone(),
        source: config.pipeline.source.clone(),
        data_dir: config.data_dir.clone(),
        expectation: Arc::new(Expectation::new(&config.model, &config.pipeline.document)?),
        check_columns,
        shared: Arc::clone(&shared),
        log: log.clone(),
        metrics: pipeline_metrics.clone(),
        captures: does(Role::Capture).then(|| request_sender.clone()),
        busy: tokio::sync::Mutex::default(),
    });
    let commands = Commands {
        log: log.clone(),
        resyncs,
        captures: request_sender,
        replays: replay_sender,
        drills: qdrant.as_ref().map(|qdrant| (qdrant.failover.clone(), Arc::clone(&shared))),
        rebuilds: qdrant.clone().filter(|_| does(Role::Index)).map(|qdrant| (qdrant.primary, rebuild_sender)),
        verifier,
        backups: generations
            .as_ref()
            .map(|generations| Backups::new(Sources::new(&config, &log, generations, &revision))),
    };
    for door in doors.into_iter().flatten() {
        let answering = control::run(door, commands.clone().handler(), shutdown.clone());
        spawn(&mut tasks, "control", async {
            answering.await;
            Ok::<(), ControlError>(())
        });
    }
    if let (true, Some(embedder)) = (does(Role::Embed), &embedder) {
        let ours = || format!("{}.{}.changes", config.topics.prefix, config.pipeline.name);
        let topic = config.pipeline.source.topic.clone().unwrap_or_else(ours);
        let cache = Cache::open(&config.data_dir.join("embeddings"));
        let metrics = pipeline_metrics.clone();
        let mut worker = Worker::new(embedder.clone(), &config.pipeline.document, cache, metrics, &topic)?;
        let (held_log, held_revision) = (log.clone(), revision.clone());
        let held = generations.clone().map(|generations| foreign::Held {
            generations,
            stored: stored.clone(),
            log: held_log,
            revision: held_revision,
        });
        if let Some(completion) = foreign::completion(&config, held, &shutdown).await? {
            worker = worker.completed_by(completion);
        }
        let (log, revision, shared) = (log.clone(), revision.clone(), Arc::clone(&shared));
        spawn(&mut tasks, "embed", embedding::run(worker, embed_log, log, revision, shared, shutdown.clone()));
    }
    if let Some(generations) = &generations {
        let index = Index {
            generations: generations.clone(),
            log: log.clone(),
            revision: revision.clone(),
            metrics: pipeline_metrics.clone(),
            arrivals,
        };
        spawn(&mut tasks, "index", index.run(shutdown.clone(), stored_sender, replays));
    }
    // What was embedded for an earlier revision and not stored, and what somebody elsewhere still embeds for it.
    if let Some(stand_in) = stand_in {
        let follow = index::earlier::follow(stand_in.earlier.clone(), log.clone(), shutdown.clone());
        let shutdown = shutdown.clone();
        spawn(&mut tasks, "earlier mirror", async move {
            follow.await;
            shutdown.raised().await;
            Ok::<(), MirrorError>(())
        });
    }
    if let Some(Qdrant { primary, failover, .. }) = qdrant {
        let (watched, stopping) = (failover.watch(primary.clone(), shutdown.clone()), shutdown.clone());
        spawn(&mut tasks, "failover", async move {
            watched.await;
            stopping.raised().await;
            Ok::<(), QdrantError>(())
        });
        if does(Role::Index) {
            let asked = Arc::clone(&shared);
            let is_whole = Arc::new(move |generation| asked.is_whole_in_qdrant(generation));
            let follow = primary.clone().follow(is_whole, rebuilds, shutdown.clone());
            spawn(&mut tasks, "Qdrant", async {
                follow.await;
                Ok::<(), QdrantError>(())
            });
        }
        let looked = Arc::clone(&shared);
        let mirror = move || looked.mirror().map(|mirror| mirror.positions()).unwrap_or_default();
        let watch = primary.watch(mirror, shutdown.clone());
        spawn(&mut tasks, "look at Qdrant", async {
            watch.await;
            Ok::<(), QdrantError>(())
        });
    }
    let service = service(&config, &shared, measures);
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
    tracing::info!(
        pipeline = config.pipeline.name,
        model = model_name,
        revision,
        rows = shared.mirror().map_or(0, |mirror| mirror.rows()),
        "started in {} ms",
        started.elapsed().as_millis()
    );

    let ended = supervise(&mut tasks, &shutdown).await;
    let closed = log.close().await;
    if let Some(generations) = generations {
        generations.close().await;
    }
    for (had, door) in [(does(Role::Capture), Door::Capture), (stores, Door::Store)] {
        if had {
            let _ = std::fs::remove_file(control::path(&config.data_dir, door));
        }
    }
    ended?;
    closed?;
    Ok(())
}

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

/// Opens the log.
async fn open_log(config: &Config) -> Result<Log, AppError> {
    if let Some(settings) = kafka_settings(config) {
        return Ok(Log::Kafka(kafka::Log::new(settings)));
    }
    let settings = embedded_settings(config);
    let opening = spawn_blocking(move || embedded::Log::open(settings));
    Ok(Log::Embedded(joined("open the log", opening.await)??))
}

fn service(config: &Config, shared: &Arc<Shared>, measures: Measures) -> Service {
    let (searching, reporting) = (Arc::clone(shared), Arc::clone(shared));
    let looking = Arc::clone(shared);
    let search: Arc<serve::SearchFn> = Arc::new(move |request| {
        let shared = Arc::clone(&searching);
        Box::pin(async move { shared.search(request).await })
    });
    Service {
        pipeline: config.pipeline.name.clone(),
        search: shared.serves.then_some(search),
        filters: config.pipeline.filters.clone(),
        health: Arc::new(move || reporting.report()),
        state: Arc::new(move || looking.state()),
        metrics: Arc::new(move || measures.render()),
    }
}

/// A log that is complete has a store that will be, when it has taken what the log holds. `is_whole`: the mirror was, before.
fn freshness_at_start(log: &Log, is_whole: bool) -> Result<Freshness, AppError> {
    let mut freshness = Freshness::default();
    match log {
        Log::Embedded(log) => {
            if log.capture_state()?.is_some_and(|state| state.snapshot == SnapshotMarker::Complete) {
                freshness.started_complete(log.changes_ends());
            }
        }
        Log::Kafka(_) if !is_whole => freshness.fills(now_ms()),
        Log::Kafka(_) => {}
    }
    Ok(freshness)
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

/// Opens the log, embed's side of it, and names the revision.
async fn open_log_for_run(config: &Config) -> Result<(Log, EmbedLog, String), AppError> {
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
fn revision_of(config: &Config) -> String {
    let revision = embed::revision(&config.model, &config.pipeline.document);
    // Offsets of another topic are other versions.
    match &config.pipeline.source.topic {
        Some(topic) => embed::revision_of_topic(&revision, topic),
        None => revision,
    }
}

/// As `revision_of`, under the name that it has in the embedded log: see `take_up`.
fn revision_at_work(config: &Config) -> String {
    let revision = revision_of(config);
    let seen = index::generations::seen(&config.data_dir.join("mirror")).filter(|_| config.kafka.is_none());
    let is_later = |name: &str| name.strip_prefix(&revision)?.strip_prefix('-')?.parse::<u32>().ok();
    seen.map(|seen| seen.revision).filter(|name| is_later(name).is_some()).unwrap_or(revision)
}

/// Takes up a revision where it stopped. One that stood still for so long that deletes which it had not seen are
/// forgotten is left as it is; a fresh one takes its place and is filled from `changes`, its texts from the cache.
fn take_up(log: &embedded::Log, revision: String) -> Result<(String, embedded::EmbedLog), LogError> {
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

fn make_data_dir(config: &Config) -> Result<(), AppError> {
    let path = &config.data_dir;
    std::fs::create_dir_all(path).map_err(|source| AppError::DataDir { path: path.clone(), source })
}

fn embedded_settings(config: &Config) -> embedded::Settings {
    embedded::Settings {
        dir: config.data_dir.join("log"),
        prefix: config.topics.prefix.clone(),
        pipeline: config.pipeline.name.clone(),
        partitions: config.topics.partitions,
        tombstone_retention: TOMBSTONE_RETENTION,
    }
}

/// How the brokers are reached; `None`: the log is on this machine.
fn kafka_settings(config: &Config) -> Option<kafka::Settings> {
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

fn positions(generations: &Generations) -> Offsets {
    generations.current().mirror.positions()
}

/// The primary store, where one is configured and this process writes to it or asks it.
fn qdrant_of(
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

fn qdrant_settings(config: &Config, server: &config::Qdrant, revision: &str) -> QdrantSettings {
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

fn mirror_settings(config: &Config, revision: &str) -> MirrorSettings {
    MirrorSettings {
        dir: config.data_dir.join("mirror"),
        pipeline: config.pipeline.name.clone(),
        revision: revision.to_owned(),
        partitions: config.topics.partitions,
        filters: config.pipeline.filters.clone(),
    }
}

fn capture_of(
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
