//! What embedding costs beside the model: rows whose text is known, queries during a backfill, and the way the peers take.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use vecsync::config;
use vecsync::embed::{Cache, Processed, Worker};
use vecsync::event::Record;
use vecsync::metrics::PipelineMetrics;
use vecsync::topic::Stored;

use super::backfill::{self, ROWS};
use super::bare::Bare;
use super::limit::{self, Limit};
use super::texts::{self, Entry};
use super::{Figures, ms, percentile, search, sorted};
use crate::support::process::{cpu_seconds, wait_until};
use crate::support::site::Site;
use crate::support::vecsync::PIPELINE;

/// Rows that are embedded in this process, once and once more.
const KNOWN: usize = 2_000;
/// Rows of a batch, as the worker takes them under load.
const BATCH: usize = 128;
/// Searches while nothing else is at work, and during a backfill of as many rows as there are.
const SEARCHES: usize = 1_000;
/// Rows that are embedded as the peers embed them, twice, and by vecsync.
const PADDED: usize = 300;
const SHORT: usize = 2_000;
/// Their tokens at most, the special ones included.
const SHORT_TOKENS: usize = 128;
const LIMIT: Duration = Duration::from_secs(300);

/// Rows whose text is unchanged: what embed does with them, and what the whole of vecsync does.
pub fn unchanged(site: &mut Site, model: &str) -> Figures {
    eprintln!("embed, {model}: {KNOWN} rows, then the same with other payloads");
    let rows = texts::pieces(KNOWN, backfill::WORDS);
    let folder = tempfile::tempdir().expect("make a folder");
    let bare = Bare::load(model);
    let document = config::Document {
        title: Some("{{ question }}".into()),
        text: "{{ answer }}".into(),
        payload: ["id", "question", "answer", "category"].map(str::to_owned).into(),
        when: None,
        title_weight: 0.3,
        window_tokens: 256,
        overlap_tokens: 32,
    };
    let cache = Cache::open(&folder.path().join("embeddings"));
    let metrics = PipelineMetrics::new("bench");
    let worker = Worker::new(bare.embedder().clone(), &document, cache, metrics, "bench.changes")
        .expect("the templates compile");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let process = |category: &str| {
        let (cpu, begun) = (cpu_seconds(std::process::id()), Instant::now());
        let mut done = Processed::default();
        for batch in batches(&rows, category) {
            let batch = runtime.block_on(worker.process(batch)).expect("the model works");
            assert!(batch.dead_letters.is_empty(), "no row is refused");
            done.computed += batch.computed;
            done.cached += batch.cached;
        }
        (done.computed, done.cached, cpu_seconds(std::process::id()) - cpu, begun.elapsed())
    };
    let (embedded, known) = (process("one"), process("two"));
    assert!(embedded.0 > KNOWN as u64 && known.1 > KNOWN as u64, "{embedded:?}, {known:?}");
    let us_per_row = |seconds: f64, rows: usize| 1e6 * seconds / rows as f64;

    eprintln!("embed, {model}: another column of all {ROWS} rows");
    let of_result = |site: &mut Site, result| {
        site.metric("vecsync_embeddings_total", &format!("result=\"{result}\"")).unwrap_or_default()
    };
    let before = (of_result(site, "computed"), of_result(site, "cached"));
    let (cpu, begun) = (site.cpu_seconds(), Instant::now());
    site.sql.execute("UPDATE faq_faq SET category = 'changed'");
    wait_until("all payloads to change", LIMIT, || {
        std::thread::sleep(Duration::from_millis(20));
        let seen = of_result(site, "cached") - before.1;
        if seen < 2.0 * ROWS as f64 {
            return Err(format!("{seen} texts were looked at"));
        }
        match site.row_if_answered(ROWS as i64).map(|row| row["category"].clone()) {
            Some(category) if category == "changed" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), site.cpu_seconds() - cpu);
    vec![
        ("cpu_us_per_row", us_per_row(known.2, KNOWN)),
        ("embedding_cpu_us_per_row", us_per_row(embedded.2, KNOWN)),
        ("of_embedding_cpu_percent", 100.0 * known.2 / embedded.2),
        ("of_embedding_time_percent", 100.0 * known.3.as_secs_f64() / embedded.3.as_secs_f64()),
        ("model_calls", known.0 as f64 + of_result(site, "computed") - before.0),
        ("whole_rows_per_s", ROWS as f64 / seconds),
        ("whole_cpu_us_per_row", us_per_row(cpu, ROWS)),
    ]
}

fn batches(rows: &[Entry], category: &str) -> Vec<Vec<Stored>> {
    let stored = |(offset, row): (usize, &Entry)| {
        let after = json!({"id": offset, "question": row.question, "answer": row.answer, "category": category});
        let value = json!({"before": null, "after": after, "source": {"ts_ms": 1}, "op": "u", "ts_ms": 1});
        let key = json!({"id": offset}).to_string();
        let record =
            Record { key: key.into(), value: Some(Bytes::from(value.to_string())), headers: vec![], timestamp_ms: 1 };
        Stored { partition: 0, offset: offset as u64, record }
    };
    let stored: Vec<Stored> = rows.iter().enumerate().map(stored).collect();
    stored.chunks(BATCH).map(<[Stored]>::to_vec).collect()
}

/// One client's searches, while nothing else is at work and during the backfill of as many rows again.
pub fn queries(site: &mut Site, model: &str) -> Figures {
    eprintln!("embed, {model}: searches during a backfill");
    let port = site.port;
    search::ask(port, &search::questions(0, SEARCHES / 4));
    let idle = sorted(search::ask(port, &search::questions(0, SEARCHES)));
    let known: std::collections::HashSet<String> =
        texts::pieces(ROWS, backfill::WORDS).into_iter().map(|row| row.answer).collect();
    let more = texts::pieces(2 * ROWS + ROWS / 4, backfill::WORDS).into_iter();
    let more: Vec<Entry> = more.filter(|row| !known.contains(&row.answer)).take(ROWS).collect();
    assert_eq!(more.len(), ROWS);
    backfill::fill(&site.sql, ROWS + 1, &more);
    let under_way = |site: &mut Site| {
        let points = site.points().unwrap_or_default();
        if points > ROWS as u64 { Ok(points) } else { Err(format!("{points} points")) }
    };
    wait_until("the backfill to begin", LIMIT, || under_way(site));
    let busy = sorted(search::ask(port, &search::questions(0, SEARCHES)));
    let points = site.points().expect("it answers");
    assert!(points < 2 * ROWS as u64, "the backfill had ended before the last search");
    wait_until("the backfill to end", LIMIT, || match site.points() {
        Some(points) if points == 2 * ROWS as u64 => Ok(()),
        points => Err(format!("{points:?}")),
    });
    let (idle_p99, busy_p99) = (percentile(&idle, 0.99), percentile(&busy, 0.99));
    vec![
        ("idle_p50_ms", percentile(&idle, 0.5)),
        ("idle_p99_ms", idle_p99),
        ("in_backfill_p50_ms", percentile(&busy, 0.5)),
        ("in_backfill_p99_ms", busy_p99),
        ("in_backfill_of_idle_p99", busy_p99 / idle_p99),
    ]
}

/// Rows per second without a title's weight, against fp32, one row a call, padded to 128 tokens.
pub fn peers(model: &str) -> Figures {
    eprintln!("embed, {model}: {SHORT} rows of at most {SHORT_TOKENS} tokens, the peers' way and ours");
    let tokens = limit::tokenizer();
    let fits = |row: &Entry| limit::row_text(&tokens, row).len() <= SHORT_TOKENS;
    let rows: Vec<Entry> = texts::pieces(2 * SHORT, backfill::WORDS).into_iter().filter(fits).take(SHORT).collect();
    assert_eq!(rows.len(), SHORT);
    let count = rows.iter().map(|row| limit::row_text(&tokens, row).len()).sum::<usize>();
    let mut padded = Limit::start("fp32");
    let before = padded.padded(&rows[..PADDED]);
    let mut site = Site::prepare();
    site.vecsync.write_pipeline(&PIPELINE.replace("[index]", "title_weight = 0.0\n[index]"));
    backfill::fill(&site.sql, 1, &rows);
    let made = backfill::load_rows(&mut site, model, SHORT);
    let theirs = (before + padded.padded(&rows[PADDED..2 * PADDED])) / 2.0;
    let ours = SHORT as f64 / made.all.as_secs_f64();
    eprintln!("{:.0} ms to the start of capture", ms(made.start));
    vec![
        ("tokens_per_row", count as f64 / SHORT as f64),
        ("theirs_per_s", theirs),
        ("rows_per_s", ours),
        ("of_theirs", ours / theirs),
    ]
}
