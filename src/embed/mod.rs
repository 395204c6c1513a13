//! Text to vector: document → windows → tokens → model. Knows no log but the one it reads, and no store.
//!
//! **Invariants:** the same text gives the same vector, bit for bit, whatever was embedded with it; nothing is
//! truncated silently; a query never waits for a backfill; no vector leaves that is not of length one.

mod batch;
pub mod cache;
pub mod completion;
pub mod document;
pub mod expected;
mod files;
mod inference;
mod intake;
mod model;
mod rows;
pub mod tokens;
mod trail;
mod weights;
pub mod window;
pub mod worker;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache as Asked;
use sha2::{Digest, Sha256};

use crate::config::{self, Precision};
use files::Files;
use inference::{Inference, Lane};
use model::{Model, ModelFile};
use tokens::{TokenIds, Tokens};

pub use cache::Cache;
pub use completion::Completion;
pub use document::{Document, DocumentError, Rendered};
pub use expected::{Expectation, Expected};
pub use files::LoadError;
pub use model::{DIMENSION, EmbedError, NoDirection, TOKENS_MAX, Vector, normalise};
pub use rows::{Processed, Reason, row_hash, text_hash};
pub use worker::{Worker, WorkerError};

/// The most tokens of a query that are used, special ones included.
pub const QUERY_TOKENS_MAX: usize = 256;
/// The most queries that wait for the model. At 2 to 5 ms each the last of them waits about as long as a search may.
const QUERIES_WAITING_MAX: usize = 200;
/// Queries whose vectors are kept: at most 2.5 KB each.
const QUERIES_KEPT: usize = 1024;
/// The tokens of one fp32 call, padding included. Measured: 384 to 1,024 are equally fast, fewer take less memory.
const FP32_CALL_TOKENS: usize = 512;

/// A query's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryVector {
    /// Of unit length, `DIMENSION` long.
    pub vector: Vector,
    /// Whether the query was longer than `QUERY_TOKENS_MAX` and its end has no part in the vector.
    pub truncated: bool,
}

/// A loaded model with its tokenizer and the threads that run it. Clones are the same one; the last ends the threads.
#[derive(Clone)]
pub struct Embedder {
    inner: Arc<Inner>,
    /// Whose rows it embeds: those of several take turns.
    lane: Lane,
}

/// An embedder that is kept loaded by others alone.
#[derive(Clone)]
pub struct WeakEmbedder(Weak<Inner>);

impl WeakEmbedder {
    /// The embedder, if anybody still has it.
    pub fn upgrade(&self) -> Option<Embedder> {
        let inner = self.0.upgrade()?;
        Some(Embedder { lane: inner.inference.lane(), inner })
    }
}

struct Inner {
    tokens: Tokens,
    precision: Precision,
    model_sha256: &'static str,
    tokenizer_sha256: &'static str,
    inference: Inference,
    asked: Asked<TokenIds, Vector>,
    /// How long the last query took that was embedded, microseconds; 0: none was.
    query_us: AtomicU64,
}

impl Embedder {
    /// Loads and checks the files. Blocks for 0.2 to 1 s. `threads`: cores for rows, which take queries, too, while there are
    /// no rows; queries have one more thread.
    ///
    /// Each thread has a session of its own, and one text or batch does not wait for another's. fp32 runs batches; its
    /// vectors do not depend on the batch. The int8 model quantises activations over the whole batch, so each call has
    /// one text.
    pub fn load(settings: &config::Model, threads: usize) -> Result<Embedder, LoadError> {
        let files = Files::choose(settings);
        let budget = match files.precision {
            Precision::Fp32 => FP32_CALL_TOKENS,
            Precision::Int8 => 0,
        };
        // Hashing takes its time on another core while the sessions are opened. Nothing is used before it is done.
        let (checked, tokenizer, models) = std::thread::scope(|scope| {
            let checking = scope.spawn(|| files.check_model());
            let reading = scope.spawn(|| read_tokenizer(&files));
            let models = open(&files, threads.max(1));
            (join(checking), join(reading), models)
        });
        // A bad file is the better explanation of a session that could not be opened.
        let model_sha256 = checked?;
        let (tokens, tokenizer_sha256) = tokenizer?;
        let (rows, query) = models?;
        let inner = Inner {
            tokens,
            precision: files.precision,
            model_sha256,
            tokenizer_sha256,
            inference: Inference::start(rows, query, budget).map_err(LoadError::Thread)?,
            asked: Asked::new(QUERIES_KEPT),
            query_us: AtomicU64::new(0),
        };
        Ok(Embedder { lane: inner.inference.lane(), inner: Arc::new(inner) })
    }

    /// The same model for the rows of somebody else, who takes turns with all others.
    pub fn for_another(&self) -> Embedder {
        Embedder { inner: Arc::clone(&self.inner), lane: self.inner.inference.lane() }
    }

    /// Does not keep it loaded.
    pub fn downgrade(&self) -> WeakEmbedder {
        WeakEmbedder(Arc::downgrade(&self.inner))
    }

    /// The model's name.
    pub fn model_name(&self) -> &str {
        name_of(self.inner.precision)
    }

    /// The model's arithmetic.
    pub fn precision(&self) -> Precision {
        self.inner.precision
    }

    /// The tokenizer.
    pub fn tokens(&self) -> &Tokens {
        &self.inner.tokens
    }

    /// See [`revision`].
    pub fn revision(&self, document: &config::Document) -> String {
        revision_of(self.inner.model_sha256, self.inner.tokenizer_sha256, document)
    }

