//! What the status page shows beside health: the stores side by side, who would answer a search, the last changes.

use super::LOCAL;
use super::serving::Shared;
use crate::capture::Standing;
use crate::clock::{age_ms, now_ms};
use crate::config::Document;
use crate::index::primary::STORE;
use crate::metrics;
use crate::serve::status::{Slot, Stage, State, Store};

impl Shared {
    /// How the stores are. Waits for nothing.
    pub fn state(&self) -> State {
        let mut stores = vec![];
        if let Some(qdrant) = &self.qdrant {
            stores.push(Store {
                name: STORE,
                rows: None,
                points: qdrant.primary.state().points_now(),
                staleness_ms: self.staleness_ms(STORE),
                lag_records: qdrant.lag(),
            });
        }
        if let Some(mirror) = self.mirror() {
            stores.push(Store {
                name: LOCAL,
                rows: Some(mirror.rows()),
                points: Some(mirror.points()),
                staleness_ms: self.staleness_ms(LOCAL),
                lag_records: self.arrivals.lag(LOCAL),
            });
        }
        State {
            served_by: self.would_answer(),
            title_field: self.arrivals.title_field().cloned(),
            stages: self.stages(),
            slot: self.source.as_ref().map(|source| {
                let Standing { retained_bytes, safe_bytes, .. } = *source.borrow();
                Slot { retained_bytes, safe_bytes }
            }),
            breaker: self.qdrant.as_ref().map(|qdrant| qdrant.failover.state()),
            dead_letters_open: self.metrics.open_letters_known(),
            stores,
            changes: self.arrivals.last(),
        }
    }

    fn stages(&self) -> Vec<Stage> {
        let of = |name, stage| Stage { name, events: self.metrics.events_of(stage), ..Stage::default() };
        let mut stages = vec![];
        if let (Some(status), Some(source)) = (&self.status, &self.source) {
            let Standing { received, lag_bytes, .. } = *source.borrow();
            let (state, position) = (Some(status.borrow().phase.name()), received.map(|lsn| lsn.to_string()));
            stages.push(Stage { state, position, lag_bytes, ..of("capture", metrics::Stage::Capture) });
        }
        if let Some((lag_records, position)) = self.metrics.embed_standing() {
            let position = position.map(|records| records.to_string());
            stages.push(Stage { position, lag_records, ..of("embed", metrics::Stage::Embed) });
        }
        if let Some(mirror) = self.mirror() {
            let position = Some(mirror.positions().iter().sum::<u64>().to_string());
            let lag_records = self.arrivals.lag(LOCAL);
            stages.push(Stage { position, lag_records, ..of("index", metrics::Stage::Index) });
        }
        stages
    }

    /// The store that a search made now would be answered by, if all goes well.
    fn would_answer(&self) -> Option<&'static str> {
        if !self.serves {
            return None;
        }
        if self.stand_in().is_some() {
            return Some(LOCAL);
        }
        // As a search does it: a mirror that lacks rows does not answer in the place of a store that can be asked.
        let asked = self.qdrant.as_ref().filter(|qdrant| qdrant.failover.check().is_ok() || !self.is_local_whole());
        let primary = asked.and_then(|qdrant| qdrant.primary.searchable());
        let mirror = || self.mirror().filter(|mirror| mirror.is_open());
        primary.map(|_| STORE).or_else(|| mirror().map(|_| LOCAL))
    }

    pub(super) fn staleness_ms(&self, store: &str) -> Option<u64> {
        age_ms(self.standing(store).as_of_ms?, now_ms())
    }
}

/// The column of the payload that is the title as it stands; `None`: there is no title, or it is made of more than one.
pub(super) fn title_field(document: &Document) -> Option<String> {
    let column = document.title.as_deref()?.trim().strip_prefix("{{")?.strip_suffix("}}")?.trim();
    document.payload.iter().find(|field| *field == column).cloned()
}
