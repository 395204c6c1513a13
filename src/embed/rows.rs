//! A batch of `changes` to records of `vectors`: renders, looks up, splits, embeds, mixes. Reads and writes no log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cache::{Cache, Key, Layout};
use super::completion::{self, Completion};
use super::document::{Document, DocumentError, Rendered};
use super::intake::{Event, Intake, Item, intake};
use super::model::{DIMENSION, EmbedError, Vector, normalise};
use super::tokens::{self, SPECIAL_TOKENS, Token, TokenIds};
use super::trail::{self, Trail};
use super::{Embedder, window};
use crate::clock::now_ms;
use crate::config;
use crate::event::{EmbeddedRow, EventError, Record, RowKey, VectorEvent, Version, Window};
use crate::retry::Chain;
use crate::topic::trail::Place;
use crate::topic::{Outgoing, Partition, Settled, Stored, letter};

/// What a window has in a record besides its text and its vector, and a row besides its windows and its payload.
const WINDOW_BYTES: usize = 32;
const ROW_BYTES: usize = 128;
/// Changes below this size are taken for their payload.
const SMALL_BYTES: usize = 256 << 10;

/// Why a record was put aside, as the header `vecsync.reason` and the metrics' label `reason` say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is not a change event.
    Unreadable,
    /// The document cannot be rendered from this row.
    Template,
    /// The pipeline's query fails for this row.
    Query,
    /// The model or the tokenizer refuses its text.
    Embedding,
    /// A column that did not change was not sent, and is not known.
    Incomplete,
    /// The log does not take records as large as this row's.
    TooLarge,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 6] =
        [Reason::Unreadable, Reason::Template, Reason::Query, Reason::Embedding, Reason::Incomplete, Reason::TooLarge];

    /// The label.
    pub fn as_label(self) -> &'static str {
        match self {
            Reason::Unreadable => "unreadable",
            Reason::Template => "template",
            Reason::Query => "query",
            Reason::Embedding => "embedding",
            Reason::Incomplete => "incomplete",
            Reason::TooLarge => "too_large",
        }
    }
}

/// What a batch became: to be committed as one.
#[derive(Debug, Default)]
pub struct Processed {
    /// Records of `vectors`, by partition and version.
    pub vectors: Vec<Outgoing>,
    /// Records put aside: the original key, value and headers, and `vecsync.reason`, `.topic`, `.partition`,
    /// `.offset`, `.error`.
    pub dead_letters: Vec<Record>,
    /// Why, in the order of the dead letters.
    pub reasons: Vec<Reason>,
    /// What those records of `vectors` are about, so that older dead letters of it are closed.
    pub settled: Vec<Settled>,
    /// The next offset to read in each partition that the batch touched.
    pub ends: BTreeMap<Partition, u64>,
    /// Records by what they are; `empty` counts rows that had nothing to embed and were removed from the index.
    pub counts: BTreeMap<&'static str, u64>,
    /// When the newest event was committed in the source, milliseconds since the Unix epoch.
    pub commit_ts_ms: Option<i64>,
    /// Texts (windows and titles) that went through the model.
    pub computed: u64,
    /// Texts whose vector was known.
    pub cached: u64,
    /// Rows with more than one window.
    pub split: u64,
    /// Titles that do not stand whole in front of their windows.
    pub titles_cut: u64,
    /// What the batch was made of, and of each record of `vectors` where it comes from, where that is logged.
    pub trail: Option<Trail>,
    /// See `trail`; none of what is about no row.
    pub origins: Vec<Option<Place>>,
}

/// All that turns rows into vectors.
pub(super) struct Rows {
    embedder: Embedder,
    document: Document,
    settings: config::Document,
    revision: String,
    cache: Cache,
    topic: String,
    /// Where records may lack columns.
    completion: Option<Completion>,
}

/// Why a rendered row cannot be embedded.
enum Unfit {
    Text(EmbedError),
    /// Its record would have so many bytes.
    TooLarge(usize),
}

/// A row on its way: rendered and split.
struct Ready {
    item: Item,
    key: RowKey,
    rendered: Rendered,
    text_hash: Key,
    layout: Layout,
}

