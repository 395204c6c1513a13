//! The mirror's search by itself, in this process, on one thread, over 100,000 points; and whether it finds what a plain scan
//! finds.

use std::time::Instant;

use vecsync::embed::{Vector, normalise};
use vecsync::event::{EmbeddedRow, RowKey, VectorEvent, Window};
use vecsync::index::scan::{self, Kernel};
use vecsync::index::{Filter, Mirror, MirrorSettings};
use vecsync::topic::Partition;

use super::bare::Bare;
use super::texts::{faq, pieces};
use super::{Figures, ms, percentile, sorted};
use crate::support::dice::Dice;

const POINTS: usize = 100_000;
/// Texts that are embedded; the points lie between two of them each, closer to one.
const TEXTS: usize = 4000;
const QUERIES: usize = 1000;
const LIMIT: usize = 10;
const PARTITIONS: Partition = 8;
/// Rows of one batch.
const BATCH: usize = 2000;

pub fn search(model: &str) -> Figures {
    eprintln!("scan, {model}: {TEXTS} texts and {QUERIES} queries are embedded");
    let texts: Vec<String> = pieces(TEXTS, 10..60).into_iter().map(|entry| entry.answer).collect();
    // Real questions, then runs of a few words.
    let questions = faq().into_iter().map(|entry| entry.question);
    let queries: Vec<String> =
        questions.chain(pieces(QUERIES, 4..10).into_iter().map(|entry| entry.answer)).take(QUERIES).collect();
    let bare = Bare::load(model);
    let (texts, queries) = (bare.vectors(&texts), bare.vectors(&queries));
    let points = between(&texts);
    let folder = tempfile::tempdir().expect("a folder");
    let mirror = filled(folder.path(), &points);
    let mut found = vec![];
    let mut took: Vec<f64> = vec![];
    // The first queries wake the pages and the processor.
    for query in queries.iter().take(50).chain(&queries) {
        let begun = Instant::now();
        let hits = mirror.search(query, LIMIT, 0.0, &Filter::none()).expect("a search");
        took.push(ms(begun.elapsed()));
        found.push(hits.into_iter().map(|hit| (hit.score, hit.key)).collect::<Vec<_>>());
    }
    let (took, found) = (sorted(took.split_off(50)), found.split_off(50));
    let (plain, plain_took) = plain(&points, &queries);
    let same: usize = plain.iter().zip(&found).map(|(a, b)| a.iter().filter(|hit| b.contains(hit)).count()).sum();
    vec![
        ("p50_ms", percentile(&took, 0.50)),
        ("p99_ms", percentile(&took, 0.99)),
        ("plain_f32_p50_ms", percentile(&plain_took, 0.50)),
        ("recall_at_10", same as f64 / (QUERIES * LIMIT) as f64),
    ]
}

fn key(number: usize) -> RowKey {
    RowKey::from_bytes(format!(r#"{{"id":{number}}}"#).as_bytes()).expect("a key")
}

fn between(texts: &[Vector]) -> Vec<Vector> {
    let mut dice = Dice::new(9);
    (0..POINTS)
        .map(|n| {
            let (near, far) = (&texts[n % TEXTS], dice.pick(texts));
            let share = dice.below(40) as f32 / 100.0;
            let mut point: Vector = near.iter().zip(far).map(|(near, far)| near + share * (far - near)).collect();
            normalise(&mut point).expect("two texts are not opposites");
            point
        })
        .collect()
}

fn filled(folder: &std::path::Path, points: &[Vector]) -> Mirror {
    let settings = MirrorSettings {
        dir: folder.join("mirror"),
        pipeline: "faq".into(),
        revision: "bench".into(),
        partitions: PARTITIONS,
        filters: vec![],
    };
    let mirror = Mirror::open(settings).expect("the mirror opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for (number, batch) in points.chunks(BATCH).enumerate() {
        let rows = batch.iter().enumerate().map(|(n, vector)| {
            let n = number * BATCH + n;
            let row = EmbeddedRow {
                version: n as u64,
                payload: format!(r#"{{"id":{n}}}"#),
                windows: vec![Window::new(vector, format!("passage {n}"))],
                ..EmbeddedRow::default()
            };
            let (partition, offset) = (n % usize::from(PARTITIONS), n / usize::from(PARTITIONS));
            (partition as Partition, offset as u64, VectorEvent::Upsert { key: key(n), row })
        });
        runtime.block_on(mirror.apply(rows.collect())).expect("applied");
    }
    mirror
}

/// What every search must find, by score and then by key, and how long looking at every vector takes.
fn plain(points: &[Vector], queries: &[Vector]) -> (Vec<Vec<(f32, RowKey)>>, Vec<f64>) {
    let kernel = Kernel::detect();
    let rows: Vec<scan::Vector> = points.iter().map(|point| scan::Vector::new(point).expect("finite")).collect();
    let mut scores = vec![0.0; rows.len()];
    let mut took = vec![];
    let found = queries
        .iter()
        .map(|query| {
            let query = scan::Vector::new(query).expect("finite");
            let begun = Instant::now();
            kernel.dots(&rows, &query, &mut scores);
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.select_nth_unstable_by(LIMIT + 10, |a, b| scores[*b].total_cmp(&scores[*a]));
            took.push(ms(begun.elapsed()));
            let mut best: Vec<(f32, RowKey)> = order[..LIMIT + 10].iter().map(|n| (scores[*n], key(*n))).collect();
            best.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
            best.truncate(LIMIT);
            best
        })
        .collect();
    (found, sorted(took))
}
