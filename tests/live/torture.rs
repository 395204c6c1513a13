//! Kafka under torture: embedders that come and go, a broker that stands still, a full disk, compaction, a sink that was away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kafka::{CAUGHT_UP, Cluster, revision};
use crate::support::dice::Dice;
use crate::support::disk::Disk;
use crate::support::kafka::{Kafka, Special};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::expect_equal;
use crate::support::vecsync::Vecsync;
use crate::writer::Writer;

/// How long embedders are killed and joined, and how often.
const TORTURE: Duration = Duration::from_secs(120);
const STROKE: Duration = Duration::from_secs(2);
/// How often the broker stands still past the time-out, where `VECSYNC_TEST_ROUNDS` does not say it.
const ROUNDS: usize = 2;
/// As topics are made.
const A_DAY: &str = "delete.retention.ms=86400000";

#[test]
fn three_embedders_that_are_killed_and_joined_every_2_s_lose_repeat_and_reverse_nothing() {
    let cluster = Cluster::of(Kafka::shared(), 500, Site::prepare_beside());
    let _capture = cluster.started("capture");
    let mut embedders: Vec<(Vecsync, bool)> = (0..3).map(|_| (cluster.started("embed"), true)).collect();
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    let writer = Writer::start(&cluster.site.postgres, 99, Duration::from_millis(40));
    let (mut dice, began, mut next) = (Dice::new(99), Instant::now(), Instant::now());
    let (mut kills, mut joins) = (0, 0);
    while began.elapsed() < TORTURE {
        next += STROKE;
        // Not a wait for anything: this is the pace of the strokes.
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let choice = dice.below(embedders.len());
        let (embedder, runs) = &mut embedders[choice];
        if *runs {
            embedder.kill();
            kills += 1;
        } else {
            embedder.start();
            joins += 1;
        }
        *runs = !*runs;
        for (embedder, _) in &mut embedders {
            assert_eq!(embedder.ended(), None, "{}", embedder.log());
        }
    }
    let commits = writer.finish();
    let behind = Instant::now();
    for (embedder, runs) in &mut embedders {
        if !*runs {
            embedder.start();
        }
    }
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    eprintln!("{kills} kills and {joins} joins, {commits} transactions; equal {:?} later", behind.elapsed());
    cluster.expect_rebuilt();
    cluster.expect_published_once();
    cluster.expect_in_order(&revision(&embedders[0].0));
}

#[test]
fn a_broker_that_stands_still_past_the_time_out_leaves_no_gap() {
    let mut cluster = Cluster::prepare(Arc::new(Kafka::start()), 100);
    let rounds = std::env::var("VECSYNC_TEST_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"));
    cluster.site.vecsync.start_ready();
    let writer = Writer::start(&cluster.site.postgres, 17, Duration::from_millis(60));
    let (mut stood, mut resumed, mut dice) = (Duration::ZERO, Duration::ZERO, Dice::new(17));
    let faults = |log: &str| (log.matches("append to").count(), log.matches("commit to").count());
    for round in 0..rounds {
        let (before, _) = faults(&cluster.site.vecsync.log());
        // In the middle of a transaction of capture or of embed, or between two.
        writer.wait_for_more(1 + dice.below(20) as u64);
        cluster.kafka.signal("STOP");
        let stopped = Instant::now();
        // What was sent is given up: now the time-out is over.
        wait_until("capture to give up", CAUGHT_UP, || match faults(&cluster.site.vecsync.log()) {
            (given_up, _) if given_up > before => Ok(()),
            now => Err(format!("round {round}: {now:?}")),
        });
        stood = stood.max(stopped.elapsed());
        cluster.kafka.signal("CONT");
        let (went_on, id) = (Instant::now(), 8_000_000 + round as i64);
        cluster.site.sql.execute(&format!(
            "INSERT INTO faq_faq (id, question, answer, category) VALUES ({id}, 'Is it back?', 'In {round}', 'c01')"
        ));
        wait_until("a row that was written afterwards", CAUGHT_UP, || {
            let found = cluster.site.row_if_answered(id);
            found.map(drop).ok_or_else(|| format!("round {round}: it is not found"))
        });
        resumed = resumed.max(went_on.elapsed());
        eprintln!("round {round}: stood still for {:?}, went on in {:?}", went_on - stopped, went_on.elapsed());
    }
    let commits = writer.finish();
    let given_up = faults(&cluster.site.vecsync.log());
    eprintln!(
        "{rounds} rounds, {commits} transactions, {given_up:?} given up by capture and embed; stood still up to {stood:?}, went on in {resumed:?} at most"
    );
    cluster.site.sql.execute("DELETE FROM faq_faq WHERE id >= 8000000");
    cluster.site.expect_equal(CAUGHT_UP);
    cluster.expect_rebuilt();
    cluster.expect_published_once();
    cluster.expect_in_order(&revision(&cluster.site.vecsync));
}

