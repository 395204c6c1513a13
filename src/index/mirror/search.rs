//! Searches of the mirror: the scan in memory, then the rows that it found, read from the disk or kept from a moment ago.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::record::{Damage, Record, Stored, place_key};
use super::store::Store;
use super::{Hit, Inner, Mirror, MirrorError, STORE, Vector, parse_payload, read};
use crate::event::{Row, RowKey, Version};
use crate::index::filter::{self, Filter};
use crate::index::matrix::{Found, rank};

/// Bytes of keys, payloads and passages that are kept of rows that were found. In memory they take about twice as much.
const RECENT_BYTES: u64 = 4 << 20;
/// How many rows that is about.
const RECENT_ROWS: usize = 4_096;
/// The most windows that are scanned on a thread that others wait for: about 0.4 ms.
const AT_HAND_POINTS: u64 = 16_384;

/// How far a search came without the disk.
#[derive(Debug)]
pub enum Begun {
    /// All of it.
    Done(Vec<Hit>),
    /// Rows were found that are to be read.
    Found(Box<Search>),
}

/// A search that has found its rows and not read them yet.
#[derive(Debug)]
pub struct Search {
    found: Vec<Found>,
    query: Vector,
    min_score: f32,
    filter: Filter,
    took: Duration,
}

/// Rows that searches have found, by the places of their records.
pub(super) struct Recent(Cache<u64, Arc<Kept>, Weight>);

/// A live row as a search shows it.
struct Kept {
    key: Arc<RowKey>,
    version: Version,
    payload: Row,
    passages: Vec<String>,
    bytes: u64,
}

#[derive(Clone)]
struct Weight;

impl Weighter<u64, Arc<Kept>> for Weight {
    fn weight(&self, _place: &u64, row: &Arc<Kept>) -> u64 {
        row.bytes
    }
}

impl Recent {
    pub(super) fn new() -> Self {
        Recent(Cache::with_weighter(RECENT_ROWS, RECENT_BYTES, Weight))
    }

    /// For when places are counted anew.
    pub(super) fn clear(&self) {
        self.0.clear();
    }

    /// What was found there, if it is this version of this row.
    fn get(&self, found: &Found) -> Option<Hit> {
        let row = self.0.get(&found.place)?;
        if row.version != found.version || row.key != found.key {
            return None;
        }
        let passage = row.passages.get(found.window)?.clone();
        let payload = row.payload.clone();
        Some(Hit { key: RowKey::clone(&found.key), score: found.score, passage, payload, version: found.version })
    }
}

impl Mirror {
    /// The best `limit` rows by the score of their best window, at least `min_score`: by falling score, equal scores by
    /// key. `query` has `DIMENSION` numbers. Takes the time of a scan (milliseconds at 100,000 windows) and may read
    /// the disk: call it on a blocking thread.
    pub fn search(
        &self,
        query: &[f32],
        limit: usize,
        min_score: f32,
        filter: &Filter,
    ) -> Result<Vec<Hit>, MirrorError> {
        let vector = Vector::new(query).ok_or(MirrorError::Query { found: query.len() })?;
        let begun = Instant::now();
        let hits = self.0.search(&vector, limit, min_score, filter);
        self.0.metrics.store_request(STORE, "search", hits.is_ok(), begun.elapsed());
        hits
    }
    /// The part of `search` that reads no disk, where that is short work: all of it, if every row that is found was found
    /// before. `None`: there is much to scan, or somebody writes; ask `search`.
    pub fn begin_search(&self, query: &[f32], limit: usize, min_score: f32, filter: &Filter) -> Option<Begun> {
        let begun = Instant::now();
        let vector = Vector::new(query)?;
        let found = self.0.scan_at_hand(&vector, limit, min_score, filter)?;
        let Some(hits) = found.iter().map(|found| self.0.recent.get(found)).collect() else {
            let filter = filter.clone();
            let search = Search { found, query: vector, min_score, filter, took: begun.elapsed() };
            return Some(Begun::Found(Box::new(search)));
        };
        self.0.metrics.store_request(STORE, "search", true, begun.elapsed());
        Some(Begun::Done(hits))
    }

    /// The rest of a search. Reads the disk: call it on a blocking thread.
    pub fn finish_search(&self, search: Box<Search>) -> Result<Vec<Hit>, MirrorError> {
        let begun = Instant::now();
        let Search { found, query, min_score, filter, took } = *search;
        let hits = self.0.fetch_all(found, &query, min_score, &filter);
        self.0.metrics.store_request(STORE, "search", hits.is_ok(), took + begun.elapsed());
        hits
    }
}

