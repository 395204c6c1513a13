//! `vecsync replay`: from `vectors` and from `changes`, into a new generation and in place, while everything else runs.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::kafka::{CAUGHT_UP, Cluster};
use crate::support::dice::Dice;
use crate::support::http::Http;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::expect_equal;
use crate::support::vecsync::{Ended, Vecsync};
use crate::writer::{Writer, fill};

const ROWS: i64 = 1_000;

#[test]
fn a_replay_of_vectors_fills_a_new_generation_and_embeds_nothing() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let computed = site.metric("vecsync_embeddings_total", "computed");
    let replayed = replay(&site, &[]);
    assert_eq!((&replayed["generation"], &replayed["rows"]), (&json!(2), &json!(ROWS)));
    let difference = &replayed["difference"];
    assert_eq!(
        (&difference["same"], &difference["only_old"], &difference["only_new"]),
        (&json!(ROWS), &json!(0), &json!(0))
    );
    assert_eq!(site.metric("vecsync_embeddings_total", "computed"), computed);
    assert_eq!(generations(&site), ["2"]);
    site.expect_equal(CAUGHT_UP);
    let said = site.vecsync.run(&["replay"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("the same as the one before, and answers now"), "{}", said.stdout);
    site.vecsync.terminate();
    site.vecsync.start_ready();
    assert_eq!(generations(&site), ["3"]);
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn searches_are_answered_all_through_a_replay_and_no_change_is_lost() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let writer = Writer::start(&site.postgres, 5, Duration::from_millis(5));
    let done = AtomicBool::new(false);
    let port = site.vecsync.port;
    std::thread::scope(|scope| {
        let searching = scope.spawn(|| {
            let mut http = Http::new(port);
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = http.get("/search?q=password&min_score=-1").expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.body);
                assert_ne!(answer.json()["results"], json!([]), "{}", answer.body);
                answered += 1;
            }
            answered
        });
        for arguments in
            [&[][..], &["--topic", "changes"], &["--into", "current"], &["--topic", "changes", "--into", "current"]]
        {
            replay(&site, arguments);
        }
        done.store(true, Ordering::Relaxed);
        assert!(searching.join().expect("every search was answered") > 10);
    });
    writer.finish();
    site.expect_equal(CAUGHT_UP);
    assert_eq!(generations(&site), ["3"]);
}

#[test]
fn a_replay_of_changes_takes_unchanged_texts_from_the_cache() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let (computed, cached) = embeddings(&mut site.vecsync);
    replay(&site, &["--topic", "changes", "--into", "current"]);
    let (computed_now, cached_now) = embeddings(&mut site.vecsync);
    assert_eq!(computed_now, computed);
    assert!(cached_now >= cached + ROWS as f64, "{cached} and then {cached_now}");
    site.expect_equal(CAUGHT_UP);
    // With the cache lost every row is embedded again, once.
    site.vecsync.terminate();
    fs::remove_dir_all(site.vecsync.path("data/embeddings")).unwrap();
    site.vecsync.start_ready();
    replay(&site, &["--topic", "changes"]);
    let (computed, _) = embeddings(&mut site.vecsync);
    assert!(computed >= ROWS as f64, "{computed}");
    replay(&site, &["--topic", "changes"]);
    assert_eq!(embeddings(&mut site.vecsync).0, computed);
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn a_replay_that_is_killed_harms_nothing_and_can_be_made_again() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let mut dice = Dice::new(29);
    for round in 0..6 {
        let topic = if round % 2 == 0 { "vectors" } else { "changes" };
        let mut command = site.vecsync.spawn(&["replay", "--topic", topic]);
        let begun = || site.vecsync.log().matches("replay begins").count();
        wait_until(
            "the replay to begin",
            CAUGHT_UP,
            || if begun() > round { Ok(()) } else { Err(begun().to_string()) },
        );
        // The moment of the kill is the dice's.
        std::thread::sleep(Duration::from_millis(dice.below(150) as u64));
        site.vecsync.kill();
        let ended = command.wait().unwrap();
        assert!(ended.code().is_some());
        site.vecsync.start_ready();
        assert_eq!(generations(&site).len(), 1, "{:?}", generations(&site));
        site.expect_equal(CAUGHT_UP);
    }
    replay(&site, &[]);
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn of_replays_at_once_one_is_made_after_the_other_and_more_are_refused() {
    let mut site = Site::prepare();
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    let vecsync = &site.vecsync;
    let ended: Vec<Ended> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..5).map(|_| scope.spawn(|| vecsync.run_within(&["replay"], CAUGHT_UP))).collect();
        asking.into_iter().map(|asking| asking.join().expect("it asks")).collect()
    });
    let done = ended.iter().filter(|ended| ended.code == Some(0)).count();
    assert!(done > 0, "{ended:?}");
    for refused in ended.iter().filter(|ended| ended.code != Some(0)) {
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("another replay waits already; try again when it is done"), "{refused:?}");
    }
    let log = site.vecsync.log();
    let steps: Vec<&str> = log
        .lines()
        .filter_map(|line| ["replay begins", "replayed in"].into_iter().find(|step| line.contains(step)))
        .collect();
    assert_eq!(steps, ["replay begins", "replayed in"].repeat(done), "one at a time");
    assert_eq!(generations(&site).len(), 1);
    site.expect_equal(CAUGHT_UP);
}

