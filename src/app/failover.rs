//! The breaker before Qdrant at work: told of searches and looks, probed, shown in metrics, log and health.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::index::primary::STORE;
use crate::index::{Accuracy, Filter, Primary, PrimaryState, QdrantStore};
use crate::metrics::PipelineMetrics;
use crate::serve::failover::{Breaker, Cause, Limits, Outcome, State};
use crate::shutdown::Shutdown;

/// Why the mirror answers in Qdrant's place while it is open.
pub(super) const OPEN: &str = "breaker";
pub(super) const DRILL: &str = "drill";

/// How long a failure that has opened nothing is shown in health.
const FAILURE_SHOWN: Duration = Duration::from_secs(5);

/// The breaker. Clones are the same.
#[derive(Clone)]
pub(super) struct Failover {
    breaker: Arc<Mutex<Breaker>>,
    /// When a search failed last, and why.
    fault: Arc<Mutex<Option<(Instant, String)>>>,
    metrics: PipelineMetrics,
}

impl Failover {
    pub fn new(hedge_delay: Duration, metrics: PipelineMetrics) -> Failover {
        let breaker = Breaker::new(Limits::hedged_after(hedge_delay));
        show(&metrics, breaker.state());
        Failover { breaker: Arc::new(Mutex::new(breaker)), fault: Arc::default(), metrics }
    }

    /// Its state, as metrics name it.
    pub fn state(&self) -> &'static str {
        self.lock().state().as_label()
    }

    /// `Err`: Qdrant is not to be asked, and under which name that is counted.
    pub fn check(&self) -> Result<(), &'static str> {
        let breaker = self.lock();
        match (breaker.state(), breaker.cause()) {
            (State::Closed, _) => Ok(()),
            _ if breaker.is_held(Instant::now()) => Err(DRILL),
            _ => Err(OPEN),
        }
    }

    /// A search failed, for this reason.
    pub fn failed(&self, why: String) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), why));
        self.searched(Outcome::Failed);
    }

    /// What became of a search.
    pub fn searched(&self, outcome: Outcome) {
        self.change(|breaker| breaker.searched(Instant::now(), outcome));
    }

    /// Keeps it open for so long.
    pub fn hold(&self, length: Duration) {
        self.change(|breaker| breaker.hold(Instant::now() + length));
    }

    /// After each look: one that was not answered opens it, and where its time has come Qdrant is probed. Until shutdown.
    pub async fn watch(self, primary: Primary, shutdown: Shutdown) {
        let mut looks = primary.subscribe();
        let mut looked = None;
        loop {
            let state = tokio::select! {
                () = shutdown.raised() => return,
                changed = looks.changed() => match changed {
                    Ok(()) => looks.borrow_and_update().clone(),
                    Err(_) => return,
                },
            };
            if state.fault.is_some() {
                self.change(|breaker| breaker.lost(Instant::now()));
                continue;
            }
            // The state changes with what is written, too; a probe comes with a look.
            let at = state.look.as_ref().map(|look| look.at);
            if at != looked {
                looked = at;
                self.probe(&state, &primary).await;
            }
        }
    }

    /// Probes Qdrant where it can be asked: it answers, and has what the mirror had.
    async fn probe(&self, state: &PrimaryState, primary: &Primary) {
        let Some(store) = primary.searchable().filter(|_| state.is_current) else { return };
        let mut due = false;
        self.change(|breaker| due = breaker.wants_probe(Instant::now()));
        if due {
            let deadline = self.lock().limits().slow_after;
            let outcome = probe(&store, deadline).await;
            self.change(|breaker| breaker.probed(Instant::now(), outcome));
        }
    }

    /// How it is, for health: its state, and what is wrong where it is not closed.
    pub fn describe(&self) -> (Value, Option<String>) {
        let breaker = self.lock();
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = reason(&breaker, fault.as_ref());
        let state = breaker.state().as_label();
        let shown = fault.filter(|(at, _)| breaker.failed() > 0 && at.elapsed() < FAILURE_SHOWN);
        let fault = match &why {
            Some(why) => Some(format!("searches do not ask it until it is steady again: {why}")),
            None => shown.map(|(_, fault)| format!("the last search in it failed: {fault}")),
        };
        (json!({"state": state, "reason": why}), fault)
    }

    fn change(&self, change: impl FnOnce(&mut Breaker)) {
        let (before, after, why) = {
            let mut breaker = self.lock();
            let before = breaker.state();
            change(&mut breaker);
            let after = breaker.state();
            if before == after {
                return;
            }
            // Under the lock, so that the last of two changes is shown last.
            show(&self.metrics, after);
            let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
            (before, after, reason(&breaker, fault.as_ref()))
        };
        match (after, why) {
            (State::Closed, _) => tracing::info!("searches ask Qdrant again"),
            (State::Open, Some(why)) if before == State::Closed => {
                tracing::warn!("searches are answered by the mirror: the breaker before Qdrant is open, {why}");
            }
            (_, why) => tracing::debug!(?before, ?after, ?why, "breaker before Qdrant"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why it is not closed, in words.
fn reason(breaker: &Breaker, fault: Option<&(Instant, String)>) -> Option<String> {
    breaker.cause().map(|cause| match cause {
        Cause::Failures(count) => {
            let last = fault.map(|(_, why)| format!(", the last: {why}")).unwrap_or_default();
            format!("{count} searches in a row failed{last}")
        }
        Cause::Slow(count) => {
            let limit = breaker.limits().slow_after.as_millis();
            format!("{count} searches in a row had no answer within {limit} ms")
        }
        Cause::Lost => "it did not answer".to_owned(),
        Cause::Probe => "a probe failed or was slow".to_owned(),
        Cause::Drill if breaker.is_held(Instant::now()) => "a drill holds the breaker open".to_owned(),
        Cause::Drill => "a drill held the breaker open".to_owned(),
    })
}

fn show(metrics: &PipelineMetrics, state: State) {
    for other in State::ALL {
        metrics.breaker_state(other.as_label(), other == state);
    }
}

/// A search that nobody waits for.
async fn probe(store: &QdrantStore, deadline: Duration) -> Outcome {
    let mut query = vec![0.0; crate::embed::DIMENSION];
    query[0] = 1.0;
    let (since, filter) = (Instant::now(), Filter::default());
    match timeout(deadline, store.search(&query, 1, -1.0, &filter, Accuracy::Indexed)).await {
        Ok(Ok(_)) => Outcome::Answered { took: since.elapsed() },
        Ok(Err(error)) => {
            tracing::debug!("probe {STORE}: {}", crate::retry::Chain(&error));
            Outcome::Failed
        }
        Err(_) => Outcome::Abandoned { after: deadline },
    }
}
