//! Commands from a machine that has neither the data directory nor the settings: by VECSYNC_URL and a key, as a user types them.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::dead_letters::{dividing_pipeline, expect_listed};
use crate::support::site::Site;
use crate::support::table::{insert, values};

const KEY: &str = "key-that-may-command";
const SEARCHING: &str = "key-that-may-only-search";

/// Another machine's folder.
struct Elsewhere {
    folder: TempDir,
    url: String,
}

impl Elsewhere {
    #[track_caller]
    fn run(&self, site: &Site, key: &str, words: &[&str]) -> (Option<i32>, String, String) {
        let mut program = site.command(words);
        let environment = [("VECSYNC_URL", self.url.as_str()), ("VECSYNC_API_KEYS", key)];
        let output = program.env_clear().envs(environment).current_dir(self.folder.path()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Does it, and gives what it prints.
    #[track_caller]
    fn does(&self, site: &Site, words: &[&str]) -> String {
        let (status, output, errors) = self.run(site, KEY, words);
        assert_eq!(status, Some(0), "{words:?}: {output}{errors}");
        output
    }

    #[track_caller]
    fn json(&self, site: &Site, words: &[&str]) -> Value {
        serde_json::from_str(&self.does(site, words)).expect("one JSON document")
    }
}

#[test]
fn commands_from_elsewhere_are_done_by_the_vecsync_at_the_url() {
    let mut site = Site::prepare();
    site.set("VECSYNC_API_KEYS", format!("{KEY},search:{SEARCHING}"));
    site.write_pipeline(&dividing_pipeline());
    site.sql.execute(&insert(&[
        values(1, "Where is my parcel?", "The courier sends you a link.", "c00"),
        values(2, "Can I pay later?", "You can pay by invoice.", "c01"),
    ]));
    site.start_ready();
    let elsewhere = Elsewhere { folder: tempfile::tempdir().unwrap(), url: format!("http://127.0.0.1:{}", site.port) };

    let synced = elsewhere.json(&site, &["sync", "--json"]);
    assert_eq!((&synced["rows"], &synced["stores"][0]["error"]), (&json!(2), &Value::Null), "{synced}");
    let counted = elsewhere.json(&site, &["sync", "--dry-run", "--json"]);
    assert_eq!((&counted["indexed"], &counted["stores"][0]["unchanged"]), (&json!(2), &json!(2)), "{counted}");
    assert!(elsewhere.does(&site, &["sync", "--stats-only"]).contains("2 rows"));
    assert!(elsewhere.does(&site, &["verify", "--pipeline", "faq"]).contains("local: 2 the same"));
    assert!(elsewhere.does(&site, &["replay"]).contains("2 rows"));
    let checked = elsewhere.does(&site, &["check", "--skip-operations"]);
    assert!(checked.lines().count() > 5 && checked.lines().all(|line| line.starts_with("ok ")), "{checked}");
    let (status, _, errors) = elsewhere.run(&site, KEY, &["init"]);
    assert_eq!(status, Some(2), "{errors}");
    assert!(errors.contains("QDRANT_HOST names no Qdrant"), "{errors}");

    // A row that cannot be rendered: seen, shown and, once it is mended, retried from there.
    site.sql.execute(&insert(&[values(3, "", "An answer without a question.", "c00")]));
    let letters = expect_listed(&site.vecsync, &[json!({"id": 3})]);
    let id = letters[0]["id"].as_str().unwrap();
    assert!(elsewhere.does(&site, &["dead-letters", "list"]).contains(id));
    assert_eq!(elsewhere.json(&site, &["dead-letters", "show", id, "--json"])["key"], json!({"id": 3}));
    let (status, output, errors) = elsewhere.run(&site, KEY, &["verify"]);
    assert_eq!(status, Some(3), "{output}{errors}");
    assert!(errors.contains("put aside") && output.contains("local:"), "{output}{errors}");
    let (status, _, errors) = elsewhere.run(&site, KEY, &["dead-letters", "show", "7-7"]);
    assert_eq!(status, Some(1), "{errors}");
    site.sql.execute("UPDATE faq_faq SET question = 'Mended?' WHERE id = 3");
    expect_listed(&site.vecsync, &[]);
    assert!(elsewhere.does(&site, &["dead-letters", "retry", "--all"]).contains("no dead letters"));

    assert!(elsewhere.does(&site, &["backup", "night-1"]).contains("Backed up to"));
    let backup = site.path("data") + "/backups/night-1/manifest.json";
    assert!(Path::new(&backup).is_file(), "{backup}");
    let (status, _, errors) = elsewhere.run(&site, KEY, &["backup", "night-1"]);
    assert_eq!(status, Some(1), "{errors}");

    // Who may only search.
    for words in [&["sync"][..], &["backup", "night-2"], &["verify", "--repair"]] {
        let (status, output, errors) = elsewhere.run(&site, SEARCHING, words);
        assert_eq!((status, output.as_str()), (Some(1), ""), "{words:?}: {errors}");
        assert!(errors.contains("may search, and not command"), "{words:?}: {errors}");
    }
    let (status, output, errors) = elsewhere.run(&site, SEARCHING, &["search", "lost shipment"]);
    assert!(status == Some(0) && output.contains("courier"), "{output}{errors}");

    // One that ends meanwhile did not do it, and says so; nobody there is not this machine's own to do.
    site.terminate();
    let (status, _, errors) = elsewhere.run(&site, KEY, &["verify"]);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("nobody listens at"), "{errors}");
    assert!(!elsewhere.folder.path().join("data").exists());
}
