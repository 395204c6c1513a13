//! The last changes that reached the stores, and how many records each store still lacks: for people to look at. In memory,
//! bounded, and nothing hangs on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::clock::now_ms;
use crate::event::{EmbeddedRow, Row, VectorEvent};

/// Changes that are kept: what a person can follow. Of a batch no more than its last ones are looked at, so that a
/// backfill pays for so many rows a batch and not for all.
pub const ARRIVALS_MAX: usize = 20;
/// Characters of a title.
const TITLE_CHARS_MAX: usize = 120;

/// A change that is durable in a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// `upsert`, `delete` or `truncate`.
    pub op: &'static str,
    /// The row's id; none of a truncate.
    pub id: Option<Value>,
    /// What the row is about, shortened: the field that is its title, else its first text; none of a row that is gone.
    pub title: Option<String>,
    /// When it was committed, milliseconds since the Unix epoch, if known.
    pub commit_ts_ms: Option<i64>,
    /// The stores that have it, each with the time since the commit, milliseconds.
    pub reached: BTreeMap<&'static str, u64>,
}

/// What reached the stores of one pipeline lately. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Arrivals(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    title: Option<String>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By the time of the commit, or of arriving where that is not known: a store that catches up must not push out what
    /// is newer.
    last: VecDeque<(i64, Arrival)>,
    lag: BTreeMap<&'static str, u64>,
}

impl Arrivals {
    /// Of rows whose title is this field of the payload, where there is one.
    pub fn new(title: Option<String>) -> Self {
        Arrivals(Arc::new(Inner { title, seen: Mutex::default() }))
    }

    /// The field that is a row's title.
    pub fn title_field(&self) -> Option<&String> {
        self.0.title.as_ref()
    }

    /// What is to be remembered of an event; `None`: it changes no row. Reads the whole payload, so not where others wait.
    pub(super) fn told(&self, event: &VectorEvent) -> Option<Told> {
        let (op, id, title, commit_ts_ms) = match event {
            VectorEvent::Upsert { key, row } => {
                ("upsert", Some(key.id()), title(row, self.0.title.as_deref()), Some(row.commit_ts_ms))
            }
            VectorEvent::Delete { key, commit_ts_ms, .. } => ("delete", Some(key.id()), None, *commit_ts_ms),
            VectorEvent::Barrier { commit_ts_ms, .. } => ("truncate", None, None, Some(*commit_ts_ms)),
            VectorEvent::Heartbeat { .. } | VectorEvent::Replayed { .. } => return None,
        };
        Some(Told { op, id, title, commit_ts_ms })
    }

    /// These are durable in `store` now.
    pub(super) fn reached(&self, store: &'static str, events: Vec<Told>) {
        if events.is_empty() {
            return;
        }
        let now_ms = now_ms();
        let mut seen = self.seen();
        for event in events {
            let latency_ms = event.commit_ts_ms.map_or(0, |ms| u64::try_from(now_ms - ms).unwrap_or(0));
            let is_same = |known: &&mut Arrival| {
                known.commit_ts_ms == event.commit_ts_ms && known.op == event.op && known.id == event.id
            };
            // Another store has had it; or each partition has its part of a truncate.
            if let Some(known) = seen.last.iter_mut().rev().map(|(_, known)| known).find(is_same) {
                known.reached.insert(store, latency_ms);
                continue;
            }
            let order_ms = event.commit_ts_ms.unwrap_or(now_ms);
            // Of more rows of one commit than are kept, the first stay: the other store's share may be on its way.
            let mut place = seen.last.partition_point(|(before_ms, _)| *before_ms < order_ms);
            if seen.last.len() == ARRIVALS_MAX {
                if place == 0 {
                    continue;
                }
                seen.last.pop_front();
                place -= 1;
            }
            let Told { op, id, title, commit_ts_ms } = event;
            let arrival = Arrival { op, id, title, commit_ts_ms, reached: [(store, latency_ms)].into() };
            seen.last.insert(place, (order_ms, arrival));
        }
    }

    /// So many records are on their way into `store`.
    pub(super) fn lags(&self, store: &'static str, records: u64) {
        self.seen().lag.insert(store, records);
    }

    /// The last changes by the time of their commit, the newest first.
    pub fn last(&self) -> Vec<Arrival> {
        self.seen().last.iter().rev().map(|(_, arrival)| arrival.clone()).collect()
    }

