//! Dead letters as an operator meets them: listed, shown, retried, and gone when their rows are mended.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use vecsync::event::Record;
use vecsync::topic::Outgoing;
use vecsync::topic::embedded::{Log, Settings};

use crate::support::process::wait_until;
use crate::support::site::Site;
use crate::support::table;
use crate::support::vecsync::{Ended, PIPELINE, Vecsync};

const SOON: Duration = Duration::from_secs(30);

/// A text that cannot be rendered where the question is empty: it divides by its length.
pub fn dividing_pipeline() -> String {
    PIPELINE.replace("{{ answer }}", "{{ answer }} {{ 100 // question|length }}")
}

#[track_caller]
pub fn listed(vecsync: &Vecsync) -> Vec<Value> {
    let ended = vecsync.run(&["dead-letters", "list", "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let list: Value = serde_json::from_str(&ended.stdout).expect("one JSON document");
    assert_eq!(list["more"], false);
    list["dead_letters"].as_array().expect("a list").clone()
}

/// Waits until the list has these keys, in any order, and gives it in theirs.
#[track_caller]
pub fn expect_listed(vecsync: &Vecsync, keys: &[Value]) -> Vec<Value> {
    wait_until(&format!("the list to have {keys:?}"), SOON, || {
        let mut list = listed(vecsync);
        let place = |letter: &Value| keys.iter().position(|key| *key == letter["key"]).unwrap_or(keys.len());
        list.sort_by_key(place);
        let found: Vec<&Value> = list.iter().map(|letter| &letter["key"]).collect();
        if found == keys.iter().collect::<Vec<_>>() { Ok(list) } else { Err(format!("{found:.500?}")) }
    })
}

#[track_caller]
pub fn retry(vecsync: &Vecsync, arguments: &[&str]) -> Ended {
    vecsync.run(&[&["dead-letters", "retry"], arguments].concat())
}

fn id(letter: &Value) -> &str {
    letter["id"].as_str().expect("an id")
}

/// Writes records into `changes` that no capture would, while vecsync is down.
pub fn spoil(vecsync: &Vecsync, records: &[(&str, &str)]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let log = Log::open(Settings {
        dir: Path::new(&vecsync.path("data")).join("log"),
        prefix: "vecsync".into(),
        pipeline: "faq".into(),
        partitions: 8,
        tombstone_retention: Duration::from_secs(86_400),
    });
    let log = log.expect("the log opens");
    let state = log.capture_state().expect("readable").expect("vecsync ran");
    let record = |(key, value): &(&str, &str)| {
        let (key, value) = (key.to_string().into(), Some(value.to_string().into()));
        Outgoing::ByKey(Record { key, value, headers: vec![], timestamp_ms: 1 })
    };
    runtime.block_on(log.append_changes(records.iter().map(record).collect(), &state)).expect("appended");
    runtime.block_on(log.close()).expect("closed");
}

#[test]
fn a_row_that_cannot_be_rendered_is_listed_with_all_there_is_until_it_is_mended() {
    let mut site = Site::prepare();
    site.vecsync.write_pipeline(&dividing_pipeline());
    site.vecsync.start_ready();
    let empty = site.vecsync.run(&["dead-letters", "list"]);
    assert_eq!((empty.code, empty.stdout.as_str()), (Some(0), "There are no dead letters.\n"), "{empty:?}");
    let rows = [(1, "Fine?"), (2, ""), (3, ""), (4, "")];
    let rows = rows.map(|(id, question)| table::values(id, question, &format!("Answer {id}"), "c00"));
    site.sql.execute(&table::insert(&rows));
    let letters = expect_listed(&site.vecsync, &[json!({"id": 2}), json!({"id": 3}), json!({"id": 4})]);
    for letter in &letters {
        assert_eq!(letter["reason"], "template");
        assert!(letter["error"].as_str().unwrap().contains("document.text"), "{letter}");
        assert!(letter["time"].as_str().unwrap().ends_with('Z') && letter["bytes"].as_u64().unwrap() > 100, "{letter}");
    }
    assert_eq!(site.vecsync.metric("vecsync_dead_letters_total", "template"), Some(3.0));

    let lines = site.vecsync.run(&["dead-letters", "list"]).stdout;
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert!(lines.contains(id(&letters[0])) && lines.contains(r#"{"id":2}"#) && lines.contains("template"), "{lines}");
    let shown = site.vecsync.run(&["dead-letters", "show", id(&letters[0]), "--json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|_| panic!("{shown:?}"));
    let place = format!("{}-{}", shown["partition"], shown["offset"]);
    assert_eq!((place.as_str(), &shown["topic"]), (id(&letters[0]), &json!("vecsync.faq.changes")));
    let bytes: Value = serde_json::from_str(shown["value"].as_str().unwrap()).expect("the change");
    assert_eq!((&bytes["op"], &bytes["after"]["answer"]), (&json!("c"), &json!("Answer 2")));
    let text = site.vecsync.run(&["dead-letters", "show", id(&letters[0])]).stdout;
    assert!(text.contains("topic:        vecsync.faq.changes") && text.contains("Answer 2"), "{text}");

    // Tried again it fails again, as a newer record of the row.
    let again = retry(&site.vecsync, &[id(&letters[0])]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.stdout.starts_with(id(&letters[0])), "{again:?}");
    wait_until("another id of row 2", SOON, || match listed(&site.vecsync) {
        list if list.len() == 3 && list.iter().all(|letter| letter["id"] != letters[0]["id"]) => Ok(()),
        list => Err(format!("{list:?}")),
    });
    for arguments in [&["dead-letters", "show"], &["dead-letters", "retry"]] {
        let unknown = site.vecsync.run(&[&arguments[..], &["7-123456"]].concat());
        assert_eq!(unknown.code, Some(1), "{unknown:?}");
        assert!(unknown.stderr.contains("7-123456") && unknown.stderr.contains("no dead letter"), "{unknown:?}");
    }

    // Superseded, by a change and by a delete.
    site.sql.execute("UPDATE faq_faq SET question = 'Better?' WHERE id = 2; DELETE FROM faq_faq WHERE id = 3");
    expect_listed(&site.vecsync, &[json!({"id": 4})]);
    assert_eq!(site.row(2).expect("it is indexed")["question"], "Better?");

    // Where none runs, the log itself is asked, and what takes capture says so.
    assert_eq!(site.vecsync.terminate().code, Some(0));
    assert_eq!(listed(&site.vecsync).len(), 1);
    let nobody = retry(&site.vecsync, &["--all"]);
    assert_eq!(nobody.code, Some(1), "{nobody:?}");
    assert!(nobody.stderr.contains("no vecsync"), "{nobody:?}");

    // A pipeline that renders the row now reads the same record again.
    site.vecsync.write_pipeline(PIPELINE);
    site.vecsync.start_ready();
    expect_listed(&site.vecsync, &[]);
    site.expect_equal(SOON);
}

#[test]
fn a_retry_reads_the_row_as_it_is_and_closes_its_letter() {
    let mut site = Site::open();
    let rows = [1, 2, 3].map(|id| table::values(id, "Q", &format!("Answer {id}"), "c00"));
    site.sql.execute(&table::insert(&rows));
    site.expect_equal(SOON);
    assert_eq!(site.vecsync.terminate().code, Some(0));
    let ghost = r#"{"before":null,"after":{"id":77,"question":1},"source":{"ts_ms":1},"op":"c","ts_ms":1}"#;
    let records = [(r#"{"id":1}"#, "{"), (r#"{"id":2}"#, "\u{1}"), (r#"{"id":77}"#, ghost), ("no key", "x")];
    spoil(&site.vecsync, &[&records[..], &[(r#"{"id":"x"}"#, "{"), (r#"{"slug":1}"#, "{")]].concat());
    site.vecsync.start_ready();
    let keys = [
        json!("no key"),
        json!({"id": "x"}),
        json!({"id": 1}),
        json!({"id": 2}),
        json!({"id": 77}),
        json!({"slug": 1}),
    ];
    let letters = expect_listed(&site.vecsync, &keys);

    let first = retry(&site.vecsync, &[id(&letters[2])]);
    assert_eq!((first.code, first.stdout.lines().count()), (Some(0), 1), "{first:?}");
    let rest = [0, 1, 3, 4, 5].map(|n| keys[n].clone());
    expect_listed(&site.vecsync, &rest);
    let all = retry(&site.vecsync, &["--all"]);
    assert_eq!(all.code, Some(1), "{all:?}");
    // What cannot be retried is named, each by its own reason, and holds nobody up.
    for (letter, why) in [(&letters[0], "names no row"), (&letters[1], "invalid input"), (&letters[5], "slug")] {
        let part = format!("{}: ", id(letter));
        let told = all.stderr.split(&part).nth(1).unwrap_or_else(|| panic!("{part}: {all:?}"));
        assert!(told.contains(why), "{part}{why}: {all:?}");
    }
    expect_listed(&site.vecsync, &[keys[0].clone(), keys[1].clone(), keys[5].clone()]);
    assert_eq!(site.row(77), None);
    site.expect_equal(SOON);
}

#[test]
fn a_row_whose_change_is_streamed_and_not_visible_yet_is_not_retried() {
    let mut site = Site::prepare();
    site.vecsync.write_pipeline(&dividing_pipeline());
    site.vecsync.start_ready();
    site.sql.execute(&table::insert(&[table::values(1, "", "Old", "c00")]));
    let letters = expect_listed(&site.vecsync, &[json!({"id": 1})]);
    // A commit that waits for a standby which never comes is on disk and streamed, and visible to nobody.
    let hold = |site: &Site, names: &str| {
        site.sql.execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        site.sql.execute("SELECT pg_reload_conf()");
        wait_until("the setting", SOON, || match site.postgres.client().value("SHOW synchronous_standby_names") {
            found if found == names => Ok(()),
            found => Err(found),
        });
    };
    hold(&site, "nobody");
    let other = site.postgres.client();
    let writer = std::thread::spawn(move || other.execute("UPDATE faq_faq SET answer = 'New' WHERE id = 1"));
    wait_until("the change", SOON, || match listed(&site.vecsync).as_slice() {
        [letter] if letter["id"] != letters[0]["id"] => Ok(()),
        list => Err(format!("{list:?}")),
    });
    assert_eq!(site.sql.value("SELECT answer FROM faq_faq"), "Old");
    // What can be read now is older than what the log has.
    let refused = retry(&site.vecsync, &["--all"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("not visible"), "{refused:?}");
    hold(&site, "");
    writer.join().expect("the commit ends when nobody is waited for");
    let retried = retry(&site.vecsync, &["--all"]);
    assert_eq!(retried.code, Some(0), "{retried:?}");
    let last = wait_until("the row, read again", SOON, || {
        let list = listed(&site.vecsync);
        // Its letter is closed by the retry, and there is another when it was embedded in vain again.
        let letter = list.first().ok_or("no letter is open")?;
        let shown = site.vecsync.run(&["dead-letters", "show", id(letter)]).stdout;
        if shown.contains(r#""op":"r""#) { Ok(shown) } else { Err(shown) }
    });
    assert!(last.contains("New") && !last.contains("Old"), "{last}");
}
