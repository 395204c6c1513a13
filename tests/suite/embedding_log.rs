//! The embed worker on the embedded log: nothing is lost, nothing is done twice, the first rows come first.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use vecsync::config::{self, Precision};
use vecsync::embed::{Cache, Embedder, Worker};
use vecsync::event::{Lsn, Position, Record, RowKey, VectorEvent, Version};
use vecsync::metrics::PipelineMetrics;
use vecsync::shutdown::Shutdown;
use vecsync::topic::embedded::{Log, Settings, VectorsReader};
use vecsync::topic::{CaptureState, EmbedLog, Outgoing, SnapshotMarker};

/// Longer than any of it takes, for a test that would otherwise hang.
const PATIENCE: Duration = Duration::from_secs(120);

fn open(folder: &Path) -> Log {
    Log::open(Settings {
        dir: folder.to_owned(),
        prefix: "t".into(),
        pipeline: "faq".into(),
        partitions: 4,
        tombstone_retention: Duration::from_secs(86_400),
    })
    .expect("the log opens")
}

fn document() -> config::Document {
    config::Document {
        title: None,
        text: "{{ answer }}".into(),
        payload: vec!["id".into()],
        when: None,
        title_weight: 0.0,
        window_tokens: 64,
        overlap_tokens: 8,
    }
}

fn row(id: u64, answer: &str) -> Outgoing {
    let value =
        json!({"before": null, "after": {"id": id, "answer": answer}, "source": {"ts_ms": 5}, "op": "c", "ts_ms": 6});
    let key = Bytes::from(json!({"id": id}).to_string());
    Outgoing::ByKey(Record { key, value: Some(value.to_string().into()), headers: vec![], timestamp_ms: 6 })
}

async fn append(log: &Log, ordinal: u64, records: Vec<Outgoing>) {
    let state = CaptureState {
        system_id: 1,
        timeline: 1,
        position: Position { commit_lsn: Lsn(ordinal), ordinal },
        confirm: Lsn(ordinal),
        snapshot: SnapshotMarker::Complete,
        whole: false,
        captured: String::new(),
        resync: Default::default(),
    };
    log.append_changes(records, &state).await.expect("appended");
}

/// Reads until `rows` rows are there; gives each row's version and passages, and how many records were read.
async fn rows(reader: &mut VectorsReader, rows: usize) -> (BTreeMap<RowKey, (Version, Vec<String>)>, usize) {
    let (mut found, mut records) = (BTreeMap::new(), 0);
    while found.len() < rows {
        let batch =
            tokio::time::timeout(PATIENCE, reader.next(100, 1 << 20)).await.expect("in time").expect("readable");
        for stored in batch {
            records += 1;
            if let VectorEvent::Upsert { key, row } = VectorEvent::from_record(&stored.record).expect("readable") {
                let passages = row.windows.into_iter().map(|window| window.passage).collect();
                found.insert(key, (Version(row.version), passages));
            }
        }
    }
    (found, records)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_goes_on_where_it_was() {
    let dir = std::env::var_os("VECSYNC_TEST_MODEL_DIR").expect("VECSYNC_TEST_MODEL_DIR names the model's folder");
    let model = config::Model { precision: Some(Precision::Int8), dir: dir.into(), runtime: None };
    let embedder = Embedder::load(&model, 2).expect("the model loads");
    let revision = embedder.revision(&document());
    let folder = tempfile::tempdir().expect("folder");
    let log = open(folder.path());
    let run = |shutdown: &Shutdown| {
        let metrics = PipelineMetrics::new("faq");
        let worker =
            Worker::new(embedder.clone(), &document(), Cache::off(), metrics, "t.faq.changes").expect("templates");
        let (embed_log, shutdown) = (log.embedder(&revision).expect("a reader"), shutdown.clone());
        tokio::spawn(async move { worker.run(EmbedLog::Embedded(embed_log), shutdown).await })
    };
    let mut reader = log.vectors(&revision).expect("a reader");

    append(&log, 1, (0..300).map(|id| row(id, &format!("Answer number {id}."))).collect()).await;
    let shutdown = Shutdown::new();
    let running = run(&shutdown);
    rows(&mut reader, 1).await;
    // In the middle of the backlog.
    shutdown.raise();
    tokio::time::timeout(PATIENCE, running).await.expect("ends").expect("no panic").expect("no fault");

    let shutdown = Shutdown::new();
    let running = run(&shutdown);
    append(&log, 2, vec![row(7, "Another answer."), row(300, "A new one.")]).await;
    let mut all = log.vectors(&revision).expect("a reader");
    let (found, _) = rows(&mut all, 301).await;
    let seven = RowKey::from_bytes(br#"{"id":7}"#).expect("a key");
    let mut passages = found[&seven].1.clone();
    while passages != ["Another answer."] {
        passages = rows(&mut all, 1).await.0.remove(&seven).map(|row| row.1).unwrap_or(passages);
    }
    shutdown.raise();
    tokio::time::timeout(PATIENCE, running).await.expect("ends").expect("no panic").expect("no fault");
    let mut passages = found.values().flat_map(|(_, passages)| passages.clone()).collect::<Vec<_>>();
    passages.sort();
    passages.dedup();
    assert_eq!(passages.len(), 301);
    log.close().await.expect("closes");
}
