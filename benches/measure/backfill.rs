//! Backfill: an empty vecsync on a full table, from capture's beginning to the last row's being durable in the store.

use std::time::{Duration, Instant};

use super::limit::Limit;
use super::texts::{self, Entry};
use super::{Figures, ms, percentile, sorted};
use crate::support::postgres::{PASSWORD, Sql, USER};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;
use crate::support::vecsync::Vecsync;

pub const ROWS: usize = 5_000;
/// Times that it is made: one on a machine that others use too says little.
const ROUNDS: usize = 3;
/// Words of an answer: with its question it stays in one window, 20 to 200 tokens.
pub const WORDS: std::ops::Range<usize> = 10..110;
/// Between two looks at how many rows are searchable: the end is known this closely.
const LOOK: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(900);

/// One backfill's figures.
pub struct Round {
    /// Until PostgreSQL has capture's slot. Before that files are hashed and sessions opened, and nothing is captured.
    pub start: Duration,
    /// From then on, until all rows are durable in the store.
    pub all: Duration,
    /// From the start of the process.
    first: Duration,
    pub cpu_s: f64,
    peak_rss_kb: u64,
}

/// Gives the loaded site, and the figures if they are wanted.
pub fn measure(model: &str, compare: bool) -> (Site, Figures) {
    let rows = texts::pieces(ROWS, WORDS);
    let mut site = Site::prepare();
    fill(&site.sql, 1, &rows);
    if !compare {
        load(&mut site, model);
        return (site, vec![]);
    }
    let mut bare = Limit::start(model);
    let (texts, tokens, padding) = bare.tuned();
    let texts = texts as f64;
    let (mut rounds, mut limits) = (vec![], vec![bare.rates(0, ROUNDS + 1)]);
    let (mut shares, mut of_same, mut with_start) = (vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        eprintln!("backfill, {model}: {ROWS} rows, round {round} of {ROUNDS}");
        if round > 1 {
            site.vecsync.kill();
            site.vecsync = Vecsync::prepare(&site.postgres.url(USER, PASSWORD));
            let slot = "SELECT count(*) FROM pg_replication_slots WHERE active";
            wait_until("the slot to be free", LIMIT, || match site.sql.value(slot).as_str() {
                "0" => Ok(()),
                _ => Err("it is active".to_owned()),
            });
            site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
        }
        let made = load(&mut site, model);
        eprintln!("{:.0} ms to the first row, {:.1} s to the last", ms(made.first), made.all.as_secs_f64());
        // It stands still while the model alone is measured, as any idle vecsync.
        limits.push(bare.rates(round, ROUNDS + 1));
        let [limit, same] = [0, 1].map(|which| (limits[round - 1][which] + limits[round][which]) / 2.0);
        shares.push(texts / made.all.as_secs_f64() / limit);
        of_same.push(texts / made.all.as_secs_f64() / same);
        with_start.push(texts / (made.start + made.all).as_secs_f64() / limit);
        rounds.push(made);
    }
    let median = |of: &dyn Fn(&Round) -> f64| percentile(&sorted(rounds.iter().map(of).collect()), 0.5);
    let most = |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let seconds = median(&|round| round.all.as_secs_f64());
    let shares = sorted(shares);
    let limit = |which: usize| percentile(&sorted(limits.iter().map(|rates| rates[which]).collect()), 0.5);
    let figures = vec![
        ("of_bare", percentile(&shares, 0.5)),
        ("of_bare_least", shares[0]),
        ("of_bare_most", percentile(&shares, 1.0)),
        ("of_bare_same_vectors", percentile(&sorted(of_same), 0.5)),
        ("of_bare_with_start", percentile(&sorted(with_start), 0.5)),
        ("rows_per_s", ROWS as f64 / seconds),
        ("texts_per_s", texts / seconds),
        ("bare_texts_per_s", limit(0)),
        ("bare_same_vectors_texts_per_s", limit(1)),
        ("tokens_per_text", tokens as f64 / texts),
        ("bare_padding_percent", padding),
        ("seconds", seconds),
        ("start_ms", median(&|round| ms(round.start))),
        ("first_row_ms", most(&|round| ms(round.first))),
        ("cpu_s", median(&|round| round.cpu_s)),
        ("peak_rss_mb", most(&|round| round.peak_rss_kb as f64 / 1024.0)),
    ];
    (site, figures)
}

/// Starts vecsync with an empty folder and waits until all rows are searchable.
fn load(site: &mut Site, model: &str) -> Round {
    load_rows(site, model, ROWS)
}

/// As many rows as the table has.
pub fn load_rows(site: &mut Site, model: &str, rows: usize) -> Round {
    site.vecsync.set("VECSYNC_MODEL", model);
    let begun = Instant::now();
    site.vecsync.start();
    let start = wait_until("capture to begin", LIMIT, || {
        match site.sql.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'").as_str() {
            "0" => Err("it has no slot".to_owned()),
            _ => Ok(begun.elapsed()),
        }
    });
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
            Some(points) if points == rows as u64 => Ok(begun.elapsed() - start),
            points => Err(format!("{points:?} points")),
        }
    });
    Round { start, all, first, cpu_s: site.cpu_seconds(), peak_rss_kb: site.memory_kb().1 }
}

/// Rows with numbers from `first` on.
pub fn fill(sql: &Sql, first: usize, rows: &[Entry]) {
    for (chunk, rows) in rows.chunks(500).enumerate() {
        let values: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(place, row)| {
                let id = chunk * 500 + place + first;
                table::values(id as i64, &row.question, &row.answer, &table::category(id))
            })
            .collect();
        sql.execute(&table::insert(&values));
    }
    sql.execute("ANALYZE faq_faq");
}