impl Inner {
    fn scan_at_hand(&self, query: &Vector, limit: usize, min_score: f32, filter: &Filter) -> Option<Vec<Found>> {
        // Who writes or opens the folder anew is not waited for here.
        let _open = self.store.try_read().ok().filter(|store| store.is_some())?;
        let matrix = self.matrix.try_read().ok().filter(|matrix| matrix.points() <= AT_HAND_POINTS)?;
        matrix.search(query, limit, min_score, filter).ok()
    }

    fn search(&self, query: &Vector, limit: usize, min_score: f32, filter: &Filter) -> Result<Vec<Hit>, MirrorError> {
        let found = read(&self.matrix)
            .search(query, limit, min_score, filter)
            .map_err(|field| MirrorError::Field { field: field.0, known: self.settings.filters.clone() })?;
        self.fetch_all(found, query, min_score, filter)
    }

    fn fetch_all(
        &self,
        found: Vec<Found>,
        query: &Vector,
        min_score: f32,
        filter: &Filter,
    ) -> Result<Vec<Hit>, MirrorError> {
        let fetched = self.with_store(|store| {
            found.into_iter().map(|found| self.fetch(store, found, query, min_score, filter)).collect()
        });
        let hits: Vec<Option<Hit>> = fetched.inspect_err(|error| {
            if error.is_fault() {
                self.mark_faulty();
            }
        })?;
        let mut hits: Vec<Hit> = hits.into_iter().flatten().collect();
        hits.sort_by(|a, b| rank((a.score, &a.key), (b.score, &b.key)));
        Ok(hits)
    }

    /// Reads the row that was found. Where a writer has replaced it since, the new row is judged instead, so that score,
    /// passage and payload are of one version.
    fn fetch(
        &self,
        store: &Store,
        found: Found,
        query: &Vector,
        min_score: f32,
        filter: &Filter,
    ) -> Result<Option<Hit>, MirrorError> {
        if let Some(hit) = self.recent.get(&found) {
            return Ok(Some(hit));
        }
        let (record, is_replaced) = match self.at(store, found.place)? {
            Some(record) if record.key == *found.key => (Some(record), false),
            _ => (self.latest(store, &found.key)?, true),
        };
        let Some(Record { version, body: Stored::Live(row), .. }) = record else { return Ok(None) };
        let payload = parse_payload(&row.payload).map_err(|why| self.damaged(Damage(why)))?;
        let (mut window, mut score) = (found.window, found.score);
        if version != found.version {
            let vectors = row.windows.iter().filter_map(|window| Vector::from_le_bytes(&window.vector_bytes));
            let scores = vectors.map(|vector| read(&self.matrix).score(&vector, query)).enumerate();
            // The later of equal windows is the greater for `max_by`: count down, so that the first one wins.
            let best = scores.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            let Some((best, best_score)) = best else { return Ok(None) };
            if best_score < min_score || !filter::passes(filter, &payload) {
                return Ok(None);
            }
            (window, score) = (best, best_score);
        }
        let passages: Vec<String> = row.windows.into_iter().map(|window| window.passage).collect();
        let Some(passage) = passages.get(window).cloned() else {
            return Err(self.damaged(Damage("a row with fewer windows than were loaded".to_owned())));
        };
        if !is_replaced {
            let bytes = row.payload.len() + found.key.as_str().len() + passages.iter().map(String::len).sum::<usize>();
            let (key, payload, bytes) = (Arc::clone(&found.key), payload.clone(), bytes as u64);
            self.recent.0.insert(found.place, Arc::new(Kept { key, version, payload, passages, bytes }));
        }
        Ok(Some(Hit { key: RowKey::clone(&found.key), score, passage, payload, version }))
    }

    /// The record at a place, unless it has been replaced.
    fn at(&self, store: &Store, place: u64) -> Result<Option<Record>, MirrorError> {
        let bytes = store.get(&place_key(place))?;
        bytes
            .map(|bytes| Record::decode(place, &bytes).map(|(record, _)| record))
            .transpose()
            .map_err(|e| self.damaged(e))
    }

    /// The record of a key. Waits for a write that is being shown.
    pub(super) fn latest(&self, store: &Store, key: &RowKey) -> Result<Option<Record>, MirrorError> {
        let _level = read(&self.ahead);
        let Some(place) = read(&self.matrix).get(key).map(|document| document.place) else { return Ok(None) };
        match self.at(store, place)? {
            Some(record) if record.key == *key => Ok(Some(record)),
            _ => Err(self.damaged(Damage(format!("record {place} is not there")))),
        }
    }
}
