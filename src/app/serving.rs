//! Answers searches and health from the rooms that know: embedder, mirror, capture's status, freshness.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::LOCAL;
use super::qdrant::{Qdrant, Standing};
use super::stand_in::StandIn;
use crate::capture::{self, Phase};
use crate::clock::{age_ms, now_ms};
use crate::embed::{EmbedError, Embedder};
use crate::freshness::Freshness;
use crate::index::mirror::Begun;
use crate::index::primary::STORE;
use crate::index::{self, Arrivals, Filter, Generations, Hit, Mirror, MirrorError};
use crate::metrics::PipelineMetrics;
use crate::retry::Chain;
use crate::serve::health::{self, Component, Report, Status};
use crate::serve::{FilterValue, SearchAnswer, SearchError, SearchRequest, SearchResult};

/// What the query server and the commands need.
pub(super) struct Shared {
    /// Where rows or queries are embedded.
    pub embedder: Option<Embedder>,
    /// Where a store is kept.
    pub generations: Option<Generations>,
    /// Capture's, where it is in this process.
    pub status: Option<watch::Receiver<capture::Status>>,
    /// How the source stands to the log, where capture is in this process.
    pub source: Option<watch::Receiver<capture::Standing>>,
    /// The primary store, where one is configured.
    pub qdrant: Option<Qdrant>,
    /// The mirror's.
    pub freshness: Mutex<Freshness>,
    /// Who answers until the mirror is whole, after a change of revision.
    pub stand_in: Mutex<Option<Arc<StandIn>>>,
    /// What is wrong with the brokers or their topics.
    pub log_fault: Mutex<Option<String>>,
    /// Why nothing is embedded here.
    pub embed_fault: Mutex<Option<String>>,
    /// What reached the stores lately.
    pub arrivals: Arrivals,
    /// Of each topic.
    pub partitions: u16,
    pub serves: bool,
    pub metrics: PipelineMetrics,
    /// How long the mirror's last search took, microseconds; 0: there was none.
    pub local_us: AtomicU64,
}

/// A store that is fed from elsewhere is late beyond this.
const LATE_MS: u64 = 30_000;

impl Shared {
    /// The store of this revision, which answers unless somebody stands in for it.
    pub fn mirror(&self) -> Option<Mirror> {
        self.generations.as_ref().map(|generations| generations.current().mirror)
    }

    /// Why the store that answers is not followed any more.
    fn lost(&self) -> Option<String> {
        self.generations.as_ref().and_then(|generations| generations.current().lost)
    }

    /// See [`Qdrant::is_whole`]. A mirror that is not followed any more says nothing; one that is not whole while somebody
    /// stands in for it is waited for, so that both stores take over together.
    pub fn is_whole_in_qdrant(&self, generation: u32) -> Option<u64> {
        let mirror = self.mirror();
        let rows = mirror.as_ref().map_or(0, Mirror::rows);
        let waits =
            self.stand_in().is_some() && !self.freshness().is_loaded() && mirror.is_some_and(|mirror| mirror.is_open());
        self.qdrant.as_ref()?.is_whole(generation, rows).filter(|_| self.lost().is_none() && !waits)
    }

    /// Whether the mirror can answer as well as Qdrant.
    pub fn is_local_whole(&self) -> bool {
        self.mirror().is_some_and(|mirror| mirror.is_open()) && self.freshness().is_loaded()
    }

