//! Topics that are lost, grow, or were made for other settings: searches go on, and what is to be done is said.

use std::time::Duration;

use serde_json::Value;
use tokio::task::spawn_blocking;
use vecsync::event::{Lsn, Position, Record};
use vecsync::topic::kafka::{Log, Settings};
use vecsync::topic::{CaptureState, Outgoing, SnapshotMarker};

use crate::kafka::{CAUGHT_UP, Cluster, revision};
use crate::support::kafka::Kafka;
use crate::support::process::{free_port, wait_until};
use crate::support::table::{category, expect_equal, insert, values};
use crate::support::vecsync::{COMMAND, Vecsync};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";

fn component(vecsync: &mut Vecsync, name: &str) -> String {
    let health: Value = vecsync.get("/health/detailed/").json();
    health["components"][name]["error"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_lost_topic_of_vectors_is_made_again_while_the_mirror_answers() {
    let cluster = Cluster::prepare(Kafka::shared(), 60);
    let _capture = cluster.started("capture");
    let embed = cluster.started("embed");
    let mut serve = cluster.started("serve");
    expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
    let vectors = cluster.topic(&format!("vectors.{}", revision(&embed)));
    for (round, stopped) in [false, true].into_iter().enumerate() {
        if stopped {
            assert_eq!(serve.terminate().code, Some(0), "{}", serve.log());
        }
        cluster.kafka.tool(TOPICS, &["--delete", "--topic", &vectors]);
        let id = 900 + round as i64;
        cluster.site.sql.execute(&insert(&[values(id, "New?", "Written after it was lost", &category(1))]));
        if stopped {
            serve.start_ready();
        }
        let least = 60 + round as u64;
        wait_until("the mirror to be filled again", CAUGHT_UP, || {
            // Whatever happens, the old one answers until the new one has everything.
            assert!(serve.points() >= Some(least), "{:?} of {least} rows: {}", serve.points(), serve.log());
            let done = serve.log().matches("was filled again and answers").count();
            if done > round { Ok(()) } else { Err(format!("{done} times")) }
        });
        expect_equal(&mut serve, &cluster.site.sql, CAUGHT_UP);
        let said = serve.log().matches("goes on answering with what it has").count();
        assert_eq!(said, round + 1, "{}", serve.log());
    }
    cluster.expect_rebuilt();
}

#[test]
fn where_rows_are_searchable_a_fault_of_embed_ends_no_searches() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 30);
    cluster.site.vecsync.start_ready();
    cluster.site.expect_equal(CAUGHT_UP);
    cluster.kafka.tool(TOPICS, &["--alter", "--topic", &cluster.topic("changes"), "--partitions", "12"]);
    let vecsync = &mut cluster.site.vecsync;
    wait_until("health to name it", CAUGHT_UP, || match component(vecsync, "embed") {
        said if said.contains("it has 12 partitions") => Ok(()),
        said => Err(said),
    });
    assert_eq!((vecsync.get("/health/ready/").status, vecsync.points()), (200, Some(30)));
    // Also after a restart.
    assert_eq!(vecsync.terminate().code, Some(0), "{}", vecsync.log());
    vecsync.start_ready();
    assert_eq!(vecsync.points(), Some(30));
}

#[test]
fn a_wrong_number_of_partitions_is_refused_before_any_topic_is_made() {
    let cluster = Cluster::prepare(Kafka::shared(), 30);
    let mut capture = cluster.process("capture");
    capture.set("VECSYNC_TOPIC_PARTITIONS", 6);
    capture.start();
    capture.wait_for_log("snapshot complete", CAUGHT_UP);
    let mut other = cluster.process("embed,serve");
    for wrong in [4, 8] {
        other.set("VECSYNC_TOPIC_PARTITIONS", wrong);
        other.start();
        let ended = other.wait_for_exit(COMMAND);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains("it has 6 partitions"), "{}", ended.stderr);
    }
    // What it says helps: nothing was made with the wrong number.
    other.set("VECSYNC_TOPIC_PARTITIONS", 6);
    other.start_ready();
    expect_equal(&mut other, &cluster.site.sql, CAUGHT_UP);
    cluster.kafka.tool(TOPICS, &["--alter", "--topic", &vectors(&cluster, &other), "--partitions", "9"]);
    wait_until("health to name it", CAUGHT_UP, || match component(&mut other, "log") {
        said if said.contains("vectors") && said.contains("it has 9 partitions") => Ok(()),
        said => Err(said),
    });
}

fn vectors(cluster: &Cluster, vecsync: &Vecsync) -> String {
    cluster.topic(&format!("vectors.{}", revision(vecsync)))
}

/// A resync deletes what the log had before it and does not have anew. What it has written cannot be read before the
/// transactions of others that were there first have ended.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_resync_has_just_written_is_not_taken_for_gone() {
    let (kafka, scratch) = (Kafka::shared(), tempfile::tempdir().unwrap());
    let prefix = format!("t{}", free_port());
    let log = Log::new(Settings {
        brokers: kafka.brokers(),
        security: vec![],
        prefix: prefix.clone(),
        pipeline: "faq".to_owned(),
        source_topic: None,
        partitions: 1,
        replication: 1,
        tombstone_retention: Duration::from_secs(3600),
        scratch: scratch.path().to_owned(),
    });
    let state = CaptureState {
        system_id: 1,
        timeline: 1,
        position: Position::default(),
        confirm: Lsn::default(),
        snapshot: SnapshotMarker::Wanted,
        whole: false,
        captured: String::new(),
        resync: Default::default(),
    };
    let record = |id| Record {
        key: format!("{{\"id\":{id}}}").into(),
        value: Some("{}".into()),
        headers: vec![],
        timestamp_ms: 1,
    };
    let rows = || vec![Outgoing::To(0, record(1)), Outgoing::To(0, record(2))];
    log.take_over().await.unwrap();
    log.append_changes(rows(), &state).await.unwrap();
    let began = log.changes_ends()[0];
    // It ends when the broker finds that its writer has gone, seconds later.
    let _open = kafka.begin_writing(&format!("{prefix}.faq.changes"), Duration::from_secs(3));
    log.append_changes(vec![Outgoing::To(0, record(1))], &state).await.unwrap();
    let read = log.clone();
    let gone = spawn_blocking(move || read.live_keys_below(0, began, None, 10)).await.unwrap().unwrap();
    let gone: Vec<_> = gone.into_iter().map(|(_, key)| key).collect();
    assert_eq!(gone, [record(2).key]);
    log.close().await;
}