/// A batch of which nothing but missing vectors is still to be computed.
#[derive(Default)]
struct Prepared {
    /// The most bytes that the log takes in a record.
    bytes_max: usize,
    processed: Processed,
    outputs: Vec<(Partition, u64, VectorEvent)>,
    rows: Vec<Ready>,
    known: HashMap<Key, Vector>,
    missing: Vec<(Key, TokenIds)>,
    wanted: HashSet<Key>,
    new_layouts: HashSet<Key>,
}

impl Rows {
    /// `topic` is what dead letters name as the topic they come from.
    pub(super) fn new(
        embedder: Embedder,
        document: Document,
        settings: config::Document,
        cache: Cache,
        topic: String,
    ) -> Rows {
        let revision = embedder.revision(&settings);
        Rows { embedder, document, settings, revision, cache, topic, completion: None }
    }

    /// Has rows completed whose records lack columns that did not change.
    pub(super) fn completed_by(&mut self, completion: Completion) {
        self.completion = Some(completion);
    }

    /// Whether a batch may only be taken up when the one before it is committed.
    pub(super) fn take_turns(&self) -> bool {
        matches!(self.completion, Some(Completion::Held(_)))
    }

    fn intake(&self, batch: Vec<Stored>) -> Intake {
        let used = self.completion.is_some().then(|| self.document.columns());
        intake(batch, used.as_ref())
    }

    /// Renders, looks up and splits. Blocks: up to milliseconds a row.
    fn prepare(&self, intake: Intake, bytes_max: usize) -> Prepared {
        let mut prepared = Prepared { bytes_max, ..Prepared::default() };
        let Intake { items, unreadable, counts, ends, trail } = intake;
        prepared.processed.trail = trail;
        prepared.processed.ends = ends;
        prepared.processed.counts = counts;
        for (stored, fault) in unreadable {
            let Stored { partition, offset, record } = stored;
            let reason = if let EventError::TooLarge(_) = fault { Reason::TooLarge } else { Reason::Unreadable };
            let letter = self.dead_letter(record, partition, offset, reason, &Chain(&fault).to_string());
            prepared.put_aside(letter, reason);
        }
        if let Some(number) = items.iter().filter_map(|item| item.record.embed_anew()).max() {
            self.cache.begin_anew(number);
        }
        for item in items {
            prepared.processed.commit_ts_ms = prepared.processed.commit_ts_ms.max(item.commit_ts_ms);
            self.prepare_item(item, &mut prepared);
        }
        prepared
    }

