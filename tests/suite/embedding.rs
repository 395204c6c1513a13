//! The embed room with the real model: reference vectors, determinism, bad files, bad texts, the worker.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use vecsync::config::{self, Precision};
use vecsync::embed::{Cache, DIMENSION, EmbedError, Embedder, Processed, QUERY_TOKENS_MAX, Vector, Worker};
use vecsync::event::{BARRIER_KEY, EmbeddedRow, Record, RowKey, VectorEvent, Version};
use vecsync::metrics::PipelineMetrics;
use vecsync::topic::{Outgoing, Settled, Stored};

use crate::faq::{Entry, faq};

/// Made by tests/support/reference_vectors.py, which documents the format.
const REFERENCE: &[u8] = include_bytes!("reference_vectors.bin");

pub fn model_dir() -> PathBuf {
    let folder = std::env::var_os("VECSYNC_TEST_MODEL_DIR")
        .expect("VECSYNC_TEST_MODEL_DIR names the folder with model.onnx, model_int8.onnx and tokenizer.json");
    let folder = PathBuf::from(folder);
    assert!(folder.join("model.onnx").exists(), "VECSYNC_TEST_MODEL_DIR={}: no model.onnx in it", folder.display());
    folder
}

pub fn settings(precision: Precision) -> config::Model {
    config::Model { precision: Some(precision), dir: model_dir(), runtime: None }
}

/// One of each for all tests: a model takes its time to load.
fn embedder(precision: Precision) -> Embedder {
    static LOADED: [OnceLock<Embedder>; 2] = [OnceLock::new(), OnceLock::new()];
    let place = &LOADED[usize::from(precision == Precision::Int8)];
    place.get_or_init(|| Embedder::load(&settings(precision), 2).expect("the model loads")).clone()
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}

#[tokio::test]
async fn vectors_are_those_of_the_reference() {
    let embedder = embedder(Precision::Fp32);
    let size = 16 + 4 * DIMENSION;
    let reference: HashMap<&[u8], Vec<f32>> = REFERENCE
        .chunks_exact(size)
        .map(|entry| (&entry[..16], entry[16..].as_chunks::<4>().0.iter().map(|f| f32::from_le_bytes(*f)).collect()))
        .collect();
    let mut texts = vec![];
    for Entry { question, answer, .. } in faq() {
        let text = format!("{question}\n{answer}");
        if let Some(vector) = reference.get(&Sha256::digest(&text)[..16]) {
            texts.push((embedder.tokens().truncated(&text, 256).expect("tokens").0, vector));
        }
    }
    assert_eq!(
        texts.len(),
        200,
        "the FAQ's text is not the one of the reference: run tests/support/reference_vectors.py"
    );
    let ours = embedder.embed(texts.iter().map(|(ids, _)| ids.clone()).collect()).await;
    let mut lowest = 1.0f64;
    for (ours, (_, theirs)) in ours.into_iter().zip(&texts) {
        lowest = lowest.min(cosine(&ours.expect("a vector"), theirs));
    }
    assert!(lowest >= 0.9999, "lowest cosine {lowest}");
}

