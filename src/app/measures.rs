//! Metrics of the moment: what is worth knowing of the very second in which somebody asks, and what exists from the start.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use super::process;
use super::qdrant::FALLBACK_REASONS;
use super::serving::Shared;
use crate::capture::{Phase, Standing};
use crate::config::Role;
use crate::index::{mirror, primary};
use crate::metrics::{self, Stage};

/// What capture can be doing, as the label `state` names it.
const CAPTURE_STATES: [&str; 5] = ["starting", "streaming", "standby", "retrying", "refused"];
/// How searches end that are counted before there was one: by nobody with the codes that alerts are about.
const UNANSWERED: [(&str, u16); 3] = [("none", 500), ("none", 503), ("none", 400)];

/// What is asked for the metrics.
#[derive(Clone)]
pub(super) struct Measures {
    pub shared: Arc<Shared>,
    pub registry: PrometheusHandle,
    /// When the process began, milliseconds since the Unix epoch.
    pub started: i64,
}

impl Measures {
    /// Makes what can be counted here exist, so that the first count is an increase and a fault that never was is 0.
    pub fn announce(&self, roles: &[Role]) {
        let (metrics, has_qdrant) = (&self.shared.metrics, self.shared.qdrant.is_some());
        for (role, stage) in [(Role::Capture, Stage::Capture), (Role::Embed, Stage::Embed)] {
            if roles.contains(&role) {
                metrics.has_stage(stage);
            }
        }
        if self.shared.generations.is_some() {
            metrics.has_stage(Stage::Index);
            metrics.has_store(mirror::STORE);
            metrics.dead_letter_reasons(&["vectors_unreadable"]);
        }
        if has_qdrant {
            metrics.has_store(primary::STORE);
            metrics.fallback_reasons(&FALLBACK_REASONS);
        }
        if self.shared.serves {
            metrics.query_ends(&UNANSWERED);
            metrics.query_ends(&[(mirror::STORE, 200)]);
            if has_qdrant {
                metrics.query_ends(&[(primary::STORE, 200)]);
            }
        }
    }

    /// All metrics in Prometheus's text format, as things are now. Waits for nothing.
    pub fn render(&self) -> String {
        if let (Some(status), Some(source)) = (&self.shared.status, &self.shared.source) {
            self.shared.metrics.capture_state(&CAPTURE_STATES, label(&status.borrow().phase));
            let Standing { lag_bytes, retained_bytes, safe_bytes, .. } = *source.borrow();
            self.shared.metrics.source(lag_bytes, retained_bytes, safe_bytes);
        }
        if let Some(mirror) = self.shared.mirror() {
            let staleness_ms = self.shared.staleness_ms(mirror::STORE);
            self.shared.metrics.store_standing(mirror::STORE, staleness_ms, mirror.is_open());
        }
        if let Some(qdrant) = &self.shared.qdrant {
            let staleness_ms = self.shared.staleness_ms(primary::STORE);
            self.shared.metrics.store_standing(primary::STORE, staleness_ms, qdrant.primary.searchable().is_some());
        }
        metrics::process(&process::taken(self.started as f64 / 1000.0));
        self.registry.render()
    }
}

/// What capture is doing, as metrics and the status name it.
pub(super) fn label(phase: &Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Streaming => "streaming",
        Phase::Standby(_) => "standby",
        Phase::Retrying(_) => "retrying",
        Phase::Refused(_) => "refused",
    }
}