    fn prepare_item(&self, mut item: Item, prepared: &mut Prepared) {
        let (partition, version, commit_ts_ms) = (item.partition, item.version, item.commit_ts_ms);
        let gone = |key| (partition, version.0, VectorEvent::Delete { key, version, commit_ts_ms });
        if !item.missing.is_empty() {
            if let Event::Row(key, row) = &item.event
                && self.document.leaves_out(row, &item.missing)
            {
                return prepared.outputs.push(gone(key.clone()));
            }
            let told = completion::told(&item.missing);
            return self.put_aside(item, Reason::Incomplete, &told, prepared);
        }
        let (key, row) = match std::mem::replace(&mut item.event, Event::Nothing) {
            Event::Row(key, row) => (key, row),
            Event::Gone(key) => return prepared.outputs.push(gone(key)),
            Event::Barrier => {
                let commit_ts_ms = commit_ts_ms.unwrap_or_default();
                let barrier = VectorEvent::Barrier { version, commit_ts_ms, of: None };
                return prepared.outputs.push((partition, version.0, barrier));
            }
            Event::Truncate(fences) => {
                let commit_ts_ms = commit_ts_ms.unwrap_or_default();
                let barriers = (0..).zip(fences).map(|(other, fence)| {
                    let of = (other != partition).then_some(partition);
                    (other, fence, VectorEvent::Barrier { version: Version(fence), commit_ts_ms, of })
                });
                return prepared.outputs.extend(barriers);
            }
            Event::Nothing => return,
            Event::Heartbeat(as_of_ms) => {
                return prepared.outputs.push((partition, version.0, VectorEvent::Heartbeat { as_of_ms }));
            }
            Event::Replayed(id) => {
                return prepared.outputs.push((partition, version.0, VectorEvent::Replayed { id }));
            }
        };
        let rendered = match self.document.render(&row) {
            Ok(Some(rendered)) => rendered,
            Ok(None) => return prepared.outputs.push(gone(key)),
            Err(fault) => {
                let reason = if matches!(fault, DocumentError::Source(_)) { Reason::Query } else { Reason::Template };
                return self.put_aside(item, reason, &Chain(&fault).to_string(), prepared);
            }
        };
        let text_hash = text_hash(&self.revision, &rendered);
        let fits = |layout: &Layout| {
            record_bytes(&item, &rendered, layout.windows.iter().map(|(bytes, _)| bytes)) <= prepared.bytes_max
        };
        let known = self.cache.layout(&text_hash).filter(fits);
        let known = known.filter(|layout| self.look_up(layout, &rendered.text, prepared));
        if known.is_none()
            && let Some(windows) = self.windows(&item, &rendered, &text_hash, prepared.bytes_max)
        {
            prepared.processed.cached += windows.len() as u64;
            prepared.processed.split += u64::from(windows.len() > 1);
            let row = stored(&item, &rendered, &text_hash, windows);
            return prepared.outputs.push((partition, version.0, VectorEvent::Upsert { key, row }));
        }
        let is_new = known.is_none();
        let layout = match known {
            Some(layout) => Some(layout),
            None => match self.lay_out(&item, &rendered, prepared) {
                Ok(layout) => layout,
                Err(Unfit::Text(fault)) => {
                    return self.put_aside(item, Reason::Embedding, &fault.to_string(), prepared);
                }
                Err(Unfit::TooLarge(bytes)) => {
                    let what =
                        format!("its embedded row would have {bytes} bytes, {} are the most", prepared.bytes_max);
                    return self.put_aside(item, Reason::TooLarge, &what, prepared);
                }
            },
        };
        // Nothing in the row has a meaning that could be found.
        let Some(layout) = layout else {
            *prepared.processed.counts.entry("empty").or_default() += 1;
            return prepared.outputs.push(gone(key));
        };
        if is_new {
            prepared.new_layouts.insert(text_hash);
        }
        prepared.processed.split += u64::from(layout.windows.len() > 1);
        prepared.rows.push(Ready { item, key, rendered, text_hash, layout });
    }

    /// Fetches a known document's vectors. Says whether all are there and the windows are inside the text.
    fn look_up(&self, layout: &Layout, text: &str, prepared: &mut Prepared) -> bool {
        layout.windows.iter().all(|(bytes, _)| text.get(bytes.clone()).is_some())
            && layout.keys().all(|key| {
                prepared.known.contains_key(key)
                    || self.cache.vector(key).map(|vector| prepared.known.insert(*key, vector)).is_some()
            })
    }

    /// The windows of a text that came embedded from a backup.
    fn windows(&self, item: &Item, rendered: &Rendered, text_hash: &Key, bytes_max: usize) -> Option<Vec<Window>> {
        let windows = self.cache.windows(text_hash)?;
        let passages: Vec<Range<usize>> = windows.iter().map(|window| 0..window.passage.len()).collect();
        (record_bytes(item, rendered, &passages) <= bytes_max).then_some(windows)
    }

    /// Splits a document into windows and notes the vectors that are missing. None: there is nothing to embed.
    fn lay_out(&self, item: &Item, rendered: &Rendered, prepared: &mut Prepared) -> Result<Option<Layout>, Unfit> {
        let limit = self.settings.window_tokens;
        let tokens = self.embedder.tokens();
        let title = tokens.of(rendered.title.as_deref().unwrap_or_default()).map_err(Unfit::Text)?;
        let text = tokens.of(&rendered.text).map_err(Unfit::Text)?;
        if title.is_empty() && text.is_empty() {
            return Ok(None);
        }
        let share = window::title_share(limit, title.len());
        prepared.processed.titles_cut += u64::from(share < title.len());
        let front: &[Token] = &title[..share];
        let capacity = window::capacity(limit, share);
        let mut windows = window::split(&rendered.text, &text, capacity, self.settings.overlap_tokens);
        if windows.is_empty() {
            windows.push(window::Window { tokens: 0..0, bytes: 0..rendered.text.len() });
        }
        // Before anything is embedded for it: it could be minutes of work for nothing.
        let bytes = record_bytes(item, rendered, windows.iter().map(|window| &window.bytes));
        if bytes > prepared.bytes_max {
            return Err(Unfit::TooLarge(bytes));
        }
        let mut layout = Layout::default();
        if self.settings.title_weight > 0.0 && !title.is_empty() {
            let own = &title[..title.len().min(limit.saturating_sub(SPECIAL_TOKENS))];
            layout.title = Some(self.want(tokens::input([own]), prepared));
        }
        for window in windows {
            let ids = tokens::input([front, &text[window.tokens]]);
            layout.windows.push((window.bytes, self.want(ids, prepared)));
        }
        Ok(Some(layout))
    }

