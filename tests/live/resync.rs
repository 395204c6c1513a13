//! `vecsync sync`: what it says, what it changes, what it costs; under hard writing and kills the log and the index equal the
//! table afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::history::{Complete, Pace, Sessions, check, trace};
use crate::kafka::{CAUGHT_UP, Cluster};
use crate::property::expect_captured;
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::{insert, values};
use crate::support::vecsync::Vecsync;
use crate::writer::fill;

const ROWS: i64 = 60;
/// Each row has a title and one window.
const TEXTS: i64 = 2 * ROWS;

const SNAPSHOT: &str = "snapshot of public.faq_faq begins";
const STREAMING: &str = "streaming public.faq_faq";

/// Runs it with `--json`; it must end with status 0.
#[track_caller]
fn sync(vecsync: &Vecsync, flags: &[&str]) -> Value {
    let ended = vecsync.run_within(&[&["sync", "--json"], flags].concat(), CAUGHT_UP);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stdout))
}

fn computed(vecsync: &mut Vecsync) -> f64 {
    vecsync.metric("vecsync_embeddings_total", r#"result="computed""#).unwrap_or(0.0)
}

/// Waits until it has said this so often.
#[track_caller]
fn wait_for(vecsync: &Vecsync, text: &str, times: usize) {
    wait_until(&format!("{text:?} for the {times}. time"), CAUGHT_UP, || match vecsync.log().matches(text).count() {
        found if found >= times => Ok(()),
        found => Err(format!("{found} times")),
    });
}

#[test]
fn it_says_what_it_would_do_does_it_and_says_what_it_did() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let stats = sync(&site.vecsync, &["--stats-only"]);
    assert_eq!((&stats["source"]["rows"], &stats["source"]["log_rows"]), (&json!(ROWS), &json!(ROWS)), "{stats}");
    assert_eq!((&stats["stores"][0]["store"], &stats["stores"][0]["rows"]), (&json!("local"), &json!(ROWS)), "{stats}");
    assert_eq!(
        (&stats["source"]["log_lag_records"], &stats["stores"][0]["lag_records"]),
        (&json!(0), &json!(0)),
        "{stats}"
    );
    let shown = site.vecsync.run(&["sync", "--stats-only"]);
    assert!(shown.stdout.contains("public.faq_faq") && shown.stdout.contains("bytes of WAL"), "{}", shown.stdout);

    // Nobody will ever be told of these.
    site.vecsync.terminate();
    site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    site.sql.execute("DELETE FROM faq_faq WHERE id <= 3; UPDATE faq_faq SET answer = 'Changed' WHERE id IN (4, 5)");
    site.sql.execute(&insert(&[values(1_000, "New?", "Yes", "c00")]));
    site.vecsync.start_ready();
    site.vecsync.wait_for_log("is gone from the server", CAUGHT_UP);
    let events = |site: &mut Site| site.vecsync.metric("vecsync_events_total", "").unwrap_or(0.0);
    let before = events(&mut site);
    let would = sync(&site.vecsync, &["--dry-run"]);
    let expected = json!({"store": "local", "inserts": 1, "updates": 2, "deletes": 3, "unchanged": ROWS - 5,
                          "unsettled": 0, "late": true, "error": null});
    assert_eq!(would["stores"], json!([expected]), "{would}");
    assert_eq!(events(&mut site), before, "a dry run wrote something");

    let did = sync(&site.vecsync, &["--batch-size", "7"]);
    let rows = ROWS - 2;
    assert_eq!((&did["rows"], &did["changed"], &did["deleted"]), (&json!(rows), &json!(3), &json!(3)), "{did}");
    // Two of the three have the same question as before, or the title would be one more each.
    assert_eq!(did["embeddings"], json!({"computed": 4, "cached": 2 * rows - 4}), "{did}");
    assert_eq!(did["stores"], json!([{"store": "local", "error": null}]), "{did}");
    // It has waited: nothing is on its way any more.
    assert_eq!(site.row(4).unwrap()["answer"], "Changed");
    assert_eq!(site.row(1), None);
    site.expect_equal(CAUGHT_UP);
    let again = site.vecsync.run(&["sync"]);
    let said = format!("Read {rows} rows of the table");
    assert!(again.stdout.contains(&said) && again.stdout.contains("0 new or changed"), "{again:?}");
}

