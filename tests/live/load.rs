//! The query server under more than it can do: floods, large and malformed requests, and the end in the middle of it all.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::qdrant_run::{Pair, SOON};
use crate::support::http::{Answer, Http};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::writer::fill;

/// Clients that ask without a pause: many times as many as searches are made at once.
const FLOOD: usize = 160;

fn filled() -> Site {
    let mut site = Site::prepare();
    fill(&site.sql, 50);
    site.vecsync.start_ready();
    site.expect_equal(SOON);
    site
}

/// A query that nobody has asked before.
fn fresh() -> String {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    format!("/search?q=how+long+does+case+{}+take&limit=3", ASKED.fetch_add(1, Ordering::Relaxed))
}

/// What one client saw until it was told to end, or its connection was closed.
fn ask_until(port: u16, done: &AtomicBool) -> Vec<Answer> {
    let (mut http, mut seen) = (Http::new(port), vec![]);
    while !done.load(Ordering::Relaxed) {
        match http.get(&fresh()) {
            Ok(answer) => seen.push(answer),
            Err(_) => break,
        }
    }
    seen
}

#[test]
fn a_flood_is_refused_in_part_and_its_rest_is_answered_in_time() {
    let site = filled();
    let done = AtomicBool::new(false);
    let port = site.port;
    let answers: Vec<Answer> = thread::scope(|scope| {
        let clients: Vec<_> = (0..FLOOD).map(|_| scope.spawn(|| ask_until(port, &done))).collect();
        // Health is not kept waiting by searches, and says that all is well.
        let (mut health, since) = (Http::new(port), Instant::now());
        while since.elapsed() < Duration::from_secs(4) {
            assert_eq!(health.get("/health/ready/").unwrap().status, 200);
            thread::sleep(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("it does not panic")).collect()
    });
    let (whole, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert!(whole.len() > 500 && refused.len() > 500, "{} answered, {} refused", whole.len(), refused.len());
    for answer in &whole {
        let found = answer.json();
        assert_eq!(found["results"].as_array().map(Vec::len), Some(3), "{found}");
        // Who was let in has waited for the few before it, not for the flood.
        assert!(found["took_ms"].as_u64().is_some_and(|took_ms| took_ms < 1000), "{found}");
    }
    for answer in &refused {
        assert!(answer.status == 503 || answer.status == 429, "{}: {}", answer.status, answer.body);
        assert!(answer.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{answer:?}");
    }
    assert_eq!(Http::new(port).get(&fresh()).unwrap().status, 200);
}

#[test]
fn the_end_in_a_flood_breaks_no_answer_off() {
    let mut site = filled();
    let (port, answered) = (site.port, AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0;
                    // A connection for each search: one that is refused, or closed before it is answered at all, is the end.
                    while let Ok(answer) = whole_or_nothing(port) {
                        assert_eq!(answer.map(|answer| answer.contains("HTTP/1.1 200")), Some(true), "after {seen}");
                        answered.fetch_add(1, Ordering::Relaxed);
                        seen += 1;
                    }
                })
            })
            .collect();
        wait_until("searches to be answered", SOON, || match answered.load(Ordering::Relaxed) {
            200.. => Ok(()),
            few => Err(few.to_string()),
        });
        let since = Instant::now();
        let ended = site.vecsync.terminate();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(since.elapsed() < Duration::from_secs(15), "it took {:?}", since.elapsed());
        clients.into_iter().for_each(|client| client.join().expect("every answer was whole"));
    });
}

/// One search on a connection of its own: an error where nothing listens any more, `None` for an answer that is not whole.
fn whole_or_nothing(port: u16) -> std::io::Result<Option<String>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(SOON))?;
    let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", fresh());
    stream.write_all(request.as_bytes())?;
    let mut bytes = vec![];
    let ended = stream.read_to_end(&mut bytes);
    // Connected to a socket that was closed before anybody took it: nobody has promised an answer.
    if bytes.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok((ended.is_ok() && text.ends_with('}')).then_some(text))
}

#[test]
fn what_is_too_much_is_refused_in_words_and_costs_no_memory() {
    let site = filled();
    let (port, before) = (site.port, site.memory_kb().0);
    let deep = format!("{{\"query\":{}1{}}}", "[".repeat(30_000), "]".repeat(30_000));
    let long = format!("{{\"query\":\"{}\"}}", "x".repeat(10 << 20));
    let many = format!(
        "{{\"query\":\"a\",\"filter\":{{{}}}}}",
        (0..2_000).map(|n| format!("\"f{n}\":1")).collect::<Vec<_>>().join(",")
    );
    let cases = [
        (deep.as_str(), [400, 400]),
        (long.as_str(), [413, 413]),
        (many.as_str(), [400, 400]),
        ("{\"query\":\"a\",\"limit\":1000000000}", [400, 400]),
        ("{\"query\":\"a\",\"limit\":1e999}", [400, 400]),
        ("{\"query\":\"\u{1F600}\u{1F600}\"}", [200, 200]),
        ("{\"query\":\"\\ud800\"}", [400, 400]),
        ("null", [400, 400]),
        ("", [400, 400]),
    ];
    for _ in 0..20 {
        for (body, wanted) in &cases {
            // A server that refuses what was only announced may close before all of it was sent.
            let Ok(answer) = Http::new(port).request("POST", "/search", body) else {
                assert_eq!(wanted[0], 413, "no answer to {:.60}", body);
                continue;
            };
            assert!(wanted.contains(&answer.status), "{:.60}: {} {:.200}", body, answer.status, answer.body);
            if answer.status != 200 {
                assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{:.60}", body);
                assert!(answer.body.len() < 2_000, "{:.60} comes back: {:.300}", body, answer.body);
            }
        }
    }
    let after = site.memory_kb().0;
    assert!(after < before + 24 * 1024, "{before} kB before, {after} kB after");
    assert_eq!(Http::new(port).get(&fresh()).unwrap().status, 200);
}

#[test]
fn with_both_stores_out_searches_say_why_and_readiness_what_it_waits_for() {
    // Qdrant was never there, and the mirror is being filled by nobody: the source is away.
    let mut pair = Pair::prepare(Qdrant::own(), 20);
    pair.qdrant.kill();
    pair.site.postgres.stop();
    pair.site.vecsync.start();
    let vecsync = &mut pair.site.vecsync;
    let unanswered = wait_until("the server to answer", SOON, || {
        vecsync.http.get("/search?q=question").map_err(|error| error.to_string())
    });
    assert_eq!(unanswered.status, 503, "{}", unanswered.body);
    let problem = unanswered.json();
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("load is not complete")), "{problem}");
    assert!(unanswered.header("retry-after").is_some(), "{unanswered:?}");
    let health = vecsync.http.get("/health/detailed/").unwrap().json();
    for (component, wanted) in [("source", "connect"), ("qdrant", "http"), ("local", "load is not complete")] {
        let error = health["components"][component]["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.to_lowercase().contains(wanted), "{component}: {health}");
    }
    assert_eq!(vecsync.http.get("/health/live/").unwrap().status, 200);
    pair.site.postgres.launch();
    pair.qdrant.restart();
    let vecsync = &mut pair.site.vecsync;
    wait_until("both to be back", Duration::from_secs(60), || {
        let answer = vecsync.http.get("/search?q=question").map_err(|error| error.to_string())?;
        if answer.status == 200 && answer.json()["served_by"] == "qdrant" { Ok(()) } else { Err(answer.body) }
    });
    assert_eq!(pair.site.vecsync.http.get("/health/ready/").unwrap().status, 200);
}
