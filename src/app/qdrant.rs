//! Qdrant in this process: how fresh it is, whether a generation is whole, how it looks in health, and who answers a search
//! when it is slow or away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;

use super::LOCAL;
use super::failover::{DRILL, Failover, OPEN};
use super::serving::faulty;
use crate::clock::{age_ms, now_ms};
use crate::freshness::Freshness;
use crate::index::primary::STORE;
use crate::index::{Accuracy, Filter, Hit, Primary};
use crate::metrics::PipelineMetrics;
use crate::retry::Chain;
use crate::serve::SearchError;
use crate::serve::failover::Outcome;
use crate::serve::health::{self, Component, Status};
use crate::topic::{Log, LogError, Offsets};

/// A new generation that has less than this share of the mirror's rows does not take the place of the one before.
const SHARE_MIN: f64 = 0.5;
/// A sink this far behind is late.
const LATE: u64 = 10_000;

/// Why the mirror answers in its place: it is away or behind; a search in it failed; it was slower than the mirror; the breaker
/// is open; a drill holds it open.
const UNAVAILABLE: &str = "unavailable";
const FAILED: &str = "error";
const SLOW: &str = "slow";
pub(super) const FALLBACK_REASONS: [&str; 5] = [UNAVAILABLE, FAILED, SLOW, OPEN, DRILL];

/// Qdrant, and what the process knows of it. Clones are the same.
#[derive(Clone)]
pub(super) struct Qdrant {
    pub primary: Primary,
    pub metrics: PipelineMetrics,
    /// How long it is waited for before the mirror is asked, too.
    pub hedge_delay: Duration,
    /// Whether it is asked at all.
    pub failover: Failover,
    tracked: Arc<Mutex<Tracked>>,
}

/// The generation that is being written to, where that is done here.
#[derive(Default)]
struct Tracked {
    generation: u32,
    is_asked: bool,
    positions: Offsets,
    freshness: Freshness,
    /// Records of `vectors` that it lacks.
    lag: u64,
}

/// How far a store is with regard to the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Whether it has held the whole table at some moment.
    pub is_loaded: bool,
    /// The moment up to which everything committed is in it, milliseconds since the Unix epoch.
    pub as_of_ms: Option<i64>,
}

impl Qdrant {
    pub fn new(primary: Primary, metrics: PipelineMetrics, hedge_delay: Duration) -> Qdrant {
        let failover = Failover::new(hedge_delay, metrics.clone());
        Qdrant { primary, metrics, hedge_delay, failover, tracked: Arc::default() }
    }

    /// What capture says, for a log whose freshness is followed by marks.
    pub fn captured(&self, complete: bool, current: Option<(i64, Offsets)>) {
        let mut tracked = self.tracked();
        if !complete {
            tracked.freshness = Freshness::default();
        } else if let Some((as_of_ms, ends)) = current {
            tracked.freshness.captured(as_of_ms, ends);
        }
    }

    /// Brings the freshness up to what is written. `is_local_loaded`: whether the mirror has held the whole table; `local` are
    /// its positions.
    pub fn follow(&self, log: &Log, revision: &str, is_local_loaded: bool, local: &Offsets) -> Result<(), LogError> {
        let state = self.primary.state();
        let is_away = state.fault.is_some() || state.sink_fault.is_some();
        let Some(taken) = state.taken else { return Ok(()) };
        let mut tracked = self.tracked();
        // Who writes counts while it writes; while it cannot, the mirror knows what has come.
        let behind_local = local.iter().zip(&taken.positions).map(|(local, has)| local.saturating_sub(*has)).sum();
        tracked.lag = taken.lag.max(if is_away { behind_local } else { 0 });
        if is_away {
            self.metrics.sink_lag(STORE, tracked.lag);
        }
        let is_another = tracked.generation != taken.generation
            || taken.positions.iter().zip(&tracked.positions).any(|(now, before)| now < before);
        match log {
            Log::Embedded(log) => {
                // One that was filled beside the one before, and has taken its place, is whole, too.
                let is_successor =
                    taken.is_asked && tracked.generation != taken.generation && tracked.freshness.is_loaded();
                if is_another && !is_successor {
                    tracked.freshness = Freshness::default();
                    if log.capture_state()?.is_some_and(|state| state.is_whole()) {
                        tracked.freshness.started_complete(log.changes_ends());
                    }
                }
                tracked.freshness.advance(&log.progress(revision, &taken.positions)?);
            }
            Log::Kafka(_) => {
                // One that searches ask was whole when it was named, unless that was the very first.
                let was_whole = taken.is_asked && (tracked.freshness.is_loaded() || is_local_loaded);
                if is_another && was_whole && tracked.generation != taken.generation {
                    tracked.freshness = Freshness::default();
                } else if is_another {
                    tracked.freshness.fills(now_ms());
                }
                tracked.freshness.heard(taken.as_of_ms);
            }
        }
        (tracked.generation, tracked.is_asked, tracked.positions) = (taken.generation, taken.is_asked, taken.positions);
        Ok(())
    }

