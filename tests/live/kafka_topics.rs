//! Topics that are lost, grow, or were made for other settings: searches go on, and what is to be done is said.

use serde_json::Value;

use crate::kafka::{CAUGHT_UP, Cluster, revision};
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
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
