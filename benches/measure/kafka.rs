//! The log on Kafka, with the broker on the same cores: PostgreSQL into `changes`, and `vectors` into an empty mirror.

use std::time::{Duration, Instant};

use super::Figures;
use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, USER};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::vecsync::Vecsync;

/// Rows of the transaction that is captured.
const CAPTURED: u64 = 400_000;
/// Rows that the mirror is filled with. They share their texts, so that making them needs no model to speak of.
const REPLAYED: u64 = 100_000;
const TEXTS: u64 = 50;
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Gives a vecsync with these roles the broker and a prefix.
pub fn set(vecsync: &mut Vecsync, kafka: &Kafka, prefix: &str, roles: &str) {
    vecsync.set("KAFKA_BROKERS", kafka.brokers());
    vecsync.set("VECSYNC_TOPIC_PREFIX", prefix);
    vecsync.roles(roles);
}

/// One committed transaction of rows of 200 bytes, from its commit to the last one's being in `changes`.
pub fn capture(kafka: &Kafka) -> Figures {
    eprintln!("kafka: {CAPTURED} rows into changes");
    let mut site = Site::prepare();
    set(&mut site.vecsync, kafka, "capture", "capture");
    site.vecsync.start();
    site.vecsync.wait_for_log("snapshot complete", LIMIT);
    site.sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer, category)
         SELECT n, 'Question ' || n, repeat(md5(n::text), 5), 'c00' FROM generate_series(1, {CAPTURED}) n"
    ));
    let begun = Instant::now();
    wait_until("all to be captured", LIMIT, || {
        std::thread::sleep(LOOK);
        match site.vecsync.metric("vecsync_events_total", r#"stage="capture""#) {
            Some(events) if events >= CAPTURED as f64 => Ok(()),
            events => Err(format!("{events:?} of {CAPTURED}")),
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    vec![
        ("rows_per_s", CAPTURED as f64 / seconds),
        ("cpu_s", site.cpu_seconds()),
        ("peak_rss_mb", site.memory_kb().1 as f64 / 1024.0),
    ]
}

/// A mirror that is filled from `vectors`: from its first point to its last.
pub fn replay(kafka: &Kafka) -> Figures {
    eprintln!("kafka: {REPLAYED} points out of vectors");
    let mut site = Site::prepare();
    site.sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer, category)
         SELECT n, 'Question ' || n % {TEXTS}, repeat('some words of it ', (n % {TEXTS})::int + 1), 'c00'
         FROM generate_series(1, {REPLAYED}) n"
    ));
    set(&mut site.vecsync, kafka, "replay", "");
    site.vecsync.start();
    wait_for_points(&mut site.vecsync, REPLAYED);
    let mut fresh = Vecsync::prepare(&site.postgres.url(USER, PASSWORD));
    set(&mut fresh, kafka, "replay", "serve");
    fresh.start();
    let before = wait_for_points(&mut fresh, 1);
    let begun = Instant::now();
    wait_for_points(&mut fresh, REPLAYED);
    let seconds = begun.elapsed().as_secs_f64();
    vec![
        ("points_per_s", (REPLAYED - before) as f64 / seconds),
        ("cpu_s", fresh.cpu_seconds()),
        ("peak_rss_mb", fresh.memory_kb().1 as f64 / 1024.0),
    ]
}

fn wait_for_points(vecsync: &mut Vecsync, wanted: u64) -> u64 {
    wait_until("points", LIMIT, || {
        std::thread::sleep(LOOK);
        if let Some(status) = vecsync.ended() {
            panic!("vecsync ended with {status}: {}", vecsync.log());
        }
        match vecsync.points() {
            Some(points) if points >= wanted => Ok(points),
            points => Err(format!("{points:?} of {wanted}")),
        }
    })
}