    /// Whether a generation has held the whole table: the least rows it has to have then, so that it may take the place
    /// of the one before. `mirror_rows` are those of a mirror that is followed.
    pub fn is_whole(&self, generation: u32, mirror_rows: u64) -> Option<u64> {
        let tracked = self.tracked();
        let is_whole = tracked.generation == generation && tracked.freshness.is_loaded();
        is_whole.then_some((mirror_rows as f64 * SHARE_MIN) as u64)
    }

    /// How far the generation that searches ask is.
    pub fn standing(&self) -> Standing {
        let Some(searchable) = self.primary.state().searchable else { return Standing::default() };
        let tracked = self.tracked();
        // What is written is what is asked, or about to be.
        if tracked.generation == searchable.number || (tracked.is_asked && tracked.generation > 0) {
            let freshness = &tracked.freshness;
            return Standing { is_loaded: freshness.is_loaded(), as_of_ms: freshness.as_of_ms() };
        }
        // Another process writes, over a log that has heartbeats.
        let as_of_ms = searchable.store.as_of_ms();
        Standing { is_loaded: as_of_ms.is_some(), as_of_ms }
    }

    /// Searches in Qdrant, and in the mirror as soon as Qdrant fails or takes longer than the hedge delay. The first answer
    /// counts; says whose it is. Where the breaker is open a mirror that is whole answers at once.
    pub async fn search(
        &self,
        query: &[f32],
        (limit, min_score): (usize, f32),
        filter: &Filter,
        local: impl Future<Output = Result<Vec<Hit>, SearchError>>,
        is_local_whole: bool,
    ) -> Result<(Vec<Hit>, &'static str), SearchError> {
        let store = match (self.primary.searchable(), self.failover.check()) {
            (Some(store), Ok(())) => store,
            (None, Ok(())) => return self.locally(UNAVAILABLE, local).await,
            (None, Err(reason)) => return self.locally(reason, local).await,
            // A store that is slow or failed a moment ago is better than one that lacks rows.
            (Some(store), Err(_)) if !is_local_whole => store,
            (Some(_), Err(reason)) => return self.locally(reason, local).await,
        };
        let since = Instant::now();
        let asked = async {
            let found = store.search(query, limit, min_score, filter, Accuracy::Indexed).await;
            let took = since.elapsed();
            self.metrics.store_request(STORE, "search", found.is_ok(), took);
            match &found {
                Ok(_) => self.failover.searched(Outcome::Answered { took }),
                Err(error) => self.failover.failed(Chain(error).to_string()),
            }
            found.inspect_err(|error| tracing::debug!("search Qdrant: {}", Chain(error)))
        };
        let mut asked = std::pin::pin!(asked);
        match timeout(self.hedge_delay, &mut asked).await {
            Ok(Ok(hits)) => return Ok((hits, STORE)),
            Ok(Err(_)) => return self.locally(FAILED, local).await,
            Err(_) => {}
        }
        let mut local = std::pin::pin!(local);
        let (mut failed, mut fault) = (false, None);
        loop {
            tokio::select! {
                biased;
                found = &mut asked, if !failed => match found {
                    Ok(hits) => return Ok((hits, STORE)),
                    Err(_) => failed = true,
                },
                found = &mut local, if fault.is_none() => match found {
                    Ok(hits) => {
                        if !failed {
                            self.failover.searched(Outcome::Abandoned { after: since.elapsed() });
                        }
                        self.metrics.fallback(if failed { FAILED } else { SLOW });
                        return Ok((hits, LOCAL));
                    }
                    // The other one may still have an answer.
                    Err(error) => fault = Some(error),
                },
            }
            if failed && let Some(error) = fault.take() {
                return Err(error);
            }
        }
    }

