//! What was read of `vectors` at once: decoded, counted for when it is durable, and the stages it goes through. Knows no
//! store.

use futures_util::future::BoxFuture;

use super::arrivals::{ARRIVALS_MAX, Arrivals, Told};
use super::trail::{self, Trail};
use crate::clock::now_ms;
use crate::event::VectorEvent;
use crate::metrics::{PipelineMetrics, Stage};
use crate::retry::Chain;
use crate::topic::{Offsets, Partition, Stored};

/// What a batch did.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Rows.
    pub upserts: u64,
    deletes: u64,
    barriers: u64,
    commits_ms: Vec<i64>,
    /// Replays whose end it has, by partition.
    pub replayed: Vec<(Partition, u64)>,
    /// Its last changes, for people.
    pub last: Vec<Told>,
    /// What it is made of, where that is logged.
    trail: Option<Trail>,
}

/// Reads the records and makes them ready for a store; what cannot be read is logged and stepped over, and counted as a
/// dead letter in `metrics`: where one log feeds two stores, only one of them counts. Its last changes are remembered for
/// `arrivals`.
pub(super) fn decode<T>(
    stored: Vec<Stored>,
    metrics: Option<&PipelineMetrics>,
    arrivals: Option<&Arrivals>,
    ready: impl Fn(Partition, u64, VectorEvent) -> T,
) -> (Vec<T>, Counts) {
    let mut counts = Counts { trail: trail::begin(), ..Counts::default() };
    let mut events = Vec::with_capacity(stored.len());
    let told_from = stored.len().saturating_sub(ARRIVALS_MAX);
    for (place, Stored { partition, offset, record }) in stored.into_iter().enumerate() {
        let event = match VectorEvent::from_record(&record) {
            Ok(event) => event,
            Err(error) => {
                if let Some(metrics) = metrics {
                    tracing::error!(partition, offset, "record of vectors stepped over: {}", Chain(&error));
                    metrics.dead_letter("vectors_unreadable");
                }
                continue;
            }
        };
        counts.take(partition, &event);
        if let Some(trail) = &mut counts.trail {
            trail.note((partition, offset), &event);
        }
        if place >= told_from {
            counts.last.extend(arrivals.and_then(|arrivals| arrivals.told(&event)));
        }
        events.push(ready(partition, offset, event));
    }
    (events, counts)
}

impl Counts {
    fn take(&mut self, partition: Partition, event: &VectorEvent) {
        let (count, commit_ts_ms) = match event {
            VectorEvent::Heartbeat { .. } => return,
            VectorEvent::Replayed { id } => return self.replayed.push((partition, *id)),
            VectorEvent::Upsert { row, .. } => (&mut self.upserts, Some(row.commit_ts_ms)),
            VectorEvent::Delete { commit_ts_ms, .. } => (&mut self.deletes, *commit_ts_ms),
            VectorEvent::Barrier { commit_ts_ms, .. } => (&mut self.barriers, Some(*commit_ts_ms)),
        };
        *count += 1;
        self.commits_ms.extend(commit_ts_ms);
    }

    /// Counts the events.
    pub fn report(&self, metrics: &PipelineMetrics) {
        for (op, count) in [("upsert", self.upserts), ("delete", self.deletes), ("truncate", self.barriers)] {
            if count > 0 {
                metrics.events(Stage::Index, op, count);
            }
        }
        if let Some(newest_ms) = self.commits_ms.iter().max() {
            metrics.last_commit(Stage::Index, *newest_ms);
        }
    }

    /// Logs at debug that this store has them, in its collection or generation of that name.
    pub fn log(&mut self, metrics: &PipelineMetrics, store: &'static str, generation: &str) {
        if let Some(trail) = self.trail.take() {
            trail.stored(metrics.pipeline(), store, generation);
        }
    }

    /// Counts how long they took to come into a store, which has them now.
    pub fn report_latency(&self, metrics: &PipelineMetrics, store: &'static str) {
        let now_ms = now_ms();
        for commit_ms in &self.commits_ms {
            metrics.end_to_end(store, *commit_ms, now_ms);
        }
    }
}

/// Records between positions and ends.
pub(super) fn lag(ends: &Offsets, positions: &Offsets) -> u64 {
    ends.iter().zip(positions).map(|(end, position)| end.saturating_sub(*position)).sum()
}

/// A stage at work on a batch.
pub(super) type Working<T> = BoxFuture<'static, T>;

/// Waits for a stage to be done with its batch; `None`: it has none. Cancel-safe.
pub(super) async fn next<T>(stage: &mut Option<Working<T>>) -> Option<T> {
    let done = stage.as_mut()?.await;
    *stage = None;
    Some(done)
}
