//! Says at debug what of `changes` became what of `vectors`, a line a batch, and at trace of each record. Says nothing of keys
//! and rows.

use std::fmt;

use tracing::Level;

use super::rows::Processed;
use crate::event::{ChangeEvent, Lsn, VectorEvent};
use crate::topic::Partition;
use crate::topic::trail::{Place, Places};

const TARGET: &str = "vecsync::embed";
const STAGE: &str = "embed";

/// What a batch was made of.
#[derive(Debug, Default, PartialEq)]
pub struct Trail {
    /// Where its rows stand in `changes`, also those that later ones have overtaken.
    changes: Places,
    commits: Option<Commits>,
}

/// The first and the last commit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Commits(Lsn, Lsn);

impl fmt::Display for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Commits(first, last) = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// One to be filled, if somebody wants to know.
pub(super) fn begin() -> Option<Trail> {
    tracing::enabled!(target: TARGET, Level::DEBUG).then(Trail::default)
}

impl Trail {
    /// Notes a record with its event, if it can be read, unless it is about no row.
    pub(super) fn note(&mut self, event: Option<&ChangeEvent>, place: Place) {
        let commit = match event {
            Some(
                ChangeEvent::Row { change, .. }
                | ChangeEvent::Barrier { change }
                | ChangeEvent::Truncate { change, .. },
            ) => change.source.commit_lsn,
            Some(ChangeEvent::Tombstone { .. }) | None => None,
            Some(ChangeEvent::Nothing | ChangeEvent::Heartbeat { .. } | ChangeEvent::Replay { .. }) => return,
        };
        self.changes.note(place);
        if let Some(lsn) = commit {
            let Commits(first, last) = self.commits.unwrap_or(Commits(lsn, lsn));
            self.commits = Some(Commits(first.min(lsn), last.max(lsn)));
        }
    }
}

/// The place in `changes` of what became a record of `vectors`, unless that is about no row.
pub(super) fn origin((partition, version, event): &(Partition, u64, VectorEvent)) -> Option<Place> {
    let is_mark = matches!(event, VectorEvent::Heartbeat { .. } | VectorEvent::Replayed { .. });
    (!is_mark).then_some((*partition, *version))
}

/// What is said of a batch when it is durable.
pub(super) struct Report {
    trail: Trail,
    origins: Vec<Option<Place>>,
    dead_letters: usize,
    computed: u64,
    cached: u64,
}

impl Report {
    /// Of this batch, if it is followed and has rows.
    pub(super) fn of(processed: &mut Processed) -> Option<Report> {
        let trail = processed.trail.take().filter(|trail| !trail.changes.is_empty())?;
        let origins = std::mem::take(&mut processed.origins);
        let (dead_letters, computed, cached) = (processed.reasons.len(), processed.computed, processed.cached);
        Some(Report { trail, origins, dead_letters, computed, cached })
    }

    /// `places` are those of its records in `vectors`, in their order.
    pub(super) fn committed(self, pipeline: &str, places: &[Place]) {
        let Report { trail: Trail { changes, commits }, origins, dead_letters, computed, cached } = self;
        let commit_lsn = commits.map(tracing::field::display);
        let rows = || origins.iter().zip(places).filter_map(|(origin, place)| Some(((*origin)?, *place)));
        let vectors: Places = rows().map(|(_, place)| place).collect();
        tracing::debug!(
            target: TARGET,
            pipeline,
            stage = STAGE,
            commit_lsn,
            %changes,
            %vectors,
            records = rows().count(),
            dead_letters,
            computed,
            cached,
            "batch embedded"
        );
        if tracing::enabled!(target: TARGET, Level::TRACE) {
            for ((partition, change), (into, vector)) in rows() {
                let (changes, vectors) = (format!("{partition}:{change}"), format!("{into}:{vector}"));
                tracing::trace!(target: TARGET, pipeline, stage = STAGE, changes, vectors, "record embedded");
            }
        }
    }
}
