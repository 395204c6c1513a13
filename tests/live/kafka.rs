//! Kafka as the log: roles in processes of their own, killed, joined, cut off; afterwards every mirror equals the table.

use std::sync::Arc;
use std::time::Duration;

use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, USER};
use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table::expect_equal;
use crate::support::vecsync::{COMMAND, Vecsync};
use crate::writer::{Writer, fill};

const CAUGHT_UP: Duration = Duration::from_secs(180);

/// A site whose log is on a broker. `site.vecsync` has all roles, or those that a test starts it with.
struct Cluster {
    prefix: String,
    site: Site,
    kafka: Arc<Kafka>,
}

impl Cluster {
    fn prepare(kafka: Arc<Kafka>, rows: i64) -> Cluster {
        let site = Site::prepare();
        fill(&site.sql, rows);
        // A port is taken once at a time, so it makes a name that no other test has.
        let prefix = format!("t{}", site.postgres.port);
        let mut cluster = Cluster { prefix, site, kafka };
        let (brokers, prefix) = (cluster.kafka.brokers(), cluster.prefix.clone());
        cluster.site.vecsync.set("KAFKA_BROKERS", brokers);
        cluster.site.vecsync.set("VECSYNC_TOPIC_PREFIX", prefix);
        cluster
    }

    /// A process with some roles and a data directory of its own, not started.
    fn process(&self, roles: &str) -> Vecsync {
        let mut vecsync = Vecsync::prepare(&self.site.postgres.url(USER, PASSWORD));
        vecsync.set("KAFKA_BROKERS", self.kafka.brokers());
        vecsync.set("VECSYNC_TOPIC_PREFIX", &self.prefix);
        vecsync.roles(roles);
        vecsync
    }

    fn started(&self, roles: &str) -> Vecsync {
        let mut vecsync = self.process(roles);
        vecsync.start();
        vecsync
    }

    fn topic(&self, name: &str) -> String {
        format!("{}.faq.{name}", self.prefix)
    }

    /// A mirror that is filled from the topics alone equals the table.
    #[track_caller]
    fn expect_rebuilt(&self) {
        let mut fresh = self.process("serve");
        fresh.start_ready();
        expect_equal(&mut fresh, &self.site.sql, CAUGHT_UP);
    }
}

#[test]
fn one_process_does_all_and_goes_on_after_kills() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 300);
    cluster.site.vecsync.start_ready();
    let Site { vecsync, sql, .. } = &mut cluster.site;
    expect_equal(vecsync, sql, CAUGHT_UP);
    let mut dice = Dice::new(11);
    let writer = Writer::start(&cluster.site.postgres, 11, Duration::from_millis(20));
    for _ in 0..4 {
        let goal = writer.commits() + 20 + dice.below(60) as u64;
        wait_until("commits", CAUGHT_UP, || if writer.commits() >= goal { Ok(()) } else { Err(String::new()) });
        cluster.site.vecsync.kill();
        cluster.site.vecsync.start();
    }
    writer.finish();
    cluster.site.vecsync.wait_ready();
    let Site { vecsync, sql, .. } = &mut cluster.site;
    expect_equal(vecsync, sql, CAUGHT_UP);
}

#[test]
fn roles_in_processes_of_their_own_are_killed_and_joined_at_any_time() {
    let cluster = Cluster::prepare(Kafka::shared(), 300);
    let mut capture = cluster.started("capture");
    let mut embedders = vec![cluster.started("embed"), cluster.started("embed")];
    let mut serve = cluster.started("serve");
    serve.wait_ready();
    let seed = 4711;
    let mut dice = Dice::new(seed);
    let writer = Writer::start(&cluster.site.postgres, seed, Duration::from_millis(20));
    for round in 0..8 {
        let goal = writer.commits() + dice.below(100) as u64;
        wait_until("commits", CAUGHT_UP, || if writer.commits() >= goal { Ok(()) } else { Err(String::new()) });
        match dice.below(4) {
            0 => {
                capture.kill();
                capture.start();
            }
            1 => embedders.push(cluster.started("embed")),
            2 if embedders.len() > 1 => {
                let last = embedders.len() - 1;
                embedders.swap_remove(dice.below(last + 1)).kill();
            }
            _ => {
                serve.kill();
                serve.start();
            }
        }
        for embedder in &mut embedders {
            assert_eq!(embedder.ended(), None, "round {round}: {}", embedder.log());
        }
    }
    writer.finish();
    serve.wait_ready();
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    cluster.expect_rebuilt();
    // Each event of the stream stands in `changes` once: a key that was moved is two records of one event.
    let mut places: Vec<String> = vec![];
    for entry in cluster.kafka.read(&cluster.topic("changes")) {
        let Some(value) = &entry.value else { continue };
        let event: serde_json::Value = serde_json::from_slice(value).unwrap();
        let source = &event["source"];
        if let (Some(lsn), Some(ordinal)) = (source["commit_lsn"].as_u64(), source["ordinal"].as_u64()) {
            places.push(format!("{lsn}/{ordinal} {}", String::from_utf8_lossy(&entry.key)));
        }
    }
    let all = places.len();
    places.sort();
    places.dedup();
    assert!(all > 100, "only {all} events have a place in the source");
    assert_eq!(places.len(), all, "events were published twice");
}

