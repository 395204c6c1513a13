//! The model alone, in this process, over the same texts: the limit that a backfill is held against.

use std::collections::HashSet;
use std::time::Instant;

use tokio::runtime::Runtime;
use vecsync::config;
use vecsync::embed::tokens::{self, TokenIds};
use vecsync::embed::{Embedder, Vector};

use super::ms;
use super::texts::Entry;
use crate::support::vecsync::model_dir;

/// Texts of one call: enough to sort by length, as much as the pipeline could have at once.
const CALL: usize = 512;
/// Tokens of a window where the pipeline file says nothing.
const WINDOW: usize = 256;

/// What the model is given for these rows: a question in front of each answer, and each question once by itself.
pub struct Bare {
    embedder: Embedder,
    texts: Vec<TokenIds>,
}

impl Bare {
    pub fn load(model: &str, rows: &[Entry]) -> Self {
        let precision = if model == "fp32" { config::Precision::Fp32 } else { config::Precision::Int8 };
        let settings = config::Model { precision: Some(precision), dir: model_dir(), runtime: None };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let embedder = Embedder::load(&settings, cores).expect("the model is there");
        let of = |text: &str| embedder.tokens().of(text).expect("it can be cut into tokens");
        let titles: HashSet<&str> = rows.iter().map(|row| row.question.as_str()).collect();
        let mut texts: Vec<TokenIds> =
            rows.iter().map(|row| tokens::input([&of(&row.question), &of(&row.answer)])).collect();
        texts.extend(titles.iter().map(|title| tokens::input([&of(title)])));
        texts.sort_by_key(Vec::len);
        let longest = texts.last().map_or(0, Vec::len);
        assert!(longest <= WINDOW, "a text of {longest} tokens would be split, and this compares something else");
        Bare { embedder, texts }
    }

    /// The vectors of these texts.
    pub fn vectors(&self, texts: &[String]) -> Vec<Vector> {
        let of = |text: &String| tokens::input([&self.embedder.tokens().of(text).expect("it can be cut into tokens")]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut vectors = vec![];
        for call in texts.chunks(CALL) {
            vectors.extend(runtime.block_on(self.embedder.embed(call.iter().map(of).collect())));
        }
        vectors.into_iter().map(|vector| vector.expect("the model refused no text")).collect()
    }

    /// The model's own time for a query, its tokens included, in milliseconds. `runtime` has threads.
    pub fn query(&self, runtime: &Runtime, query: &str) -> f64 {
        let begun = Instant::now();
        runtime.block_on(self.embedder.query(query)).expect("a vector");
        ms(begun.elapsed())
    }

    /// How many queries the model embeds a second where `clients` wait for it.
    pub fn queries_per_s(&self, runtime: &Runtime, queries: &[String], clients: usize) -> f64 {
        let begun = Instant::now();
        let asking: Vec<_> = queries
            .chunks(queries.len().div_ceil(clients))
            .map(|queries| {
                let (embedder, queries) = (self.embedder.clone(), queries.to_vec());
                runtime.spawn(async move {
                    for query in queries {
                        embedder.query(&query).await.expect("a vector");
                    }
                })
            })
            .collect();
        asking.into_iter().for_each(|asking| runtime.block_on(asking).expect("it does not panic"));
        queries.len() as f64 / begun.elapsed().as_secs_f64()
    }

    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    pub fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    /// Texts per second over every `parts`-th text, from `part` on. All parts together are all texts; they are run
    /// between the rounds of what they are compared with, so that a machine that grows slower does so for both.
    pub fn rate(&self, part: usize, parts: usize) -> f64 {
        let texts: Vec<TokenIds> = self.texts.iter().skip(part).step_by(parts).cloned().collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // The first call of a session is slower; it is not the model's rate.
        runtime.block_on(self.embedder.embed(texts[..8].to_vec()));
        let begun = Instant::now();
        for call in texts.chunks(CALL) {
            let vectors = runtime.block_on(self.embedder.embed(call.to_vec()));
            assert!(vectors.iter().all(Result::is_ok), "the model refused a text");
        }
        texts.len() as f64 / begun.elapsed().as_secs_f64()
    }
}
