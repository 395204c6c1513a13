//! Searches all the time while Qdrant is killed, stands still and comes back: none may fail, and none may notice much.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::texts::{faq, pieces};
use super::{Figures, ms, percentile, sorted};
use crate::support::http::{Http, escape};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table;

const ROWS: usize = 1_000;
const SEARCHES: usize = 100_000;
const CLIENTS: usize = 4;
/// Questions that are asked in turn; their vectors are kept after the first time.
const QUESTIONS: usize = 200;
/// How long Qdrant is in each state.
const STEP: Duration = Duration::from_secs(2);
const HEDGE_DELAY_MS: u64 = 50;
/// Between two searches of a client: all of them take about as long as six rounds of faults.
const PACE: Duration = Duration::from_micros(1_500);
const LIMIT: Duration = Duration::from_secs(300);

/// What the clients saw.
#[derive(Default)]
struct Seen {
    took_ms: Vec<f64>,
    errors: usize,
    by_qdrant: usize,
}

pub fn measure(model: &str) -> Figures {
    let mut qdrant = Qdrant::own();
    let mut site = Site::prepare();
    let rows: Vec<String> = pieces(ROWS, 10..110)
        .iter()
        .zip(1..)
        .map(|(row, id)| table::values(id, &row.question, &row.answer, &table::category(id as usize)))
        .collect();
    rows.chunks(500).for_each(|rows| site.sql.execute(&table::insert(rows)));
    let server = qdrant.settings();
    site.vecsync.set("VECSYNC_MODEL", model);
    site.vecsync.set("QDRANT_HOST", &server.host);
    site.vecsync.set("QDRANT_PORT", server.port);
    site.vecsync.set("QDRANT_GRPC_PORT", server.grpc_port);
    site.vecsync.set("VECSYNC_HEDGE_DELAY_MS", HEDGE_DELAY_MS);
    site.vecsync.start();
    wait_until("Qdrant to answer", LIMIT, || {
        let answer = site.vecsync.http.get("/search?q=a").map_err(|error| error.to_string())?;
        match answer.status {
            200 if answer.json()["served_by"] == "qdrant" && answer.json()["degraded"] == false => Ok(()),
            _ => Err(answer.body),
        }
    });
    let port = site.port;
    ask(port, 0, QUESTIONS, &AtomicBool::new(false));
    let (done, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(CLIENTS)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (done, left) = (Arc::clone(&done), Arc::clone(&left));
            thread::spawn(move || {
                let seen = ask(port, n * 50, SEARCHES / CLIENTS, &done);
                left.fetch_sub(1, Ordering::Relaxed);
                seen
            })
        })
        .collect();
    let mut rounds = 0;
    while left.load(Ordering::Relaxed) > 0 {
        fault(&mut qdrant, rounds);
        rounds += 1;
    }
    done.store(true, Ordering::Relaxed);
    let mut all = Seen::default();
    for client in clients {
        let seen = client.join().expect("a client does not panic");
        all.took_ms.extend(seen.took_ms);
        (all.errors, all.by_qdrant) = (all.errors + seen.errors, all.by_qdrant + seen.by_qdrant);
    }
    let back = site.log().matches("searches ask Qdrant again").count();
    let (took, count) = (sorted(all.took_ms), SEARCHES as f64);
    vec![
        ("searches", count),
        ("errors", all.errors as f64),
        ("rounds_of_faults", f64::from(rounds)),
        ("times_asked_again", back as f64),
        ("by_qdrant_percent", 100.0 * all.by_qdrant as f64 / count),
        ("p50_ms", percentile(&took, 0.5)),
        ("p99_ms", percentile(&took, 0.99)),
        ("p999_ms", percentile(&took, 0.999)),
        ("slowest_ms", percentile(&took, 1.0)),
        ("slowest_beyond_hedge_ms", percentile(&took, 1.0) - HEDGE_DELAY_MS as f64),
    ]
}

/// It is away, there, hangs, and is there again.
fn fault(qdrant: &mut Qdrant, round: u32) {
    if round.is_multiple_of(2) {
        qdrant.kill();
        thread::sleep(STEP);
        qdrant.restart();
    } else {
        qdrant.signal("STOP");
        thread::sleep(STEP);
        qdrant.signal("CONT");
    }
    thread::sleep(STEP * 2);
}

fn ask(port: u16, from: usize, count: usize, done: &AtomicBool) -> Seen {
    let paths: Vec<String> = faq().iter().take(QUESTIONS).map(|entry| escape(&entry.question)).collect();
    let (mut http, mut seen) = (Http::new(port), Seen::default());
    for n in 0..count {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let path = format!("/search?q={}", paths[(from + n) % paths.len()]);
        let since = Instant::now();
        let answer = http.get(&path);
        seen.took_ms.push(ms(since.elapsed()));
        match answer {
            Ok(answer) if answer.status == 200 && !answer.body.contains("\"results\":[]") => {
                seen.by_qdrant += usize::from(answer.body.contains("\"served_by\":\"qdrant\""));
            }
            _ => seen.errors += 1,
        }
        thread::sleep(PACE);
    }
    seen
}