    /// Notes that this text's vector is needed, and computes it only if it is not known.
    fn want(&self, ids: TokenIds, prepared: &mut Prepared) -> Key {
        let key = self.embedder.vector_key(&ids);
        if !prepared.known.contains_key(&key) && prepared.wanted.insert(key) {
            match self.cache.vector(&key) {
                Some(vector) => drop(prepared.known.insert(key, vector)),
                None => prepared.missing.push((key, ids)),
            }
        }
        key
    }

    /// Makes the records. Blocks: the cache writes.
    fn finish(&self, prepared: Prepared, results: Vec<Result<Vector, EmbedError>>) -> Processed {
        let Prepared { mut processed, mut outputs, rows, mut known, missing, new_layouts, .. } = prepared;
        let mut faults: HashMap<Key, EmbedError> = HashMap::new();
        let mut computed = vec![];
        for ((key, _), result) in missing.into_iter().zip(results) {
            match result {
                Ok(vector) => {
                    computed.push(key);
                    known.insert(key, vector);
                }
                Err(fault) => drop(faults.insert(key, fault)),
            }
        }
        let mut layouts = vec![];
        for ready in rows {
            match self.embedded(&ready, &known, &faults) {
                Ok(row) => {
                    let (partition, version) = (ready.item.partition, ready.item.version.0);
                    outputs.push((partition, version, VectorEvent::Upsert { key: ready.key, row }));
                    if new_layouts.contains(&ready.text_hash) {
                        layouts.push((ready.text_hash, ready.layout));
                    }
                }
                Err(fault) => {
                    let Item { record, partition, version, .. } = ready.item;
                    let text = Chain(&fault).to_string();
                    processed.dead_letters.push(self.dead_letter(
                        record,
                        partition,
                        version.0,
                        Reason::Embedding,
                        &text,
                    ));
                    processed.reasons.push(Reason::Embedding);
                }
            }
        }
        let vectors = computed.iter().filter_map(|key| Some((*key, known.get(key)?)));
        self.cache.keep(vectors, layouts.iter().map(|(key, layout)| (*key, layout)));
        outputs.sort_by_key(|(partition, version, _)| (*partition, *version));
        processed.settled = outputs.iter().filter_map(settled).collect();
        if processed.trail.is_some() {
            processed.origins = outputs.iter().map(trail::origin).collect();
        }
        let now_ms = now_ms();
        let records = outputs.into_iter().map(|(partition, _, event)| Outgoing::To(partition, event.to_record(now_ms)));
        processed.vectors = records.collect();
        processed
    }

    fn embedded(
        &self,
        ready: &Ready,
        known: &HashMap<Key, Vector>,
        faults: &HashMap<Key, EmbedError>,
    ) -> Result<EmbeddedRow, EmbedError> {
        let vector = |key: &Key| known.get(key).ok_or_else(|| faults.get(key).cloned().unwrap_or(EmbedError::Stopped));
        let title = ready.layout.title.as_ref().map(vector).transpose()?;
        let mut windows = vec![];
        for (bytes, key) in &ready.layout.windows {
            let vector = match title {
                Some(title) => mix(vector(key)?, title, self.settings.title_weight)?,
                None => vector(key)?.clone(),
            };
            let passage = ready.rendered.text.get(bytes.clone()).unwrap_or_default().trim().to_owned();
            windows.push(Window::new(&vector, passage));
        }
        Ok(stored(&ready.item, &ready.rendered, &ready.text_hash, windows))
    }

    fn put_aside(&self, item: Item, reason: Reason, error: &str, prepared: &mut Prepared) {
        let letter = self.dead_letter(item.record, item.partition, item.version.0, reason, error);
        prepared.put_aside(letter, reason);
    }

