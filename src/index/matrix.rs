//! All vectors of a store in memory, one row a window, and which document each belongs to. No I/O, no locks.
//!
//! A search scans the vectors' codes, a quarter of the bytes, and looks at a vector only where its code leaves it a chance:
//! the results are those of a scan of all vectors (see `quantise`).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::filter::{Cell, Column, Filter};
use super::quantise::{Bounds, Code, Coded, Query};
use super::scan::{Kernel, Vector};
use crate::event::{Row, RowKey, Version};
use crate::topic::Partition;

/// Windows in a block. Blocks keep growth from copying everything, which would hold searches up and double the memory.
const BLOCK: usize = 1024;

/// Owner of a slot that is free.
const FREE: u32 = u32::MAX;

/// The vectors, the documents they belong to, and the documents' filterable values.
#[derive(Debug)]
pub struct Matrix {
    kernel: Kernel,
    blocks: Vec<Block>,
    /// Which document the window in each slot belongs to.
    owners: Vec<u32>,
    free_slots: Vec<u32>,
    documents: Vec<Option<Document>>,
    free_documents: Vec<u32>,
    by_key: HashMap<Arc<RowKey>, u32>,
    fields: Vec<String>,
    columns: Vec<Column>,
    rows: u64,
    points: u64,
}

/// The windows of `BLOCK` slots.
#[derive(Debug)]
struct Block {
    vectors: Box<[Vector]>,
    codes: Box<[Code]>,
    bounds: Box<Bounds<BLOCK>>,
}

impl Block {
    fn empty() -> Self {
        Block {
            vectors: vec![Vector::ZERO; BLOCK].into_boxed_slice(),
            codes: vec![Code::ZERO; BLOCK].into_boxed_slice(),
            bounds: Box::new(Bounds::ZERO),
        }
    }
}

/// What is known of a key without reading its stored record.
#[derive(Debug)]
pub struct Document {
    /// The row's key.
    pub key: Arc<RowKey>,
    /// The newest version seen.
    pub version: Version,
    /// The partition it came from.
    pub partition: Partition,
    /// Where the stored record is.
    pub place: u64,
    /// Stands for the stored record in the store's digest.
    pub fingerprint: u64,
    /// Stands for what the row says, whatever its version.
    pub content: u64,
    /// Live or deleted.
    pub state: State,
}

impl Document {
    /// Whether a search can find it.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }
}

/// Whether a document can be found.
#[derive(Debug, PartialEq)]
pub enum State {
    /// It can: the slots of its windows, in reading order.
    Live(Box<[u32]>),
    /// A tombstone, stored at this time, milliseconds since the Unix epoch.
    Deleted(i64),
}

/// A change of one document, prepared before any lock is taken.
#[derive(Debug)]
pub struct Edit {
    /// The row's key.
    pub key: RowKey,
    /// What it becomes; `None`: it is forgotten, tombstone and all.
    pub becomes: Option<Becomes>,
}

/// What a document becomes.
#[derive(Debug)]
pub struct Becomes {
    /// Its version.
    pub version: Version,
    /// The partition it came from.
    pub partition: Partition,
    /// Where the stored record is.
    pub place: u64,
    /// Stands for the stored record in the store's digest.
    pub fingerprint: u64,
    /// Stands for what the row says, whatever its version.
    pub content: u64,
    /// Its windows, or the time of its tombstone.
    pub body: Body,
}

/// The part of a document that is searched.
#[derive(Debug)]
pub enum Body {
    /// One vector a window, at least one, and one cell a filterable field.
    Live(Vec<Coded>, Cells),
    /// A tombstone, stored at this time, milliseconds since the Unix epoch.
    Deleted(i64),
}

/// The filterable values of one payload.
#[derive(Debug)]
pub struct Cells(Vec<Cell>);

impl Cells {
    /// Takes the values of `fields` out of a payload.
    pub fn of(payload: &Row, fields: &[String]) -> Self {
        Cells(fields.iter().map(|field| Cell::of(payload, field)).collect())
    }
}

