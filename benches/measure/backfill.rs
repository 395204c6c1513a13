//! Backfill: an empty vecsync on a full table, from its start to the last row's being searchable.

use std::time::{Duration, Instant};

use super::bare::Bare;
use super::texts::{self, Entry};
use super::{Figures, ms};
use crate::support::postgres::Sql;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;

pub const ROWS: usize = 5_000;
/// Words of an answer: with its question it stays in one window, 20 to 200 tokens.
const WORDS: std::ops::Range<usize> = 10..110;
/// Between two looks at how many rows are searchable: the end is known this closely.
const LOOK: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(900);

/// Gives the loaded site, and the figures if they are wanted.
pub fn measure(model: &str, compare: bool) -> (Site, Figures) {
    eprintln!("backfill, {model}: {ROWS} rows");
    let rows = texts::pieces(ROWS, WORDS);
    let mut site = Site::prepare();
    fill(&site.sql, &rows);
    site.vecsync.set("VECSYNC_MODEL", model);
    let bare = compare.then(|| Bare::load(model, &rows));
    let before = bare.as_ref().map(|bare| bare.half(0));

    let begun = Instant::now();
    site.vecsync.start();
    let first = wait_until("the first row to be found", LIMIT, || {
        let answer = site.vecsync.http.get("/search?q=a&limit=1&min_score=-1").map_err(|error| error.to_string())?;
        match answer.status {
            200 if answer.json()["results"].get(0).is_some() => Ok(begun.elapsed()),
            _ => Err(answer.body),
        }
    });
    let all = wait_until("all rows to be searchable", LIMIT, || {
        // Asked as often as a test asks, it would do a measurable part of the work.
        std::thread::sleep(LOOK);
        if let Some(status) = site.vecsync.ended() {
            panic!("vecsync ended with {status}: {}", site.vecsync.log());
        }
        match site.vecsync.points() {
            Some(points) if points == ROWS as u64 => Ok(begun.elapsed()),
            points => Err(format!("{points:?} points")),
        }
    });
    let (cpu, (rss, peak)) = (site.cpu_seconds(), site.memory_kb());
    let computed = site.metric("vecsync_embeddings_total", r#"result="computed""#).unwrap_or(0.0);
    let mut figures = vec![
        ("rows_per_s", ROWS as f64 / all.as_secs_f64()),
        ("seconds", all.as_secs_f64()),
        ("first_row_ms", ms(first)),
        ("cpu_s", cpu),
        ("peak_rss_mb", peak as f64 / 1024.0),
        ("rss_mb", rss as f64 / 1024.0),
        ("texts_computed", computed),
    ];
    if let (Some(bare), Some(before)) = (bare, before) {
        // It stands still meanwhile, like any idle vecsync.
        let seconds = before + bare.half(1);
        let (texts, limit) = (bare.texts() as f64, bare.texts() as f64 / seconds);
        let rate = texts / all.as_secs_f64();
        figures.extend([
            ("texts", texts),
            ("tokens_per_text", bare.tokens() as f64 / texts),
            ("texts_per_s", rate),
            ("bare_texts_per_s", limit),
            ("of_bare", rate / limit),
        ]);
    }
    (site, figures)
}

fn fill(sql: &Sql, rows: &[Entry]) {
    for (chunk, rows) in rows.chunks(500).enumerate() {
        let values: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(place, row)| {
                let id = chunk * 500 + place + 1;
                table::values(id as i64, &row.question, &row.answer, &table::category(id))
            })
            .collect();
        sql.execute(&table::insert(&values));
    }
    sql.execute("ANALYZE faq_faq");
}
