//! What vecsync cannot work with is refused in one line that says what, where and what to do; what passes is waited for.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::postgres::{DATABASE, PASSWORD, Postgres, USER};
use crate::support::process::{free_port, wait_until};
use crate::support::site::{Place, Site};
use crate::support::table;
use crate::support::vecsync::{PIPELINE, Vecsync, model_dir};

const SOON: Duration = Duration::from_secs(30);

/// Runs it to its end: it must fail with one line that holds all of these, and tell no secret.
#[track_caller]
fn refused(vecsync: &Vecsync, wanted: &[&str]) {
    let ended = vecsync.run(&["run"]);
    assert!(matches!(ended.code, Some(1 | 2)), "exit {:?}: {}", ended.code, ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("vecsync: ")).collect();
    let [line] = lines[..] else { panic!("wanted one line for the user, got {lines:?} in {}", ended.stderr) };
    for part in wanted {
        assert!(line.contains(part), "wanted {part:?} in: {line}");
    }
    assert!(!ended.stderr.contains(PASSWORD), "the password is told: {}", ended.stderr);
}

#[test]
fn a_wrong_password_names_user_and_server() {
    let site = Site::prepare();
    let vecsync = Vecsync::prepare(&site.postgres.url(USER, "canary-of-a-wrong-password"));
    let server = format!("127.0.0.1:{}", site.postgres.port);
    refused(&vecsync, &[USER, &server, "password"]);
    let ended = vecsync.run(&["run"]);
    assert!(!ended.stderr.contains("canary-of-a-wrong-password"), "{}", ended.stderr);
    let nobody = Vecsync::prepare(&site.postgres.url("nobody", PASSWORD));
    refused(&nobody, &["nobody", &server]);
}

#[test]
fn a_database_and_a_table_that_are_not_there_are_named() {
    let site = Site::prepare();
    let elsewhere = site.postgres.url(USER, PASSWORD).replace(DATABASE, "shpo");
    refused(&Vecsync::prepare(&elsewhere), &["shpo", &site.postgres.port.to_string()]);
    site.sql.execute("CREATE SCHEMA archive; CREATE TABLE archive.faq (id int PRIMARY KEY)");
    site.vecsync.write_pipeline(&PIPELINE.replace("public.faq_faq", "public.faq_fqa"));
    refused(&site.vecsync, &["public.faq_fqa", "public.faq_faq"]);
    site.vecsync.write_pipeline(&PIPELINE.replace("public.faq_faq", "public.faq"));
    refused(&site.vecsync, &["public.faq", "archive.faq"]);
}