    /// Who answers in the mirror's place.
    pub fn stand_in(&self) -> Option<Arc<StandIn>> {
        self.stand_in.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the stores of this revision answer.
    pub fn dismiss_stand_in(&self) {
        *self.stand_in.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, SearchError> {
        let (Some(embedder), Some(mirror)) = (&self.embedder, self.mirror()) else {
            return Err(SearchError::Internal("this process does not serve".to_owned()));
        };
        let known = mirror.fields();
        if let Some((field, _)) = request.filter.iter().find(|(field, _)| !known.contains(field)) {
            return Err(SearchError::UnknownFilter { field: field.clone(), known: known.to_vec() });
        }
        let conditions = request.filter.clone().into_iter().map(condition);
        let filter = conditions.collect::<Result<_, _>>().map(Filter::new)?;
        if let Some(stand_in) = self.stand_in() {
            // It may be closed under the search, or damaged.
            if let Some(answer) = stand_in.search(&request, &filter).await? {
                return Ok(answer);
            }
        }
        let Some(query) = vector_of(embedder, &request.query).await? else {
            let store = match &self.qdrant {
                Some(qdrant) if qdrant.primary.searchable().is_some() => STORE,
                _ => LOCAL,
            };
            return Ok(self.answer(vec![], store, self.standing(store)));
        };
        let local =
            |mirror| self.search_locally(mirror, query.clone(), request.limit, request.min_score, filter.clone());
        let (mut hits, mut served_by) = match &self.qdrant {
            Some(qdrant) => {
                let wanted = (request.limit, request.min_score);
                let is_local_whole = self.is_local_whole();
                qdrant.search(&query, wanted, &filter, local(mirror.clone()), is_local_whole).await?
            }
            None => (local(mirror.clone()).await?, LOCAL),
        };
        // While both are being filled for the first time, the other one may have come further.
        if hits.is_empty() && served_by != LOCAL && !self.standing(served_by).is_loaded {
            (hits, served_by) = (local(mirror).await?, LOCAL);
        }
        let results = results(hits);
        let standing = self.standing(served_by);
        if results.is_empty() && !standing.is_loaded {
            // An index that is still being filled must not say that there is nothing to be found.
            let rows = self.mirror().map_or(0, |mirror| mirror.rows());
            let what = format!("the load is not complete: {rows} rows are searchable so far");
            let components: Vec<_> = self.report().components.into_iter().filter(|part| part.name != LOCAL).collect();
            let reason = with_faults(&what, &components);
            return Err(SearchError::Unavailable { reason, retry_after_s: 1 });
        }
        Ok(self.answer(results, served_by, standing))
    }

    async fn search_locally(
        &self,
        mirror: Mirror,
        query: Vec<f32>,
        limit: usize,
        min_score: f32,
        filter: Filter,
    ) -> Result<Vec<Hit>, SearchError> {
        let since = Instant::now();
        let found = self.scanned(mirror, query, limit, min_score, filter).await;
        if found.is_ok() {
            let took_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.local_us.store(took_us.max(1), Ordering::Relaxed);
        }
        found
    }

    async fn scanned(
        &self,
        mirror: Mirror,
        query: Vec<f32>,
        limit: usize,
        min_score: f32,
        filter: Filter,
    ) -> Result<Vec<Hit>, SearchError> {
        // Another thread means two switches: a short search that reads no disk is made here, and otherwise as much of it.
        let begun = mirror.begin_search(&query, limit, min_score, &filter);
        if let Some(Begun::Done(hits)) = begun {
            return Ok(hits);
        }
        let search = async |mirror: Mirror, begun: Option<Begun>| {
            let (query, filter) = (query.clone(), filter.clone());
            let search = move || match begun {
                Some(Begun::Found(search)) => mirror.finish_search(search),
                _ => mirror.search(&query, limit, min_score, &filter),
            };
            spawn_blocking(search).await.map_err(|error| SearchError::Internal(error.to_string()))
        };
        let found = match (search(mirror, begun).await?, self.mirror()) {
            // Another generation has taken its place meanwhile.
            (Err(MirrorError::Closed { .. }), Some(current)) => search(current, None).await?,
            (found, _) => found,
        };
        found
            .map_err(|error| SearchError::Unavailable { reason: format!("the local store: {error}"), retry_after_s: 5 })
    }

    /// How far a store is with regard to the source.
    pub fn standing(&self, store: &str) -> Standing {
        match &self.qdrant {
            Some(qdrant) if store != LOCAL => qdrant.standing(),
            _ => {
                let freshness = self.freshness();
                Standing { is_loaded: freshness.is_loaded(), as_of_ms: freshness.as_of_ms() }
            }
        }
    }

    fn answer(&self, results: Vec<SearchResult>, served_by: &'static str, standing: Standing) -> SearchAnswer {
        let staleness_ms = standing.as_of_ms.and_then(|as_of_ms| age_ms(as_of_ms, now_ms()));
        let is_fallback = served_by == LOCAL && (self.qdrant.is_some() || self.lost().is_some());
        let degraded = !standing.is_loaded || !self.is_fed(standing.as_of_ms) || is_fallback;
        SearchAnswer { results, served_by, degraded, staleness_ms }
    }

    /// Whether changes arrive: as capture says it, or, where that is elsewhere, as the heartbeats do.
    pub fn is_fed(&self, as_of_ms: Option<i64>) -> bool {
        match &self.status {
            Some(status) => status.borrow().phase == Phase::Streaming,
            None => as_of_ms.and_then(|as_of_ms| age_ms(as_of_ms, now_ms())).is_some_and(|age_ms| age_ms < LATE_MS),
        }
    }

    pub fn freshness(&self) -> MutexGuard<'_, Freshness> {
        self.freshness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn report(&self) -> Report {
        let mut components = vec![];
        components.extend(self.status.as_ref().map(|status| {
            let took = self.source.as_ref().and_then(|source| source.borrow().took);
            Component { latency_ms: took.map(millis), ..source(&status.borrow()) }
        }));
        for (name, fault) in [("log", &self.log_fault), ("embed", &self.embed_fault)] {
            if let Some(fault) = &*fault.lock().unwrap_or_else(PoisonError::into_inner) {
                components.push(faulty(name, fault));
            }
        }
        if let Some(embedder) = &self.embedder {
            let mut model = Component::new("model", Status::Healthy);
            model.latency_ms = embedder.last_query().map(millis);
            model.details.insert("name".into(), json!(embedder.model_name()));
            components.push(model);
        }
        components.push(match &self.qdrant {
            Some(qdrant) => qdrant.component(),
            None => Component::new(health::QDRANT, Status::Disabled),
        });
        let (mut ready, mut is_whole) = (Ok(()), true);
        if let Some(mirror) = self.mirror() {
            components.push(self.local(&mirror, self.lost()));
            let is_stood_in = self.stand_in().is_some_and(|stand_in| stand_in.is_there());
            let has_qdrant = self.qdrant.as_ref().is_some_and(|qdrant| qdrant.primary.searchable().is_some());
            is_whole =
                !self.serves || is_stood_in || self.is_local_whole() || has_qdrant && self.standing(STORE).is_loaded;
            if !is_stood_in && !self.can_answer() {
                let what = if mirror.is_open() { "the first rows" } else { "the local store" };
                ready = Err(with_faults(what, &components));
            }
        }
        Report { components, ready, serves: self.serves, is_whole }
    }

    /// Whether a store has held the whole table, or has rows at least: one that has none and is not loaded finds nothing, and
    /// that is no answer.
    fn can_answer(&self) -> bool {
        let qdrant = self.qdrant.as_ref().is_some_and(|qdrant| {
            let has_points = qdrant.primary.state().points.is_some_and(|points| points > 0);
            qdrant.primary.searchable().is_some() && (has_points || qdrant.standing().is_loaded)
        });
        let local = |mirror: Mirror| mirror.is_open() && (mirror.rows() > 0 || self.freshness().is_loaded());
        qdrant || self.mirror().is_some_and(local)
    }

    fn local(&self, mirror: &Mirror, lost: Option<String>) -> Component {
        let (loaded, as_of_ms) = {
            let freshness = self.freshness();
            (freshness.is_loaded(), freshness.as_of_ms())
        };
        let stand_in = self.stand_in().filter(|stand_in| stand_in.is_there());
        let mut local = if let Some(stand_in) = &stand_in {
            let earlier = &stand_in.earlier;
            let why = format!(
                "revision {} answers, with {} rows and {}, until the new one is whole; that has {} so far",
                earlier.revision,
                earlier.mirror.rows(),
                stand_in.model_name(),
                mirror.rows()
            );
            faulty(health::LOCAL, &why)
        } else if !mirror.is_open() {
            let why = "the local store is being opened again after a fault of its files".to_owned();
            Component { error: Some(why), ..Component::new(health::LOCAL, Status::Unhealthy) }
        } else if let Some(reason) = &lost {
            faulty(health::LOCAL, &format!("{reason}: all rows are embedded again, and it answers with what it had"))
        } else if !loaded {
            faulty(health::LOCAL, "the load is not complete")
        } else if self.status.is_none() && !self.is_fed(as_of_ms) {
            faulty(
                health::LOCAL,
                "no changes arrive: no heartbeat for 30 s; look at the processes that capture and embed",
            )
        } else {
            Component::new(health::LOCAL, Status::Healthy)
        };
        let took_us = self.local_us.load(Ordering::Relaxed);
        local.latency_ms = (took_us > 0).then(|| millis(Duration::from_micros(took_us)));
        local.details.insert("rows".into(), json!(mirror.rows()));
        local.details.insert("points".into(), json!(mirror.points()));
        local.details.insert("loaded".into(), json!(loaded));
        local.details.insert("staleness_ms".into(), json!(as_of_ms.and_then(|as_of_ms| age_ms(as_of_ms, now_ms()))));
        local
    }
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

fn source(status: &capture::Status) -> Component {
    let mut source = match &status.phase {
        Phase::Streaming => match &status.query {
            Some(why) => faulty("source", why),
            None => Component::new("source", Status::Healthy),
        },
        Phase::Starting => faulty("source", "connecting"),
        Phase::Standby(why) | Phase::Retrying(why) | Phase::Refused(why) => faulty("source", why),
    };
    source.details.insert("snapshot_complete".into(), json!(status.snapshot.complete));
    source.details.insert("snapshot_rows".into(), json!(status.snapshot.rows));
    source.details.insert("snapshot_rows_expected".into(), json!(status.snapshot.expected));
    source
}

/// A query's vector; `None`: nothing in it is a word to the model, so nothing is near it.
pub(super) async fn vector_of(embedder: &Embedder, text: &str) -> Result<Option<Vec<f32>>, SearchError> {
    match embedder.query(text).await {
        Ok(query) => Ok(Some(query.vector)),
        Err(EmbedError::Empty) => Ok(None),
        Err(EmbedError::Busy { .. }) => Err(SearchError::Overloaded),
        Err(error) => Err(SearchError::Internal(Chain(&error).to_string())),
    }
}

/// What was found, as it is answered.
pub(super) fn results(hits: Vec<Hit>) -> Vec<SearchResult> {
    let result =
        |hit: Hit| SearchResult { id: hit.key.id(), score: hit.score, passage: hit.passage, payload: hit.payload };
    hits.into_iter().map(result).collect()
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

/// What is waited for, and what is wrong meanwhile.
fn with_faults(what: &str, components: &[Component]) -> String {
    let faults = components.iter().filter_map(|part| Some(format!("{}: {}", part.name, part.error.as_ref()?)));
    [what.to_owned()].into_iter().chain(faults).collect::<Vec<_>>().join("; ")
}

pub(super) fn faulty(name: &'static str, why: &str) -> Component {
    Component { error: Some(why.to_owned()), ..Component::new(name, Status::Degraded) }
}
