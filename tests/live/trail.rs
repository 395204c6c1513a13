//! One commit, followed by what each part of vecsync says of it at debug, from the transaction to the stores.

use std::time::Duration;

use serde_json::Value;

use crate::kafka::Cluster;
use crate::qdrant_run::Pair;
use crate::stream::expect;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table::{insert, values};

const SOON: Duration = Duration::from_secs(30);

/// The lines that a stage has said of rows.
fn lines(said: &str, stage: &str) -> Vec<Value> {
    let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["stage"] == stage && line["level"] == "DEBUG").collect()
}

/// Waits for the one line of a stage that has these fields.
#[track_caller]
fn the_line(site: &Site, stage: &str, wanted: &[(&str, &str)]) -> Value {
    wait_until(&format!("the log to have one line of {stage} with {wanted:?}"), SOON, || {
        let mut found = lines(&site.log(), stage);
        let said = format!("{:?}", found.iter().rev().take(3).map(Value::to_string).collect::<Vec<_>>());
        found.retain(|line| wanted.iter().all(|(name, value)| line[name] == *value));
        if found.len() == 1 {
            Ok(found.remove(0))
        } else {
            Err(format!("{} do, and the last said: {said}", found.len()))
        }
    })
}

/// Changes a row and follows that, by no more than what the database and the lines say.
#[track_caller]
fn follow_a_commit(site: &mut Site, stores: &[&str]) {
    site.sql.execute(&insert(&[values(7, "Where?", "Here.", "c01"), values(8, "Who?", "They.", "c01")]));
    expect(site, 7, "Here.");
    expect(site, 8, "They.");
    // Then nothing goes with what comes now.
    for store in stores {
        wait_until(&format!("{store} to have both"), SOON, || {
            let stored = lines(&site.log(), "index").into_iter().filter(|line| line["store"] == *store);
            let records: u64 = stored.filter_map(|line| line["records"].as_u64()).sum();
            if records == 2 { Ok(()) } else { Err(format!("{records} records")) }
        });
    }

    let canary = "A canary that only this row has.";
    let before = site.sql.query("SELECT pg_current_wal_lsn()")[0].get(0).unwrap().to_owned();
    site.sql.execute(&format!("UPDATE faq_faq SET answer = '{canary}' WHERE id = 7"));
    expect(site, 7, canary);
    let xid = site.sql.query("SELECT xmin FROM faq_faq WHERE id = 7")[0].get(0).unwrap().parse::<u64>().unwrap();
    let is_of_it = |line: &Value| line["xid"] == xid;
    let captured = wait_until("capture to say what it did", SOON, || {
        let found = lines(&site.log(), "capture").into_iter().find(is_of_it);
        found.ok_or_else(|| format!("no line has xid {xid}"))
    });
    assert_eq!((&captured["pipeline"], &captured["events"]), (&"faq".into(), &1.into()), "{captured}");
    let (lsn, changes) = (captured["commit_lsn"].as_str().unwrap(), captured["changes"].as_str().unwrap());
    let number = |lsn: &str| lsn.parse::<vecsync::event::Lsn>().unwrap();
    assert!(number(lsn) >= number(&before), "{lsn} is before {before}");

    let embedded = the_line(site, "embed", &[("commit_lsn", lsn), ("changes", changes), ("pipeline", "faq")]);
    let vectors = embedded["vectors"].as_str().unwrap();
    let (partition, _) = changes.split_once(':').unwrap();
    assert_eq!(vectors.split_once(':').map(|(partition, _)| partition), Some(partition), "{embedded}");
    for store in stores {
        let wanted = [("store", *store), ("changes", changes), ("vectors", vectors), ("pipeline", "faq")];
        let stored = the_line(site, "index", &wanted);
        assert!(stored["generation"].as_str().is_some_and(|name| name.contains("__")), "{stored}");
    }

    // Nothing of the row is in any line, and nobody else has spoken below info.
    let said = site.log();
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(!line.to_string().contains("canary"), "{line}");
        let is_ours = line["target"].as_str().is_some_and(|target| target.starts_with("vecsync"));
        assert!(is_ours || !["DEBUG", "TRACE"].contains(&line["level"].as_str().unwrap()), "{line}");
    }
    assert!(said.contains("\"TRACE\""), "nothing was said at trace");
}

#[test]
fn a_commit_is_followed_through_the_embedded_log_into_both_stores() {
    let mut pair = Pair::prepare(Qdrant::start(), 0);
    pair.site.set("VECSYNC_LOG", "trace");
    pair.site.set("VECSYNC_LOG_FORMAT", "json");
    pair.site.vecsync.start_ready();
    follow_a_commit(&mut pair.site, &["local", "qdrant"]);
}

#[test]
fn a_commit_is_followed_through_kafka() {
    let mut cluster = Cluster::prepare(Kafka::shared(), 0);
    cluster.site.set("VECSYNC_LOG", "trace");
    cluster.site.set("VECSYNC_LOG_FORMAT", "json");
    cluster.site.vecsync.start_ready();
    follow_a_commit(&mut cluster.site, &["local"]);
}
