//! Answers searches and health from the rooms that know: embedder, mirror, capture's status, freshness.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::LOCAL;
use crate::capture::{self, Phase};
use crate::clock::now_ms;
use crate::embed::{EmbedError, Embedder};
use crate::freshness::Freshness;
use crate::index::{self, Filter, Mirror};
use crate::retry::Chain;
use crate::serve::health::{self, Component, Report, Status};
use crate::serve::{FilterValue, SearchAnswer, SearchError, SearchRequest, SearchResult};

/// What the query server and the commands need.
pub(super) struct Shared {
    pub embedder: Embedder,
    pub mirror: Mirror,
    pub status: watch::Receiver<capture::Status>,
    pub freshness: Mutex<Freshness>,
}

impl Shared {
    pub async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, SearchError> {
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
            let reason = format!("the load is not complete: {} rows are searchable so far", self.mirror.rows());
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

    pub fn freshness(&self) -> MutexGuard<'_, Freshness> {
        self.freshness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn report(&self) -> Report {
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
        let open = self.mirror.is_open();
        let mut local = if !open {
            let why = "the local store is being opened again after a fault of its files".to_owned();
            Component { error: Some(why), ..Component::new(health::LOCAL, Status::Unhealthy) }
        } else if loaded {
            Component::new(health::LOCAL, Status::Healthy)
        } else {
            faulty(health::LOCAL, "the load is not complete")
        };
        local.details.insert("rows".into(), json!(self.mirror.rows()));
        local.details.insert("points".into(), json!(self.mirror.points()));
        local.details.insert("loaded".into(), json!(loaded));
        local.details.insert("staleness_ms".into(), json!(as_of_ms.map(|as_of| (now_ms() - as_of).max(0))));
        let ready = if open { Ok(()) } else { Err("the local store".to_owned()) };
        let qdrant = Component::new(health::QDRANT, Status::Disabled);
        Report { components: vec![source, model, qdrant, local], ready, serves: true }
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