    fn dead_letter(&self, record: Record, partition: Partition, offset: u64, reason: Reason, error: &str) -> Record {
        // A row's values may be in the message of a template; the log has none of them, the dead letter has all.
        tracing::warn!(partition, offset, reason = reason.as_label(), "put a record aside as a dead letter");
        let mut record = record;
        let header = |name: &str, value: String| (name.to_owned(), Bytes::from(value));
        record.headers.extend([
            header(letter::REASON, reason.as_label().to_owned()),
            header(letter::TOPIC, self.topic.clone()),
            header(letter::PARTITION, partition.to_string()),
            header(letter::OFFSET, offset.to_string()),
            header(letter::ERROR, error.to_owned()),
        ]);
        record.timestamp_ms = now_ms();
        // Without a value it would be a tombstone, and under a reserved key a barrier, of the topic of dead letters itself.
        record.value.get_or_insert_default();
        if Record::is_reserved(&record.key) {
            record.key = Bytes::new();
        }
        record
    }
}

/// Turns a batch into what is to be committed. An error says that the model is out of order and nothing was done; a
/// text that the model refuses is a dead letter and no error.
pub(super) async fn process(rows: &Arc<Rows>, batch: Vec<Stored>, bytes_max: usize) -> Result<Processed, EmbedError> {
    let shared = Arc::clone(rows);
    let mut prepared = match &rows.completion {
        None => blocking(move || shared.prepare(shared.intake(batch), bytes_max)).await?,
        Some(completion) => {
            let reading = Arc::clone(rows);
            let mut intake = blocking(move || reading.intake(batch)).await?;
            completion.complete(&mut intake.items).await.ok_or(EmbedError::Stopped)?;
            blocking(move || shared.prepare(intake, bytes_max)).await?
        }
    };
    let texts: Vec<TokenIds> = prepared.missing.iter_mut().map(|(_, ids)| std::mem::take(ids)).collect();
    let results = if texts.is_empty() { vec![] } else { rows.embedder.embed(texts).await };
    if let Some(fault) = results.iter().filter_map(|result| result.as_ref().err()).find(|fault| !fault.is_of_the_text())
    {
        return Err(fault.clone());
    }
    let used = prepared.rows.iter().flat_map(|ready| ready.layout.keys()).count() as u64;
    prepared.processed.computed = results.iter().filter(|result| result.is_ok()).count() as u64;
    prepared.processed.cached += used.saturating_sub(results.len() as u64);
    let shared = Arc::clone(rows);
    blocking(move || shared.finish(prepared, results)).await
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, EmbedError> {
    // What it logs is of the pipeline that is at work here.
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(run)).await {
        Ok(result) => Ok(result),
        Err(fault) if fault.is_panic() => std::panic::resume_unwind(fault.into_panic()),
        Err(_) => Err(EmbedError::Stopped),
    }
}

impl Prepared {
    fn put_aside(&mut self, letter: Record, reason: Reason) {
        self.processed.dead_letters.push(letter);
        self.processed.reasons.push(reason);
    }
}

impl Layout {
    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.title.iter().chain(self.windows.iter().map(|(_, key)| key))
    }
}

/// A row as it is stored.
fn stored(item: &Item, rendered: &Rendered, text_hash: &Key, windows: Vec<Window>) -> EmbeddedRow {
    let payload = payload(rendered);
    EmbeddedRow {
        version: item.version.0,
        row_hash: row_hash(text_hash, &payload).as_bytes().to_vec(),
        text_hash: text_hash.as_bytes().to_vec(),
        payload,
        windows,
        commit_ts_ms: item.commit_ts_ms.unwrap_or_default(),
    }
}

/// The bytes of a row's record in `vectors`, or somewhat more.
fn record_bytes<'a>(item: &Item, rendered: &Rendered, windows: impl IntoIterator<Item = &'a Range<usize>>) -> usize {
    let windows = windows.into_iter().map(|bytes| bytes.len() + DIMENSION * size_of::<f32>() + WINDOW_BYTES);
    let around = item.record.key.len() + ROW_BYTES + windows.sum::<usize>();
    // Columns of the row are in the payload as they are in the change, and mostly that is all there is to know.
    let change = item.record.value.as_ref().map_or(0, Bytes::len);
    if change < SMALL_BYTES { around + change } else { around + payload(rendered).len() }
}

/// The payload as it is stored and hashed.
pub(super) fn payload(rendered: &Rendered) -> String {
    Value::Object(rendered.payload.clone()).to_string()
}

