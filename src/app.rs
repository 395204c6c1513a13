//! A process: what its pipelines share, and the beginning and the end of all. With the files beside it the only room that knows
//! them all; holds no logic of theirs.

mod alone;
pub mod backup;
mod behind;
pub mod check;
mod commands;
mod embedding;
mod failover;
mod fleet;
pub mod foreign;
pub mod home;
mod letters;
mod measures;
pub mod migrate;
mod opening;
mod pipeline;
mod process;
mod qdrant;
pub mod resync;
mod serving;
mod stand_in;
mod state;
mod tasks;
pub mod verify;
mod watching;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::capture::CaptureError;
use crate::clock::now_ms;
use crate::config::{Config, Configs, Role};
use crate::control::ControlError;
use crate::embed::{self, Cache, DocumentError, Embedder, LoadError, WorkerError};
use crate::index::{self, IndexError, MirrorError, QdrantError};
use crate::metrics;
use crate::serve::control::ControlFn;
use crate::serve::{self, ServeError};
use crate::shutdown::{self, Shutdown};
use crate::topic::LogError;

pub use alone::{answer_from_log, prepare_resync, qdrant_generations};
use fleet::Fleet;
use opening::{
    embedded_settings, kafka_settings, make_data_dir, mirror_settings, open_log, qdrant_settings, revision_of,
};
use pipeline::Common;
pub use process::{keep_memory_private, raise_file_limit};
use tasks::{Tasks, too_early};