    async fn locally(
        &self,
        reason: &'static str,
        local: impl Future<Output = Result<Vec<Hit>, SearchError>>,
    ) -> Result<(Vec<Hit>, &'static str), SearchError> {
        self.metrics.fallback(reason);
        local.await.map(|hits| (hits, LOCAL))
    }

    /// Records of `vectors` that it lacks, as far as they are known here, also while it is away; `None`: it is not written to.
    pub fn lag(&self) -> Option<u64> {
        self.primary.state().taken.map(|_| self.tracked().lag)
    }

    /// How it is, for health.
    pub fn component(&self) -> Component {
        let (state, standing) = (self.primary.state(), self.standing());
        let (breaker, not_asked) = self.failover.describe();
        let mut component = match (&state.fault, &state.look, &state.searchable, &state.sink_fault) {
            (Some(fault), ..) => {
                Component { error: Some(fault.clone()), ..Component::new(health::QDRANT, Status::Unhealthy) }
            }
            (None, None, ..) => faulty(health::QDRANT, "it was not asked yet"),
            (None, Some(_), _, Some(fault)) => faulty(health::QDRANT, fault),
            (None, Some(_), None, None) => faulty(health::QDRANT, "no generation of this revision is whole yet"),
            (None, Some(_), Some(_), None) if !standing.is_loaded => faulty(health::QDRANT, "the load is not complete"),
            (None, Some(_), Some(_), None) if !state.is_current => faulty(health::QDRANT, "it is behind the mirror"),
            _ => not_asked
                .map_or_else(|| Component::new(health::QDRANT, Status::Healthy), |why| faulty(health::QDRANT, &why)),
        };
        component.details.insert("breaker".into(), breaker);
        let settings = self.primary.settings();
        // What was seen before a fault says nothing of now.
        let look = state.look.as_ref().filter(|_| state.fault.is_none());
        let took_ms = look.map(|look| look.took.as_secs_f64() * 1000.0);
        component.latency_ms = took_ms;
        component.details.insert(
            "server".into(),
            json!({
                "host": settings.server.host, "port": settings.server.port, "grpc_port": settings.server.grpc_port,
                "response_time_ms": took_ms.map(|ms| (ms * 1000.0).round() / 1000.0),
                "collections_count": look.map(|look| look.collections),
            }),
        );
        let mut collection = json!({
            "name": settings.collection, "exists": look.map(|look| look.named.is_some()),
            "generation": look.and_then(|look| look.named),
        });
        if let Some((width, distance)) = look.and_then(|look| look.shape) {
            collection["stats"] = json!({
                "total_points": state.points, "vector_dimension": width, "distance_metric": distance.to_uppercase(),
            });
        }
        component.details.insert("collection".into(), collection);
        if let Some(taken) = &state.taken {
            let lag = self.tracked().lag;
            if component.status == Status::Healthy && lag > LATE {
                component.status = Status::Degraded;
                component.error = Some(format!("it lacks {lag} records"));
            }
            component.details.insert("sink".into(), json!({"generation": taken.generation, "lag_records": lag}));
        }
        let staleness_ms = standing.as_of_ms.and_then(|as_of_ms| age_ms(as_of_ms, now_ms()));
        component.details.insert("staleness_ms".into(), json!(staleness_ms));
        component
    }

    fn tracked(&self) -> MutexGuard<'_, Tracked> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
