//! Says at debug what of `vectors` a store has, a line a batch, and at trace each record of it. Says nothing of keys and rows.

use tracing::Level;

use crate::event::VectorEvent;
use crate::topic::trail::{Place, Places};

const TARGET: &str = "vecsync::index";
const STAGE: &str = "index";

/// What a batch is made of.
#[derive(Debug, Default, PartialEq)]
pub struct Trail {
    vectors: Places,
    /// The versions, which are places in `changes`.
    changes: Places,
    records: u64,
    /// Each, where each is wanted: its place, its version, what it does.
    each: Option<Vec<(Place, u64, &'static str)>>,
}

/// One to be filled, if somebody wants to know.
pub(super) fn begin() -> Option<Trail> {
    let each = || tracing::enabled!(target: TARGET, Level::TRACE).then(Vec::new);
    tracing::enabled!(target: TARGET, Level::DEBUG).then(|| Trail { each: each(), ..Trail::default() })
}

impl Trail {
    /// Notes an event, unless it is about no row.
    pub(super) fn note(&mut self, place: Place, event: &VectorEvent) {
        let (op, version) = match event {
            VectorEvent::Upsert { row, .. } => ("upsert", row.version),
            VectorEvent::Delete { version, .. } => ("delete", version.0),
            VectorEvent::Barrier { version, .. } => ("truncate", version.0),
            VectorEvent::Heartbeat { .. } | VectorEvent::Replayed { .. } => return,
        };
        self.vectors.note(place);
        // A row has the same partition in both topics.
        self.changes.note((place.0, version));
        self.records += 1;
        if let Some(each) = &mut self.each {
            each.push((place, version, op));
        }
    }

    /// It is durable in this store, in its collection or generation of that name.
    pub(super) fn stored(self, pipeline: &str, store: &str, generation: &str) {
        let Trail { vectors, changes, records, each } = self;
        if records == 0 {
            return;
        }
        tracing::debug!(
            target: TARGET,
            pipeline,
            stage = STAGE,
            store,
            generation,
            %changes,
            %vectors,
            records,
            "batch stored"
        );
        for ((partition, vector), version, op) in each.unwrap_or_default() {
            let (changes, vectors) = (format!("{partition}:{version}"), format!("{partition}:{vector}"));
            tracing::trace!(target: TARGET, pipeline, stage = STAGE, store, op, changes, vectors, "record stored");
        }
    }
}
