//! The mirror of the revision before, with the model that its vectors are of: it answers until the stores of the revision that is
//! configured are whole. Never mixed: a query's vector goes to the stores of its own model only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::LOCAL;
use super::serving::{Shared, results, vector_of};
use crate::clock::{age_ms, now_ms};
use crate::config;
use crate::embed::{self, Embedder, LoadError, WeakEmbedder};
use crate::freshness::Freshness;
use crate::index::{Earlier, Filter, Generations};
use crate::retry::Chain;
use crate::serve::{SearchAnswer, SearchError, SearchRequest};
use crate::topic::{Log, LogError};

/// How long a whole mirror waits for Qdrant to be whole, too, so that both take over together.
const QDRANT_PATIENCE: Duration = Duration::from_secs(60);

/// What answers in the place of a mirror that is not whole yet.
pub(super) struct StandIn {
    pub earlier: Earlier,
    embedder: Embedder,
    freshness: Mutex<Freshness>,
    /// Since when the mirror that takes over is whole.
    whole_since: Mutex<Option<Instant>>,
}

/// The models of earlier revisions, each loaded once for all pipelines that need it and held by them alone. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Models(Arc<Mutex<BTreeMap<String, WeakEmbedder>>>);

impl Models {
    /// The model of a space. Blocks; who comes second waits for the first.
    fn load(&self, model: &config::Model, space: &str) -> Result<Embedder, LoadError> {
        let mut held = lock(&self.0);
        if let Some(embedder) = held.get(space).and_then(WeakEmbedder::upgrade) {
            return Ok(embedder);
        }
        let embedder = Embedder::load(model, 1)?;
        held.insert(space.to_owned(), embedder.downgrade());
        Ok(embedder)
    }
}

impl StandIn {
    /// The one of these generations; blocking, as it may have to load another model. `embedder` is the configured one.
    pub fn load(
        generations: &Generations,
        model: &config::Model,
        embedder: &Embedder,
        models: &Models,
    ) -> Option<StandIn> {
        let earlier = generations.earlier()?;
        let embedder = if earlier.space == embed::space(model) {
            embedder.clone()
        } else {
            let wanted = embed::model_of_space(model, &earlier.space)?;
            match models.load(&wanted, &earlier.space) {
                Ok(embedder) => embedder,
                Err(error) => {
                    tracing::warn!("{}: revision {} cannot be searched meanwhile", Chain(&error), earlier.revision);
                    return None;
                }
            }
        };
        tracing::info!(
            rows = earlier.mirror.rows(),
            "revision {} ({}) answers until the new one is whole",
            earlier.revision,
            embedder.model_name()
        );
        let (freshness, whole_since) = (Mutex::default(), Mutex::default());
        Some(StandIn { earlier, embedder, freshness, whole_since })
    }

    /// Whether it has something to answer with: its files may be damaged.
    pub fn is_there(&self) -> bool {
        self.earlier.mirror.is_open() && self.earlier.mirror.rows() > 0
    }

    /// The model that it answers with.
    pub fn model_name(&self) -> &str {
        self.embedder.model_name()
    }

    /// Answers a search; `None`: it cannot.
    ///
    /// # Errors
    /// Besides those of every search, a filter by a field that it does not know: nothing would be found.
    pub async fn search(&self, request: &SearchRequest, filter: &Filter) -> Result<Option<SearchAnswer>, SearchError> {
        if !self.is_there() {
            return Ok(None);
        }
        let known = self.earlier.mirror.fields();
        if let Some((field, _)) = request.filter.iter().find(|(field, _)| !known.contains(field)) {
            let reason = format!("rows can be filtered by {field:?} when the new revision is whole, and not before");
            return Err(SearchError::Unavailable { reason, retry_after_s: 5 });
        }
        let hits = match vector_of(&self.embedder, &request.query).await? {
            None => vec![],
            Some(query) => {
                let (mirror, filter) = (self.earlier.mirror.clone(), filter.clone());
                let (limit, min_score) = (request.limit, request.min_score);
                let scan = move || mirror.search(&query, limit, min_score, &filter);
                match spawn_blocking(scan).await.map_err(|error| SearchError::Internal(error.to_string()))? {
                    Ok(hits) => hits,
                    Err(error) => {
                        tracing::debug!("search the mirror before: {}", Chain(&error));
                        return Ok(None);
                    }
                }
            }
        };
        let staleness_ms = self.staleness_ms();
        Ok(Some(SearchAnswer { results: results(hits), served_by: LOCAL, degraded: true, staleness_ms }))
    }

    /// What capture says, for a log whose freshness is followed by marks.
    pub fn captured(&self, as_of_ms: i64, ends: Vec<u64>) {
        self.freshness().captured(as_of_ms, ends);
    }

    /// Brings its freshness up to what it has.
    pub fn follow(&self, log: &Log) -> Result<(), LogError> {
        let mirror = &self.earlier.mirror;
        match log {
            Log::Embedded(log) => {
                let progress = log.progress(&self.earlier.revision, &mirror.positions())?;
                self.freshness().advance(&progress);
            }
            Log::Kafka(_) => self.freshness().heard(mirror.as_of_ms()),
        }
        Ok(())
    }

    /// How old its answers may be, milliseconds.
    pub fn staleness_ms(&self) -> Option<u64> {
        age_ms(self.freshness().as_of_ms()?, now_ms())
    }

    /// Whether the stores of the new revision, of which the mirror is whole, are to answer from now on.
    pub fn is_done(&self, shared: &Shared) -> bool {
        let since = *lock(&self.whole_since).get_or_insert_with(Instant::now);
        let is_ready = shared.qdrant.as_ref().is_none_or(|qdrant| {
            let state = qdrant.primary.state();
            qdrant.primary.searchable().is_some() || state.fault.is_some() || state.sink_fault.is_some()
        });
        is_ready || since.elapsed() >= QDRANT_PATIENCE
    }

    fn freshness(&self) -> MutexGuard<'_, Freshness> {
        lock(&self.freshness)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
