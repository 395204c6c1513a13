//! A machine that has too little, or whose clock is wrong: too few file descriptors, too little memory, hours that come and go.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::dead_letters::{dividing_pipeline, listed};
use crate::support::http::Http;
use crate::support::process::{memory_kb, wait_until};
use crate::support::site::Site;
use crate::support::table::{insert, values};
use crate::writer::fill;

const SOON: Duration = Duration::from_secs(60);
const PRLIMIT: &str = "/usr/bin/prlimit";

/// Connections that say nothing; whoever is shown out comes again.
struct Crowd {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    fn of(port: u16, people: usize) -> Crowd {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let come = move || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
            stream.set_nonblocking(true).ok()?;
            Some(stream)
        };
        let stays = |stream: &mut TcpStream| matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        let thread = std::thread::spawn(move || {
            let mut crowd: Vec<Option<TcpStream>> = (0..people).map(|_| come()).collect();
            while !stopped.load(Ordering::Relaxed) {
                for place in &mut crowd {
                    if !place.as_mut().is_some_and(stays) {
                        *place = come();
                    }
                }
                // Not a wait for anything: this is how soon they come again.
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        Crowd { stop, thread: Some(thread) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn without_a_file_descriptor_left_it_goes_on_and_recovers() {
    /// No process starts with fewer.
    const FEWEST: u64 = 128;
    let mut site = Site::prepare();
    fill(&site.sql, 20);
    let limit = format!("--nofile={FEWEST}");
    site.vecsync.under(&[PRLIMIT, &limit]);
    site.vecsync.start_ready();
    assert_eq!(site.vecsync.metric("process_max_fds", ""), Some(FEWEST as f64));
    let crowd = Crowd::of(site.port, 200);
    site.vecsync.wait_for_log("accept a connection: Too many open files", SOON);
    // Whoever has a question is answered, and the source, which goes away just now, is found again when there is room.
    site.sql.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'vecsync'");
    site.sql.execute(&insert(&[values(1_000, "Is there room?", "There is.", "c01")]));
    for _ in 0..5 {
        let mut late = Http::new(site.port);
        wait_until("a search by who comes late", SOON, || match late.get("/search?q=room") {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    assert_eq!(site.vecsync.ended(), None);
    drop(crowd);
    site.vecsync.http = Http::new(site.port);
    expect_healthy(&mut site);
    site.expect_equal(SOON);
    assert_eq!(site.vecsync.terminate().code, Some(0));

    // Too few to begin with.
    for few in [6, 8, 16, 48, FEWEST - 1] {
        site.vecsync.under(&[PRLIMIT, &format!("--nofile={few}")]);
        site.vecsync.start();
        let ended = site.vecsync.wait_for_exit(SOON);
        let wanted = format!("open files: the limit of this process is {few}, wanted at least {FEWEST}: ulimit -n");
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains(&wanted), "{few}: {}", ended.stderr);
    }
    site.vecsync.under(&[]);
    site.vecsync.start_ready();
    site.expect_equal(SOON);
}

#[test]
fn with_too_little_memory_it_ends_with_words_and_goes_on_with_enough() {
    const MB: u64 = 1 << 20;
    let mut site = Site::prepare();
    fill(&site.sql, 20);
    site.vecsync.start_ready();
    site.expect_equal(SOON);
    let taken = memory_kb(site.pid(), "VmSize") * 1024;
    site.vecsync.kill();
    // For the program, for its threads, for the library, for the model.
    for share in [0.2, 0.4, 0.6, 0.8] {
        let limit = (taken as f64 * share) as u64 / MB * MB;
        site.vecsync.under(&[PRLIMIT, &format!("--as={limit}"), "--core=0"]);
        expect_all_or_nothing(
            &mut site,
            &format!("{} MB", limit / MB),
            &["memory", "os error 12", "os error 11", "bad_alloc", "failed to map segment"],
        );
    }
    // It is taken away while it works.
    site.vecsync.under(&[]);
    site.vecsync.start_ready();
    site.expect_equal(SOON);
}

/// A clock of vecsync's own, which is put forward and back while it runs; what it waits by is left alone.
struct Clock(String);

impl Clock {
    fn of(site: &mut Site) -> Clock {
        let library = std::env::var("VECSYNC_TEST_FAKETIME").expect("setup/test_env.sh names it");
        assert!(fs::exists(&library).unwrap(), "no libfaketime in {library}: run `make setup`");
        let clock = Clock(site.path("clock"));
        clock.put(0);
        for (name, value) in [("LD_PRELOAD", &*library), ("FAKETIME_TIMESTAMP_FILE", &*clock.0)] {
            site.set(name, value);
        }
        for (name, value) in [("FAKETIME_CACHE_DURATION", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")] {
            site.set(name, value);
        }
        clock
    }

    /// By so many hours before everybody else's.
    fn put(&self, hours: i32) {
        fs::write(&self.0, format!("{hours:+}h\n")).expect("write the clock's file");
    }
}

/// How many minutes what it says is before everybody's clock.
fn minutes_ahead(text: &str) -> i64 {
    let said = OffsetDateTime::parse(&format!("{}Z", text.trim_end_matches('Z')), &Rfc3339).expect("a time");
    (said - OffsetDateTime::from(SystemTime::now())).whole_minutes()
}

#[test]
fn clocks_that_are_put_forward_and_back_lose_nothing_and_hold_nothing_up() {
    let mut site = Site::prepare();
    fill(&site.sql, 20);
    site.write_pipeline(&dividing_pipeline());
    let clock = Clock::of(&mut site);
    site.vecsync.start_ready();
    // While it runs; over a restart; both.
    for (id, (hours, restarts)) in (1_000..).zip([(1, false), (-1, false), (1, true), (-1, true), (0, false)]) {
        if restarts {
            assert_eq!(site.vecsync.terminate().code, Some(0));
            clock.put(hours);
            site.vecsync.start_ready();
        } else {
            clock.put(hours);
        }
        let at = format!("{hours:+} h, {}", if restarts { "started anew" } else { "while it runs" });
        wait_until(&format!("its clock to be {at}"), SOON, || {
            let said = site.vecsync.get("/health/").json()["timestamp"].as_str().unwrap_or_default().to_owned();
            let ahead = minutes_ahead(&said);
            if (ahead - i64::from(hours) * 60).abs() <= 2 { Ok(()) } else { Err(format!("{ahead} min: {said}")) }
        });
        site.sql.execute(&insert(&[values(id, "What time is it?", &at, "c01"), values(id + 500, "", "?", "c01")]));
        site.sql.execute(&format!(
            "UPDATE faq_faq SET answer = '{at}' WHERE id = 1; DELETE FROM faq_faq WHERE id = {}",
            id - 995
        ));
        wait_until(&format!("what was written, {at}"), SOON, || {
            let rows = [1, id].map(|id| site.row(id).map(|row| row["answer"].clone()));
            if rows.iter().flatten().filter(|answer| **answer == *at).count() == 2 {
                Ok(())
            } else {
                Err(format!("{rows:?}"))
            }
        });
        wait_until(&format!("what was deleted to be gone, {at}"), SOON, || match site.row(id - 995) {
            None => Ok(()),
            Some(row) => Err(row.to_string()),
        });
        // It knows how old its answers are, and puts nothing down to the source.
        wait_until(&format!("answers that are fresh, {at}"), SOON, || {
            let answer = site.vecsync.search("time", "");
            let is_fresh = answer["staleness_ms"].as_u64().is_some_and(|age_ms| age_ms < 5_000);
            if is_fresh && answer["degraded"] == false { Ok(()) } else { Err(answer.to_string()) }
        });
        let staleness = site.vecsync.metric("vecsync_staleness_seconds", "store=\"local\"");
        assert!(staleness.is_some_and(|age| (0.0..5.0).contains(&age)), "{at}: {staleness:?}");
        let behind = site.vecsync.metric("vecsync_last_event_commit_timestamp_seconds", "stage=\"index\"");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(behind.is_some_and(|commit| (now - commit).abs() < 60.0), "{at}: commits have the source's time");
        expect_healthy(&mut site);
        let letter = |letter: &Value| letter["key"] == serde_json::json!({"id": id + 500});
        assert!(listed(&site.vecsync).iter().any(letter), "{at}");
    }
    // While the source is away what is known of it gets older, by whichever clock.
    site.postgres.stop();
    clock.put(-1);
    wait_until("answers that say that they are not fresh", SOON, || {
        let answer = site.vecsync.search("time", "");
        let age_ms = answer["staleness_ms"].as_u64();
        if answer["degraded"] == true && age_ms != Some(0) { Ok(()) } else { Err(answer.to_string()) }
    });
    site.postgres.launch();
    site.sql = site.postgres.client();
    site.sql.execute("DELETE FROM faq_faq WHERE id >= 1500");
    expect_healthy(&mut site);
    site.expect_equal(SOON);
    assert!(listed(&site.vecsync).is_empty());
}

#[track_caller]
fn expect_healthy(site: &mut Site) {
    wait_until("health to be healthy", SOON, || {
        let answer = site.vecsync.http.get("/health/detailed/").map_err(|error| error.to_string())?;
        if answer.json()["status"] == "healthy" { Ok(()) } else { Err(answer.body) }
    });
}

/// It does its work, or ends soon and says why.
#[track_caller]
fn expect_all_or_nothing(site: &mut Site, with: &str, words: &[&str]) {
    let (before, port) = (site.log().len(), site.port);
    site.vecsync.start();
    site.vecsync.http = Http::new(port);
    let ended = wait_until(&format!("it to work or to end, with {with}"), SOON, || {
        if let Some(status) = site.vecsync.ended() {
            return Ok(Some(status));
        }
        let answer = site.vecsync.http.get("/search?q=anything").map_err(|error| error.to_string())?;
        if answer.status == 200 && answer.json()["degraded"] == false { Ok(None) } else { Err(answer.body) }
    });
    match ended {
        Some(status) => {
            site.vecsync.wait_for_exit(SOON);
            let said = site.log()[before..].to_owned();
            eprintln!("{with}: {status}: {}", said.lines().last().unwrap_or_default());
            assert!(!status.success() && words.iter().any(|word| said.contains(word)), "{with}: {status}: {said}");
        }
        None => {
            eprintln!("{with}: it works");
            assert_eq!(site.vecsync.terminate().code, Some(0));
        }
    }
}
