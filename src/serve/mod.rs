//! Searches, health, metrics and the page over HTTP. Knows no other room: what answers is handed to it as closures.

mod access;
mod api;
pub mod control;
pub mod failover;
pub mod health;
mod http;
mod keys;
mod limits;
mod openapi;
mod page;
mod problem;
mod refusal;
mod search;
mod socket;
pub mod status;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use http::run;
pub use keys::Keys;
pub use limits::Limits;
pub use search::{FilterValue, SearchAnswer, SearchError, SearchRequest, SearchResult};
pub use tls::Tls;

use crate::config;

/// Makes one search. Dropping the future gives the search up: its client has gone, or its deadline has passed.
pub type SearchFn = dyn Fn(SearchRequest) -> BoxFuture<'static, Result<SearchAnswer, SearchError>> + Send + Sync;

/// What this process can answer, all pipelines together.
#[derive(Clone)]
pub struct Services {
    /// At least one.
    pub pipelines: Vec<Service>,
    /// The place of the one that answers under the paths that name none.
    pub default: usize,
    /// Whether the process can do its work, or what it waits for. Asked where there are several; must not wait.
    pub ready: Arc<ReadyFn>,
    /// Whether it is ready and what answers searches has held the whole tables, or what it waits for. As `ready`.
    pub started: Arc<ReadyFn>,
    /// The metrics in Prometheus's text format.
    pub metrics: Arc<MetricsFn>,
}

/// Says whether a process is ready, or has started, or what it waits for.
pub type ReadyFn = dyn Fn() -> Result<(), String> + Send + Sync;
/// Gives the metrics as they are now.
pub type MetricsFn = dyn Fn() -> String + Send + Sync;

impl Services {
    /// Of a single pipeline.
    pub fn one(service: Service, metrics: Arc<MetricsFn>) -> Services {
        let (ready, started) = (Arc::clone(&service.health), Arc::clone(&service.health));
        Services {
            pipelines: vec![service],
            default: 0,
            ready: Arc::new(move || ready().readiness()),
            started: Arc::new(move || started().started()),
            metrics,
        }
    }

    /// The names of the pipelines.
    fn names(&self) -> Vec<&str> {
        self.pipelines.iter().map(|service| service.pipeline.as_str()).collect()
    }

    /// The place of the pipeline of this name.
    fn place(&self, name: &str) -> Option<usize> {
        self.pipelines.iter().position(|service| service.pipeline == name)
    }
}

/// What can be answered of one pipeline. Clones answer from the same place.
#[derive(Clone)]
pub struct Service {
    /// Name of the pipeline, as paths and metrics have it.
    pub pipeline: String,
    /// Makes a search; `None` in a process without the role `serve`.
    pub search: Option<Arc<SearchFn>>,
    /// Fields that searches may filter by.
    pub filters: Vec<String>,
    /// How this process is now. Must not wait: it is called on every health request.
    pub health: Arc<dyn Fn() -> health::Report + Send + Sync>,
    /// What the status shows beside that. Must not wait either.
    pub state: Arc<dyn Fn() -> status::State + Send + Sync>,
    /// Does commands about it for who has no binary; `None`: they are not taken here.
    pub control: Option<Arc<control::ControlFn>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Services { pipelines, default, .. } = self;
        f.debug_struct("Services").field("pipelines", pipelines).field("default", default).finish_non_exhaustive()
    }
}

/// How the server behaves. Built before it listens, so that a bad certificate is a fault of the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keys that are let in.
    pub keys: Keys,
    /// Certificate and key; `None`: plain HTTP.
    pub tls: Option<Tls>,
    /// A search's limit, waiting in the queue included.
    pub search_deadline: Duration,
    /// Sizes, numbers and deadlines.
    pub limits: Limits,
}

impl Settings {
    /// Reads the certificate files and hashes the keys.
    ///
    /// # Errors
    /// A certificate or key file that cannot be read, holds none, or do not belong together.
    pub fn load(server: &config::Server) -> Result<Self, ServeError> {
        let tls = server.tls.as_ref().map(|(cert, key)| Tls::load(cert, key)).transpose()?;
        Ok(Settings {
            keys: Keys::new(&server.api_keys),
            tls,
            search_deadline: server.search_deadline,
            limits: Limits::default(),
        })
    }
}

/// Why the query server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file of `VECSYNC_TLS_CERT` or `VECSYNC_TLS_KEY` cannot be read, or is not PEM.
    #[error("read {setting} {path}")]
    Pem {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: tokio_rustls::rustls::pki_types::pem::Error,
    },
    /// A PEM file without what is wanted of it.
    #[error("read {setting} {path}: wanted {wanted} in PEM, found none")]
    PemEmpty {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Certificate and key do not make a server.
    #[error("use VECSYNC_TLS_CERT {cert} with VECSYNC_TLS_KEY {key}")]
    Tls {
        /// The certificate chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What TLS said.
        source: tokio_rustls::rustls::Error,
    },
    /// The socket was lost.
    #[error("use the query server's socket")]
    Listen(#[source] std::io::Error),
}
