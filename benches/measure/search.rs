//! A loaded vecsync: how fast it answers, what it costs when nobody asks, how fast it comes back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::backfill::ROWS;
use super::bare::Bare;
use super::texts::{Entry, faq};
use super::{Figures, ms, percentile, sorted};
use crate::support::http::{Http, escape};
use crate::support::process::wait_until;
use crate::support::site::Site;

const SEARCHES: usize = 400;
/// Searches whose queries were asked before, and different ones of them.
const CACHED: usize = 20_000;
const KEPT: usize = 200;
/// Connections that nobody uses.
const SILENT: usize = 2_000;
const CLIENTS: usize = 4;
const IDLE: Duration = Duration::from_secs(20);
const STARTS: usize = 3;

/// Real questions, one after the other and from several clients at once. Each has a number of its own: one that was asked
/// before would not be embedded again.
pub fn latency(site: &mut Site, model: &str) -> Figures {
    let port = site.port;
    ask(port, 0, 50);
    // The same questions, with numbers of their own, in this process: first and last, so that a machine that grows slower
    // does so for both.
    let bare = Bare::load(model, &[] as &[Entry]);
    let questions = || {
        let entries = faq();
        let question =
            |n: usize| format!("{} {}", entries[n % entries.len()].question, ASKED.fetch_add(1, Ordering::Relaxed));
        (0..2 * SEARCHES).map(question).collect::<Vec<_>>()
    };
    bare.queries(questions().split_off(2 * SEARCHES - 50), 1);
    let (alone_before, rate_before) = bare.queries(questions(), CLIENTS);
    let alone = sorted(ask(port, 0, SEARCHES));
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS).map(|n| thread::spawn(move || ask(port, n * 37, SEARCHES))).collect();
    let together = clients.into_iter().flat_map(|client| client.join().expect("every search is answered"));
    let together = sorted(together.collect());
    let per_s = together.len() as f64 / begun.elapsed().as_secs_f64();
    let (alone_after, rate_after) = bare.queries(questions(), CLIENTS);
    let model_p50 = (percentile(&alone_before, 0.5) + percentile(&alone_after, 0.5)) / 2.0;
    let cached = cached(port);
    vec![
        ("model_p50_ms", model_p50),
        ("of_model_latency", percentile(&alone, 0.5) / model_p50),
        ("model_per_s", (rate_before + rate_after) / 2.0),
        ("of_model_per_s", 2.0 * per_s / (rate_before + rate_after)),
        ("cached_per_s", cached),
        ("one_client_p50_ms", percentile(&alone, 0.50)),
        ("one_client_p99_ms", percentile(&alone, 0.99)),
        ("four_clients_p50_ms", percentile(&together, 0.50)),
        ("four_clients_p99_ms", percentile(&together, 0.99)),
        ("four_clients_per_s", per_s),
    ]
}

/// Searches a second whose queries were asked before.
fn cached(port: u16) -> f64 {
    let paths: Vec<String> =
        faq().iter().take(KEPT).map(|entry| format!("/search?q={}", escape(&entry.question))).collect();
    let ask = move |from: usize, count: usize| {
        let mut http = Http::new(port);
        for n in 0..count {
            let answer = http.get(&paths[(from + n) % paths.len()]).expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
    };
    ask(0, KEPT);
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let ask = ask.clone();
            thread::spawn(move || ask(n * 31, CACHED / CLIENTS))
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("every search is answered"));
    CACHED as f64 / begun.elapsed().as_secs_f64()
}

static ASKED: AtomicUsize = AtomicUsize::new(0);

fn ask(port: u16, from: usize, count: usize) -> Vec<f64> {
    let questions = faq();
    let mut http = Http::new(port);
    (0..count)
        .map(|n| {
            let question = &questions[(from + n) % questions.len()].question;
            let path =
                format!("/search?q={}", escape(&format!("{question} {}", ASKED.fetch_add(1, Ordering::Relaxed))));
            let begun = Instant::now();
            let answer = http.get(&path).expect("an answer");
            let took = ms(begun.elapsed());
            assert_eq!(answer.status, 200, "{}", answer.body);
            took
        })
        .collect()
}

/// CPU of a process that nobody asks and no writer feeds, then its restart with all rows.
pub fn idle(site: &mut Site) -> Figures {
    eprintln!("idle: {} s", IDLE.as_secs());
    let cpu = site.cpu_seconds();
    thread::sleep(IDLE);
    let idle = 100.0 * (site.cpu_seconds() - cpu) / IDLE.as_secs_f64();
    let mut starts = vec![];
    for _ in 0..STARTS {
        assert_eq!(site.vecsync.terminate().code, Some(0), "{}", site.log());
        let begun = Instant::now();
        site.vecsync.start_ready();
        starts.push(ms(begun.elapsed()));
        assert_eq!(site.vecsync.points(), Some(ROWS as u64), "it was ready without its rows");
        wait_until("a search to be answered whole", Duration::from_secs(30), || {
            let answer = site.vecsync.search("how do I upgrade", "&limit=100");
            if answer["degraded"] == false { Ok(()) } else { Err(answer["degraded"].to_string()) }
        });
    }
    ask(site.port, 0, 100);
    let starts = sorted(starts);
    let rss = site.memory_kb().0;
    let silent: Vec<_> = (0..SILENT)
        .map(|_| {
            let mut http = Http::new(site.port);
            http.get("/health/live/").expect("an answer");
            http
        })
        .collect();
    let connections_kb = site.memory_kb().0.saturating_sub(rss);
    drop(silent);
    vec![
        ("cpu_percent", idle),
        ("start_to_ready_p50_ms", percentile(&starts, 0.5)),
        ("start_to_ready_max_ms", percentile(&starts, 1.0)),
        ("rss_after_start_mb", rss as f64 / 1024.0),
        ("connections_mb", connections_kb as f64 / 1024.0),
    ]
}