/// The name of the store beside the process, in metrics and answers.
const LOCAL: &str = index::mirror::STORE;
/// Tasks have this long to drain after the signal.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);
/// How often the disk is looked at, and what was counted put together.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// How often memory that nobody uses is given back: a first load leaves some, another model, and each of sled's pages.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(60);
/// The task of the query server.
const SERVE: &str = "serve";

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
    /// The process may open too few files.
    #[error(
        "open files: the limit of this process is {limit}, wanted at least {wanted}: ulimit -n, LimitNOFILE of a unit, \
         ulimits.nofile of a container"
    )]
    Files {
        /// How many it may open.
        limit: u64,
        /// How many it has to be able to.
        wanted: u64,
    },
    /// It cannot be told whose data is there.
    #[error(
        "find out which pipeline's data lies in VECSYNC_DATA_DIR itself: write its name into {path}, which several pipelines \
         take; the others have folders of their own"
    )]
    Owner {
        /// The file that names it.
        path: PathBuf,
        /// What the mirror there said.
        source: Box<MirrorError>,
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
    /// None of several pipelines runs.
    #[error("no pipeline runs: {0}")]
    AllFailed(String),
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

/// Runs what this process has to do until a signal or a fault that cannot be mended. `control` gives what does the commands that
/// the query server is asked for about a pipeline.
pub async fn run(mut configs: Configs, control: impl Fn(&Config) -> Arc<ControlFn>) -> Result<(), AppError> {
    let started = Instant::now();
    process::keep_large_blocks();
    // What is not of one pipeline is the same in all.
    let all = configs.pipelines[configs.default].clone();
    std::fs::create_dir_all(&all.root_dir)
        .map_err(|source| AppError::DataDir { path: all.root_dir.clone(), source })?;
    home::settle(&mut configs)?;
    for name in home::left_behind(&configs) {
        tracing::warn!(
            "pipeline {name} has data in VECSYNC_DATA_DIR and no pipeline file: if it is not to come back, drop its slot, which \
             keeps WAL (SELECT pg_drop_replication_slot('vecsync_{name}'), unless its file named another), and remove its data"
        );
    }
    let controls: Vec<Arc<ControlFn>> = configs.pipelines.iter().map(control).collect();
    let listener = listen(&all).await?;
    let server_settings = serve::Settings::load(&all.server)?;
    let does = |role| configs.pipelines.iter().any(|config| config.roles.contains(&role));
    let needs_model = does(Role::Embed) || does(Role::Serve);
    let model_name = if needs_model { embed::model_name(&all.model) } else { "none" };
    let registry = metrics::install(env!("CARGO_PKG_VERSION"), model_name)?;
    let cache = if does(Role::Embed) { open_cache(&all).await? } else { Cache::off() };

    let fleet = Fleet::new(&configs);
    let (shutdown, served) = (Shutdown::new(), Shutdown::new());
    let (loaded, model) = watch::channel(None);
    let earlier_models = stand_in::Models::default();
    let common = Common { model, earlier_models, cache, started, shutdown: shutdown.clone(), served: served.clone() };
    let mut tasks = Tasks::default();
    for (place, config) in configs.pipelines.into_iter().enumerate() {
        let kept = Arc::clone(&fleet).keep(place, config, common.clone());
        tasks.spawn("pipeline", kept);
    }
    // The two slow starts side by side: the pipelines open their logs meanwhile.
    if needs_model {
        let settings = all.model.clone();
        let loading = spawn_blocking(move || Embedder::load(&settings, cores()));
        loaded.send_replace(Some(joined("load the model", loading.await)??));
    }
    let services = fleet.services(controls, registry.clone(), now_ms());
    let serving = serve_from_the_first(fleet, listener, services, server_settings, shutdown.clone());
    tasks.spawn(SERVE, serving);
    let kept = upkeep(registry, all.root_dir, shutdown.clone());
    tasks.spawn("upkeep", kept);
    supervise(&mut tasks, &shutdown, &served).await
}

/// Answers requests. Where there is one pipeline, who asks waits until that is open, and is not answered if it cannot be.
async fn serve_from_the_first(
    fleet: Arc<Fleet>,
    listener: TcpListener,
    services: serve::Services,
    settings: serve::Settings,
    shutdown: Shutdown,
) -> Result<(), AppError> {
    if fleet.is_one() {
        tokio::select! {
            () = fleet.has_begun() => {}
            () = shutdown.raised() => return Ok(()),
        }
    }
    Ok(serve::run(listener, services, settings, shutdown).await?)
}

/// Measures what is the process's, not a pipeline's.
async fn upkeep(registry: PrometheusHandle, root_dir: PathBuf, shutdown: Shutdown) -> Result<(), AppError> {
    let (mut ticks, mut given_back) = (tokio::time::interval(UPKEEP_EVERY), Instant::now());
    loop {
        tokio::select! {
            biased;
            () = shutdown.raised() => return Ok(()),
            _ = ticks.tick() => {}
        }
        registry.run_upkeep();
        let is_due = given_back.elapsed() >= GIVE_BACK_EVERY;
        if is_due {
            given_back = Instant::now();
        }
        let measured = root_dir.clone();
        let look = move || {
            if is_due {
                process::give_memory_back();
            }
            watching::free_bytes(&measured)
        };
        if let Ok(free) = spawn_blocking(look).await {
            metrics::data_dir_free(free);
        }
    }
}

/// Waits for a signal or for a task that ends too early, then for all tasks to drain, each within its own deadline: the query
/// server first, since the pipelines' stores answer to its end.
async fn supervise(tasks: &mut Tasks, shutdown: &Shutdown, served: &Shutdown) -> Result<(), AppError> {
    let note = |task| {
        if task == SERVE {
            served.raise();
        }
    };
    let mut result = tokio::select! {
        signal = shutdown::signal() => {
            tracing::info!("{}: draining", signal.map_err(AppError::Signals)?);
            Ok(())
        }
        Some((task, ended)) = tasks.join_next() => {
            note(task);
            match ended {
                Ok(()) if shutdown.is_raised() => Ok(()),
                ended => Err(too_early(task, ended)),
            }
        }
    };
    shutdown.raise();
    while let Some((task, ended)) = tasks.join_next().await {
        note(task);
        result = result.and(ended);
    }
    result
}

/// The embedding cache of all pipelines.
async fn open_cache(config: &Config) -> Result<Cache, AppError> {
    let folder = config.root_dir.join("embeddings");
    joined("open the embedding cache", spawn_blocking(move || Cache::open(&folder)).await)
}

fn joined<T>(task: &'static str, ended: Result<T, tokio::task::JoinError>) -> Result<T, AppError> {
    ended.map_err(|error| AppError::Task { task, fault: tasks::fault(error) })
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