#[test]
fn a_full_disk_under_the_broker_holds_everything_up_and_loses_nothing() {
    let Some(disk) = Disk::mount(96) else { return };
    let special = Special { data: Some(disk.path().join("data")), ..Special::default() };
    let mut cluster = Cluster::prepare(Arc::new(Kafka::start_with(special)), 100);
    cluster.site.vecsync.start_ready();
    let writer = Writer::start(&cluster.site.postgres, 23, Duration::from_millis(20));
    writer.wait_for_more(20);
    disk.fill(512 << 10);
    let kafka = Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's");
    kafka.wait_for_end(CAUGHT_UP);
    writer.wait_for_more(200);
    assert_eq!(cluster.site.ended(), None);
    assert!(!cluster.site.search("anything", "")["results"].as_array().unwrap().is_empty());
    disk.make_room();
    Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's").launch();
    writer.finish();
    cluster.site.expect_equal(CAUGHT_UP);
    cluster.expect_rebuilt();
    cluster.expect_published_once();
    cluster.expect_in_order(&revision(&cluster.site.vecsync));
}

#[test]
fn a_mirror_that_is_filled_from_compacted_topics_equals_the_table() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 300);
    cluster.site.vecsync.start_ready();
    let writer = Writer::start(&cluster.site.postgres, 31, Duration::from_millis(10));
    writer.wait_for_more(400);
    writer.finish();
    cluster.site.expect_equal(CAUGHT_UP);
    let topics = [cluster.topic("changes"), cluster.topic(&format!("vectors.{}", revision(&cluster.site.vecsync)))];
    for topic in &topics {
        cluster.compact(topic);
    }
    topics.iter().for_each(|topic| cluster.configure(topic, A_DAY));
    cluster.expect_rebuilt();
}

#[test]
fn a_sink_that_was_away_for_longer_than_tombstones_last_keeps_no_deleted_row() {
    let cluster = Cluster::prepare(Kafka::shared(), 100);
    let mut workers = cluster.started("capture,embed");
    let mut serve = cluster.process("serve");
    serve.start_ready();
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    assert_eq!(serve.terminate().code, Some(0), "{}", serve.log());
    let tombstones = |workers: &mut Vecsync| workers.metric("vecsync_events_total", "op=\"tombstone\"").unwrap_or(0.0);
    let before = tombstones(&mut workers);
    cluster.site.sql.execute("DELETE FROM faq_faq WHERE id <= 40");
    wait_until("the deletes to be embedded", CAUGHT_UP, || match tombstones(&mut workers) - before {
        40.0.. => Ok(()),
        counted => Err(counted.to_string()),
    });
    let topic = cluster.topic(&format!("vectors.{}", revision(&workers)));
    cluster.compact(&topic);
    serve.start_ready();
    cluster.configure(&topic, A_DAY);
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    assert!(serve.log().contains("up to where tombstones were dropped"), "{}", serve.log());
}
