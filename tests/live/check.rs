//! `vecsync check`: every fault is found and named with its remedy, and nothing is left behind.

use crate::qdrant_run::{Pair, SOON};
use crate::support::kafka::Kafka;
use crate::support::postgres::{OWNER, PASSWORD};
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;

/// Runs it, and gives what it said, line by line: name and the rest; a failed one begins with `failed`.
#[track_caller]
fn check(site: &Site, flags: &[&str], code: i32) -> String {
    let ended = site.vecsync.run(&[&["check"], flags].concat());
    assert_eq!(ended.code, Some(code), "check {flags:?}: {}{}", ended.stdout, ended.stderr);
    let failed = ended.stdout.lines().filter(|line| line.starts_with("failed")).count();
    assert_eq!(failed > 0, code == 3, "{}", ended.stdout);
    ended.stdout
}

#[track_caller]
fn expect(said: &str, wanted: &[(&str, &str, &str)]) {
    for (mark, name, words) in wanted {
        let found = said.lines().any(|line| {
            let mut parts = line.split_whitespace();
            parts.next() == Some(mark) && line.contains(&format!(" {name} ")) && line.contains(words)
        });
        assert!(found, "{mark} {name} … {words:?} is not in:\n{said}");
    }
}

#[test]
fn everything_that_a_run_needs_is_looked_at_and_nothing_is_left_behind() {
    let mut pair = Pair::prepare(Qdrant::own(), 20);
    // As who may make the publication.
    let url = pair.site.postgres.url(OWNER, PASSWORD);
    pair.site.vecsync.set("DATABASE_URL", url);
    pair.site.sql.execute("DROP PUBLICATION vecsync_faq");
    let said = check(&pair.site, &["--skip-health"], 0);
    expect(
        &said,
        &[
            ("ok", "database", "PostgreSQL 15"),
            ("ok", "table", "public.faq_faq, key id, replica identity DEFAULT"),
            ("ok", "publication", "there is no vecsync_faq yet"),
            ("ok", "slot", "there is no vecsync_faq yet"),
            ("ok", "replication", "may stream"),
            ("ok", "data", "GB free"),
            ("ok", "model", "384 numbers"),
            ("ok", "Qdrant", "answers in"),
            ("ok", "collection", "there is no"),
            ("ok", "round", "written, found and removed"),
        ],
    );
    assert_eq!(pair.collections(), [""; 0]);
    assert_eq!(pair.site.sql.value("SELECT count(*) FROM pg_publication"), "0");
    expect(&check(&pair.site, &[], 3), &[("failed", "server", "start it with `vecsync run`")]);

    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    let said = check(&pair.site, &["--verbose"], 0);
    expect(
        &said,
        &[
            ("ok", "publication", "all columns, all rows"),
            ("ok", "slot", "streams from it"),
            ("ok", "collection", "as it would be made now"),
            ("ok", "server", "a search was answered by qdrant"),
        ],
    );
    assert!(said.lines().all(|line| line.ends_with(" ms)")), "{said}");
    let said = check(&pair.site, &["--skip-operations"], 0);
    assert!(!said.contains("round trip") && !said.contains("a search was"), "{said}");
    assert_eq!(pair.collections(), [format!("{}__1", pair.alias)]);

    pair.qdrant.kill();
    pair.site.sql.execute("ALTER TABLE faq_faq REPLICA IDENTITY NOTHING");
    pair.expect_served_by("local", SOON);
    let said = check(&pair.site, &[], 3);
    expect(
        &said,
        &[
            ("failed", "table", "ALTER TABLE public.faq_faq REPLICA IDENTITY DEFAULT;"),
            ("failed", "Qdrant", "Connection refused"),
            ("failed", "server", "qdrant: "),
            ("ok", "database", "PostgreSQL 15"),
        ],
    );
    let url = pair.site.postgres.url("vecsync", "wrong");
    pair.site.vecsync.set("DATABASE_URL", url);
    expect(&check(&pair.site, &["--skip-health"], 3), &[("failed", "database", "password")]);
}

#[test]
fn brokers_are_asked_too() {
    let mut site = Site::prepare();
    let kafka = Kafka::shared();
    site.vecsync.set("KAFKA_BROKERS", kafka.brokers());
    site.vecsync.set("VECSYNC_TOPIC_PREFIX", format!("t{}", site.postgres.port));
    expect(&check(&site, &["--skip-health"], 0), &[("ok", "brokers", &kafka.brokers())]);
    site.vecsync.set("KAFKA_BROKERS", "127.0.0.1:1");
    let said = check(&site, &["--skip-health", "--skip-operations"], 3);
    expect(&said, &[("failed", "brokers", "127.0.0.1:1"), ("ok", "model", "int8")]);
    site.vecsync.set("QDRANT_HOST", "127.0.0.1");
    site.vecsync.set("QDRANT_GRPC_PORT", "1");
    expect(&check(&site, &["--skip-health", "--skip-operations"], 3), &[("failed", "Qdrant", "127.0.0.1:1")]);
}
