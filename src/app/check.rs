//! `vecsync check`: looks at everything that a run needs, one thing after the other, and changes nothing that lasts.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::watching::free_bytes;
use super::{
    AppError, embedded_settings, joined, kafka_settings, listen, open_log, qdrant_generations, qdrant_settings,
    revision_of,
};
use crate::capture::check as source;
use crate::config::Config;
use crate::control::{self, Door};
use crate::embed::{Document, Embedder};
use crate::index::{QdrantError, QdrantGenerations, QdrantStore, qdrant};
use crate::retry::Chain;
use crate::topic::{CaptureState, LogError, kafka};

/// The text that is embedded for a trial.
const PROBE: &str = "How do I check that everything works?";
/// Least free space of the data directory.
const FREE_BYTES_MIN: u64 = 100 << 20;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it is, or what is wrong with it and what mends that.
    pub result: Result<String, String>,
    /// How long it took to find out.
    pub took: Duration,
}

/// Looks at source, log, model and Qdrant, in the order data flows. `told` gets each finding as it comes. `operations`: also
/// embeds a text, and writes, finds and removes a point in a collection of its own.
pub async fn check(config: &Config, operations: bool, mut told: impl FnMut(Finding)) -> Result<(), AppError> {
    let document = Document::compile(&config.pipeline.document)?;
    let mut since = Instant::now();
    let mut tell = |name, result| {
        let took = since.elapsed();
        since = Instant::now();
        told(Finding { name, result, took });
    };
    let log = kafka_settings(config).map(kafka::Log::new);
    let topics = match &log {
        Some(log) => Some(log.check_topics(&revision_of(config)).await),
        None => None,
    };
    if let (Some(database), None) = (&config.database, &config.pipeline.source.topic) {
        let record = recorded(config, log.as_ref().filter(|_| matches!(topics, Some(Ok(()))))).await;
        let filters = config.pipeline.filters.clone();
        let check_columns: crate::capture::ColumnCheck =
            Arc::new(move |columns: &[&str]| document.check_columns(columns, &filters));
        source::check(database, &config.pipeline.source, &check_columns, record.as_ref(), &mut tell).await;
    }
    tell("data", data_dir(config));
    if let Some(checked) = topics {
        let brokers = config.kafka.as_ref().map(|kafka| kafka.brokers.clone()).unwrap_or_default();
        let remedy = |error: LogError| match &error {
            LogError::Broker { operation: "connect to", .. } => format!(
                "{}; start the brokers, or correct KAFKA_BROKERS and KAFKA_SECURITY_PROTOCOL (the addresses that brokers \
                 advertise have to be reachable from here, too)",
                Chain(&error)
            ),
            _ => Chain(&error).to_string(),
        };
        tell("brokers", checked.map(|()| format!("{brokers} answer")).map_err(remedy));
    }
    tell("model", model(config, operations).await?);
    if let Some(generations) = qdrant_generations(config)? {
        let reached = reach(&generations).await;
        let goes_on = reached.is_ok();
        tell("Qdrant", reached);
        if goes_on {
            let server = &generations.settings().server;
            let rest = qdrant::rest_remedy(server).await;
            tell("REST", rest.map_or_else(|| Ok(format!("port {} answers", server.port)), Err));
            tell("collection", collection(&generations).await);
        }
        if let (true, true, Some(server)) = (goes_on, operations, &config.qdrant) {
            let settings = qdrant_settings(config, server, &revision_of(config));
            let tried = QdrantStore::try_out(settings).await;
            let done = |()| "a point was written, found and removed".to_owned();
            tell("round trip", tried.map(done).map_err(|error| Chain(&error).to_string()));
        }
    }
    Ok(())
}

