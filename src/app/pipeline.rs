//! One pipeline at work: opens its rooms, owns their tasks, and closes what it has opened. Knows no other pipeline.

use std::future::Future;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use super::backup::{self, Backups, Sources};
use super::commands::Commands;
use super::opening::{
    capture_of, freshness_at_start, make_data_dir, mirror_settings, open_log_for_run, positions, qdrant_of,
};
use super::qdrant::Qdrant;
use super::resync::{self, Resyncs};
use super::serving::Shared;
use super::stand_in::{self, StandIn};
use super::tasks::{Tasks, too_early};
use super::verify::{self, Verifier};
use super::watching::Watching;
use super::{AppError, DRAIN_DEADLINE, behind, embedding, foreign, home, joined, measures, state};
use crate::capture::{self, ColumnCheck};
use crate::config::{Config, Role};
use crate::control::{self, ControlError, Door};
use crate::embed::{self, Cache, Document, Embedder, Expectation, Worker};
use crate::index::{self, Arrivals, Generations, Index, MirrorError, QdrantError};
use crate::metrics::PipelineMetrics;
use crate::remedy;
use crate::shutdown::Shutdown;
use crate::topic::{EmbedLog, Log};

/// Requests that wait for capture: a person makes them one at a time.
const REQUESTS_WAITING: usize = 1;

/// What all pipelines of a process use. Clones are the same.
#[derive(Clone)]
pub(super) struct Common {
    /// The model, when it is loaded. Its sender lives as long as it is being loaded.
    pub model: watch::Receiver<Option<Embedder>>,
    /// The models of earlier revisions.
    pub earlier_models: stand_in::Models,
    pub cache: Cache,
    pub started: Instant,
    pub shutdown: Shutdown,
    /// Raised when the query server has given its last answer.
    pub served: Shutdown,
}

impl Common {
    /// Waits for the model. `None`: it could not be loaded, which ends the process.
    async fn model(&self) -> Option<Embedder> {
        let mut model = self.model.clone();
        let loaded = model.wait_for(Option::is_some).await;
        loaded.ok().and_then(|loaded| loaded.clone())
    }
}

/// A pipeline whose tasks run.
pub(super) struct Pipeline {
    pub shared: Arc<Shared>,
    config: Config,
    log: Log,
    tasks: Tasks,
    common: Common,
    /// Raised for this pipeline alone, or with all.
    shutdown: Shutdown,
}

impl Pipeline {
    /// Opens everything and starts the tasks. What was opened before an error is closed again.
    pub async fn open(config: Config, common: &Common) -> Result<Pipeline, AppError> {
        make_data_dir(&config)?;
        if backup::is_broken_off(&config.data_dir) {
            return Err(AppError::Restoring { path: config.data_dir });
        }
        home::claim(&config).map_err(|source| AppError::DataDir { path: config.root_dir.clone(), source })?;
        let opened = Opened::open(&config, common).await?;
        let log = opened.log.clone();
        let generations = opened.generations.clone();
        let shutdown = common.shutdown.child();
        let mut tasks = Tasks::default();
        match opened.start(&config, common, &shutdown, &mut tasks).await {
            Ok(shared) => Ok(Pipeline { shared, config, log, tasks, common: common.clone(), shutdown }),
            Err(error) => {
                shutdown.raise();
                let _ = drained(&mut tasks).await;
                let _ = close(&config, &log, generations).await;
                Err(error)
            }
        }
    }

    /// Runs until all pipelines are to end, or a task of this one ends too early; then has its tasks drain. Searches are still
    /// answered afterwards.
    pub async fn run(&mut self) -> Result<(), AppError> {
        let first = tokio::select! {
            biased;
            () = self.shutdown.raised() => Ok(()),
            Some((task, result)) = self.tasks.join_next() => match result {
                Ok(()) if self.shutdown.is_raised() => Ok(()),
                result => Err(too_early(task, result)),
            },
        };
        self.shutdown.raise();
        first.and(drained(&mut self.tasks).await)
    }

    /// Closes stores and log. At the end of the process the last search is waited for.
    pub async fn close(self) -> Result<(), AppError> {
        if self.common.shutdown.is_raised() {
            self.common.served.raised().await;
        }
        close(&self.config, &self.log, self.shared.generations.clone()).await
    }
}

async fn close(config: &Config, log: &Log, generations: Option<Generations>) -> Result<(), AppError> {
    let closed = log.close().await;
    let keeps_store = generations.is_some();
    if let Some(generations) = generations {
        generations.close().await;
    }
    for (had, door) in [(config.roles.contains(&Role::Capture), Door::Capture), (keeps_store, Door::Store)] {
        if had {
            let _ = std::fs::remove_file(control::path(&config.data_dir, door));
        }
    }
    Ok(closed?)
}