/// A document that a search found: its best window.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The row's key.
    pub key: Arc<RowKey>,
    /// The version that was scored.
    pub version: Version,
    /// Where its stored record is.
    pub place: u64,
    /// The number of the best window.
    pub window: usize,
    /// The dot product of that window and the query.
    pub score: f32,
}

/// A filter names a field that is not filterable.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownField(pub String);

impl Matrix {
    /// An empty matrix whose documents can be filtered by `fields`.
    pub fn new(fields: &[String]) -> Self {
        Matrix {
            kernel: Kernel::detect(),
            blocks: Vec::new(),
            owners: Vec::new(),
            free_slots: Vec::new(),
            documents: Vec::new(),
            free_documents: Vec::new(),
            by_key: HashMap::new(),
            fields: fields.to_vec(),
            columns: fields.iter().map(|_| Column::default()).collect(),
            rows: 0,
            points: 0,
        }
    }

    /// Rows that can be found.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Windows that can be found.
    pub fn points(&self) -> u64 {
        self.points
    }

    /// Live rows and tombstones.
    pub fn records(&self) -> u64 {
        self.by_key.len() as u64
    }

    /// What is known of a key.
    pub fn get(&self, key: &RowKey) -> Option<&Document> {
        self.documents[*self.by_key.get(key)? as usize].as_ref()
    }

