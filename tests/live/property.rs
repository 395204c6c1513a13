//! Whatever is written, and wherever vecsync is killed, the replayed events equal the table. From a seed, which is printed:
//! `VECSYNC_TEST_SEED` sets it, `VECSYNC_TEST_ROUNDS` says how often all is done, each time with the next seed.

use std::time::Duration;

use serde_json::Value;

use crate::history::{self, COPIED, Complete, Pace, Sessions, check, trace};
use crate::kafka::{CAUGHT_UP, Cluster};
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::vecsync::Vecsync;

/// Three sessions that get into each other's way.
const PACE: Pace = Pace { sessions: 3, pause: Duration::from_millis(8), truncates: 60, copies: 25 };
/// Kills of one round.
const KILLS: usize = 6;
/// When a COPY is met by a kill: so long after its commit, later by this with each step, and so many times.
const STEP: Duration = Duration::from_millis(4);
const MOMENTS: u32 = 8;
const STEPS: u32 = 8;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Does this once, or as often as is asked for, with a seed each time.
fn rounds(mut round: impl FnMut(u64)) {
    let first = number("VECSYNC_TEST_SEED", 20_261);
    for seed in first..first + number("VECSYNC_TEST_ROUNDS", 1) {
        eprintln!("seed {seed}");
        round(seed);
    }
}

#[test]
fn every_committed_change_stands_in_the_log_once_and_in_order_wherever_capture_is_killed() {
    rounds(|seed| {
        let cluster = Cluster::prepare(Kafka::shared(), 50);
        trace(&cluster.site.sql);
        let mut capture = cluster.started("capture");
        capture.wait_for_log("snapshot complete", CAUGHT_UP);
        let mut dice = Dice::new(seed);
        let sessions = Sessions::start(&cluster.site.postgres, seed, PACE);
        for _ in 0..KILLS {
            // While it starts, and while it follows.
            let most = *dice.pick(&[60, 800]);
            sessions.wait_for_more(dice.below(most) as u64);
            capture.kill();
            sessions.wait_for_more(dice.below(20) as u64);
            capture.start();
        }
        let commits = sessions.finish();
        expect_captured(&cluster, &capture, "the sessions");
        let entries = cluster.kafka.read(&cluster.topic("changes"));
        eprintln!("{commits} transactions, {} records", entries.len());
        check(&entries, &cluster.site.sql, Complete::All);
    });
}

#[test]
fn a_copy_is_followed_row_by_row_wherever_capture_is_killed_in_it() {
    let cluster = Cluster::prepare(Kafka::shared(), 1);
    trace(&cluster.site.sql);
    let mut capture = cluster.started("capture");
    capture.wait_for_log("snapshot complete", CAUGHT_UP);
    let mut dice = Dice::new(17);
    for step in 0..STEPS * number("VECSYNC_TEST_ROUNDS", 1) as u32 {
        let starts = step as usize + 1;
        wait_until("capture to stream", CAUGHT_UP, || {
            match capture.log().matches("streaming public.faq_faq").count() {
                streams if streams == starts => Ok(()),
                streams => Err(format!("{streams} of {starts}")),
            }
        });
        let copy = history::copy(1_000, &mut dice);
        cluster.site.sql.execute(&format!("BEGIN; SAVEPOINT a; {copy}; RELEASE a; COMMIT"));
        // The moment of the kill, and no wait for anything: a part of the rows is in the log, or none, or all.
        std::thread::sleep(STEP * (step % MOMENTS));
        capture.kill();
        capture.start();
    }
    expect_captured(&cluster, &capture, "the last step");
    let entries = cluster.kafka.read(&cluster.topic("changes"));
    check(&entries, &cluster.site.sql, Complete::All);
    assert_eq!(cluster.site.sql.value("SELECT count(*) FROM faq_faq WHERE id >= 1000"), COPIED.to_string());
}

#[test]
fn the_index_equals_the_table_wherever_vecsync_is_killed() {
    rounds(|seed| {
        let mut site = Site::prepare();
        trace(&site.sql);
        let mut dice = Dice::new(seed);
        let pace = Pace { sessions: 2, pause: Duration::from_millis(25), ..PACE };
        let sessions = Sessions::start(&site.postgres, seed, pace);
        for _ in 0..KILLS / 2 {
            site.vecsync.start();
            sessions.wait_for_more(dice.below(120) as u64);
            site.vecsync.kill();
            sessions.wait_for_more(dice.below(20) as u64);
        }
        site.vecsync.start_ready();
        let commits = sessions.finish();
        // Each text that is found is compared with the table's, and then all that is indexed by its hash.
        site.expect_equal(CAUGHT_UP);
        let verified = site.vecsync.run(&["verify", "--json"]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        let report: Value = serde_json::from_str(&verified.stdout).unwrap();
        eprintln!("{commits} transactions, {} rows, {} of them indexed", report["rows"], report["indexed"]);
    });
}

/// Waits until all that is committed is in the log: a row that is written last is there, and a slot stands behind it.
#[track_caller]
pub fn expect_captured(cluster: &Cluster, capture: &Vecsync, what: &str) {
    let sql = &cluster.site.sql;
    sql.execute("INSERT INTO faq_faq (id, question, answer) VALUES (9000000, 'Last?', 'Yes'); DELETE FROM faq_faq WHERE id = 9000000");
    let end = sql.value("SELECT pg_current_wal_flush_lsn()");
    wait_until(&format!("{what} to be in the log"), CAUGHT_UP, || {
        let confirmed =
            sql.query("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'vecsync_faq'");
        let confirmed = confirmed.first().and_then(|row| row.get(0)).unwrap_or("0/0").to_owned();
        let is_there = sql.value(&format!("SELECT '{confirmed}'::pg_lsn >= '{end}'::pg_lsn")) == "t";
        if is_there {
            Ok(())
        } else {
            Err(format!("{confirmed}, not {end}; {}", capture.log().lines().last().unwrap_or("")))
        }
    });
}