/// Waits for all tasks. The first error counts.
async fn drained(tasks: &mut Tasks) -> Result<(), AppError> {
    let all = async {
        let mut result = Ok(());
        while let Some((_, ended)) = tasks.join_next().await {
            result = result.and(ended);
        }
        result
    };
    match tokio::time::timeout(DRAIN_DEADLINE, all).await {
        Ok(result) => result,
        Err(_) => {
            tasks.abort_all();
            let fault = format!("still busy after {} s: {}", DRAIN_DEADLINE.as_secs(), tasks.names().join(", "));
            Err(AppError::Task { task: "drain", fault })
        }
    }
}

/// For tasks that have no error of their own.
async fn ended(task: impl Future<Output = ()>) -> Result<(), AppError> {
    task.await;
    Ok(())
}

/// What is open, and nothing runs on it yet.
struct Opened {
    embedder: Option<Embedder>,
    log: Log,
    embed_log: EmbedLog,
    revision: String,
    generations: Option<Generations>,
    stand_in: Option<Arc<StandIn>>,
    doors: [Option<control::Socket>; 2],
}

impl Opened {
    async fn open(config: &Config, common: &Common) -> Result<Opened, AppError> {
        let does = |role| config.roles.contains(&role);
        // While the model is being loaded.
        let (log, embed_log, revision) = open_log_for_run(config).await?;
        let embedder = match does(Role::Embed) || does(Role::Serve) {
            true => common.model().await.map(|model| model.for_another()),
            false => None,
        };
        let bind = |wanted, door| if wanted { control::bind(&config.data_dir, door).map(Some) } else { Ok(None) };
        let stores = does(Role::Serve) || does(Role::Index);
        let doors = [bind(does(Role::Capture), Door::Capture)?, bind(stores, Door::Store)?];
        let generations = if stores {
            let (settings, model) = (mirror_settings(config, &revision), config.model.clone());
            let serves = does(Role::Serve);
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
                let models = common.earlier_models.clone();
                let loading = spawn_blocking(move || StandIn::load(&generations, &model, &embedder, &models));
                joined("load the model of the revision before", loading.await)?.map(Arc::new)
            }
            _ => None,
        };
        // Who has nothing to search yet ends with the reason; who has goes on, and health names it.
        let is_empty = |generations: &Generations| generations.current().mirror.rows() == 0;
        if let (Log::Kafka(log), None, true) = (&log, &stand_in, generations.as_ref().is_none_or(is_empty)) {
            log.check_login().await?;
        }
        Ok(Opened { embedder, log, embed_log, revision, generations, stand_in, doors })
    }

    async fn start(
        self,
        config: &Config,
        common: &Common,
        shutdown: &Shutdown,
        tasks: &mut Tasks,
    ) -> Result<Arc<Shared>, AppError> {
        let Opened { embedder, log, embed_log, revision, generations, stand_in, doors } = self;
        let does = |role| config.roles.contains(&role);
        let document = Document::compile(&config.pipeline.document)?;
        let filters = config.pipeline.filters.clone();
        let check_columns: ColumnCheck = Arc::new(move |columns: &[&str]| document.check_columns(columns, &filters));
        let metrics = PipelineMetrics::new(&config.pipeline.name);
        let (status_sender, status) = watch::channel(capture::Status::default());
        let (standing_sender, standing) = watch::channel(capture::Standing::default());
        let (stored_sender, stored) = watch::channel(generations.as_ref().map(positions).unwrap_or_default());
        let (request_sender, requests) = mpsc::channel(REQUESTS_WAITING);
        let (replay_sender, replays) = mpsc::channel(REQUESTS_WAITING);
        let (rebuild_sender, rebuilds) = mpsc::channel(REQUESTS_WAITING);
        let arrivals = Arrivals::new(state::title_field(&config.pipeline.document));
        let qdrant = qdrant_of(config, &revision, &log, &metrics, &arrivals, generations.is_some())?;
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
            metrics: metrics.clone(),
            local_us: AtomicU64::new(0),
        });
        measures::announce(&shared, &config.roles);

        if let (true, Some(database)) = (does(Role::Capture), &config.database) {
            let mut capture = capture_of(config, database, Arc::clone(&check_columns), &log, &metrics);
            capture.behind =
                capture.source.query.is_some().then(|| behind::of(&log, &revision, &stored, tasks, shutdown));
            let watched = capture::watch_source(capture.clone(), status, standing_sender, shutdown.clone());
            tasks.spawn("look at the source", ended(watched));
            tasks.spawn("capture", capture::run(capture, status_sender, requests, shutdown.clone()));
        }
        let resyncs = Resyncs::new(resync::Parts {
            captures: request_sender.clone(),
            shared: Arc::clone(&shared),
            log: log.clone(),
            revision: revision.clone(),
            metrics: metrics.clone(),
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
            metrics: metrics.clone(),
            captures: does(Role::Capture).then(|| request_sender.clone()),
            busy: tokio::sync::Mutex::default(),
        });
        let backups = generations.as_ref().map(|held| Backups::new(Sources::new(config, &log, held, &revision)));
        let commands = Commands {
            log: log.clone(),
            resyncs,
            captures: request_sender,
            replays: replay_sender,
            drills: qdrant.as_ref().map(|qdrant| (qdrant.failover.clone(), Arc::clone(&shared))),
            rebuilds: qdrant.clone().filter(|_| does(Role::Index)).map(|qdrant| (qdrant.primary, rebuild_sender)),
            verifier,
            backups,
        };
        for door in doors.into_iter().flatten() {
            let answering = control::run(door, commands.clone().handler(), shutdown.clone());
            tasks.spawn("control", async {
                answering.await;
                Ok::<(), ControlError>(())
            });
        }
        if let (true, Some(embedder)) = (does(Role::Embed), &embedder) {
            let ours = || format!("{}.{}.changes", config.topics.prefix, config.pipeline.name);
            let topic = config.pipeline.source.topic.clone().unwrap_or_else(ours);
            let cache = common.cache.for_another(home::scope(config));
            let mut worker = Worker::new(embedder.clone(), &config.pipeline.document, cache, metrics.clone(), &topic)?;
            let held = generations.clone().map(|generations| foreign::Held {
                generations,
                stored: stored.clone(),
                log: log.clone(),
                revision: revision.clone(),
            });
            if let Some(completion) = foreign::completion(config, held, shutdown).await? {
                worker = worker.completed_by(completion);
            }
            let (log, revision, shared) = (log.clone(), revision.clone(), Arc::clone(&shared));
            tasks.spawn("embed", embedding::run(worker, embed_log, log, revision, shared, shutdown.clone()));
        }
        if let Some(generations) = &generations {
            let index = Index {
                generations: generations.clone(),
                log: log.clone(),
                revision: revision.clone(),
                metrics: metrics.clone(),
                arrivals,
            };
            tasks.spawn("index", index.run(shutdown.clone(), stored_sender, replays));
        }
        // What was embedded for an earlier revision and not stored, and what somebody elsewhere still embeds for it.
        if let Some(stand_in) = stand_in {
            let follow = index::earlier::follow(stand_in.earlier.clone(), log.clone(), shutdown.clone());
            let shutdown = shutdown.clone();
            tasks.spawn("earlier mirror", async move {
                follow.await;
                shutdown.raised().await;
                Ok::<(), MirrorError>(())
            });
        }
        if let Some(Qdrant { primary, failover, .. }) = qdrant {
            let (watched, stopping) = (failover.watch(primary.clone(), shutdown.clone()), shutdown.clone());
            tasks.spawn("failover", async move {
                watched.await;
                stopping.raised().await;
                Ok::<(), QdrantError>(())
            });
            if does(Role::Index) {
                let asked = Arc::clone(&shared);
                let is_whole = Arc::new(move |generation| asked.is_whole_in_qdrant(generation));
                tasks.spawn("Qdrant", ended(primary.clone().follow(is_whole, rebuilds, shutdown.clone())));
            }
            let looked = Arc::clone(&shared);
            let mirror = move || looked.mirror().map(|mirror| mirror.positions()).unwrap_or_default();
            tasks.spawn("look at Qdrant", ended(primary.watch(mirror, shutdown.clone())));
        }
        let watching = Watching { shared: Arc::clone(&shared), log, revision: revision.clone(), stored, metrics };
        tasks.spawn("freshness", watching.run(shutdown.clone()));
        tracing::info!(
            // Of several the name is in each line anyway.
            pipeline = remedy::pipeline().is_none().then_some(&*config.pipeline.name),
            model = embedder.as_ref().map_or("none", Embedder::model_name),
            revision,
            rows = shared.mirror().map_or(0, |mirror| mirror.rows()),
            "started in {} ms",
            common.started.elapsed().as_millis()
        );
        Ok(shared)
    }
}
