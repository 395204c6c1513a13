//! Metrics of the moment: what is worth knowing of the very second in which somebody asks, and what exists from the start.

use super::qdrant::FALLBACK_REASONS;
use super::serving::Shared;
use crate::capture::{Phase, Standing};
use crate::config::Role;
use crate::index::{mirror, primary};
use crate::metrics::{PipelineMetrics, Stage};

/// That of a pipeline that failed and is tried again.
const NOT_RUNNING: &str = "retrying";
/// How searches end that are counted before there was one: by nobody with the codes that alerts are about.
const UNANSWERED: [(&str, u16); 3] = [("none", 500), ("none", 503), ("none", 400)];

/// Makes what can be counted of a pipeline exist, so that the first count is an increase and a fault that never was is 0.
pub(super) fn announce(shared: &Shared, roles: &[Role]) {
    let (metrics, has_qdrant) = (&shared.metrics, shared.qdrant.is_some());
    for (role, stage) in [(Role::Capture, Stage::Capture), (Role::Embed, Stage::Embed)] {
        if roles.contains(&role) {
            metrics.has_stage(stage);
        }
    }
    if shared.generations.is_some() {
        metrics.has_stage(Stage::Index);
        metrics.has_store(mirror::STORE);
        metrics.dead_letter_reasons(&["vectors_unreadable"]);
    }
    if has_qdrant {
        metrics.has_store(primary::STORE);
        metrics.fallback_reasons(&FALLBACK_REASONS);
    }
    if shared.serves {
        metrics.query_ends(&UNANSWERED);
        metrics.query_ends(&[(mirror::STORE, 200)]);
        if has_qdrant {
            metrics.query_ends(&[(primary::STORE, 200)]);
        }
    }
}

/// Sets a pipeline's metrics of this moment. Waits for nothing.
pub(super) fn refresh(shared: &Shared) {
    if let (Some(status), Some(source)) = (&shared.status, &shared.source) {
        shared.metrics.capture_state(&Phase::NAMES, status.borrow().phase.name());
        let Standing { lag_bytes, retained_bytes, safe_bytes, .. } = *source.borrow();
        shared.metrics.source(lag_bytes, retained_bytes, safe_bytes);
    }
    if let Some(mirror) = shared.mirror() {
        let staleness_ms = shared.staleness_ms(mirror::STORE);
        shared.metrics.store_standing(mirror::STORE, staleness_ms, mirror.is_open());
    }
    if let Some(qdrant) = &shared.qdrant {
        let staleness_ms = shared.staleness_ms(primary::STORE);
        shared.metrics.store_standing(primary::STORE, staleness_ms, qdrant.primary.searchable().is_some());
    }
}

/// The same of a pipeline that does not run, which knows nothing of its source and is asked for nothing.
pub(super) fn refresh_without(metrics: &PipelineMetrics, captures: bool, stores: &[&'static str]) {
    if captures {
        metrics.capture_state(&Phase::NAMES, NOT_RUNNING);
        metrics.source(None, None, None);
    }
    for store in stores {
        metrics.store_standing(store, None, false);
    }
}