#[test]
fn forced_it_embeds_every_text_again_also_after_a_kill_and_once_only() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let before = computed(&mut site);
    let did = sync(&site.vecsync, &["--force"]);
    assert_eq!(did["embeddings"], json!({"computed": TEXTS, "cached": 0}), "{did}");
    assert_eq!(did["changed"], 0, "{did}");
    assert_eq!(computed(&mut site) - before, TEXTS as f64);
    // What was computed for it is in the cache now, and stays there whoever reads the records again.
    let did = sync(&site.vecsync, &[]);
    assert_eq!(did["embeddings"], json!({"computed": 0, "cached": TEXTS}), "{did}");
    sync(&site.vecsync, &["--force"]);
    let before = computed(&mut site);
    let replayed = site.vecsync.run(&["replay", "--topic", "changes"]);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    assert_eq!(computed(&mut site), before);

    // Asked while none runs, and killed: it is not forgotten.
    site.vecsync.terminate();
    let prepared = site.vecsync.run(&["sync", "--force"]);
    assert!(prepared.code == Some(0) && prepared.stdout.contains("when `vecsync run` starts"), "{prepared:?}");
    site.vecsync.start();
    site.vecsync.wait_for_log(STREAMING, CAUGHT_UP);
    site.vecsync.kill();
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    wait_until("all texts to be embedded", CAUGHT_UP, || match computed(&mut site) {
        // What was computed and kept before the kill is not embedded a second time.
        texts if texts > 0.0 => Ok(()),
        texts => Err(texts.to_string()),
    });
}

#[test]
fn over_kafka_who_embeds_elsewhere_learns_of_it_by_the_log() {
    let cluster = Cluster::prepare(Kafka::shared(), ROWS);
    let mut capture = cluster.started("capture");
    let mut embed = cluster.started("embed");
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    crate::support::table::expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    let before = computed(&mut embed);
    let did = sync(&capture, &["--force"]);
    assert_eq!((&did["rows"], &did["stores"]), (&json!(ROWS), &Value::Null), "{did}");
    wait_until("every text to be embedded again", CAUGHT_UP, || match computed(&mut embed) - before {
        texts if texts == TEXTS as f64 => Ok(()),
        texts => Err(format!("{texts} of {TEXTS}")),
    });
    let told = capture.run(&["sync"]);
    assert!(told.stdout.contains("those elsewhere follow"), "{told:?}");
    let stats = sync(&serve, &["--stats-only"]);
    assert_eq!((&stats["source"], &stats["stores"][0]["rows"]), (&Value::Null, &json!(ROWS)), "{stats}");
    crate::support::table::expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    // The markers of the comparison; their one question by each batch that does not know it yet.
    let more = computed(&mut embed) - before - TEXTS as f64;
    assert!((65.0..80.0).contains(&more), "{more} texts more");
    assert_eq!(capture.ended(), None);
}