/// What an output is about; a heartbeat is about nothing.
fn settled((partition, offset, event): &(Partition, u64, VectorEvent)) -> Option<Settled> {
    let key = match event {
        VectorEvent::Upsert { key, .. } | VectorEvent::Delete { key, .. } => Some(key.clone()),
        VectorEvent::Barrier { .. } => None,
        VectorEvent::Heartbeat { .. } | VectorEvent::Replayed { .. } => return None,
    };
    Some(Settled { partition: *partition, version: Version(*offset), key })
}

/// The hash of what is embedded: equal for equal title and text in one revision.
pub fn text_hash(revision: &str, rendered: &Rendered) -> Key {
    let mut hasher = Sha256::new();
    for part in [revision, rendered.title.as_deref().unwrap_or_default(), &rendered.text] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Key::of(hasher)
}

/// The hash of all that is indexed: the text's hash and the payload as JSON.
pub fn row_hash(text_hash: &Key, payload: &str) -> Key {
    Key::of(Sha256::new_with_prefix(text_hash.as_bytes()).chain_update(payload))
}

/// The share `weight` of the title's vector and the rest of the window's, scaled to length one.
fn mix(window: &Vector, title: &Vector, weight: f32) -> Result<Vector, EmbedError> {
    let mut mixed: Vector =
        window.iter().zip(title).map(|(window, title)| (1.0 - weight) * window + weight * title).collect();
    // Only vectors that point in opposite directions have a mix without one.
    normalise(&mut mixed).map_err(|_| EmbedError::Opposed)?;
    Ok(mixed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;

    fn row(id: u64, answer: &str) -> Stored {
        let value = format!(
            r#"{{"before":null,"after":{{"id":{id},"answer":"{answer}"}},"source":{{"ts_ms":5}},"op":"c","ts_ms":6}}"#
        );
        let key = Bytes::from(format!(r#"{{"id":{id}}}"#));
        let record = Record { key, value: Some(value.into()), headers: vec![], timestamp_ms: 6 };
        Stored { partition: 0, offset: id, record }
    }

    #[tokio::test]
    async fn of_a_batch_in_which_one_text_makes_the_model_fail_the_others_are_stored() {
        let dir = std::env::var_os("VECSYNC_TEST_MODEL_DIR").expect("VECSYNC_TEST_MODEL_DIR names the model's folder");
        for precision in [Precision::Fp32, Precision::Int8] {
            let model = config::Model { precision: Some(precision), dir: dir.clone().into(), runtime: None };
            let embedder = Embedder::load(&model, 1).expect("the model loads");
            let settings = config::Document {
                title: None,
                text: "{{ answer }}".into(),
                payload: vec!["id".into()],
                when: None,
                title_weight: 0.0,
                window_tokens: 64,
                overlap_tokens: 8,
            };
            let document = Document::compile(&settings).expect("a template");
            let rows = Rows::new(embedder, document, settings, Cache::off(), "t.changes".into());
            let answers = ["The first.", "One of seven words, which spoils it.", "The third."];
            let batch = (1..).zip(answers).map(|(id, answer)| row(id, answer)).collect();
            let mut prepared = rows.prepare(rows.intake(batch), usize::MAX);
            // No text of the tokenizer's makes this model fail. A token beyond its 30,522 does, in the very call of the others.
            prepared.missing[1].1[1] = 40_000;
            let texts = prepared.missing.iter().map(|(_, ids)| ids.clone()).collect();
            let results = rows.embedder.embed(texts).await;
            let processed = rows.finish(prepared, results);
            let settled: Vec<&str> =
                processed.settled.iter().filter_map(|settled| Some(settled.key.as_ref()?.as_str())).collect();
            assert_eq!((settled, processed.vectors.len()), (vec![r#"{"id":1}"#, r#"{"id":3}"#], 2), "{precision:?}");
            assert_eq!(processed.reasons, [Reason::Embedding]);
            let letter = &processed.dead_letters[0];
            assert_eq!((&letter.key[..], letter.value.is_some()), (&br#"{"id":2}"#[..], true));
            let error = letter.headers.iter().find(|(name, _)| name == letter::ERROR).expect("an error");
            assert!(String::from_utf8_lossy(&error.1).starts_with("embed a text of "), "{error:?}");
        }
    }
}
