//! The commands, run as a user runs them: what they print, where, and how they exit.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::postgres::{DATABASE, PASSWORD, USER};
use crate::support::process::free_port;
use crate::support::site::Site;
use crate::support::table;
use crate::support::vecsync::{Ended, PIPELINE, Vecsync};

const SOON: Duration = Duration::from_secs(30);

#[track_caller]
fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("not one JSON document: {error}: {ended:?}"))
}

fn alone() -> Vecsync {
    Vecsync::prepare(&format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", free_port()))
}

#[test]
fn search_and_status_speak_with_the_running_program() {
    let mut site = Site::open();
    site.sql.execute(&table::insert(&[
        table::values(1, "Where is my parcel?", "The courier sends you a link.", "c00"),
        table::values(2, "Can I pay later?", "You can pay by invoice.", "c01"),
    ]));
    site.expect_equal(SOON);

    let found = json(&site.vecsync.run(&["search", "lost shipment", "--json", "--limit", "1"]));
    assert_eq!((&found["query"], &found["results"][0]["id"]), (&json!("lost shipment"), &json!(1)));
    assert_eq!(found["results"].as_array().map(Vec::len), Some(1));
    let filtered = json(&site.vecsync.run(&["search", "lost shipment", "--json", "--filter", "category=c01"]));
    assert_eq!(filtered["results"].as_array().unwrap().iter().map(|row| &row["id"]).collect::<Vec<_>>(), [&json!(2)]);
    let text = site.vecsync.run(&["search", "lost shipment"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("The courier sends you a link.") && text.stdout.contains("parcel"), "{text:?}");
    let unknown = site.vecsync.run(&["search", "x", "--filter", "colour=red"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("colour") && unknown.stderr.contains("category"), "{unknown:?}");

    let status = json(&site.vecsync.run(&["status", "--json"]));
    assert!(status.to_string().contains("\"healthy\""), "{status}");
    let text = site.vecsync.run(&["status"]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.contains("healthy"), "{text:?}");

    site.vecsync.terminate();
    for arguments in [&["search", "x"][..], &["status"], &["status", "--json"]] {
        let ended = site.vecsync.run(arguments);
        assert_eq!(ended.code, Some(1), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.is_empty() && ended.stderr.lines().count() == 1, "{arguments:?}: {ended:?}");
    }
}

#[test]
fn config_shows_every_setting_and_no_secret() {
    let mut vecsync = alone();
    vecsync.set("VECSYNC_API_KEYS", "canary-of-an-api-key");
    let ended = vecsync.run(&["config"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for setting in [
        "DATABASE_URL",
        "VECSYNC_PIPELINE",
        "VECSYNC_DATA_DIR",
        "VECSYNC_LISTEN",
        "VECSYNC_MODEL_DIR",
        "KAFKA_BROKERS",
        "VECSYNC_LOG",
    ] {
        assert!(ended.stdout.contains(setting), "no {setting}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains(PASSWORD) && !ended.stdout.contains("canary-of-an-api-key"), "{}", ended.stdout);
}

#[test]
fn all_problems_of_the_settings_come_at_once_with_exit_2() {
    let mut vecsync = alone();
    vecsync.set("VECSYNC_LISTEN", "nowhere");
    vecsync.set("VECSYNC_MODEL", "int9");
    vecsync.set("VECSYNC_TOPIC_PARTITIONS", "none");
    vecsync.write_pipeline(&PIPELINE.replace("[index]", "[indx]").replace("title =", "titel ="));
    let ended = vecsync.run(&["run"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for wanted in ["VECSYNC_LISTEN", "VECSYNC_MODEL", "VECSYNC_TOPIC_PARTITIONS", "indx", "titel"] {
        assert!(ended.stderr.contains(wanted), "no {wanted}: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
}

#[test]
fn pipeline_check_accepts_the_good_and_names_the_bad() {
    let vecsync = alone();
    let file = vecsync.path("pipeline.toml");
    let good = vecsync.run(&["pipeline", "check", &file]);
    assert_eq!(good.code, Some(0), "{good:?}");
    for (bad, wanted) in [
        (PIPELINE.replace("[index]", "[index]\ncolour = 1"), "index.colour"),
        (PIPELINE.replace("{{ answer }}", "{{ answer "), "document.text"),
        (PIPELINE.replace("is_active", "is_active ==="), "document.when"),
        (PIPELINE.replace("name = \"faq\"", "name = \"FAQ!\""), "FAQ!"),
        (PIPELINE.replace("[document]", "[document]\nwindow_tokens = 7"), "window_tokens"),
    ] {
        vecsync.write_pipeline(&bad);
        let ended = vecsync.run(&["pipeline", "check", &file]);
        assert_eq!(ended.code, Some(2), "{wanted}: {ended:?}");
        assert!(ended.stderr.contains(wanted) && ended.stderr.contains("pipeline.toml"), "{wanted}: {ended:?}");
    }
}

#[test]
fn bad_usage_exits_with_2() {
    let vecsync = alone();
    for arguments in [&["serch"][..], &["search"], &["run", "--role", "cook"], &["search", "x", "--limit", "many"]] {
        let ended = vecsync.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
    }
}