#[test]
fn a_broker_that_goes_away_and_comes_back_costs_nothing() {
    let mut cluster = Cluster::prepare(Arc::new(Kafka::start()), 100);
    cluster.site.vecsync.start_ready();
    let writer = Writer::start(&cluster.site.postgres, 7, Duration::from_millis(50));
    for crash in [false, true] {
        let kafka = Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's");
        if crash {
            kafka.crash()
        } else {
            kafka.stop()
        }
        let goal = writer.commits() + 100;
        wait_until("commits", CAUGHT_UP, || if writer.commits() >= goal { Ok(()) } else { Err(String::new()) });
        // What is there is searched meanwhile.
        assert!(!cluster.site.search("anything", "")["results"].as_array().unwrap().is_empty());
        Arc::get_mut(&mut cluster.kafka).expect("it is nobody else's").launch();
    }
    writer.finish();
    let Site { vecsync, sql, .. } = &mut cluster.site;
    expect_equal(vecsync, sql, CAUGHT_UP);
}

#[test]
fn rows_that_went_while_the_slot_was_gone_are_deleted_by_a_resync() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 200);
    cluster.site.vecsync.start_ready();
    let Site { vecsync, sql, .. } = &mut cluster.site;
    expect_equal(vecsync, sql, CAUGHT_UP);
    assert_eq!(cluster.site.vecsync.terminate().code, Some(0));
    cluster.site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    cluster.site.sql.execute("DELETE FROM faq_faq WHERE id <= 50");
    cluster.site.sql.execute("UPDATE faq_faq SET answer = 'Nobody was listening' WHERE id = 60");
    cluster.site.vecsync.start();
    cluster.site.vecsync.wait_for_log("vecsync sync", CAUGHT_UP);
    let synced = cluster.site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{}", synced.stderr);
    let Site { vecsync, sql, .. } = &mut cluster.site;
    expect_equal(vecsync, sql, CAUGHT_UP);
    assert_eq!(cluster.site.row(60).unwrap()["answer"], "Nobody was listening");
}

#[test]
fn topics_that_would_lose_rows_are_refused_with_the_remedy() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 10);
    let name = cluster.topic("changes");
    let topics = "org.apache.kafka.tools.TopicCommand";
    cluster
        .kafka
        .tool(topics, &["--create", "--topic", &name, "--partitions", "3", "--config", "cleanup.policy=compact"]);
    cluster.site.vecsync.start();
    let ended = cluster.site.vecsync.wait_for_exit(COMMAND);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for part in [&name, "3 partitions", "VECSYNC_TOPIC_PARTITIONS asks for 8"] {
        assert!(ended.stderr.contains(part), "{part:?}: {}", ended.stderr);
    }
    cluster.site.vecsync.set("VECSYNC_TOPIC_PREFIX", format!("{}x", cluster.prefix));
    let name = format!("{}x.faq.changes", cluster.prefix);
    cluster
        .kafka
        .tool(topics, &["--create", "--topic", &name, "--partitions", "8", "--config", "cleanup.policy=delete"]);
    cluster.site.vecsync.start();
    let ended = cluster.site.vecsync.wait_for_exit(COMMAND);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for part in [&name, "cleanup.policy", "compact", "kafka-configs"] {
        assert!(ended.stderr.contains(part), "{part:?}: {}", ended.stderr);
    }
}