#[tokio::test]
async fn the_same_text_gives_the_same_vector_whatever_is_beside_it() {
    for precision in [Precision::Fp32, Precision::Int8] {
        let embedder = embedder(precision);
        let texts: Vec<Vec<u32>> = faq()
            .iter()
            .step_by(12)
            .map(|Entry { question, answer, .. }| {
                embedder.tokens().truncated(&format!("{question}\n{answer}"), 256).expect("tokens").0
            })
            .collect();
        let together: Vec<Vector> =
            embedder.embed(texts.clone()).await.into_iter().map(|result| result.expect("a vector")).collect();
        for (text, beside) in texts.into_iter().zip(together) {
            let alone = embedder.embed(vec![text]).await.pop().expect("one").expect("a vector");
            assert!(alone.iter().zip(&beside).all(|(a, b)| a.to_bits() == b.to_bits()), "{precision:?}");
        }
        // A query goes through another session.
        let text = "How do I install a package?";
        let (ids, _) = embedder.tokens().truncated(text, 256).expect("tokens");
        let row = embedder.embed(vec![ids]).await.pop().expect("one").expect("a vector");
        assert_eq!(embedder.query(text).await.expect("a vector").vector, row, "{precision:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_rows_in_any_mix_are_all_embedded() {
    let embedder = embedder(Precision::Int8);
    // More at the same time than there are threads, and pauses in which all of them fall asleep.
    for round in 0..12 {
        let queries = (0..round % 7).map(|n| {
            let embedder = embedder.clone();
            tokio::spawn(async move { embedder.query(&format!("query {round} {n}")).await.map(|_| 1) })
        });
        let rows = (0..round % 5).map(|n| {
            let embedder = embedder.clone();
            let texts = (0..=n).map(|text| vec![101, 7592 + round + text, 102]).collect();
            tokio::spawn(async move { embedder.embed(texts).await.into_iter().map(|row| row.map(|_| 1)).sum() })
        });
        let wanted = round % 7 + (0..round % 5).map(|n| n + 1).sum::<u32>();
        let all = futures_util::future::join_all(queries.chain(rows).collect::<Vec<_>>());
        let done = tokio::time::timeout(Duration::from_secs(60), all).await.expect("none is forgotten");
        let done: Vec<Result<u32, EmbedError>> =
            done.into_iter().map(|task| task.expect("it does not panic")).collect();
        assert_eq!(done.into_iter().map(|count| count.expect("a vector")).sum::<u32>(), wanted);
    }
}

#[tokio::test]
async fn a_query_that_is_too_long_says_so_and_an_empty_one_is_refused() {
    let embedder = embedder(Precision::Int8);
    let short = embedder.query("word ".repeat(QUERY_TOKENS_MAX - 2).trim()).await.expect("a vector");
    let long = embedder.query(&"word ".repeat(QUERY_TOKENS_MAX - 1)).await.expect("a vector");
    assert_eq!((short.truncated, long.truncated), (false, true));
    assert_eq!(short.vector, long.vector);
    for nothing in ["", " \n", "\u{fffd}", "\u{200d}\u{202e}"] {
        assert!(matches!(embedder.query(nothing).await, Err(EmbedError::Empty)), "{nothing:?}");
    }
}

#[tokio::test]
async fn one_text_that_the_model_refuses_is_singled_out() {
    for precision in [Precision::Fp32, Precision::Int8] {
        let embedder = embedder(precision);
        // The model has 30,522 tokens: this id makes its call fail.
        let mut texts = vec![vec![101, 7592, 102]; 9];
        texts[4] = vec![101, 40_000, 102];
        texts.push(vec![]);
        texts.push(vec![101; 513]);
        let results = embedder.embed(texts).await;
        for (index, result) in results.iter().enumerate() {
            match index {
                4 => assert!(matches!(result, Err(EmbedError::Text { tokens: 3, .. })), "{result:?}"),
                9 => assert!(matches!(result, Err(EmbedError::Length { tokens: 0 })), "{result:?}"),
                10 => assert!(matches!(result, Err(EmbedError::Length { tokens: 513 })), "{result:?}"),
                _ => assert_eq!(result.as_ref().expect("a vector"), results[0].as_ref().expect("a vector")),
            }
        }
    }
}

#[test]
fn bad_files_are_refused_with_one_line_that_says_what_to_do() {
    let check = |spoil: &dyn Fn(&Path), precision, wanted: &[&str]| {
        let folder = tempfile::tempdir().expect("folder");
        for file in ["model.onnx", "model_int8.onnx", "tokenizer.json"] {
            std::os::unix::fs::symlink(model_dir().join(file), folder.path().join(file)).expect("link");
        }
        spoil(folder.path());
        let runtime = Some(model_dir().join("libonnxruntime.so"));
        let settings = config::Model { precision, dir: folder.path().to_owned(), runtime };
        let fault = Embedder::load(&settings, 1).err().expect("refused").to_string();
        for part in wanted {
            assert!(fault.contains(part) && !fault.contains('\n'), "{part}: {fault}");
        }
    };
    let cut = |folder: &Path, file: &str| {
        let whole = std::fs::read(folder.join(file)).expect("readable");
        std::fs::remove_file(folder.join(file)).expect("link removed");
        std::fs::write(folder.join(file), &whole[..whole.len() / 2]).expect("written");
    };
    let remove = |folder: &Path, file: &str| std::fs::remove_file(folder.join(file)).expect("link removed");
    check(
        &|folder| cut(folder, "model_int8.onnx"),
        None,
        &["model_int8.onnx", "afdb6f1a", "11486185 bytes", "make setup"],
    );
    check(&|folder| cut(folder, "model.onnx"), Some(Precision::Fp32), &["model.onnx", "ca46f1a8", "make setup"]);
    check(&|folder| cut(folder, "tokenizer.json"), None, &["tokenizer.json", "da0e7993", "make setup"]);
    check(&|folder| remove(folder, "tokenizer.json"), None, &["tokenizer.json", "No such file", "make setup"]);
    let both = |folder: &Path| ["model.onnx", "model_int8.onnx"].iter().for_each(|file| remove(folder, file));
    check(&both, None, &["model_int8.onnx", "No such file", "afdb6f1a", "VECSYNC_MODEL_DIR"]);
    let swapped = |folder: &Path| {
        remove(folder, "model.onnx");
        std::fs::rename(folder.join("model_int8.onnx"), folder.join("model.onnx")).expect("renamed");
    };
    check(
        &swapped,
        Some(Precision::Fp32),
        &["fp32 model", "found", "ca46f1a8"].map(|part| if part == "found" { "afdb6f1a" } else { part }),
    );
}

#[test]
fn the_plain_file_may_be_the_int8_model() {
    let folder = tempfile::tempdir().expect("folder");
    for (file, name) in [("model_int8.onnx", "model.onnx"), ("tokenizer.json", "tokenizer.json")] {
        std::os::unix::fs::symlink(model_dir().join(file), folder.path().join(name)).expect("link");
    }
    for precision in [None, Some(Precision::Int8)] {
        let runtime = Some(model_dir().join("libonnxruntime.so"));
        let settings = config::Model { precision, dir: folder.path().to_owned(), runtime };
        assert_eq!(Embedder::load(&settings, 1).expect("loads").precision(), Precision::Int8);
    }
}

fn document() -> config::Document {
    config::Document {
        title: Some("{{ question }}".into()),
        text: "{{ answer }}".into(),
        payload: vec!["id".into(), "question".into()],
        when: Some("is_active".into()),
        title_weight: 0.3,
        window_tokens: 64,
        overlap_tokens: 8,
    }
}

fn worker(document: &config::Document, cache: Cache) -> Worker {
    let metrics = PipelineMetrics::new("test");
    Worker::new(embedder(Precision::Int8), document, cache, metrics, "t.changes").expect("templates")
}

fn row(id: u64, question: &str, answer: &str) -> Record {
    change(id, "c", json!({"id": id, "question": question, "answer": answer, "is_active": true}))
}

fn change(id: u64, op: &str, after: Value) -> Record {
    let value = json!({"before": null, "after": after, "source": {"ts_ms": 1000 + id}, "op": op, "ts_ms": 1});
    record(json!({"id": id}).to_string(), Some(value.to_string()))
}

fn record(key: String, value: Option<String>) -> Record {
    Record { key: key.into(), value: value.map(Bytes::from), headers: vec![], timestamp_ms: 1 }
}

fn stored(records: Vec<Record>) -> Vec<Stored> {
    records.into_iter().zip(0..).map(|(record, offset)| Stored { partition: 3, offset, record }).collect()
}

fn upserts(processed: &Processed) -> BTreeMap<u64, EmbeddedRow> {
    let events = processed.vectors.iter().map(|outgoing| match outgoing {
        Outgoing::To(3, record) => VectorEvent::from_record(record).expect("readable"),
        other => panic!("not into the row's partition: {other:?}"),
    });
    let rows = events.filter_map(|event| match event {
        VectorEvent::Upsert { row, .. } => Some((row.version, row)),
        _ => None,
    });
    rows.collect()
}

#[tokio::test]
async fn a_batch_becomes_rows_deletes_barriers_and_dead_letters() {
    let worker = worker(&document(), Cache::off());
    let long = "This sentence has a few words in it. ".repeat(30);
    let processed = worker
        .process(stored(vec![
            row(1, "Old", "Dropped by the barrier."),
            record(
                String::from_utf8_lossy(BARRIER_KEY).into(),
                change(0, "t", Value::Null).value.map(|value| String::from_utf8_lossy(&value).into()),
            ),
            row(1, "How long?", &long),
            row(2, "Short?", "Yes."),
            change(3, "u", json!({"id": 3, "question": "Q", "answer": "A", "is_active": false})),
            change(4, "d", Value::Null),
            record(r#"{"id":5}"#.into(), Some("{".into())),
            change(6, "c", json!({"id": 6, "question": "no answer", "is_active": true})),
            row(7, " ", "\u{fffd}\u{200d}"),
            row(8, "Title alone", ""),
        ]))
        .await
        .expect("the model works");
    let rows = upserts(&processed);
    assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [2, 3, 9]);
    assert!(rows[&2].windows.len() > 4 && rows[&2].windows.iter().all(|window| long.contains(&window.passage)));
    assert_eq!((rows[&3].windows.len(), rows[&3].windows[0].passage.as_str()), (1, "Yes."));
    assert_eq!((rows[&9].windows.len(), rows[&9].windows[0].passage.as_str()), (1, ""));
    assert_eq!((rows[&3].payload.as_str(), rows[&3].commit_ts_ms), (r#"{"id":2,"question":"Short?"}"#, 1002));
    assert!(rows.values().flat_map(|row| &row.windows).all(|window| {
        let norm = window.vector().iter().map(|component| component * component).sum::<f32>();
        window.vector().len() == DIMENSION && (norm - 1.0).abs() < 1e-5
    }));
    let kinds: Vec<String> = processed
        .vectors
        .iter()
        .map(|outgoing| match outgoing {
            Outgoing::To(_, record) => match VectorEvent::from_record(record).expect("readable") {
                VectorEvent::Upsert { key, .. } => format!("upsert {}", key.id()),
                VectorEvent::Delete { key, version, .. } => format!("delete {}@{}", key.id(), version.0),
                VectorEvent::Barrier { version, .. } => format!("barrier@{}", version.0),
                VectorEvent::Heartbeat { as_of_ms } => format!("heartbeat@{as_of_ms}"),
                VectorEvent::Replayed { id } => format!("replayed {id}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["barrier@1", "upsert 1", "upsert 2", "delete 3@4", "delete 4@5", "delete 7@8", "upsert 8"]);
    let letters: Vec<(String, String)> = processed
        .dead_letters
        .iter()
        .map(|letter| {
            let header = |name: &str| {
                let (_, value) = letter.headers.iter().find(|(header, _)| header == name).expect("header");
                String::from_utf8_lossy(value).into_owned()
            };
            assert_eq!((header("vecsync.topic"), header("vecsync.partition")), ("t.changes".into(), "3".into()));
            assert!(!header("vecsync.error").is_empty());
            (header("vecsync.reason"), header("vecsync.offset"))
        })
        .collect();
    assert_eq!(letters, [("unreadable".into(), "6".into()), ("template".into(), "7".into())]);
    assert_eq!(processed.dead_letters[0].value.as_deref(), Some(&b"{"[..]));
    assert_eq!((processed.counts["empty"], processed.ends[&3]), (1, 10));
}

#[tokio::test]
async fn no_dead_letter_is_a_tombstone_or_a_barrier_of_its_own_topic() {
    let worker = worker(&document(), Cache::off());
    let barrier = String::from_utf8_lossy(BARRIER_KEY).into_owned();
    let processed = worker
        .process(stored(vec![record("no key".into(), None), record(barrier, Some("{".into())), row(1, "Q", "A")]))
        .await
        .expect("the model works");
    let letters: Vec<_> =
        processed.dead_letters.iter().map(|letter| (&letter.key[..], letter.value.as_deref())).collect();
    assert_eq!(letters, [(&b"no key"[..], Some(&b""[..])), (b"", Some(b"{"))]);
    let key = RowKey::from_bytes(br#"{"id":1}"#).expect("a key");
    assert_eq!(processed.settled, [Settled { partition: 3, version: Version(2), key: Some(key) }]);
}

#[tokio::test]
async fn a_point_is_the_mix_of_its_window_and_the_title() {
    let batch = || stored(vec![row(1, "How do I shut down?", "Press the button.")]);
    let vector = async |weight: f32| {
        let document = config::Document { title_weight: weight, ..document() };
        let processed = worker(&document, Cache::off()).process(batch()).await.expect("the model works");
        upserts(&processed).remove(&0).expect("a row").windows.remove(0).vector()
    };
    let embedder = embedder(Precision::Int8);
    let window = embedder.query("How do I shut down?\nPress the button.").await.expect("a vector").vector;
    let title = embedder.query("How do I shut down?").await.expect("a vector").vector;
    assert_eq!(vector(0.0).await, window);
    let mixed: Vec<f32> = window.iter().zip(&title).map(|(window, title)| 0.7 * window + 0.3 * title).collect();
    assert!(cosine(&vector(0.3).await, &mixed) > 0.999_999);
    assert!(cosine(&mixed, &window) < 0.999);
    assert!(cosine(&vector(1.0).await, &title) > 0.999_999);
}

#[tokio::test]
async fn unchanged_text_is_not_embedded_again_and_the_payload_is_new() {
    let folder = tempfile::tempdir().expect("folder");
    let long: String = (0..30).map(|number| format!("Sentence {number} has a few words in it. ")).collect();
    let first = worker(&document(), Cache::open(&folder.path().join("embeddings")))
        .process(stored(vec![row(1, "How long?", &long)]))
        .await
        .expect("the model works");
    assert!(first.computed > 4 && first.cached == 0 && first.split == 1);
    // The same cache after a restart.
    let again = worker(&document(), Cache::open(&folder.path().join("embeddings")));
    let mut renamed = row(1, "How long?", &long);
    renamed.value = renamed.value.map(|value| {
        Bytes::from(String::from_utf8_lossy(&value).replace("\"after\":{\"id\":1,", "\"after\":{\"id\":99,"))
    });
    let second = again.process(stored(vec![renamed])).await.expect("the model works");
    assert_eq!((second.computed, second.cached), (0, first.computed));
    let (first, second) = (upserts(&first).remove(&0).expect("a row"), upserts(&second).remove(&0).expect("a row"));
    assert_eq!(first.windows, second.windows);
    assert_eq!(first.text_hash, second.text_hash);
    assert!(second.payload.contains("99") && first.row_hash != second.row_hash);
    // Another title weight is another revision and computes nothing either: the vectors are kept unmixed.
    let heavier = config::Document { title_weight: 0.6, ..document() };
    drop(again);
    let third = worker(&heavier, Cache::open(&folder.path().join("embeddings")))
        .process(stored(vec![row(1, "How long?", &long)]))
        .await
        .expect("the model works");
    assert_eq!(third.computed, 0);
    assert_ne!(upserts(&third).remove(&0).expect("a row").windows, first.windows);
}

#[tokio::test]
async fn whatever_the_text_there_is_a_result_and_no_panic() {
    let document = config::Document { window_tokens: 256, overlap_tokens: 32, ..document() };
    let worker = worker(&document, Cache::off());
    let megabyte = |text: &str| text.repeat(1_000_000 / text.len());
    let check = async |question: &str, answer: &str, windows: Option<std::ops::RangeInclusive<usize>>| {
        let processed = worker.process(stored(vec![row(1, question, answer)])).await.expect("the model works");
        assert!(processed.dead_letters.is_empty());
        let found = upserts(&processed).remove(&0).map(|row| row.windows.len());
        let fits = match (&windows, found) {
            (Some(wanted), Some(found)) => wanted.contains(&found),
            (None, None) => true,
            _ => false,
        };
        assert!(fits, "{:?}: {found:?}, wanted {windows:?}", answer.chars().take(9).collect::<String>());
        processed.titles_cut
    };
    check("", "", None).await;
    check(" \t", "\r\n \u{a0}\u{3000}", None).await;
    check("", &megabyte("\u{fffd}"), None).await;
    check("", &megabyte("\u{200d}"), None).await;
    // Longer than a hundred letters, a word is unknown to the model, however long it is.
    check("", &megabyte("a"), Some(1..=1)).await;
    check("Q", &megabyte("\u{202e}\u{200d}"), Some(1..=1)).await;
    check("", "👩\u{200d}👩\u{200d}👧 \u{202e}olleh\u{202c} e\u{301} \u{1}\u{2}\u{7f}", Some(1..=1)).await;
    check("", &"。".repeat(3000), Some(12..=16)).await;
    check("", &"ẛ̣ 각 ".repeat(500), Some(5..=40)).await;
    assert_eq!(check("short", "text", Some(1..=1)).await, 0);
    assert_eq!(check(&"long title ".repeat(100), "text", Some(1..=1)).await, 1);
}
