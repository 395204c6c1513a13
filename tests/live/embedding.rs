//! Texts as bad as they come, through the whole program; texts that are known, which cost no embedding; models that are refused.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::escape;
use crate::support::postgres::{DATABASE, PASSWORD, USER};
use crate::support::process::{free_port, wait_until};
use crate::support::site::{Place, Site};
use crate::support::table;
use crate::support::vecsync::{COMMAND, Vecsync, model_dir};

const SOON: Duration = Duration::from_secs(60);
/// What a query may take on a machine that does other things as well.
const BOUND: Duration = Duration::from_secs(10);

/// What PostgreSQL takes as text and nobody means as one, and whether the model finds anything in it.
fn strange() -> Vec<(&'static str, String, bool)> {
    let noise = |seed: u32, of: &dyn Fn(u32) -> char| -> String {
        // Numbers that look random and are the same every time (a linear congruential generator).
        let next = |number: &mut u32| {
            *number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(of(*number >> 8))
        };
        std::iter::successors(Some(seed), |_| Some(0)).scan(seed, |number, _| next(number)).take(2_000).collect()
    };
    vec![
        ("nothing", String::new(), false),
        ("white space", " \t\r\n \u{a0}\u{3000}".into(), false),
        ("replacement characters", "\u{fffd}".repeat(300), false),
        ("joiners and bidi controls alone", "\u{200d}\u{202e}\u{2066}\u{feff}".repeat(50), false),
        ("emoji joined to families", "👩\u{200d}👩\u{200d}👧\u{200d}👦 👨🏽\u{200d}🚀".into(), true),
        ("bidi controls in words", "refund \u{202e}dnufer\u{202c} \u{2067}שלום\u{2069}".into(), true),
        ("marks on marks", format!("e{}", "\u{301}".repeat(400)), true),
        ("one character", "a".repeat(4_000), true),
        ("full stops", ".".repeat(4_000), true),
        ("controls", noise(1, &|number| char::from((number % 31 + 1) as u8)), false),
        ("bytes", noise(2, &|number| char::from((number % 255 + 1) as u8)), true),
        ("any characters", noise(3, &|number| char::from_u32(number % 0x0011_0000).unwrap_or('\u{d7ff}')), true),
    ]
    .into_iter()
    .map(|(name, text, found)| (name, text.replace('\0', " "), found))
    .collect()
}