/// What the log says of an earlier capture, for who would go on from there; `None`: nothing, it cannot be read, or a vecsync has it,
/// which says itself how it fares. What is wrong with the log itself is found elsewhere.
async fn recorded(config: &Config, brokers: Option<&kafka::Log>) -> Option<CaptureState> {
    if let Some(log) = brokers {
        return log.recorded().await.ok().flatten();
    }
    if config.kafka.is_some() || is_in_use(config) || !embedded_settings(config).dir.is_dir() {
        return None;
    }
    let log = open_log(config).await.ok()?;
    let state = log.capture_state().await.ok().flatten();
    let _ = log.close().await;
    state
}

fn data_dir(config: &Config) -> Result<String, String> {
    let path = &config.data_dir;
    let shown = path.display();
    let unusable = |error: io::Error| {
        format!(
            "{shown} cannot be written to ({error}); set VECSYNC_DATA_DIR to a folder that can, or give this user the right"
        )
    };
    // Where it is to be made, what is there of the way to it counts. A relative one begins here.
    let there = path.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
    // Rights alone do not tell: what is mounted read-only, and what is no folder, refuses root as well.
    write_in(there).map_err(unusable)?;
    let free = free_bytes(there);
    if free < FREE_BYTES_MIN {
        return Err(format!("{shown} has {:.0} MB left, wanted 100 MB at least", free as f64 / 1e6));
    }
    let user = if is_in_use(config) { "; a vecsync runs on it" } else { "" };
    Ok(format!("{shown}, {:.1} GB free{user}", free as f64 / 1e9))
}

/// Makes a file there and removes it.
fn write_in(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".vecsync-check-{}", std::process::id()));
    File::create_new(&path)?;
    std::fs::remove_file(&path)
}

/// Whether a running vecsync has the data directory.
pub fn is_in_use(config: &Config) -> bool {
    [Door::Capture, Door::Store].into_iter().any(|door| control::is_open(&config.data_dir, door))
}

/// Why this vecsync could not listen on its address now; `None`: it could.
pub async fn listening(config: &Config) -> Option<String> {
    listen(config).await.err().map(|error| Chain(&error).to_string())
}

async fn model(config: &Config, operations: bool) -> Result<Result<String, String>, AppError> {
    let settings = config.model.clone();
    let loaded = joined("load the model", spawn_blocking(move || Embedder::load(&settings, 1)).await)?;
    let embedder = match loaded {
        Ok(embedder) => embedder,
        Err(error) => return Ok(Err(Chain(&error).to_string())),
    };
    if !operations {
        return Ok(Ok(embedder.model_name().to_owned()));
    }
    let since = Instant::now();
    Ok(match embedder.query(PROBE).await {
        Ok(query) => {
            let (name, numbers) = (embedder.model_name(), query.vector.len());
            Ok(format!("{name}, a text became {numbers} numbers in {:.1} ms", since.elapsed().as_secs_f64() * 1000.0))
        }
        Err(error) => Err(Chain(&error).to_string()),
    })
}

async fn reach(generations: &QdrantGenerations) -> Result<String, String> {
    let told = async {
        let (version, look) = (generations.version().await?, generations.look().await?);
        Ok::<_, QdrantError>((version, look))
    };
    let (version, look) = match told.await {
        Ok(told) => told,
        Err(error) => {
            let remedy = qdrant::remedy(&generations.settings().server, &error).await;
            return Err(remedy.into_iter().fold(Chain(&error).to_string(), |said, remedy| said + "; " + &remedy));
        }
    };
    let url = generations.settings().server.url();
    Ok(format!("{version} at {url}, answers in {:.1} ms", look.took.as_secs_f64() * 1000.0))
}

async fn collection(generations: &QdrantGenerations) -> Result<String, String> {
    let alias = &generations.settings().collection;
    match generations.differences().await {
        Err(error) => Err(Chain(&error).to_string()),
        Ok(None) => Ok(format!("there is no {alias} yet; `vecsync init` or `vecsync run` makes it")),
        Ok(Some(differences)) if differences.is_empty() => Ok(format!("{alias} is as it would be made now")),
        Ok(Some(differences)) => Err(format!(
            "{alias} is not as it would be made now: {}; `vecsync init --recreate` makes another and fills it",
            differences.join("; ")
        )),
    }
}
