//! The commands, run as a user runs them: what they print, where, and how they exit.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::postgres::{DATABASE, PASSWORD, USER};
use crate::support::process::{free_port, wait_until};
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
    for part in [
        "is healthy, pipeline faq",
        "capture   streaming",
        "slot  ",
        "local     healthy",
        "answered by local",
        "letters open: 0",
    ] {
        assert!(text.stdout.contains(part), "{part:?}: {text:?}");
    }
    assert!(!text.stdout.contains(['{', '\u{1b}']), "{text:?}");
    // Who has answered knows by now how long it took.
    wait_until("each part's latency", SOON, || {
        let components = json(&site.vecsync.run(&["status", "--json"]))["components"].clone();
        let unknown = ["source", "model", "local"].iter().find(|part| !components[part]["latency_ms"].is_number());
        unknown.map_or(Ok(()), |part| Err(format!("{part}: {components}")))
    });

    site.vecsync.terminate();
    for arguments in [&["search", "x"][..], &["status"], &["status", "--json"]] {
        let ended = site.vecsync.run(arguments);
        assert_eq!(ended.code, Some(1), "{arguments:?}: {ended:?}");
        assert!(ended.stdout.is_empty() && ended.stderr.lines().count() == 1, "{arguments:?}: {ended:?}");
    }
}

#[test]
fn a_health_check_tells_another_server_from_a_vecsync_that_is_not_ready() {
    let mut vecsync = alone();
    for (answer, wanted) in [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot found", &["404", "Not Found"][..]),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 16\r\n\r\n{\"error\":\"none\"}",
            &["no vecsync", "not a vecsync", "none"],
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"ready\":\"maybe\"", &["not a vecsync"]),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", &["not a vecsync"]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        vecsync.set("VECSYNC_URL", format!("http://{}", listener.local_addr().unwrap()));
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 2048]);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let ended = vecsync.run(&["healthcheck"]);
        serving.join().unwrap();
        assert_eq!(ended.code, Some(1), "{answer}: {ended:?}");
        assert!(wanted.iter().any(|part| ended.stderr.contains(part)), "{answer}: {ended:?}");
        assert!(!ended.stderr.contains("not ready"), "{ended:?}");
    }
}

#[test]
fn config_shows_the_collection_of_the_pipeline_file() {
    let vecsync = alone();
    let line = || {
        let said = vecsync.run(&["config"]).stdout;
        said.lines().find(|line| line.starts_with("QDRANT_COLLECTION_NAME")).unwrap().to_owned()
    };
    assert!(line().contains("faq_embeddings") && line().ends_with("default"), "{}", line());
    vecsync.write_pipeline(&PIPELINE.replace("[index]", "[index]\ncollection = \"shop\""));
    assert!(line().contains(" shop ") && line().ends_with("pipeline.toml: index.collection"), "{}", line());
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
        // Each with its line, templates too.
        let has_line =
            ended.stderr.split("pipeline.toml:").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        assert!(has_line, "{wanted}: {ended:?}");
    }
    let both = PIPELINE.replace("[document]", "[document]\nwindow_tokens = 1000\noverlap_tokens = 300");
    vecsync.write_pipeline(&both);
    let folder = vecsync.path("");
    let ended = vecsync.run(&["pipeline", "check", &folder]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for wanted in ["window_tokens = 1000: wanted", "overlap_tokens = 300: wanted less than half"] {
        assert!(ended.stderr.contains(wanted), "{ended:?}");
    }
    vecsync.write_pipeline(PIPELINE);
    assert_eq!(vecsync.run(&["pipeline", "check", &folder]).code, Some(0));
    let nothing = vecsync.path("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let ended = vecsync.run(&["pipeline", "check", &nothing]);
    assert!(ended.code == Some(2) && ended.stderr.contains("holds no pipeline file"), "{ended:?}");
}

#[test]
fn bad_usage_exits_with_2() {
    let vecsync = alone();
    for arguments in
        [&["serch"][..], &["search"], &["run", "--role", "cook"], &["search", "x", "--limit", "many"], &["search", " "]]
    {
        let ended = vecsync.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
    }
}