#[test]
fn strange_texts_have_defined_results_as_rows_and_as_queries() {
    let mut site = Site::open();
    let texts = strange();
    let mut rows = vec![];
    for (id, (_, text, _)) in (1..).zip(&texts) {
        rows.push(table::values(id, "", text, "c00"));
        rows.push(table::values(100 + id, "What is this?", text, "c01"));
        // The title strange as well; it has at most half of a window.
        rows.push(table::values(200 + id, text, "An answer of plain words.", "c02"));
    }
    // A word of a megabyte is one that the model does not know; a megabyte of what it drops is nothing.
    rows.push(table::values(301, "", &"a".repeat(1_000_000), "c03"));
    rows.push(table::values(302, "", &"\u{fffd}".repeat(350_000), "c03"));
    rows.push(table::values(303, "The last one", "is an ordinary row.", "c03"));
    site.sql.execute(&table::insert(&rows));
    let empty = texts.iter().filter(|(_, _, found)| !found).count() + 1;
    let wanted = json!(rows.len() - empty);
    wait_until("all that has a meaning to be indexed", SOON, || {
        let removed = site.metric("vecsync_events_total", r#"op="empty""#).unwrap_or_default();
        let indexed = site.get("/status/").json()["stores"][0]["rows"].clone();
        let told = format!("{indexed} rows of {wanted}, {removed} empty ones of {empty}");
        if indexed == wanted && removed == empty as f64 { Ok(()) } else { Err(told) }
    });
    for (id, (name, text, found)) in (1..).zip(&texts) {
        let answer = |site: &mut Site, id: i64| site.row(id).map(|row| row["answer"].clone());
        assert_eq!(answer(&mut site, id), found.then(|| json!(text)), "{name}, alone");
        assert_eq!(answer(&mut site, 100 + id), Some(json!(text)), "{name}, under a title");
        assert_eq!(answer(&mut site, 200 + id), Some(json!("An answer of plain words.")), "{name}, as the title");
    }
    assert!(site.row(301).is_some() && site.row(302).is_none());
    assert_eq!(site.metric("vecsync_dead_letters_total", "").unwrap_or_default(), 0.0);

    for (name, text, found) in &texts {
        let begun = Instant::now();
        let posted = site.vecsync.http.post("/search", &json!({"query": text, "min_score": -1})).expect("an answer");
        let got = site.get(&format!("/search?q={}&min_score=-1", escape(text)));
        assert!(begun.elapsed() < BOUND, "{name} took {:?}", begun.elapsed());
        // What has nothing but blanks is no query; one without a word finds nothing.
        let wanted = match (text.trim().is_empty(), found) {
            (true, _) => (400, None),
            (false, true) => (200, Some(5)),
            (false, false) => (200, Some(0)),
        };
        for answer in [posted, got] {
            let results = answer.json()["results"].as_array().map(Vec::len);
            assert_eq!((answer.status, results), wanted, "{name}: {}", answer.body);
        }
    }
    let too_long = site.vecsync.http.post("/search", &json!({"query": "a".repeat(1_000_000)})).expect("an answer");
    assert_eq!(too_long.status, 413, "{}", too_long.body);
    assert_eq!(site.get("/health/ready/").status, 200);
    let log = site.vecsync.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_changed_payload_a_resync_and_a_replay_embed_nothing() {
    const ROWS: i64 = 200;
    let mut site = Site::prepare();
    crate::writer::fill(&site.sql, ROWS);
    site.vecsync.start_ready();
    site.expect_equal(SOON);
    let results = |site: &mut Site| {
        ["computed", "cached"]
            .map(|result| site.metric("vecsync_embeddings_total", &format!("result=\"{result}\"")).unwrap_or(0.0))
    };
    let before = results(&mut site);
    let calls = site.metric("vecsync_embed_duration_seconds_count", "").expect("rows were embedded");
    site.sql.execute("UPDATE faq_faq SET category = 'c49', updated_at = '2031-02-03 04:05:06+00'");
    wait_until("the payloads to change", SOON, || {
        let found = site.vecsync.get("/search?q=a&limit=100&min_score=-1&filter=category:c49").json();
        let rows: &[Value] = found["results"].as_array().map_or(&[], Vec::as_slice);
        let changed =
            rows.iter().filter(|row| row["payload"]["updated_at"].to_string().contains("2031-02-03T04:05:06"));
        let (changed, seen) = (changed.count(), results(&mut site)[1] - before[1]);
        if changed == 100 && seen >= 2.0 * ROWS as f64 { Ok(()) } else { Err(format!("{changed} rows, {seen} texts")) }
    });
    for command in [&["sync"][..], &["replay", "--topic", "changes", "--into", "current"]] {
        let ended = site.vecsync.run_within(command, COMMAND * 2);
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
    }
    let after = results(&mut site);
    assert_eq!(after[0], before[0], "texts were embedded that had not changed");
    assert!(after[1] >= before[1] + 3.0 * 2.0 * ROWS as f64, "{before:?} and then {after:?}");
    // The one query above went through the model, and nothing else did.
    let more = site.metric("vecsync_embed_duration_seconds_count", "").expect("still there") - calls;
    assert!(more <= 1.0, "the model was called {more} times");
    assert_eq!(site.row(ROWS).expect("it is there")["category"], "c49");
}

#[test]
fn a_swapped_tokenizer_a_swapped_model_and_what_is_no_library_are_refused_with_both_hashes() {
    let _place = Place::take();
    let mut vecsync = Vecsync::prepare(&format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{DATABASE}", free_port()));
    let folder = vecsync.path("model");
    vecsync.set("VECSYNC_MODEL_DIR", &folder);
    let check = |file: &str, content: &[u8], wanted: &[&str]| {
        fs::create_dir(&folder).unwrap();
        for other in ["tokenizer.json", "model_int8.onnx", "libonnxruntime.so"] {
            if other != file {
                std::os::unix::fs::symlink(model_dir().join(other), format!("{folder}/{other}")).unwrap();
            }
        }
        fs::write(format!("{folder}/{file}"), content).unwrap();
        let ended = vecsync.run(&["run"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let last = ended.stderr.lines().last().expect("it says something");
        for part in [&[file, &*folder], wanted].concat() {
            assert!(last.contains(part), "{file}: wanted {part:?} in {last:?}");
        }
        fs::remove_dir_all(&folder).unwrap();
    };
    let read = |file: &str| fs::read(model_dir().join(file)).unwrap();
    // One letter of it is another: every text would be cut otherwise, and nothing would be found.
    let mut other = read("tokenizer.json");
    let place = other.windows(9).position(|bytes| bytes == b"lowercase").expect("it has a normalizer");
    other[place] = b'L';
    let hash = |bytes: &[u8]| sha256(bytes);
    check("tokenizer.json", &other, &[&hash(&other), &hash(&read("tokenizer.json")), "make setup"]);
    let fp32 = read("model.onnx");
    check("model_int8.onnx", &fp32, &[&hash(&fp32), &hash(&read("model_int8.onnx")), "it is the fp32 model"]);
    check("libonnxruntime.so", b"no library", &["ONNX Runtime", "ORT_DYLIB_PATH"]);
    // A library that needs another one: which, says the system's loader.
    let mut lacking = read("libonnxruntime.so");
    let needed = b"libstdc++.so.6";
    let place = lacking.windows(needed.len()).position(|bytes| bytes == needed).expect("it needs that");
    lacking[place + 3] = b'n';
    check("libonnxruntime.so", &lacking, &["ONNX Runtime", "libntdc++.so.6", "No such file"]);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
