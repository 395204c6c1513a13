//! Killed, stopped, or left without its database: afterwards the index equals the table.

use std::time::{Duration, Instant};

use crate::support::dice::Dice;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::vecsync::READY;
use crate::writer::{Writer, fill};

const KILLS: usize = 12;
const CAUGHT_UP: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);

#[test]
fn killed_at_any_moment_it_loses_nothing_and_brings_nothing_back() {
    let mut site = Site::prepare();
    fill(&site.sql, 300);
    let seed = std::env::var("VECSYNC_TEST_SEED").map_or(4711, |seed| seed.parse().unwrap());
    let mut dice = Dice::new(seed);
    let writer = Writer::start(&site.postgres, seed, PAUSE);
    for round in 0..KILLS {
        site.vecsync.start();
        // The moment is one of the site's writing, from the first steps of a start to well after it.
        writer.wait_for_more(dice.below(150) as u64);
        if let Some(status) = site.vecsync.ended() {
            panic!("seed {seed}, round {round}: it ended by itself with {status}");
        }
        site.vecsync.kill();
        writer.wait_for_more(dice.below(30) as u64);
    }
    site.vecsync.start_ready();
    writer.finish();
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn changes_made_while_it_is_down_are_found_after_the_start() {
    let mut site = Site::prepare();
    fill(&site.sql, 100);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let stopping = Instant::now();
    let ended = site.vecsync.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(stopping.elapsed() < Duration::from_secs(3), "it took {:?} to stop", stopping.elapsed());
    site.sql.execute("DELETE FROM faq_faq WHERE id <= 20");
    site.sql.execute("UPDATE faq_faq SET answer = 'While it was down' WHERE id BETWEEN 21 AND 40");
    site.sql.execute("UPDATE faq_faq SET id = id + 1000 WHERE id BETWEEN 41 AND 50");
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    assert_eq!(site.row(30).unwrap()["answer"], "While it was down");
}

#[test]
fn killed_inside_a_transaction_it_goes_on_where_it_was() {
    const ROWS: f64 = 20_000.0;
    // Of one append to the log, which may have been counted and not yet have been durable.
    const APPEND: f64 = 2_000.0;
    let published = |site: &mut Site| site.vecsync.metric("vecsync_events_total", r#"stage="capture""#).unwrap_or(0.0);
    let mut site = Site::open();
    // They are not active, so nothing but the log has work with them; the last one shows that all have passed.
    site.sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer, category, is_active)
         SELECT n, 'Q', 'Row ' || n, 'c00', n = {ROWS} FROM generate_series(1, {ROWS}) n"
    ));
    let before = wait_until("a part of the transaction to be published", CAUGHT_UP, || match published(&mut site) {
        events if events >= ROWS / 4.0 => Ok(events),
        events => Err(format!("{events}")),
    });
    site.vecsync.kill();
    assert!(before < ROWS, "all {before} were published before the kill: this tests nothing");
    site.vecsync.start_ready();
    wait_until("the last row to be found", CAUGHT_UP, || match site.row(ROWS as i64) {
        Some(row) => Ok(row),
        None => Err(format!("{} published", published(&mut site))),
    });
    let after = published(&mut site);
    assert!(after >= ROWS - before - APPEND, "{before} and {after} of {ROWS}: some are missing");
    assert!(after <= ROWS - before + APPEND, "{before} and {after} of {ROWS}: some came twice");
    // Those that lie in the log are the right ones: each can be brought to light.
    site.sql.execute("DELETE FROM faq_faq WHERE id % 100 <> 0");
    site.sql.execute("UPDATE faq_faq SET is_active = true, category = 'c' || lpad((id / 100 % 50)::text, 2, '0')");
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn a_search_in_flight_is_answered_before_it_stops() {
    let mut site = Site::prepare();
    fill(&site.sql, 50);
    site.vecsync.start_ready();
    let port = site.port;
    let (begun, wait) = std::sync::mpsc::channel();
    let client = std::thread::spawn(move || {
        let mut http = crate::support::http::Http::new(port);
        let mut answered = 0;
        // A connection that is refused once it stops is no lost search; an answer that is not 200 is one.
        while let Ok(answer) = http.get("/search?q=refund") {
            assert!(answer.status == 200 || answer.status == 503, "{}: {}", answer.status, answer.body);
            answered += 1;
            if answered == 20 {
                begun.send(()).unwrap();
            }
        }
        answered
    });
    wait.recv_timeout(READY).expect("searches are answered");
    let ended = site.vecsync.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(client.join().expect("every answer was whole") >= 20);
}

#[test]
fn a_very_long_row_does_not_hold_up_the_end() {
    let mut site = Site::prepare();
    fill(&site.sql, 10);
    site.vecsync.start_ready();
    let calls = |site: &mut Site| site.vecsync.metric("vecsync_embed_duration_seconds_count", "").unwrap_or(0.0);
    let before = calls(&mut site);
    // Embedding it takes longer than a stop may: it has thousands of windows, each with a text of its own.
    site.sql.execute(
        "UPDATE faq_faq SET answer = (SELECT string_agg('Word ' || md5(n::text), '. ') FROM generate_series(1, 50000) n) WHERE id = 1",
    );
    wait_until("the model to be at work on it", CAUGHT_UP, || match calls(&mut site) {
        now if now > before + 5.0 => Ok(()),
        now => Err(format!("{before} and {now}")),
    });
    let ended = site.vecsync.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn a_second_process_on_the_same_folder_is_refused_and_harms_nothing() {
    let mut site = Site::prepare();
    fill(&site.sql, 20);
    site.vecsync.start_ready();
    let port = crate::support::process::free_port();
    let first = site.port;
    site.set("VECSYNC_LISTEN", format!("127.0.0.1:{port}"));
    let second = site.vecsync.run(&["run"]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    let last = second.stderr.lines().last().unwrap();
    assert!(last.contains(&site.path("data")) && last.contains("another process"), "{}", second.stderr);
    assert_eq!(site.port, first);
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn when_postgresql_crashes_it_goes_on_by_itself() {
    let mut site = Site::prepare();
    fill(&site.sql, 100);
    site.vecsync.start_ready();
    let pid = site.pid();
    for round in 0..2 {
        let writer = Writer::start(&site.postgres, round, PAUSE);
        writer.wait_for_more(40);
        writer.finish();
        site.postgres.crash();
        // It serves what it has, and says that it waits.
        wait_until("health to be degraded", CAUGHT_UP, || {
            let answer = site.vecsync.get("/health/");
            assert_eq!(answer.status, 200, "{}", answer.body);
            if answer.json()["status"] == "degraded" { Ok(()) } else { Err(answer.body) }
        });
        assert!(!site.search("refund", "&min_score=-1")["results"].as_array().unwrap().is_empty());
        site.postgres.launch();
        site.sql = site.postgres.client();
    }
    site.expect_equal(CAUGHT_UP);
    assert_eq!((site.vecsync.ended(), site.pid()), (None, pid));
    wait_until("health to be healthy again", CAUGHT_UP, || {
        let answer = site.vecsync.get("/health/");
        if answer.json()["status"] == "healthy" { Ok(()) } else { Err(answer.body) }
    });
}