#[test]
fn marks_in_the_log_are_no_rows_that_are_gone() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    sync(&site.vecsync, &[]);
    site.vecsync.kill();
    site.vecsync.start_ready();
    let replayed = site.vecsync.run(&["replay", "--topic", "changes"]);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    let did = sync(&site.vecsync, &[]);
    assert_eq!((&did["rows"], &did["deleted"]), (&json!(ROWS), &json!(0)), "{did}");
    let stats = sync(&site.vecsync, &["--stats-only"]);
    assert_eq!(stats["source"]["log_rows"], json!(ROWS), "{stats}");
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn of_two_at_once_the_second_is_refused_and_a_kill_breaks_off_the_command_and_not_the_resync() {
    let mut site = Site::prepare();
    // Not active: nothing but the log has work with them.
    site.sql.execute(
        "INSERT INTO faq_faq (id, question, answer, category, is_active)
         SELECT n, 'Q', 'Row ' || n, 'c00', n % 1000 = 0 FROM generate_series(1, 12000) n",
    );
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let mut first = site.vecsync.spawn(&["sync", "--batch-size", "1"]);
    wait_for(&site.vecsync, SNAPSHOT, 2);
    let second = wait_until("the second to be refused", CAUGHT_UP, || {
        let second = site.vecsync.run(&["sync"]);
        if second.code == Some(1) { Ok(second) } else { Err(format!("{second:?}")) }
    });
    assert!(second.stderr.contains("another resync is at work"), "{}", second.stderr);
    assert_eq!(first.try_wait().unwrap(), None, "it was over before the second came: this tests nothing");
    // Rows that go while it is broken off.
    site.vecsync.kill();
    assert_eq!(first.wait().unwrap().code(), Some(1));
    site.sql.execute("DELETE FROM faq_faq WHERE id > 2000");
    site.vecsync.start_ready();
    // What it had is all that there was: it says so, and when there is nothing to be found.
    wait_until("it to be whole", CAUGHT_UP, || {
        let answer = site.vecsync.http.get("/health/started/").map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
    let nothing = site.vecsync.search("anything", "&min_score=1");
    assert_eq!(nothing["results"], json!([]), "{nothing}");
    assert!(!site.log().contains("snapshot complete rows=2000"), "it was over too soon: this tests nothing");
    site.vecsync.wait_for_log("snapshot complete", CAUGHT_UP);
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn after_a_resync_under_hard_writing_the_log_ends_with_the_table() {
    let cluster = Cluster::prepare(Kafka::shared(), 500);
    trace(&cluster.site.sql);
    let mut capture = cluster.started("capture");
    capture.wait_for_log("snapshot complete", CAUGHT_UP);
    let mut dice = Dice::new(5);
    let said = |capture: &Vecsync, text: &str| capture.log().matches(text).count();
    let pace = Pace { sessions: 3, pause: Duration::from_millis(4), truncates: 800, copies: 40 };
    let sessions = Sessions::start(&cluster.site.postgres, 5, pace);
    for round in 0..4 {
        sessions.wait_for_more(20);
        let snapshots = said(&capture, SNAPSHOT);
        let mut syncing = capture.spawn(&["sync", "--batch-size", ["5", "50", "500"][round % 3]]);
        if round % 2 == 0 {
            assert_eq!(syncing.wait().unwrap().code(), Some(0), "{}", capture.log());
            continue;
        }
        // A sync beside a vecsync that is not there, before the kill or after it, makes a slot anew, and then the trace would not be
        // whole.
        wait_for(&capture, SNAPSHOT, snapshots + 1);
        sessions.wait_for_more(dice.below(40) as u64);
        capture.kill();
        syncing.wait().unwrap();
        let streams = said(&capture, STREAMING);
        capture.start();
        wait_for(&capture, STREAMING, streams + 1);
    }
    // The last one ends while they still write.
    let did = sync(&capture, &[]);
    let commits = sessions.finish();
    eprintln!("{commits} transactions; the last resync: {did}");
    expect_captured(&cluster, &capture, "all");
    let entries = cluster.kafka.read(&cluster.topic("changes"));
    check(&entries, &cluster.site.sql, Complete::All);
}

#[test]
fn a_table_that_is_rewritten_all_the_while_is_read_whole() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    trace(&site.sql);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let (sql, stop) = (site.postgres.client(), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let rewriting = std::thread::spawn(move || {
        loop {
            // Another file with the same rows. What lies out of line is read by key meanwhile.
            sql.execute("ALTER TABLE faq_faq ALTER COLUMN category TYPE varchar(60)");
            sql.execute("ALTER TABLE faq_faq ALTER COLUMN category TYPE text");
            sql.execute("UPDATE faq_faq SET question = question || '' WHERE id = 1");
            // The pace of somebody who does this, and no wait for anything: a reading of the table fits between two on a busy machine, too.
            std::thread::sleep(Duration::from_millis(300));
            if stopped.load(Ordering::Relaxed) {
                return;
            }
        }
    });
    site.sql.execute("UPDATE faq_faq SET answer = answer || repeat(' ', 3000) WHERE id = 1");
    let syncs: Vec<Value> = (0..6).map(|_| sync(&site.vecsync, &["--batch-size", "5"])).collect();
    stop.store(true, Ordering::Relaxed);
    rewriting.join().expect("rewritten");
    for did in syncs {
        assert_eq!((&did["rows"], &did["deleted"]), (&json!(ROWS), &json!(0)), "{did}");
    }
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn after_a_resync_under_hard_writing_the_index_equals_the_table() {
    let mut site = Site::prepare();
    fill(&site.sql, 200);
    trace(&site.sql);
    site.vecsync.start_ready();
    let pace = Pace { sessions: 2, pause: Duration::from_millis(20), truncates: 60, copies: 30 };
    let sessions = Sessions::start(&site.postgres, 8, pace);
    for flags in [&["--batch-size", "3"][..], &[]] {
        sessions.wait_for_more(30);
        sync(&site.vecsync, flags);
    }
    sessions.finish();
    site.expect_equal(CAUGHT_UP);
    let verified = site.vecsync.run(&["verify"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}