#[test]
fn over_kafka_every_embedder_replays_its_partitions_once_also_when_one_is_killed() {
    let cluster = Cluster::prepare(Kafka::shared(), ROWS);
    let _capture = cluster.started("capture");
    let mut embedders = [cluster.started("embed"), cluster.started("embed")];
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    let writer = Writer::start(&cluster.site.postgres, 31, Duration::from_millis(20));
    let replayed = replay(&serve, &["--topic", "changes"]);
    assert_eq!(replayed["generation"], 2);
    let mut command = serve.spawn(&["replay", "--topic", "changes", "--into", "current"]);
    embedders[0].wait_for_log("embedding once more", CAUGHT_UP);
    embedders[0].kill();
    embedders[0].start();
    assert_eq!(command.wait().unwrap().code(), Some(0));
    writer.finish();
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    cluster.expect_rebuilt();
    let again: usize = embedders.iter().map(|embedder| embedder.log().matches("embedding once more").count()).sum();
    // Whoever is started finds the replay's record once more, and knows that it is done.
    embedders[1].terminate();
    embedders[1].start();
    let replayed = replay(&serve, &[]);
    assert_eq!(replayed["generation"], 3);
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    let now: usize = embedders.iter().map(|embedder| embedder.log().matches("embedding once more").count()).sum();
    assert!(now <= again, "{again} and then {now}");
}

#[test]
fn where_none_runs_a_replay_says_so() {
    let site = Site::prepare();
    let said = site.vecsync.run(&["replay"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("no vecsync that keeps a store listens"), "{}", said.stderr);
}

/// Runs it to its end and gives what it says.
#[track_caller]
fn replay(vecsync: &Vecsync, more: &[&str]) -> Value {
    let said = vecsync.run(&[&["replay", "--json"], more].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    serde_json::from_str(&said.stdout).expect("JSON")
}

fn embeddings(vecsync: &mut Vecsync) -> (f64, f64) {
    let of = |vecsync: &mut Vecsync, result| vecsync.metric("vecsync_embeddings_total", result).unwrap_or_default();
    (of(vecsync, "computed"), of(vecsync, "cached"))
}

/// Numbers of the mirror's generations that have a folder.
fn generations(vecsync: &Vecsync) -> Vec<String> {
    let folders = fs::read_dir(vecsync.path("data/mirror")).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| Some(name.split_once("__")?.1.to_owned())).collect()
}
