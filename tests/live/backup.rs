//! `vecsync backup` and `restore`: what was lost comes back from a folder and catches up; what does not fit changes nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use qdrant_client::qdrant::DeleteCollectionBuilder;
use serde_json::{Value, json};

use crate::qdrant_run::{Pair, SOON};
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::table::{self, values};
use crate::support::vecsync::{COMMAND, Ended, PIPELINE, Vecsync};
use crate::writer::{Writer, fill};

const CAUGHT_UP: Duration = Duration::from_secs(120);
const ROWS: i64 = 400;
/// A text is its title and its window.
const TEXTS: f64 = 2.0;

/// Backs up into this folder of its own, and gives the parts by name.
#[track_caller]
fn backup(vecsync: &Vecsync, name: &str) -> Value {
    let ended = vecsync.run(&["backup", &vecsync.path(name), "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let parts = report["parts"].as_array().unwrap().iter();
    parts
        .map(|part| (part["part"].as_str().unwrap().to_owned(), part.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn restore(vecsync: &Vecsync, name: &str, more: &[&str]) -> Ended {
    vecsync.run(&[&["restore", &vecsync.path(name)], more].concat())
}

#[track_caller]
fn restored(vecsync: &Vecsync, name: &str, more: &[&str]) -> String {
    let ended = restore(vecsync, name, more);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("vecsync run"), "{ended:?}");
    ended.stdout
}

/// Restores, which is to be refused with these words.
#[track_caller]
fn refused(vecsync: &Vecsync, name: &str, more: &[&str], words: &[&str]) {
    let ended = restore(vecsync, name, more);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr);
    }
}

fn lose_data(vecsync: &Vecsync) {
    fs::remove_dir_all(vecsync.path("data")).unwrap();
}

/// Qdrant is as empty as a new one.
fn lose_qdrant(pair: &Pair) {
    for name in pair.collections() {
        let client = pair.qdrant.client();
        pair.runtime.block_on(client.delete_collection(DeleteCollectionBuilder::new(name))).unwrap();
    }
}

/// What a data directory or a folder of backups holds, but for locks and sockets.
fn entries(path: &str) -> Vec<String> {
    let names = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.ends_with(".lock") && !name.ends_with(".sock"));
    names.sort();
    names
}

/// Changes some rows, adds and deletes some; gives how many have a text that was not there before.
fn change(site: &Site, round: i64) -> f64 {
    let first = 100_000 + round * 100;
    let rows: Vec<String> =
        (first..first + 10).map(|id| values(id, &format!("New {id}?"), &format!("Fresh {id}."), "c01")).collect();
    site.sql.execute(&table::insert(&rows));
    site.sql.execute(&format!("UPDATE faq_faq SET answer = answer || ' Better {round}.' WHERE id <= 15"));
    site.sql.execute(&format!("DELETE FROM faq_faq WHERE id BETWEEN {} AND {}", 100 + round * 20, 110 + round * 20));
    25.0
}

fn computed(vecsync: &mut Vecsync) -> f64 {
    vecsync.metric("vecsync_embeddings_total", r#"result="computed""#).unwrap_or(0.0)
}

/// Nothing stays in Qdrant but the collection itself.
#[track_caller]
fn expect_no_snapshots(pair: &Pair) {
    for name in pair.collections() {
        let (status, body) = pair.qdrant.rest("GET", &format!("/collections/{name}/snapshots"), "text/plain", b"");
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &body["result"], &body["status"]), (200, &json!([]), &json!("ok")), "{body}");
    }
}

