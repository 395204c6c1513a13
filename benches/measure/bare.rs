//! Our own embedder alone, in this process: its queries and its vectors. Knows no server and no table.

use std::time::Instant;

use tokio::runtime::Runtime;
use vecsync::config;
use vecsync::embed::tokens;
use vecsync::embed::{Embedder, Vector};

use super::ms;
use crate::support::vecsync::model_dir;

/// Texts of one call: enough to sort by length, as much as the pipeline could have at once.
const CALL: usize = 512;

/// The embedder that vecsync has, with as many threads.
pub struct Bare {
    embedder: Embedder,
}

impl Bare {
    pub fn load(model: &str) -> Self {
        let precision = if model == "fp32" { config::Precision::Fp32 } else { config::Precision::Int8 };
        let settings = config::Model { precision: Some(precision), dir: model_dir(), runtime: None };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Bare { embedder: Embedder::load(&settings, cores).expect("the model is there") }
    }

    pub fn embedder(&self) -> &Embedder {
        &self.embedder
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
}
