//! Freshness: from a commit's return to the first answer of `/search` that shows it, one commit every 20 ms.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{Figures, ms, percentile, sorted, texts};
use crate::support::http::Http;
use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, Sql, quote};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::values;

const ROWS: usize = 500;
const EVERY: Duration = Duration::from_millis(20);
const LASTS: Duration = Duration::from_secs(30);
/// Every fifth commit is looked for: ten searchers at a time would be a load of their own.
const SAMPLED: usize = 5;
const SEARCHERS: usize = 3;
/// Between two looks for the same commit. The figures are too large by half of it, and by half a search.
const LOOK: Duration = Duration::from_millis(2);
/// A commit that is not found by then is lost.
const LOST: Duration = Duration::from_secs(60);

/// A commit that is being looked for.
struct Sample {
    id: usize,
    answer: String,
    committed: Instant,
}

/// With the log on this broker, if there is one, else embedded.
pub fn measure(model: &str, kafka: Option<&Kafka>) -> Figures {
    let log = if kafka.is_some() { "Kafka" } else { "embedded log" };
    eprintln!("freshness, {model}, {log}: {} s of commits", LASTS.as_secs());
    let rows = texts::pieces(ROWS, 30..60);
    let mut site = Site::prepare();
    let all: Vec<String> =
        rows.iter().enumerate().map(|(id, row)| values(id as i64, &row.question, &row.answer, "faq")).collect();
    site.sql.execute(&crate::support::table::insert(&all));
    site.vecsync.set("VECSYNC_MODEL", model);
    if let Some(kafka) = kafka {
        super::kafka::set(&mut site.vecsync, kafka, model, "");
    }
    site.vecsync.start_ready();
    wait_until("the rows to be searchable", LOST, || match site.vecsync.points() {
        Some(points) if points == ROWS as u64 => Ok(()),
        points => Err(format!("{points:?}")),
    });

    let new = texts::pieces((LASTS.as_millis() / EVERY.as_millis()) as usize, 30..60);
    let (sender, samples) = mpsc::channel::<Sample>();
    let samples = Arc::new(Mutex::new(samples));
    let found = Arc::new(Mutex::new(vec![]));
    let searchers: Vec<_> = (0..SEARCHERS)
        .map(|_| {
            let (samples, found, http) = (Arc::clone(&samples), Arc::clone(&found), Http::new(site.port));
            thread::spawn(move || look_for(&samples, &found, http))
        })
        .collect();
    let sql = Sql::connect(&site.postgres.url("postgres", PASSWORD)).expect("connect");
    let (cpu, begun) = (site.cpu_seconds(), Instant::now());
    let mut late = Duration::ZERO;
    for (n, row) in new.iter().enumerate() {
        let due = begun + EVERY * n as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        late = late.max(due.elapsed());
        let (id, answer) = (n % ROWS, format!("{} Number {n}.", row.answer));
        sql.execute(&format!("UPDATE faq_faq SET answer = {} WHERE id = {id}", quote(&answer)));
        let committed = Instant::now();
        if n % SAMPLED == 0 {
            sender.send(Sample { id, answer, committed }).expect("a searcher listens");
        }
    }
    let lasted = begun.elapsed();
    let cpu = site.cpu_seconds() - cpu;
    drop(sender);
    searchers.into_iter().for_each(|searcher| searcher.join().expect("every commit is found"));
    let found = sorted(std::mem::take(&mut *found.lock().expect("no searcher panics")));
    assert_eq!(found.len(), new.len().div_ceil(SAMPLED));
    vec![
        ("p50_ms", percentile(&found, 0.50)),
        ("p95_ms", percentile(&found, 0.95)),
        ("p99_ms", percentile(&found, 0.99)),
        ("max_ms", percentile(&found, 1.0)),
        ("samples", found.len() as f64),
        ("commits_per_s", new.len() as f64 / lasted.as_secs_f64()),
        ("writer_late_max_ms", ms(late)),
        ("cpu_percent", 100.0 * cpu / lasted.as_secs_f64()),
        ("rss_mb", site.memory_kb().0 as f64 / 1024.0),
    ]
}

fn look_for(samples: &Mutex<mpsc::Receiver<Sample>>, found: &Mutex<Vec<f64>>, mut http: Http) {
    static STOP: AtomicBool = AtomicBool::new(false);
    while let Ok(sample) = { samples.lock().expect("no searcher panics").recv() } {
        // One row passes the filter, and the shortest query costs the model least.
        let path = format!("/search?q=a&limit=1&min_score=-1&filter=id:{}", sample.id);
        loop {
            let answer = http.get(&path).expect("an answer").json();
            if answer["results"][0]["payload"]["answer"] == sample.answer.as_str() {
                break;
            }
            if sample.committed.elapsed() > LOST || STOP.load(Ordering::Relaxed) {
                STOP.store(true, Ordering::Relaxed);
                panic!("row {} is not found {} s after its commit: {answer}", sample.id, LOST.as_secs());
            }
            thread::sleep(LOOK);
        }
        found.lock().expect("no searcher panics").push(ms(sample.committed.elapsed()));
    }
}