    /// The name of a text's vector in the cache: it depends on nothing but the model and the token ids.
    pub(crate) fn vector_key(&self, text: &TokenIds) -> cache::Key {
        let mut hasher = Sha256::new();
        hasher.update(self.inner.model_sha256);
        for id in text {
            hasher.update(id.to_le_bytes());
        }
        cache::Key::of(hasher)
    }

    /// Embeds a query, beside the rows that are embedded. A query that is too long is not refused: its first
    /// `QUERY_TOKENS_MAX` tokens are used, and the answer says so. A query that was asked a moment ago, or is being
    /// embedded for somebody else, is not embedded again.
    pub async fn query(&self, text: &str) -> Result<QueryVector, EmbedError> {
        let (ids, truncated) = self.inner.tokens.truncated(text, QUERY_TOKENS_MAX)?;
        if ids.len() == tokens::SPECIAL_TOKENS {
            return Err(EmbedError::Empty);
        }
        let vector = self.inner.asked.get_or_insert_async(&ids, self.embed_query(&ids)).await?;
        Ok(QueryVector { vector, truncated })
    }

    async fn embed_query(&self, ids: &TokenIds) -> Result<Vector, EmbedError> {
        let waiting = self.inner.inference.queries_waiting();
        if waiting >= QUERIES_WAITING_MAX {
            return Err(EmbedError::Busy { waiting });
        }
        let since = Instant::now();
        let vector = self.inner.inference.query(ids.clone()).await;
        if vector.is_ok() {
            let took_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.inner.query_us.store(took_us.max(1), Ordering::Relaxed);
        }
        vector
    }

    /// How long the last query took that was embedded and not known from before; `None`: none was.
    pub fn last_query(&self) -> Option<Duration> {
        let took_us = self.inner.query_us.load(Ordering::Relaxed);
        (took_us > 0).then(|| Duration::from_micros(took_us))
    }

    /// Embeds texts, in length-sorted calls; the results are in the order of the texts.
    pub async fn embed(&self, texts: Vec<TokenIds>) -> Vec<Result<Vector, EmbedError>> {
        self.inner.inference.embed(self.lane, texts).await
    }
}

/// The name of the model that would be loaded.
pub fn model_name(model: &config::Model) -> &'static str {
    name_of(Files::choose(model).precision)
}

fn name_of(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "all-MiniLM-L6-v2 fp32",
        Precision::Int8 => "all-MiniLM-L6-v2 int8",
    }
}

/// A short name of all that decides over what the index holds of a row: model, tokenizer, templates, windows, title
/// weight, condition, payload. Lower-case hexadecimal, 12 digits. Reads no file: which ones are accepted is fixed.
pub fn revision(model: &config::Model, document: &config::Document) -> String {
    let (model, tokenizer) = Files::choose(model).hashes();
    revision_of(model, tokenizer, document)
}

/// A short name of what a query's vector depends on besides its text: model and tokenizer. Vectors of two spaces do not
/// compare. Reads no file.
pub fn space(model: &config::Model) -> String {
    let (model, tokenizer) = Files::choose(model).hashes();
    files::hex(&Sha256::digest(format!("{model} {tokenizer}"))[..6])
}

/// The settings that load the model of a space out of the same folder; `None`: it is not there.
pub fn model_of_space(model: &config::Model, wanted: &str) -> Option<config::Model> {
    [model.precision, Some(Precision::Int8), Some(Precision::Fp32)]
        .into_iter()
        .map(|precision| config::Model { precision, ..model.clone() })
        .find(|model| space(model) == wanted && Files::choose(model).model.exists())
}

/// The revision where another topic than vecsync's own is embedded: its offsets are versions of their own.
pub fn revision_of_topic(revision: &str, topic: &str) -> String {
    format!("{revision}-{}", files::hex(&Sha256::digest(topic)[..3]))
}

fn revision_of(model_sha256: &str, tokenizer_sha256: &str, document: &config::Document) -> String {
    let mut hasher = Sha256::new();
    let numbers =
        [document.window_tokens as u64, document.overlap_tokens as u64, u64::from(document.title_weight.to_bits())];
    // Each part goes in with its length, so that no two settings read the same.
    let (title, when) = (document.title.as_deref(), document.when.as_deref());
    let texts = [model_sha256, tokenizer_sha256, &document.text];
    let texts = texts.into_iter().chain([title.unwrap_or_default(), when.unwrap_or_default()]);
    // Condition and payload decide over no vector, but over what the index holds; their change costs no embedding.
    for part in texts.chain(document.payload.iter().map(String::as_str)) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    for number in numbers {
        hasher.update(number.to_le_bytes());
    }
    files::hex(&hasher.finalize()[..6])
}

/// Opens `threads` sessions for rows and one for queries.
fn open(files: &Files, threads: usize) -> Result<(Vec<Model>, Model), LoadError> {
    let file = ModelFile::read(&files.model, &files.runtime)?;
    let rows = (0..threads).map(|_| file.open()).collect::<Result<_, _>>()?;
    Ok((rows, file.open()?))
}

fn read_tokenizer(files: &Files) -> Result<(Tokens, &'static str), LoadError> {
    let (json, sha256) = files.read_tokenizer()?;
    let tokens = Tokens::new(&json).map_err(|source| LoadError::Tokenizer { path: files.tokenizer.clone(), source })?;
    Ok((tokens, sha256))
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