    /// Records that `store` had not taken when it was last looked; `None`: nobody here feeds it.
    pub fn lag(&self, store: &str) -> Option<u64> {
        self.seen().lag.get(store).copied()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is remembered of an event until it is durable.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    op: &'static str,
    id: Option<Value>,
    title: Option<String>,
    commit_ts_ms: Option<i64>,
}

/// The field that is the title, else the first text of the payload, else the first words of the passage.
fn title(row: &EmbeddedRow, field: Option<&str>) -> Option<String> {
    let payload: Row = serde_json::from_str(&row.payload).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(shortened).filter(|text| !text.is_empty());
    let named = field.and_then(|field| payload.get(field)).and_then(text);
    let passage = || row.windows.first().map(|window| shortened(&window.passage)).filter(|text| !text.is_empty());
    named.or_else(|| payload.values().find_map(text)).or_else(passage)
}

/// On one line, and not longer than can be shown.
fn shortened(text: &str) -> String {
    let mut short = String::new();
    for word in text.split_whitespace() {
        if !short.is_empty() {
            short.push(' ');
        }
        short.push_str(word);
        if let Some((end, _)) = short.char_indices().nth(TITLE_CHARS_MAX) {
            short.truncate(end);
            short.push('…');
            break;
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::{RowKey, Version, Window};

    fn key(id: usize) -> RowKey {
        RowKey::from_bytes(json!({ "id": id }).to_string().as_bytes()).expect("a key")
    }

    fn upsert(arrivals: &Arrivals, id: usize, payload: &Value) -> Option<Told> {
        let windows = vec![Window::new(&[], "the  answer".into())];
        let commit_ts_ms = if id < 30 { 4 } else { 5 };
        let row = EmbeddedRow { payload: payload.to_string(), windows, commit_ts_ms, ..EmbeddedRow::default() };
        arrivals.told(&VectorEvent::Upsert { key: key(id), row })
    }

    #[test]
    fn the_last_are_kept_the_newest_first_and_each_once() {
        let arrivals = Arrivals::new(Some("question".into()));
        let told =
            || (30..50).filter_map(|id| upsert(&arrivals, id, &json!({"question": format!("q {id}")}))).collect();
        arrivals.reached("local", (0..20).filter_map(|id| upsert(&arrivals, id, &json!({}))).collect());
        arrivals.reached("local", told());
        arrivals.reached("qdrant", told());
        let last = arrivals.last();
        assert_eq!(last.len(), ARRIVALS_MAX);
        assert_eq!((&last[0].id, last[0].title.as_deref()), (&Some(json!(30)), Some("q 30")));
        assert!(last[0].reached.keys().eq(["local", "qdrant"].iter()), "{last:?}");
        let delete = VectorEvent::Delete { key: key(49), version: Version(9), commit_ts_ms: None };
        arrivals.reached("local", arrivals.told(&delete).into_iter().collect());
        assert_eq!((arrivals.last()[0].op, &arrivals.last()[0].title, arrivals.last().len()), ("delete", &None, 20));
        // Another store takes what is older than all of these.
        let before = arrivals.last();
        let old = VectorEvent::Delete { key: key(9), version: Version(1), commit_ts_ms: Some(3) };
        arrivals.reached("qdrant", arrivals.told(&old).into_iter().collect());
        assert_eq!(arrivals.last(), before);
    }

    #[test]
    fn of_a_large_commit_those_are_kept_that_both_stores_show() {
        let arrivals = Arrivals::default();
        let told = || (30..90).filter_map(|id| upsert(&arrivals, id, &json!({}))).collect();
        arrivals.reached("qdrant", told());
        arrivals.reached("local", told());
        assert_eq!(arrivals.last().iter().map(|arrival| arrival.reached.len()).collect::<Vec<_>>(), [2; ARRIVALS_MAX]);
    }

    #[test]
    fn all_partitions_parts_of_a_truncate_are_one() {
        let arrivals = Arrivals::default();
        for version in 0..8 {
            let barrier = VectorEvent::Barrier { version: Version(version), commit_ts_ms: 7, of: None };
            arrivals.reached("local", arrivals.told(&barrier).into_iter().collect());
        }
        assert_eq!(arrivals.last().len(), 1);
        assert_eq!(arrivals.told(&VectorEvent::Heartbeat { as_of_ms: 1 }), None);
    }

    #[test]
    fn a_title_is_the_field_else_the_first_text_else_the_passage() {
        fn check(payload: &Value, wanted: &str) {
            let arrivals = Arrivals::new(Some("question".into()));
            arrivals.reached("local", upsert(&arrivals, 1, payload).into_iter().collect());
            assert_eq!(arrivals.last()[0].title.as_deref(), Some(wanted), "{payload}");
        }
        check(&json!({"id": 1, "category": "c", "question": "How \n so?"}), "How so?");
        check(&json!({"id": 1, "category": "c", "question": null}), "c");
        check(&json!({"id": 1}), "the answer");
        check(&json!({"question": "ä".repeat(500)}), &format!("{}…", "ä".repeat(TITLE_CHARS_MAX)));
    }
}
