//! What a verify has found, as it is told and as `--json` prints it. Pure.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capture::Republished;
use crate::event::RowKey;
use crate::index::Stray;
use crate::topic::LetterId;

/// Keys of a kind that are named.
const KEYS_NAMED: usize = 20;

/// The table against the stores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The table, with its schema.
    pub table: String,
    /// Its rows, as the publication has them.
    pub rows: u64,
    /// Those of them that belong into the index.
    pub indexed: u64,
    /// Each store.
    pub stores: Vec<StoreReport>,
    /// What a repair did, where one was asked for.
    pub repair: Option<Repair>,
    /// Something differs, and there are records that were put aside.
    pub open_dead_letters: bool,
    /// Those of the rows that differ whose record was put aside.
    pub put_aside: PutAside,
    /// How long it took, milliseconds.
    pub took_ms: u64,
}

/// The table against one store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreReport {
    /// `local` or `qdrant`.
    pub store: String,
    /// Why it was not compared, or not to the end; then the numbers are not the whole.
    pub error: Option<String>,
    /// Rows that it holds as they are.
    pub same: u64,
    /// Rows that it lacks.
    pub missing: Drifted,
    /// Rows of which it holds another state.
    pub stale: Drifted,
    /// Rows that it should not hold.
    pub extra: Drifted,
    /// Rows that changed each time they were looked at.
    pub unsettled: u64,
    /// It does not have yet what was committed: what differs may be on its way.
    pub late: bool,
    /// What still differs after a repair; `None`: there was none.
    pub left: Option<Drifted>,
}

/// Rows that have drifted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drifted {
    /// How many.
    pub count: u64,
    /// The ids of the first of them.
    pub keys: Vec<Value>,
}

/// Rows that differ because an open dead letter stands for them: publishing them again as they are mends nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PutAside {
    /// How many, of all stores together.
    pub count: u64,
    /// The first of them: a row's id, and its dead letter's.
    pub rows: Vec<(Value, String)>,
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    /// Rows that were published again, or had changed by themselves.
    pub published: u64,
    /// Points in Qdrant that were no row's and were removed.
    pub removed: u64,
    /// Rows that cannot be: their ids, and why. The first of them.
    pub refused: Vec<(Value, String)>,
    /// Why not all were.
    pub error: Option<String>,
}

impl Report {
    /// Rows that differ, after the repair if there was one; of each store.
    pub fn differing(&self) -> u64 {
        self.stores.iter().map(StoreReport::differing).sum()
    }

    /// What could not be done.
    pub fn faults(&self) -> Vec<String> {
        let stores = self.stores.iter().filter_map(|store| Some(format!("{}: {}", store.store, store.error.as_ref()?)));
        let repair = self.repair.as_ref().and_then(|repair| repair.error.as_ref());
        stores.chain(repair.map(|error| format!("repair: {error}"))).collect()
    }
}

impl StoreReport {
    /// Rows that were found to differ.
    pub fn found(&self) -> u64 {
        self.missing.count + self.stale.count + self.extra.count
    }

    fn differing(&self) -> u64 {
        self.left.as_ref().map_or_else(|| self.found(), |left| left.count)
    }
}

impl Drifted {
    pub(super) fn of<'a>(keys: impl Iterator<Item = &'a RowKey>, strays: &[Stray]) -> Drifted {
        let mut keys: Vec<&str> = keys.map(RowKey::as_str).collect();
        // Of texts that differ in one number the shorter has the lesser.
        keys.sort_unstable_by_key(|key| (key.len(), *key));
        let count = (keys.len() + strays.len()) as u64;
        let id = |key: &str| RowKey::from_bytes(key.as_bytes()).map(|key| key.id()).ok();
        let ids = keys.into_iter().take(KEYS_NAMED).filter_map(id);
        Drifted { count, keys: ids.chain(strays.iter().map(Stray::shown)).take(KEYS_NAMED).collect() }
    }
}

impl PutAside {
    /// Of rows that differ, in one store after the other, those with a letter.
    pub(super) fn of<'a>(differing: impl Iterator<Item = &'a RowKey>, letters: &HashMap<RowKey, LetterId>) -> PutAside {
        let mut found = PutAside::default();
        let mut named = HashSet::new();
        for (key, letter) in differing.filter_map(|key| letters.get_key_value(key)) {
            found.count += 1;
            if found.rows.len() < KEYS_NAMED && named.insert(key) {
                found.rows.push((key.id(), letter.to_string()));
            }
        }
        found
    }
}

impl Repair {
    pub(super) fn note(&mut self, key: &RowKey, became: Republished) {
        match became {
            Republished::Row | Republished::Gone | Republished::Changed => self.published += 1,
            Republished::Refused(reason) if self.refused.len() < KEYS_NAMED => self.refused.push((key.id(), reason)),
            Republished::Refused(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_keys_are_named_and_all_counted() {
        let keys: Vec<RowKey> = (1..=50)
            .rev()
            .map(|id| RowKey::from_bytes(format!(r#"{{"id":{id}}}"#).as_bytes()).expect("a key"))
            .collect();
        let drifted = Drifted::of(keys.iter(), &[]);
        assert_eq!((drifted.count, drifted.keys), (50, (1..=20).map(|id| json!(id)).collect()));
    }
}