    /// Every document, live or deleted.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.documents.iter().flatten()
    }

    /// Keys of live documents, at most `max`, from the document of this number on, and the number behind the last of them;
    /// `None`: there are no more.
    pub fn live_keys(&self, from: usize, max: usize) -> (Vec<RowKey>, Option<usize>) {
        let mut keys = Vec::with_capacity(max.min(self.documents.len().saturating_sub(from)));
        for (number, document) in self.documents.iter().enumerate().skip(from) {
            if keys.len() == max {
                return (keys, Some(number));
            }
            keys.extend(document.iter().filter(|document| document.is_live()).map(|live| RowKey::clone(&live.key)));
        }
        (keys, None)
    }

    /// Makes one change.
    pub fn edit(&mut self, edit: Edit) {
        let Some(becomes) = edit.becomes else { return self.forget(&edit.key) };
        let number = match self.by_key.get(&edit.key) {
            Some(&number) => {
                self.release(number);
                number
            }
            None => self.admit(edit.key),
        };
        let state = match becomes.body {
            Body::Deleted(at_ms) => State::Deleted(at_ms),
            Body::Live(vectors, cells) => {
                self.rows += 1;
                self.points += vectors.len() as u64;
                for (column, cell) in self.columns.iter_mut().zip(cells.0) {
                    column.set(number, cell);
                }
                State::Live(vectors.into_iter().map(|vector| self.place(number, vector)).collect())
            }
        };
        if let Some(document) = &mut self.documents[number as usize] {
            document.version = becomes.version;
            document.partition = becomes.partition;
            document.place = becomes.place;
            document.fingerprint = becomes.fingerprint;
            document.content = becomes.content;
            document.state = state;
        }
        self.shrink();
    }

    fn forget(&mut self, key: &RowKey) {
        let Some(&number) = self.by_key.get(key) else { return };
        self.release(number);
        self.by_key.remove(key);
        self.documents[number as usize] = None;
        self.free_documents.push(number);
        self.shrink();
    }

    /// A table that was emptied gives its memory back.
    fn shrink(&mut self) {
        if self.points == 0 {
            self.blocks = Vec::new();
            self.owners = Vec::new();
            self.free_slots = Vec::new();
        }
    }

    /// A number for a new key, with nothing in it yet.
    fn admit(&mut self, key: RowKey) -> u32 {
        let key = Arc::new(key);
        let document = Some(Document {
            key: Arc::clone(&key),
            version: Version::default(),
            partition: 0,
            place: 0,
            fingerprint: 0,
            content: 0,
            state: State::Deleted(0),
        });
        let number = match self.free_documents.pop() {
            Some(number) => {
                self.documents[number as usize] = document;
                number
            }
            None => {
                self.documents.push(document);
                (self.documents.len() - 1) as u32
            }
        };
        self.by_key.insert(key, number);
        number
    }

    /// Takes a document's windows and values out of search.
    fn release(&mut self, number: u32) {
        let Some(document) = &mut self.documents[number as usize] else { return };
        let State::Live(slots) = std::mem::replace(&mut document.state, State::Deleted(0)) else { return };
        self.rows -= 1;
        self.points -= slots.len() as u64;
        for &slot in &slots {
            self.owners[slot as usize] = FREE;
        }
        self.free_slots.extend_from_slice(&slots);
        for column in &mut self.columns {
            column.clear(number);
        }
    }

    fn place(&mut self, number: u32, coded: Coded) -> u32 {
        let slot = match self.free_slots.pop() {
            Some(slot) => {
                self.owners[slot as usize] = number;
                slot
            }
            None => {
                self.owners.push(number);
                (self.owners.len() - 1) as u32
            }
        };
        let (block, place) = (slot as usize / BLOCK, slot as usize % BLOCK);
        if block == self.blocks.len() {
            self.blocks.push(Block::empty());
        }
        let block = &mut self.blocks[block];
        (block.vectors[place], block.codes[place]) = (coded.vector, coded.code);
        block.bounds.set(place, coded.bound);
        slot
    }

    /// The score of one vector, bit for bit what a search would give it.
    pub fn score(&self, vector: &Vector, query: &Vector) -> f32 {
        self.kernel.dot(vector, query)
    }

    /// The best `limit` documents whose best window scores at least `min_score` and that pass the filter: by falling
    /// score, equal scores by key.
    pub fn search(
        &self,
        query: &Vector,
        limit: usize,
        min_score: f32,
        filter: &Filter,
    ) -> Result<Vec<Found>, UnknownField> {
        let allowed = filter
            .conditions()
            .iter()
            .map(|(field, wanted)| {
                let column = self.fields.iter().position(|known| known == field);
                column.map(|at| self.columns[at].allow(wanted)).ok_or_else(|| UnknownField(field.clone()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut best = Best::new(limit, min_score);
        let coded = Query::new(query);
        let (mut products, mut limits) = ([0; BLOCK], [0.0; BLOCK]);
        for (number, (block, owners)) in self.blocks.iter().zip(self.owners.chunks(BLOCK)).enumerate() {
            let passes = |owner: u32| owner != FREE && allowed.iter().all(|allowed| allowed.passes(owner));
            let mut bound = |from: usize, to: usize, limits: &mut [f32; BLOCK]| {
                let products = &mut products[from..to];
                self.kernel.products(&block.codes[from..to], coded.code(), products);
                coded.at_most(&block.bounds, from, products, &mut limits[from..to]);
            };
            // All of them at once, unless a filter leaves few.
            if allowed.is_empty() {
                bound(0, owners.len(), &mut limits);
            }
            for (at, &owner) in owners.iter().enumerate() {
                if !allowed.is_empty() {
                    if !passes(owner) {
                        continue;
                    }
                    bound(at, at + 1, &mut limits);
                }
                // A bound that is not a number bounds nothing.
                if limits[at] < best.threshold || !passes(owner) {
                    continue;
                }
                let score = self.kernel.dot(&block.vectors[at], query);
                if score >= best.threshold {
                    best.offer(self, owner, number * BLOCK + at, score);
                }
            }
        }
        Ok(best.finish(self))
    }

    fn key(&self, number: u32) -> Option<&RowKey> {
        self.documents[number as usize].as_ref().map(|document| &*document.key)
    }

    /// Whether `slot` comes before `other` in the reading order of a document.
    fn earlier(&self, number: u32, slot: usize, other: usize) -> bool {
        let Some(Document { state: State::Live(slots), .. }) = &self.documents[number as usize] else { return false };
        slots.iter().map(|&at| at as usize).find(|&at| at == slot || at == other) == Some(slot)
    }

    fn found(&self, number: u32, slot: usize, score: f32) -> Option<Found> {
        let document = self.documents[number as usize].as_ref()?;
        let State::Live(slots) = &document.state else { return None };
        let window = slots.iter().position(|&at| at as usize == slot)?;
        let (version, place) = (document.version, document.place);
        Some(Found { key: Arc::clone(&document.key), version, place, window, score })
    }
}

/// The best documents so far, each with its best window. Holds up to twice as many as wanted, so that sorting is rare; not
/// more, because what keeps vectors from being looked at is the last sorting's threshold.
struct Best {
    limit: usize,
    /// With so many it is time to sort.
    full: usize,
    /// Nothing below this can be among the best any more.
    threshold: f32,
    by_document: HashMap<u32, (f32, usize)>,
}

impl Best {
    /// Documents that may wait for the next sorting, beyond the limit: as many as that, within these.
    const SLACK: (usize, usize) = (8, 256);

    fn new(limit: usize, min_score: f32) -> Self {
        let full = limit.saturating_add(limit.clamp(Self::SLACK.0, Self::SLACK.1));
        Best { limit, full, threshold: min_score, by_document: HashMap::new() }
    }

    fn offer(&mut self, matrix: &Matrix, document: u32, slot: usize, score: f32) {
        let best = self.by_document.entry(document).or_insert((score, slot));
        // Of equal windows the first in reading order: the order of the slots depends on history.
        if score > best.0 || (score == best.0 && matrix.earlier(document, slot, best.1)) {
            *best = (score, slot);
        }
        if self.by_document.len() >= self.full {
            let kept = self.take_ranked(matrix);
            if let Some(&(_, score, _)) = kept.last() {
                self.threshold = score;
            }
            self.by_document.extend(kept.into_iter().map(|(document, score, slot)| (document, (score, slot))));
        }
    }

    fn take_ranked(&mut self, matrix: &Matrix) -> Vec<(u32, f32, usize)> {
        let mut ranked: Vec<_> =
            self.by_document.drain().map(|(document, (score, slot))| (document, score, slot)).collect();
        ranked.sort_unstable_by(|a, b| rank((a.1, matrix.key(a.0)), (b.1, matrix.key(b.0))));
        ranked.truncate(self.limit);
        ranked
    }

    fn finish(mut self, matrix: &Matrix) -> Vec<Found> {
        let ranked = self.take_ranked(matrix);
        ranked.into_iter().filter_map(|(document, score, slot)| matrix.found(document, slot, score)).collect()
    }
}

/// The order of search results: by falling score, equal scores by key.
pub fn rank<K: Ord>(a: (f32, K), b: (f32, K)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::FilterValue;
    use crate::index::scan::DIMENSION;
    use serde_json::json;

    fn key(id: u64) -> RowKey {
        RowKey::from_bytes(json!({ "id": id }).to_string().as_bytes()).expect("a key")
    }

    /// Few distinct values, so that ties are common.
    fn vector(seed: u64) -> Vector {
        let mut numbers = vec![0.0; DIMENSION];
        numbers[(seed % 7) as usize] = (seed % 11) as f32 / 16.0;
        numbers[300 + (seed % 5) as usize] = 0.25;
        Vector::new(&numbers).expect("finite")
    }

    fn live(id: u64, version: u64, vectors: Vec<Vector>, fields: &[String]) -> Edit {
        let payload = json!({ "category": format!("c{}", id % 3), "n": [id % 4, "x"] });
        let cells = Cells::of(payload.as_object().expect("object"), fields);
        let body = Body::Live(vectors.into_iter().map(Coded::new).collect(), cells);
        let becomes = Becomes {
            version: Version(version),
            partition: (id % 4) as Partition,
            place: 0,
            fingerprint: 1,
            content: 0,
            body,
        };
        Edit { key: key(id), becomes: Some(becomes) }
    }

    /// What a search must give, by the plainest means.
    fn naive(
        model: &HashMap<u64, Vec<Vector>>,
        query: &Vector,
        limit: usize,
        min: f32,
        want: Option<(u64, u64)>,
    ) -> Vec<(RowKey, usize, f32)> {
        let kernel = Kernel::detect();
        let mut all: Vec<_> = model
            .iter()
            .filter(|(id, _)| want.is_none_or(|(category, n)| *id % 3 == category && *id % 4 == n))
            .map(|(&id, vectors)| {
                let scores: Vec<f32> = vectors.iter().map(|vector| kernel.dot(vector, query)).collect();
                let best = scores.iter().copied().fold(f32::MIN, f32::max);
                (key(id), scores.iter().position(|score| *score == best).expect("a window"), best)
            })
            .filter(|(_, _, score)| *score >= min)
            .collect();
        all.sort_by(|a, b| rank((a.2, &a.0), (b.2, &b.0)));
        all.truncate(limit);
        all
    }

    #[test]
    fn searches_equal_a_naive_scan_while_documents_come_change_and_go() {
        let fields = ["category".to_owned(), "n".to_owned()];
        let mut matrix = Matrix::new(&fields);
        let mut model: HashMap<u64, Vec<Vector>> = HashMap::new();
        let mut state = 42_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for step in 0..6000_u64 {
            let id = random(1500);
            match random(10) {
                0 => {
                    matrix.edit(Edit { key: key(id), becomes: None });
                    model.remove(&id);
                }
                1 => {
                    let body = Body::Deleted(1);
                    let becomes =
                        Becomes { version: Version(step), partition: 0, place: 0, fingerprint: 2, content: 0, body };
                    matrix.edit(Edit { key: key(id), becomes: Some(becomes) });
                    model.remove(&id);
                }
                _ => {
                    let vectors: Vec<_> = (0..1 + random(3)).map(|_| vector(random(1000))).collect();
                    matrix.edit(live(id, step, vectors.clone(), &fields));
                    model.insert(id, vectors);
                }
            }
            if step % 100 == 0 {
                let query = vector(random(1000));
                let (category, n) = (random(3), random(4));
                let filter = Filter::new(vec![
                    ("category".into(), FilterValue::from_text(&format!("c{category}"))),
                    ("n".into(), FilterValue::from_json(json!(n)).expect("scalar")),
                ]);
                for (limit, min) in [(1, -1.0), (5, 0.0), (10, 0.1), (5000, -1.0)] {
                    for (filter, want) in [(&Filter::none(), None), (&filter, Some((category, n)))] {
                        let found = matrix.search(&query, limit, min, filter).expect("known fields");
                        let found: Vec<_> = found.into_iter().map(|f| ((*f.key).clone(), f.window, f.score)).collect();
                        assert_eq!(found, naive(&model, &query, limit, min, want), "step {step}, limit {limit}");
                    }
                }
            }
        }
        assert_eq!(matrix.rows(), model.len() as u64);
        assert_eq!(matrix.points(), model.values().map(|vectors| vectors.len() as u64).sum::<u64>());
        assert!(matrix.owners.len() <= 1500 * 3, "{} slots for at most 4500 windows", matrix.owners.len());
        for id in model.into_keys() {
            matrix.edit(Edit { key: key(id), becomes: None });
        }
        assert_eq!((matrix.points(), matrix.blocks.len()), (0, 0));
    }

    #[test]
    fn a_filter_on_another_field_is_refused() {
        let matrix = Matrix::new(&["category".to_owned()]);
        let filter = Filter::new(vec![("colour".into(), FilterValue::from_text("red"))]);
        assert_eq!(matrix.search(&vector(1), 1, 0.0, &filter), Err(UnknownField("colour".into())));
    }
}