#[test]
fn an_empty_machine_comes_up_from_a_backup_that_was_made_under_writes() {
    let mut pair = Pair::prepare(Qdrant::start(), 0);
    fill(&pair.site.sql, ROWS);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    let writer = Writer::start(&pair.site.postgres, 3, Duration::from_millis(5));
    writer.wait_for_more(50);
    let parts = backup(&pair.site.vecsync, "backup");
    for part in ["qdrant", "mirror", "log"] {
        assert!(parts[part]["bytes"].as_u64() > Some(10_000), "{parts}");
    }
    expect_no_snapshots(&pair);
    assert_eq!(
        entries(&pair.site.vecsync.path("backup")),
        ["log.vecsync", "manifest.json", "mirror.vecsync", "qdrant.snapshot"]
    );
    writer.wait_for_more(50);
    writer.finish();
    change(&pair.site, 0);
    pair.site.vecsync.kill();
    lose_data(&pair.site.vecsync);
    lose_qdrant(&pair);

    let said = restored(&pair.site.vecsync, "backup", &[]);
    let collection = format!("{}__1", pair.alias);
    assert!(said.contains(&collection) && said.contains("mirror: ") && said.contains("log: "), "{said}");
    assert_eq!(entries(&pair.site.vecsync.path("data")), ["embeddings", "log", "mirror"]);
    // The slot stands behind what the restored log has. What came since is in the table alone.
    pair.site.postgres.stop();
    pair.site.vecsync.start();
    wait_until("a search to be answered from the restored mirror", SOON, || {
        let answer = pair.site.vecsync.http.get("/search?q=row&min_score=-1").map_err(|error| error.to_string())?;
        let body = || answer.body.clone();
        if answer.status != 200 || answer.json()["results"][0].is_null() {
            return Err(body());
        }
        if answer.json()["degraded"] == true { Ok(()) } else { panic!("not degraded: {}", body()) }
    });
    pair.site.postgres.launch();
    pair.site.sql = pair.site.postgres.client();
    pair.site.vecsync.wait_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(SOON);
    pair.expect_served_by("qdrant", SOON);
    // It went on in the generation that came with the log.
    assert_eq!(pair.collections(), [collection]);
    let computed = computed(&mut pair.site.vecsync);
    assert!(computed < TEXTS * ROWS as f64 / 2.0, "{computed} texts were embedded");
    pair.site.sql.execute("UPDATE faq_faq SET answer = 'Once more.' WHERE id < 50");
    pair.expect_equal(CAUGHT_UP);
    let ended = pair.site.vecsync.run(&["verify"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn without_qdrant_only_what_has_changed_is_embedded_again() {
    let small = [("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
    let mut site = Site::prepare_with(&small);
    fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(CAUGHT_UP);
    // Two while it runs and one while none runs; the slot is gone, is past the log, and is lost.
    for round in 0..3 {
        let name = format!("backup-{round}");
        if round == 1 {
            assert_eq!(site.vecsync.terminate().code, Some(0));
        }
        backup(&site.vecsync, &name);
        if round == 1 {
            site.vecsync.start_ready();
        }
        let texts = change(&site, round);
        site.expect_equal(CAUGHT_UP);
        site.vecsync.kill();
        lose_data(&site.vecsync);
        if round == 0 {
            let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
            wait_until("the slot to be gone", SOON, || site.sql.try_execute(drop).map_err(|error| error.to_string()));
        }
        if round == 2 {
            wait_until("the slot to be lost", SOON, || {
                site.sql.execute("DROP TABLE IF EXISTS other; CREATE TABLE other (id int)");
                site.sql.execute("SELECT pg_switch_wal()");
                site.sql.execute("CHECKPOINT");
                let status = site.sql.value("SELECT wal_status FROM pg_replication_slots");
                if status == "lost" { Ok(()) } else { Err(status) }
            });
        }
        restored(&site.vecsync, &name, &[]);
        site.vecsync.start_ready();
        table::expect_equal_once(&mut site.vecsync, &site.sql, CAUGHT_UP);
        let computed = computed(&mut site.vecsync);
        assert!(computed > 0.0 && computed <= TEXTS * texts, "{computed} texts were embedded, {texts} rows changed");
        site.expect_equal(CAUGHT_UP);
    }
}

#[test]
fn a_lost_qdrant_alone_comes_back_and_catches_up() {
    let mut pair = Pair::prepare(Qdrant::start(), ROWS);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    backup(&pair.site.vecsync, "backup");
    change(&pair.site, 0);
    pair.expect_equal(CAUGHT_UP);
    refused(&pair.site.vecsync, "backup", &["--only", "qdrant"], &["another vecsync has it", "stop that one"]);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    refused(&pair.site.vecsync, "backup", &["--only", "qdrant"], &["the alias is there already", "__1"]);
    lose_qdrant(&pair);
    let said = restored(&pair.site.vecsync, "backup", &["--only", "qdrant"]);
    assert!(said.contains(&format!("{}__1, {ROWS} rows", pair.alias)) && !said.contains("mirror"), "{said}");
    change(&pair.site, 1);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.collections(), [format!("{}__1", pair.alias)]);
}

#[test]
fn a_lost_data_directory_alone_comes_back_and_qdrant_is_filled_beside_what_it_has() {
    let mut pair = Pair::prepare(Qdrant::own(), ROWS);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    backup(&pair.site.vecsync, "backup");
    // Qdrant has these, and the restored log gives their offsets to others.
    change(&pair.site, 0);
    pair.expect_equal(CAUGHT_UP);
    pair.site.vecsync.kill();
    lose_data(&pair.site.vecsync);
    refused(&pair.site.vecsync, "backup", &[], &["the alias is there already"]);
    restored(&pair.site.vecsync, "backup", &["--only", "local"]);
    pair.site.sql.execute("DELETE FROM faq_faq WHERE id >= 100000");
    change(&pair.site, 1);
    // When Qdrant comes back the log reaches beyond the positions there, which are another's.
    pair.qdrant.kill();
    pair.site.vecsync.start_ready();
    pair.expect_searched(CAUGHT_UP);
    pair.qdrant.restart();
    wait_until("a new generation to be asked", CAUGHT_UP, || {
        let collections = pair.collections();
        if collections.len() == 2 { Ok(()) } else { Err(format!("{collections:?}")) }
    });
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(SOON);
    pair.expect_served_by("qdrant", SOON);
    let computed = computed(&mut pair.site.vecsync);
    assert!(computed <= TEXTS * 60.0, "{computed} texts were embedded");
}

#[test]
fn over_kafka_mirror_and_qdrant_come_back_and_go_on_from_the_log() {
    let mut pair = Pair::prepare(Qdrant::start(), 0);
    let kafka = Kafka::shared();
    pair.site.vecsync.set("KAFKA_BROKERS", kafka.brokers());
    pair.site.vecsync.set("VECSYNC_TOPIC_PREFIX", format!("backup{}", pair.site.postgres.port));
    fill(&pair.site.sql, ROWS);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    let writer = Writer::start(&pair.site.postgres, 9, Duration::from_millis(5));
    writer.wait_for_more(20);
    let parts = backup(&pair.site.vecsync, "backup");
    assert_eq!(parts["log"], Value::Null, "{parts}");
    writer.finish();
    change(&pair.site, 0);
    pair.expect_equal(CAUGHT_UP);
    pair.site.vecsync.kill();
    lose_data(&pair.site.vecsync);
    lose_qdrant(&pair);
    restored(&pair.site.vecsync, "backup", &[]);
    assert_eq!(entries(&pair.site.vecsync.path("data")), ["mirror"]);
    change(&pair.site, 1);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(SOON);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.collections(), [format!("{}__1", pair.alias)]);
    // Other brokers have other offsets.
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    let manifest = pair.site.vecsync.path("backup/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    other["log"]["id"] = json!("another-cluster");
    fs::write(&manifest, other.to_string()).unwrap();
    lose_data(&pair.site.vecsync);
    lose_qdrant(&pair);
    refused(&pair.site.vecsync, "backup", &[], &["log.id = another-cluster", "do not compare"]);
    assert_eq!((entries(&pair.site.vecsync.path("data")), pair.collections()), (vec![], vec![]));
}

/// Changes a file, has the restore refused, and puts the file back.
#[track_caller]
fn refused_with(vecsync: &Vecsync, file: &str, spoil: impl FnOnce(&mut Vec<u8>), words: &[&str]) {
    let path = vecsync.path(&format!("backup/{file}"));
    let bytes = fs::read(&path).unwrap();
    let mut spoiled = bytes.clone();
    spoil(&mut spoiled);
    fs::write(&path, spoiled).unwrap();
    refused(vecsync, "backup", &[], words);
    assert!(!Path::new(&vecsync.path("data")).exists(), "something was made");
    fs::write(&path, bytes).unwrap();
}

#[test]
fn what_is_damaged_or_does_not_fit_is_refused_and_nothing_is_changed() {
    let key = "a-key-for-tests";
    let mut pair = Pair::prepare(Qdrant::own_with(Some(key), &[]), 60);
    pair.site.vecsync.set("QDRANT_API_KEY", key);
    fs::create_dir(pair.site.vecsync.path("full")).unwrap();
    fs::write(pair.site.vecsync.path("full/mine"), "mine").unwrap();
    let nothing = pair.site.vecsync.run(&["backup", &pair.site.vecsync.path("backup")]);
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    assert!(nothing.stderr.contains("`vecsync run` makes them"), "{nothing:?}");
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    let refused_backup = |pair: &Pair, name: &str, words: &[&str]| {
        let ended = pair.site.vecsync.run(&["backup", &pair.site.vecsync.path(name)]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        words.iter().for_each(|word| assert!(ended.stderr.contains(word), "{word:?} is not in {}", ended.stderr));
    };
    refused_backup(&pair, "full", &["is not empty"]);
    let before = entries(&pair.site.vecsync.path("."));
    pair.qdrant.kill();
    refused_backup(&pair, "backup", &["Qdrant", "refused"]);
    assert_eq!(entries(&pair.site.vecsync.path(".")), before, "something was left behind");
    pair.qdrant.restart();
    pair.expect_served_by("qdrant", SOON);
    // An empty folder will do.
    fs::create_dir(pair.site.vecsync.path("backup")).unwrap();
    let text = pair.site.vecsync.run(&["backup", &pair.site.vecsync.path("backup")]);
    assert_eq!(text.code, Some(0), "{text:?}");
    for word in ["qdrant: ", "mirror: 60 rows (60 points)", "log: ", "vecsync restore", "embedding cache"] {
        assert!(text.stdout.contains(word), "{word:?} is not in {}", text.stdout);
    }
    assert_eq!(fs::read_to_string(pair.site.vecsync.path("full/mine")).unwrap(), "mine");
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    refused(&pair.site.vecsync, "backup", &[], &["holds a log already", "VECSYNC_DATA_DIR"]);
    refused(&pair.site.vecsync, "full", &[], &["manifest.json"]);
    lose_data(&pair.site.vecsync);

    let vecsync = &mut pair.site.vecsync;
    for file in ["mirror.vecsync", "log.vecsync", "qdrant.snapshot"] {
        let flip = |bytes: &mut Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        };
        refused_with(vecsync, file, flip, &[file, "SHA-256", "wanted"]);
        refused_with(vecsync, file, |bytes| bytes.truncate(bytes.len() - 1), &[file, "bytes, wanted"]);
    }
    let manifest = |change: fn(&mut Value)| {
        move |bytes: &mut Vec<u8>| {
            let mut json: Value = serde_json::from_slice(bytes).unwrap();
            change(&mut json);
            *bytes = json.to_string().into_bytes();
        }
    };
    let spoil = manifest(|json| json["format"] = json!(2));
    refused_with(vecsync, "manifest.json", spoil, &["format = 2, wanted 1"]);
    let spoil = manifest(|json| json["pipeline"] = json!("other"));
    refused_with(vecsync, "manifest.json", spoil, &["pipeline = other", "faq"]);
    refused_with(vecsync, "manifest.json", |bytes| bytes.truncate(40), &["manifest.json"]);
    vecsync.write_pipeline(&PIPELINE.replace("{{ answer }}", "A: {{ answer }}"));
    refused(vecsync, "backup", &[], &["revision = ", "this configuration has"]);
    vecsync.write_pipeline(PIPELINE);
    vecsync.set("VECSYNC_TOPIC_PARTITIONS", "4");
    refused(vecsync, "backup", &[], &["partitions = 8", "VECSYNC_TOPIC_PARTITIONS"]);
    vecsync.set("VECSYNC_TOPIC_PARTITIONS", "8");
    assert!(!Path::new(&vecsync.path("data")).exists(), "something was made");

    // Qdrant is away: what was done for the data directory does not stay, and it can be done again.
    lose_qdrant(&pair);
    pair.qdrant.kill();
    refused(&pair.site.vecsync, "backup", &[], &["Qdrant"]);
    assert_eq!(entries(&pair.site.vecsync.path("data")), Vec::<String>::new());
    pair.qdrant.restart();
    restored(&pair.site.vecsync, "backup", &[]);
    refused(&pair.site.vecsync, "backup", &[], &["holds a log already"]);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
}

#[test]
fn a_backup_that_is_killed_never_looks_like_one_and_two_at_a_time_are_not_made() {
    let mut pair = Pair::prepare(Qdrant::own(), 60);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    // It waits for Qdrant, with a folder that it has begun.
    pair.qdrant.signal("STOP");
    let (folder, partial) = (pair.site.vecsync.path("backup"), pair.site.vecsync.path(".backup.vecsync-partial"));
    let mut command = pair.site.vecsync.spawn(&["backup", &folder]);
    wait_until("the backup to begin", SOON, || {
        if Path::new(&partial).is_dir() { Ok(()) } else { Err("no folder".to_owned()) }
    });
    let second = pair.site.vecsync.run(&["backup", &pair.site.vecsync.path("another")]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("another backup is being made"), "{second:?}");
    pair.site.vecsync.kill();
    assert_ne!(command.wait().unwrap().code(), Some(0));
    pair.qdrant.signal("CONT");
    assert!(Path::new(&partial).is_dir() && !Path::new(&folder).exists());
    refused(&pair.site.vecsync, "backup", &[], &["manifest.json", "a backup has this file"]);
    // The next one removes what was left, also where none runs.
    backup(&pair.site.vecsync, "backup");
    assert!(!Path::new(&partial).exists());
    lose_data(&pair.site.vecsync);
    lose_qdrant(&pair);
    restored(&pair.site.vecsync, "backup", &[]);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
}

#[test]
fn a_restore_that_is_killed_can_be_made_again() {
    let mut pair = Pair::prepare(Qdrant::start(), ROWS);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    backup(&pair.site.vecsync, "backup");
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    let (mut dice, mut again) = (Dice::new(41), 0);
    // It is killed as soon as one of these is to be seen, or a moment later.
    for seen in ["restoring", "restore.json", "mirror"].iter().cycle().take(9) {
        lose_data(&pair.site.vecsync);
        lose_qdrant(&pair);
        let mut command = pair.site.vecsync.spawn(&["restore", &pair.site.vecsync.path("backup")]);
        wait_until("the restore to come so far", COMMAND, || {
            let is_seen = entries(&pair.site.vecsync.path("data")).iter().any(|name| name == seen);
            match is_seen || command.try_wait().unwrap().is_some() {
                true => Ok(()),
                false => Err(format!("{seen} is not there")),
            }
        });
        std::thread::sleep(Duration::from_millis(dice.below(40) as u64));
        command.kill().unwrap();
        if command.wait().unwrap().code() != Some(0) {
            again += 1;
            if entries(&pair.site.vecsync.path("data")).iter().any(|name| name.starts_with("restor")) {
                let refused = pair.site.vecsync.run(&["run"]);
                assert_eq!(refused.code, Some(1), "{refused:?}");
                assert!(refused.stderr.contains("a restore was broken off there"), "{refused:?}");
            }
            let ended = pair.site.vecsync.run_within(&["restore", &pair.site.vecsync.path("backup")], COMMAND);
            assert_eq!(ended.code, Some(0), "{ended:?}");
        }
        assert_eq!(pair.collections(), [format!("{}__1", pair.alias)]);
        let data = entries(&pair.site.vecsync.path("data"));
        assert!(data.iter().any(|name| name == "log") && data.iter().any(|name| name == "mirror"), "{data:?}");
        assert!(!data.iter().any(|name| name.starts_with("restor")), "{data:?}");
    }
    assert!(again > 2, "only {again} were killed in time");
    change(&pair.site, 0);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(SOON);
}