#[test]
fn a_column_that_is_not_there_is_named() {
    let site = Site::prepare();
    site.vecsync.write_pipeline(&PIPELINE.replace("{{ answer }}", "{{ anwser }}"));
    refused(&site.vecsync, &["anwser", "answer"]);
    site.vecsync.write_pipeline(&PIPELINE.replace(r#""updated_at"]"#, r#""updated_at", "colour"]"#));
    refused(&site.vecsync, &["colour"]);
}

#[test]
fn a_server_that_does_not_write_logical_wal_is_refused_with_the_setting() {
    let site = Site::prepare_with(&[("wal_level", "replica")]);
    refused(&site.vecsync, &["wal_level", "logical"]);
}

#[test]
fn a_server_without_a_free_slot_is_refused_with_the_setting() {
    let site = Site::prepare_with(&[("max_replication_slots", "1")]);
    site.sql.query("SELECT pg_create_physical_replication_slot('taken')");
    refused(&site.vecsync, &["max_replication_slots"]);
}

#[test]
fn a_table_without_a_primary_key_is_refused_with_the_sql_that_mends_it() {
    let site = Site::prepare();
    site.sql.execute("ALTER TABLE faq_faq DROP CONSTRAINT faq_faq_pkey");
    refused(&site.vecsync, &["faq_faq", "primary key", "ALTER TABLE"]);
}

#[test]
fn a_publication_that_is_not_there_and_may_not_be_made_is_refused_with_the_sql_that_makes_it() {
    let site = Site::prepare();
    site.sql.execute("DROP PUBLICATION vecsync_faq");
    refused(&site.vecsync, &["vecsync_faq", "owner", "CREATE PUBLICATION \"vecsync_faq\" FOR TABLE public.faq_faq;"]);
}

#[test]
fn a_role_that_may_not_stream_is_refused() {
    let site = Site::prepare();
    site.sql.execute("ALTER ROLE vecsync NOREPLICATION");
    refused(&site.vecsync, &["vecsync", "REPLICATION"]);
}

#[test]
fn a_database_that_is_not_up_yet_is_waited_for() {
    let _place = Place::take();
    let mut postgres = Postgres::prepare(&[]);
    let mut vecsync = Vecsync::prepare(&postgres.url(USER, PASSWORD));
    vecsync.start();
    let server = format!("127.0.0.1:{}", postgres.port);
    // Three attempts, each said with the server's name, the waits growing.
    wait_until("three attempts", SOON, || {
        let log = vecsync.log();
        let attempts: Vec<&str> = log.lines().filter(|line| line.contains("trying again in")).collect();
        assert_eq!(vecsync.ended(), None, "{log}");
        if attempts.len() >= 3 && attempts.iter().all(|line| line.contains(&server)) { Ok(()) } else { Err(log) }
    });
    let health = vecsync.get("/health/").json();
    assert_ne!(health["status"], "healthy", "{health}");
    postgres.launch();
    postgres.execute(&table::insert(&[table::values(1, "Q", "Found at last", "c00")]));
    wait_until("the row to be found", SOON, || match vecsync.row_if_answered(1) {
        Some(row) if row["answer"] == "Found at last" => Ok(()),
        row => Err(format!("{row:?}")),
    });
    assert!(!vecsync.log().contains(PASSWORD));
}

#[test]
fn a_slot_that_was_dropped_is_refused_until_sync_repairs_it() {
    let mut site = Site::open();
    site.sql.execute(&table::insert(&[table::values(1, "Q", "First", "c00"), table::values(2, "Q", "Second", "c01")]));
    site.expect_equal(SOON);
    assert_eq!(site.vecsync.terminate().code, Some(0));
    let checked = |site: &Site| site.vecsync.run(&["check", "--skip-health", "--skip-operations"]);
    assert_eq!(checked(&site).code, Some(0), "{:?}", checked(&site));
    site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    // What a start will refuse is known before it.
    let said = checked(&site);
    let line = said.stdout.lines().find(|line| line.starts_with("failed")).unwrap_or_else(|| panic!("{said:?}"));
    assert!(said.code == Some(3) && line.contains("slot") && line.contains("vecsync sync"), "{said:?}");
    // Nobody will ever be told of these.
    site.sql.execute("DELETE FROM faq_faq WHERE id = 1; UPDATE faq_faq SET answer = 'Second, changed' WHERE id = 2");
    site.sql.execute(&table::insert(&[table::values(3, "Q", "Third", "c02")]));
    site.vecsync.start_ready();
    let begun = Instant::now();
    wait_until("health to name the remedy", SOON, || {
        let answer = site.vecsync.get("/health/detailed/");
        let told = answer.body.contains("vecsync sync") && answer.body.contains("vecsync_faq");
        if told && answer.json()["status"] == "degraded" && answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert_eq!(site.get("/health/ready/").status, 200);
    let old = site.search("Second", "&min_score=-1");
    assert_eq!(old["results"].as_array().map(Vec::len), Some(2), "{old}");
    assert_eq!(old["degraded"], true, "{old}");
    assert_eq!(site.sql.value("SELECT count(*) FROM pg_replication_slots"), "0", "it was made again silently");

    let synced = site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{synced:?}");
    site.expect_equal(SOON);
    wait_until("health to be healthy again", SOON, || {
        let answer = site.vecsync.get("/health/");
        if answer.json()["status"] == "healthy" { Ok(()) } else { Err(answer.body) }
    });
    assert_eq!(site.vecsync.ended(), None);
}

#[test]
fn sync_while_nothing_is_wrong_or_nothing_runs_ends_with_the_table() {
    let mut site = Site::open();
    site.sql.execute(&table::insert(&[table::values(1, "Q", "First", "c00"), table::values(2, "Q", "Second", "c01")]));
    site.expect_equal(SOON);
    let synced = site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{synced:?}");
    site.sql.execute("DELETE FROM faq_faq WHERE id = 1");
    site.expect_equal(SOON);
    site.vecsync.terminate();
    site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    site.sql.execute("UPDATE faq_faq SET answer = 'Unheard of' WHERE id = 2");
    let synced = site.vecsync.run(&["sync"]);
    assert_eq!(synced.code, Some(0), "{synced:?}");
    site.vecsync.start_ready();
    site.expect_equal(SOON);
}

#[test]
fn a_model_file_that_is_missing_or_cut_short_is_named() {
    // Refused before anything is connected to: no server is needed.
    let _place = Place::take();
    let mut vecsync = Vecsync::prepare(&format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", free_port()));
    let folder = vecsync.path("model");
    fs::create_dir(&folder).unwrap();
    vecsync.set("VECSYNC_MODEL_DIR", &folder);
    let files = ["tokenizer.json", "model_int8.onnx", "libonnxruntime.so"];
    let link = |file: &str| std::os::unix::fs::symlink(model_dir().join(file), format!("{folder}/{file}")).unwrap();
    for missing in files {
        eprintln!("{missing} is missing");
        files.iter().filter(|file| **file != missing).for_each(|file| link(file));
        refused(&vecsync, &[missing, &folder]);
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
    }
    for cut in files {
        eprintln!("{cut} is cut short");
        files.iter().filter(|file| **file != cut).for_each(|file| link(file));
        let whole = fs::read(model_dir().join(cut)).unwrap();
        fs::write(format!("{folder}/{cut}"), &whole[..whole.len() / 2]).unwrap();
        refused(&vecsync, &[cut, &folder]);
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
    }
    eprintln!("the only model is cut short, and nobody says which it was");
    files.iter().filter(|file| **file != "model_int8.onnx").for_each(|file| link(file));
    let whole = fs::read(model_dir().join("model.onnx")).unwrap();
    fs::write(format!("{folder}/model.onnx"), &whole[..whole.len() / 3]).unwrap();
    vecsync.set("VECSYNC_MODEL", "");
    refused(&vecsync, &["model.onnx", "(fp32) or", "(int8)", "truncated"]);
}

#[test]
fn a_taken_port_is_named() {
    let mut site = Site::prepare();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    site.set("VECSYNC_LISTEN", &address);
    refused(&site.vecsync, &["VECSYNC_LISTEN", &address]);
}
