//! A loaded vecsync: how fast it answers, what it costs when nobody asks, how fast it comes back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::backfill::ROWS;
use super::bare::Bare;
use super::texts::faq;
use super::{Figures, ms, percentile, sorted};
use crate::support::http::{Http, escape};
use crate::support::process::wait_until;
use crate::support::site::Site;

const SEARCHES: usize = 400;
/// Searches before anything is measured: a server that has been asked for a while, whose rows were read before.
const WARM_UP: usize = 2_000;
/// Searches whose queries were asked before, and different ones of them.
const CACHED: usize = 20_000;
const KEPT: usize = 200;
/// Connections that nobody uses.
const SILENT: usize = 2_000;
const CLIENTS: usize = 4;
/// In each the model alone has the questions, and then the server.
const ROUNDS: usize = 6;
const IDLE: Duration = Duration::from_secs(20);
const STARTS: usize = 3;

/// Real questions, one after the other and from several clients at once. Each has a number of its own: one that was asked
/// before would not be embedded again. The model alone, in this process, has them in turn with the server, so that a machine that
/// grows slower does so for both, and each finds the caches of the processor as the other left them.
pub fn latency(site: &mut Site, model: &str) -> Figures {
    let port = site.port;
    ask(port, &questions(0, WARM_UP));
    let bare = Bare::load(model);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let hot: Vec<f64> = questions(0, SEARCHES).iter().map(|query| bare.query(&runtime, query)).collect();
    let hot_p50 = percentile(&sorted(hot), 0.5);

    let in_store = || spent(port, "vecsync_store_request_duration_seconds", r#"operation="search""#);
    let in_model = || spent(port, "vecsync_embed_duration_seconds", "");
    let before = (in_store(), in_model());
    let (mut alone, mut model) = (vec![], vec![]);
    let mut client = Client::new(port);
    for query in questions(0, SEARCHES) {
        model.push(bare.query(&runtime, &query));
        alone.push(client.ask(&request(&query)));
    }
    let (store_ms, served_ms) = (mean_since(before.0, in_store()), mean_since(before.1, in_model()));
    let (alone, model_p50) = (sorted(alone), percentile(&sorted(model), 0.5));

    let (mut together, mut seconds, mut model_seconds) = (vec![], 0.0, 0.0);
    for round in 0..ROUNDS {
        let asked = questions(round * 53, SEARCHES);
        model_seconds += asked.len() as f64 / bare.queries_per_s(&runtime, &asked, CLIENTS);
        let asked = questions(round * 53, SEARCHES);
        let begun = Instant::now();
        thread::scope(|scope| {
            let clients: Vec<_> =
                asked.chunks(SEARCHES / CLIENTS).map(|share| scope.spawn(move || ask(port, share))).collect();
            together.extend(clients.into_iter().flat_map(|client| client.join().expect("every search is answered")));
        });
        seconds += begun.elapsed().as_secs_f64();
    }
    let (asked, together) = ((ROUNDS * SEARCHES) as f64, sorted(together));
    vec![
        ("model_alone_p50_ms", hot_p50),
        ("model_in_turn_p50_ms", model_p50),
        ("model_in_server_mean_ms", served_ms),
        ("store_mean_ms", store_ms),
        ("of_model_latency", (percentile(&alone, 0.5) - store_ms) / model_p50),
        ("model_per_s", asked / model_seconds),
        ("of_model_per_s", model_seconds / seconds),
        ("cached_per_s", cached(port)),
        ("one_client_p50_ms", percentile(&alone, 0.50)),
        ("one_client_p99_ms", percentile(&alone, 0.99)),
        ("four_clients_p50_ms", percentile(&together, 0.50)),
        ("four_clients_p99_ms", percentile(&together, 0.99)),
        ("four_clients_per_s", asked / seconds),
    ]
}

/// Searches a second whose queries were asked before.
fn cached(port: u16) -> f64 {
    let requests: Vec<String> = faq().iter().take(KEPT).map(|entry| request(&entry.question)).collect();
    let ask = |from: usize, count: usize| {
        let mut client = Client::new(port);
        for n in 0..count {
            client.ask(&requests[(from + n) % requests.len()]);
        }
    };
    ask(0, KEPT);
    let begun = Instant::now();
    thread::scope(|scope| {
        for n in 0..CLIENTS {
            scope.spawn(move || ask(n * 31, CACHED / CLIENTS));
        }
    });
    CACHED as f64 / begun.elapsed().as_secs_f64()
}

/// Reads one answer, which must be whole and have the status 200. The clients share the cores with the server, so they do as
/// little as they can: requests that are ready, and of each answer its status and its length.
fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) {
    const LENGTH: &[u8] = b"content-length: ";
    let (mut read, mut wanted) = (0, usize::MAX);
    while read < wanted {
        let count = stream.read(&mut buffer[read..]).expect("read an answer");
        assert!(count > 0, "the connection was closed");
        read += count;
        let Some(end) = find(&buffer[..read], b"\r\n\r\n").filter(|_| wanted == usize::MAX) else { continue };
        let head = &buffer[..end];
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(head));
        let from = find(head, LENGTH).expect("a length") + LENGTH.len();
        let digits = head[from..].iter().take_while(|byte| byte.is_ascii_digit());
        wanted = end + 4 + digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// What a histogram of the server's has counted so far: seconds in all, and how many. `part` is in the labels' text.
fn spent(port: u16, name: &str, part: &str) -> (f64, f64) {
    let metrics = Http::new(port).get("/metrics").expect("an answer").body;
    let of = |name: String| {
        let is_it = |line: &&str| line.starts_with(&name) && line.contains(part);
        metrics.lines().find(is_it).and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    (of(format!("{name}_sum")), of(format!("{name}_count")))
}

/// The mean of what came since, in milliseconds.
fn mean_since(before: (f64, f64), now: (f64, f64)) -> f64 {
    1000.0 * (now.0 - before.0) / (now.1 - before.1)
}

/// So many real questions, each with a number that none had before.
pub(super) fn questions(from: usize, count: usize) -> Vec<String> {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let entries = faq();
    let question = |n: usize| {
        format!("{} {}", entries[(from + n) % entries.len()].question, ASKED.fetch_add(1, Ordering::Relaxed))
    };
    (0..count).map(question).collect()
}

/// The milliseconds of each, one after the other on a connection of their own.
pub(super) fn ask(port: u16, queries: &[String]) -> Vec<f64> {
    let mut client = Client::new(port);
    queries.iter().map(|query| client.ask(&request(query))).collect()
}

/// A connection, and room for an answer.
struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    fn new(port: u16) -> Client {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
        stream.set_nodelay(true).expect("set an option");
        Client { stream, answer: vec![0; 1 << 18] }
    }

    /// Until the answer is there, in milliseconds.
    fn ask(&mut self, request: &str) -> f64 {
        let begun = Instant::now();
        self.stream.write_all(request.as_bytes()).expect("ask");
        read_answer(&mut self.stream, &mut self.answer);
        ms(begun.elapsed())
    }
}

fn request(query: &str) -> String {
    format!("GET /search?q={} HTTP/1.1\r\nHost: localhost\r\n\r\n", escape(query))
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
    ask(site.port, &questions(0, 100));
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
