//! The store in Qdrant: what it is given is there, whole and in its newest version, whatever happens meanwhile. Against
//! the test server, or the real one that `QDRANT_TEST_URL` names; tests that harm it always take the test server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use qdrant_client::qdrant::{
    CollectionStatus, CreateCollectionBuilder, DeleteCollectionBuilder, Distance, OptimizersConfigDiffBuilder,
    PointStruct, UpdateCollectionBuilder, UpsertPointsBuilder, VectorParamsBuilder,
};
use serde_json::{Value, json};
use vecsync::event::{EmbeddedRow, RowKey, VectorEvent, Version, Window};
use vecsync::index::{
    Accuracy, Filter, FilterValue, Hit, Mirror, MirrorSettings, QdrantError, QdrantSettings, QdrantStore,
};
use vecsync::topic::Partition;

use crate::support::dice::Dice;
use crate::support::qdrant::{Qdrant, WIDTH};

const PARTITIONS: Partition = 4;
const FIELDS: [&str; 3] = ["category", "n", "tags"];

fn settings(qdrant: &Qdrant, collection: &str) -> QdrantSettings {
    QdrantSettings {
        server: qdrant.settings(),
        collection: collection.to_owned(),
        pipeline: "faq".to_owned(),
        revision: "rev".to_owned(),
        partitions: PARTITIONS,
        log: Some("log".to_owned()),
        payload: vec![],
        filters: FIELDS.map(str::to_owned).to_vec(),
    }
}

/// A store with a generation of its own.
async fn store(qdrant: &Qdrant) -> (QdrantStore, String) {
    let name = qdrant.name("generation");
    let store = QdrantStore::new(settings(qdrant, &name)).unwrap();
    store.create().await.unwrap();
    (store, name)
}

async fn remove(qdrant: &Qdrant, name: &str) {
    qdrant.client().delete_collection(DeleteCollectionBuilder::new(name)).await.unwrap();
}

/// Every third key is text, every third has two columns.
fn key(id: u64) -> RowKey {
    let columns = match id % 3 {
        0 => json!({ "id": id }),
        1 => json!({ "id": format!("row {id}") }),
        _ => json!({ "id": id, "language": "en" }),
    };
    RowKey::from_columns(columns.as_object().unwrap().clone())
}

fn partition(id: u64) -> Partition {
    (id % u64::from(PARTITIONS)) as Partition
}

fn unit(dice: &mut Dice) -> Vec<f32> {
    let numbers: Vec<f32> = (0..WIDTH).map(|_| dice.below(2_001) as f32 / 1_000.0 - 1.0).collect();
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    numbers.iter().map(|number| number / length).collect()
}

fn vector(id: u64, version: u64, window: u64) -> Vec<f32> {
    unit(&mut Dice::new(id << 40 | version << 10 | window))
}

/// Values of every kind that a filter can meet.
fn payload(id: u64, version: u64) -> Value {
    let category = match (id + version) % 6 {
        0 => json!("money, and  billing"),
        1 => json!("returns"),
        2 => json!(5),
        3 => json!(true),
        4 => json!(null),
        _ => json!(["money, and  billing", "5"]),
    };
    let n = match id % 5 {
        0 => json!(id % 7),
        1 => json!((id % 7) as f64),
        2 => json!(id as f64 / 2.0),
        3 => json!((1_u64 << 53) + id % 4),
        _ => json!(format!("{}", id % 7)),
    };
    json!({"id": id, "version": version, "category": category, "n": n, "tags": [id % 2, "a", {"b": [null]}]})
}

fn upsert(id: u64, version: u64, windows: u64) -> (Partition, VectorEvent) {
    let windows = (0..windows)
        .map(|window| Window::new(&vector(id, version, window), format!("row {id} version {version} window {window}")));
    let row = EmbeddedRow {
        version,
        row_hash: vec![7; 16],
        text_hash: vec![8; 16],
        payload: payload(id, version).to_string(),
        windows: windows.collect(),
        ..EmbeddedRow::default()
    };
    (partition(id), VectorEvent::Upsert { key: key(id), row })
}

fn delete(id: u64, version: u64) -> (Partition, VectorEvent) {
    (partition(id), VectorEvent::Delete { key: key(id), version: Version(version), commit_ts_ms: None })
}

fn barrier(partition: Partition, version: u64) -> (Partition, VectorEvent) {
    (partition, VectorEvent::Barrier { version: Version(version), commit_ts_ms: 0, of: None })
}

type Placed = Vec<(Partition, u64, VectorEvent)>;

/// Gives events their offsets.
fn placed(next: &mut [u64], events: Vec<(Partition, VectorEvent)>) -> Placed {
    let place = |(partition, event)| {
        let next = &mut next[usize::from(partition)];
        *next += 1;
        (partition, *next - 1, event)
    };
    events.into_iter().map(place).collect()
}

async fn apply(store: &QdrantStore, events: Vec<(Partition, VectorEvent)>) {
    let mut next = store.positions();
    store.apply(placed(&mut next, events)).await.unwrap();
}

async fn nearest(store: &QdrantStore, vector: &[f32], limit: usize) -> Vec<Hit> {
    store.search(vector, limit, -1.0, &Filter::none(), Accuracy::Exact).await.unwrap()
}

/// The passages of all that is there.
async fn passages(store: &QdrantStore) -> Vec<String> {
    let mut passages: Vec<String> =
        nearest(store, &vector(0, 0, 0), 1_000).await.into_iter().map(|hit| hit.passage).collect();
    passages.sort();
    passages
}

#[tokio::test]
async fn rows_are_found_with_their_payload_and_the_positions_are_kept() {
    let qdrant = Qdrant::start();
    let (store, name) = store(&qdrant).await;
    assert_eq!((store.positions(), store.as_of_ms()), (vec![0; 4], None));
    apply(&store, vec![upsert(1, 3, 1), upsert(2, 4, 2), upsert(3, 5, 1)]).await;
    let hits = nearest(&store, &vector(2, 4, 1), 2).await;
    assert_eq!((hits.len(), &hits[0].key, hits[0].version), (2, &key(2), Version(4)));
    assert_eq!(hits[0].passage, "row 2 version 4 window 1");
    assert_eq!(Value::from(hits[0].payload.clone()), payload(2, 4));
    assert!((hits[0].score - 1.0).abs() < 1e-5);
    // What has the least score that is asked for belongs to it.
    let least = store.search(&vector(2, 4, 1), 9, hits[1].score, &Filter::none(), Accuracy::Exact).await.unwrap();
    assert_eq!(least, hits);
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (3, 4));

    let heartbeats = (0..PARTITIONS).map(|partition| (partition, VectorEvent::Heartbeat { as_of_ms: 70 }));
    let mut next = store.positions();
    let batch = placed(&mut next, heartbeats.collect());
    store.apply_upto(batch, vec![0, 9, 0, 0]).await.unwrap();
    // Made once more it stays as it is, and another process finds what this one has left.
    let other = QdrantStore::new(settings(&qdrant, &name)).unwrap();
    other.create().await.unwrap();
    assert_eq!((other.positions(), other.as_of_ms()), (vec![1, 9, 2, 2], Some(70)));
    assert_eq!(other.rows().await.unwrap(), 3);
    remove(&qdrant, &name).await;
}

#[tokio::test]
async fn a_shorter_text_leaves_no_window_behind_and_a_delete_none_at_all() {
    let qdrant = Qdrant::start();
    let (store, name) = store(&qdrant).await;
    apply(&store, vec![upsert(2, 1, 250), upsert(3, 2, 3)]).await;
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (2, 253));
    apply(&store, vec![upsert(2, 3, 2)]).await;
    assert_eq!(store.points().await.unwrap(), 5);
    assert_eq!(nearest(&store, &vector(2, 1, 200), 1).await[0].passage.find("version 1"), None);
    apply(&store, vec![upsert(2, 4, 4), delete(3, 5)]).await;
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (1, 4));
    apply(&store, vec![delete(2, 6), delete(1, 7)]).await;
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (0, 0));
    assert_eq!(passages(&store).await, [""; 0]);
    // Deleted rows come back with a newer version only; after the tombstones are pruned, with any.
    apply(&store, vec![upsert(2, 5, 3)]).await;
    assert_eq!(store.points().await.unwrap(), 0);
    assert_eq!(store.prune(0).await.unwrap(), 0);
    assert!(store.prune(i64::MAX).await.unwrap() > 250);
    apply(&store, vec![upsert(2, 5, 3)]).await;
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (1, 3));
    remove(&qdrant, &name).await;
}

#[tokio::test]
async fn a_barrier_empties_its_partition_and_nothing_comes_back_behind_it() {
    let qdrant = Qdrant::start();
    let (store, name) = store(&qdrant).await;
    let mut next = store.positions();
    let events = vec![upsert(4, 1, 2), upsert(8, 2, 1), upsert(5, 1, 1), barrier(0, 10), upsert(12, 11, 1)];
    let applied = store.apply(placed(&mut next, events)).await.unwrap();
    assert_eq!((applied.upserts, applied.purged), (4, 2));
    assert_eq!(passages(&store).await, ["row 12 version 11 window 0", "row 5 version 1 window 0"]);
    // Also for who opens it afresh.
    let other = QdrantStore::new(settings(&qdrant, &name)).unwrap();
    other.open().await.unwrap();
    let applied = other.apply(placed(&mut next, vec![upsert(4, 9, 1), barrier(0, 10), delete(8, 9)])).await.unwrap();
    assert_eq!((applied.stale, store.rows().await.unwrap()), (3, 2));
    assert_eq!(other.positions(), next);
    remove(&qdrant, &name).await;
}

/// A write that was late is made once more, behind the time-out of requests.
#[tokio::test]
async fn what_a_late_write_brings_back_behind_a_barrier_is_purged_again() {
    let qdrant = Qdrant::start();
    let name = qdrant.name("late");
    QdrantStore::new(settings(&qdrant, &name)).unwrap().create().await.unwrap();
    // Shorter than by default, which is waited for here; long enough for a busy machine.
    let mut hasty = settings(&qdrant, &name);
    hasty.server.timeout = Duration::from_secs(2);
    let store = QdrantStore::new(hasty).unwrap();
    store.open().await.unwrap();
    apply(&store, vec![barrier(0, 10), upsert(8, 11, 1)]).await;
    // As it was sent before the barrier was.
    let payload = json!({
        "_vecsync": {"key": "{\"id\":99}", "version": 9, "window": 0, "windows": 1, "partition": 0, "deleted": false},
        "passage": "late",
    });
    let late = PointStruct::new(99, vector(99, 9, 0), qdrant_client::Payload::try_from(payload).unwrap());
    qdrant.client().upsert_points(UpsertPointsBuilder::new(&name, vec![late]).wait(true)).await.unwrap();
    assert_eq!(store.rows().await.unwrap(), 2);
    let since = Instant::now();
    while store.rows().await.unwrap() == 2 {
        store.tidy().await.unwrap();
        assert!(since.elapsed().as_secs() < 40, "it was not purged again");
    }
    assert_eq!(passages(&store).await, ["row 8 version 11 window 0"]);
    remove(&qdrant, &name).await;
}

/// Both have looked before either writes, so only the condition of the write itself keeps the newer one.
#[tokio::test]
async fn of_two_writers_at_the_same_time_the_newer_version_stays() {
    let qdrant = Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "5")]);
    let (one, name) = store(&qdrant).await;
    let other = QdrantStore::new(settings(&qdrant, &name)).unwrap();
    other.open().await.unwrap();
    let at = |offset: u64, (partition, event): (Partition, VectorEvent)| vec![(partition, offset, event)];
    for round in 0..30_u64 {
        let (id, newer) = (round * 3, 2 * round + 2);
        let event = if round % 2 == 0 { upsert(id, newer, 1) } else { delete(id, newer) };
        // The older one has windows of which the newer one knows nothing.
        let (newer, older) = (at(newer, event), at(newer - 1, upsert(id, newer - 1, 3)));
        // The one that is asked first is polled first.
        let (a, b) = tokio::join!(one.apply(newer), other.apply(older));
        a.unwrap();
        b.unwrap();
    }
    let wanted: u64 = 15;
    assert_eq!(store_versions(&one).await, (0..30).step_by(2).map(|round| (round * 3, 2 * round + 2)).collect());
    assert_eq!(one.rows().await.unwrap(), wanted);
    assert!(passages(&one).await.iter().all(|passage| passage.ends_with("window 0")));
    // The positions are those of who is further, too.
    other.open().await.unwrap();
    assert_eq!(other.positions().iter().max(), Some(&61));
}

/// The version of each row that can be found.
async fn store_versions(store: &QdrantStore) -> BTreeMap<u64, u64> {
    let hits = nearest(store, &vector(0, 0, 0), 1_000).await;
    hits.iter().map(|hit| (hit.payload["id"].as_u64().unwrap(), hit.version.0)).collect()
}

/// Random events in random batches give the same as in the mirror, for every search.
#[tokio::test]
async fn it_answers_as_the_mirror_does() {
    let qdrant = Qdrant::start();
    let (store, name) = store(&qdrant).await;
    let (mirror, _folder) = mirror();
    let mut dice = Dice::new(17);
    let mut next = vec![0; usize::from(PARTITIONS)];
    for _ in 0..60 {
        let events = (0..1 + dice.below(60)).map(|_| {
            let id = dice.below(300) as u64;
            let version = 1 + next[usize::from(partition(id))] + dice.below(50) as u64;
            match dice.below(40) {
                0 => barrier(partition(id), version / 2),
                1..=8 => delete(id, version),
                _ => upsert(id, version, 1 + dice.below(3) as u64),
            }
        });
        let batch = placed(&mut next.clone(), events.collect());
        for (partition, ..) in &batch {
            next[usize::from(*partition)] += 1;
        }
        store.apply(batch.clone()).await.unwrap();
        mirror.apply(batch).await.unwrap();
    }
    assert_eq!(store.positions(), mirror.positions());
    assert!(mirror.rows() > 50, "{} rows", mirror.rows());
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (mirror.rows(), mirror.points()));
    check_searches(&store, &mirror, &mut dice, 300).await;
    remove(&qdrant, &name).await;
}

/// The same beyond the threshold from which Qdrant has an index.
#[tokio::test]
async fn it_answers_as_the_mirror_does_when_it_is_large() {
    let qdrant = Qdrant::start();
    let (store, name) = store(&qdrant).await;
    let (mirror, _folder) = mirror();
    // Two segments of some hundred vectors each are beyond this already.
    let threshold = OptimizersConfigDiffBuilder::default().indexing_threshold(500);
    let client = qdrant.client();
    client.update_collection(UpdateCollectionBuilder::new(&name).optimizers_config(threshold)).await.unwrap();
    let mut next = vec![0; usize::from(PARTITIONS)];
    for first in (0..4_000).step_by(1_000) {
        let batch = placed(&mut next, (first..first + 1_000).map(|id| upsert(id, id + 1, 1)).collect());
        store.apply(batch.clone()).await.unwrap();
        mirror.apply(batch).await.unwrap();
    }
    let since = Instant::now();
    loop {
        let info = client.collection_info(&name).await.unwrap().result.unwrap();
        if info.status() == CollectionStatus::Green && info.indexed_vectors_count.unwrap_or(0) > 0 {
            break;
        }
        assert!(since.elapsed().as_secs() < 120, "nothing was indexed: {info:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.rows().await.unwrap(), 4_000);
    check_searches(&store, &mirror, &mut Dice::new(18), 40).await;
    remove(&qdrant, &name).await;
}

fn mirror() -> (Mirror, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let settings = MirrorSettings {
        dir: folder.path().join("mirror"),
        pipeline: "faq".to_owned(),
        revision: "rev".to_owned(),
        partitions: PARTITIONS,
        filters: FIELDS.map(str::to_owned).to_vec(),
    };
    (Mirror::open(settings).unwrap(), folder)
}

async fn check_searches(store: &QdrantStore, mirror: &Mirror, dice: &mut Dice, searches: usize) {
    let typed = |value: Value| FilterValue::from_json(value).unwrap();
    let categories = [
        FilterValue::from_text("money, and  billing"),
        FilterValue::from_text("5"),
        FilterValue::from_text("5.0"),
        FilterValue::from_text("true"),
        typed(json!("money, and  billing")),
        typed(json!("5")),
        typed(json!(5)),
        typed(json!(true)),
        typed(json!("nobody")),
    ];
    let numbers = [json!(3), json!(3.0), json!(1.5), json!("3"), json!((1_u64 << 53) + 1), json!(1_u64 << 53)];
    let texts = ["3", "3.0", "1.5", "9007199254740993"];
    let mut found = 0;
    for search in 0..searches {
        let mut conditions = vec![];
        if dice.below(2) == 0 {
            conditions.push(("category".to_owned(), dice.pick(&categories).clone()));
        }
        match dice.below(4) {
            0 => conditions.push(("n".to_owned(), typed(dice.pick(&numbers).clone()))),
            1 => conditions.push(("n".to_owned(), FilterValue::from_text(texts[dice.below(texts.len())]))),
            2 => conditions.push(("tags".to_owned(), typed(json!(dice.below(2))))),
            _ => {}
        }
        let (filter, limit) = (Filter::new(conditions), 1 + dice.below(20));
        let min_score = *dice.pick(&[-1.0, 0.0, 0.05]);
        let query = unit(dice);
        let wanted = mirror.search(&query, limit, min_score, &filter).unwrap();
        let hits = store.search(&query, limit, min_score, &filter, Accuracy::Exact).await.unwrap();
        let keys = |hits: &[Hit]| hits.iter().map(|hit| hit.key.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(&hits), keys(&wanted), "search {search}, {limit} of {filter:?} at least {min_score}");
        for (hit, wanted) in hits.iter().zip(&wanted) {
            assert!((hit.score - wanted.score).abs() < 1e-5, "{} and {}", hit.score, wanted.score);
            assert_eq!((&hit.passage, &hit.payload, hit.version), (&wanted.passage, &wanted.payload, wanted.version));
        }
        found += hits.len();
    }
    assert!(found > searches, "{found} hits in {searches} searches");
}

/// Rows and positions of every batch that was said to be applied are there after a kill, and no position stands before
/// its rows.
#[tokio::test]
async fn what_was_applied_outlives_kills() {
    // Slow enough for a kill to come between the writes of one batch.
    let mut qdrant = Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "10")]);
    let (first, name) = store(&qdrant).await;
    let mut applied = first.positions();
    let mut dice = Dice::new(19);
    for round in 0..12_u64 {
        let store = QdrantStore::new(settings(&qdrant, &name)).unwrap();
        store.open().await.unwrap();
        assert!(store.positions().iter().zip(&applied).all(|(found, applied)| found >= applied), "round {round}");
        check_versions(&store).await;
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let writing = tokio::spawn(async move {
            let mut next = store.positions();
            loop {
                // Row `partition + 4 * n` has the offset of its last event as its version.
                let mut batch = vec![];
                for (partition, next) in next.iter_mut().enumerate() {
                    for _ in 0..80 {
                        let id = partition as u64 + 4 * (*next % ROWS);
                        batch.push((partition as Partition, *next, upsert(id, *next + 1, 1 + *next % 2).1));
                        *next += 1;
                    }
                }
                if store.apply(batch).await.is_err() {
                    return store.positions();
                }
                let _ = told.send(()).await;
            }
        });
        for _ in 0..1 + dice.below(3) {
            heard.recv().await.unwrap();
        }
        drop(heard);
        tokio::time::sleep(Duration::from_millis(dice.below(60) as u64)).await;
        qdrant.kill();
        applied = writing.await.unwrap();
        qdrant.restart();
    }
    assert!(applied.iter().all(|position| *position > 100), "{applied:?}");
}

/// Rows of each partition.
const ROWS: u64 = 60;

/// What each row must have by the positions.
async fn check_versions(store: &QdrantStore) {
    let versions = store_versions(store).await;
    for (partition, position) in store.positions().into_iter().enumerate() {
        for offset in position.saturating_sub(ROWS)..position {
            let id = partition as u64 + 4 * (offset % ROWS);
            assert!(versions.get(&id) > Some(&offset), "row {id} is {:?}, position {position}", versions.get(&id));
        }
    }
}

#[tokio::test]
async fn what_is_not_called_completed_moves_no_position() {
    let mut qdrant = Qdrant::own();
    let (first, name) = store(&qdrant).await;
    apply(&first, vec![upsert(1, 1, 1)]).await;
    for fault in ["acknowledged", "wait_timeout"] {
        qdrant.kill();
        qdrant.set("QDRANT_TEST_STATUS", fault);
        qdrant.restart();
        let store = QdrantStore::new(settings(&qdrant, &name)).unwrap();
        store.open().await.unwrap();
        let before = store.positions();
        let refused = store.apply(vec![(1, before[1], upsert(1, 2, 1).1)]).await;
        assert!(matches!(refused, Err(QdrantError::NotDurable { .. })), "{refused:?}");
        assert_eq!(store.positions(), before);
    }
    // It has happened all the same, and the same again does no harm.
    qdrant.kill();
    qdrant.restart();
    assert_eq!(store_versions(&first).await, BTreeMap::from([(1, 2)]));
}

/// What was not answered is not counted, and is there once when it is sent again.
#[tokio::test]
async fn a_server_that_stands_still_is_given_up_in_time_and_taken_up_where_it_is() {
    let mut qdrant = Qdrant::own();
    let name = qdrant.name("still");
    let mut hasty = settings(&qdrant, &name);
    hasty.server.timeout = Duration::from_secs(1);
    let store = QdrantStore::new(hasty).unwrap();
    store.create().await.unwrap();
    apply(&store, vec![upsert(1, 1, 2)]).await;
    qdrant.signal("STOP");
    let since = Instant::now();
    let batch = vec![(1, 1, upsert(1, 2, 1).1), (2, 0, upsert(2, 3, 1).1)];
    let silent = store.apply(batch.clone()).await;
    assert!(matches!(silent, Err(QdrantError::Silent { .. })), "{silent:?}");
    assert!(since.elapsed() < Duration::from_secs(3), "after {:?}", since.elapsed());
    let unanswered = store.search(&vector(1, 1, 0), 1, 0.0, &Filter::none(), Accuracy::Exact).await;
    assert!(unanswered.is_err());
    assert_eq!(store.positions(), [0, 1, 0, 0]);
    qdrant.signal("CONT");
    store.apply(batch).await.unwrap();
    assert_eq!(store.positions(), [0, 2, 1, 0]);
    assert_eq!(passages(&store).await, ["row 1 version 2 window 0", "row 2 version 3 window 0"]);
    assert_eq!((store.rows().await.unwrap(), store.points().await.unwrap()), (2, 2));
}

/// It is restored under a store that goes on: nothing that came in between is stepped over.
#[tokio::test]
async fn a_collection_that_was_restored_goes_on_from_its_own_positions() {
    let qdrant = Qdrant::start();
    let (store, name) = store(&qdrant).await;
    let (first, second, third) = (upsert(1, 1, 1), upsert(5, 2, 1), upsert(1, 3, 1));
    let events = [(1, 0, first.1), (1, 1, second.1), (1, 2, third.1)];
    store.apply(events[..1].to_vec()).await.unwrap();
    let snapshot = qdrant.client().create_snapshot(&name).await.unwrap().snapshot_description.unwrap();
    let path = format!("/collections/{name}/snapshots/{}", snapshot.name);
    let (_, file) = qdrant.rest("GET", &path, "text/plain", b"");
    store.apply(events[1..2].to_vec()).await.unwrap();
    assert_eq!(store.positions(), [0, 2, 0, 0]);

    qdrant.upload(&name, &file);
    let noticed = store.apply(events[2..].to_vec()).await;
    assert!(matches!(noticed, Err(QdrantError::Restored { partition: 1, found: 1, stood: 2, .. })), "{noticed:?}");
    store.open().await.unwrap();
    assert_eq!((store.positions(), store.rows().await.unwrap()), (vec![0, 1, 0, 0], 1));
    store.apply(events[1..].to_vec()).await.unwrap();
    assert_eq!(passages(&store).await, ["row 1 version 3 window 0", "row 5 version 2 window 0"]);
    remove(&qdrant, &name).await;
}

#[tokio::test]
async fn collections_that_are_not_ours_are_refused_by_name() {
    let qdrant = Qdrant::start();
    let (own, name) = store(&qdrant).await;
    let refused = async |settings: QdrantSettings, words: &str| {
        let found = QdrantStore::new(settings).unwrap().open().await;
        let told = found.as_ref().map_err(ToString::to_string).expect_err("it was opened").clone();
        assert!(told.contains(words), "wanted {words:?} in {told:?}");
    };
    refused(settings(&qdrant, "vecsync_test_nobody"), "vecsync_test_nobody: it is not there").await;
    refused(QdrantSettings { revision: "other".into(), ..settings(&qdrant, &name) }, "revision rev").await;
    refused(QdrantSettings { partitions: 5, ..settings(&qdrant, &name) }, "4 partitions").await;
    let (theirs, client) = (qdrant.name("theirs"), qdrant.client());
    for (width, words) in [(3, "3 by Cosine, wanted 384"), (WIDTH as u64, "was not made by vecsync")] {
        let request =
            CreateCollectionBuilder::new(&theirs).vectors_config(VectorParamsBuilder::new(width, Distance::Cosine));
        client.create_collection(request).await.unwrap();
        refused(settings(&qdrant, &theirs), words).await;
        let created = QdrantStore::new(settings(&qdrant, &theirs)).unwrap().create().await;
        assert!(matches!(created, Err(QdrantError::Foreign { .. })), "{created:?}");
        remove(&qdrant, &theirs).await;
    }
    let field = Filter::new(vec![("id".to_owned(), FilterValue::from_text("1"))]);
    let found = own.search(&vector(1, 1, 1), 1, 0.0, &field, Accuracy::Exact).await;
    assert!(matches!(found, Err(QdrantError::Field { .. })), "{found:?}");
    let found = own.search(&[1.0; 3], 1, 0.0, &Filter::none(), Accuracy::Exact).await;
    assert!(matches!(found, Err(QdrantError::Query { found: 3 })), "{found:?}");
    remove(&qdrant, &name).await;
}

#[tokio::test]
async fn a_key_is_sent_and_never_shown() {
    let qdrant = Qdrant::own_with(Some("right"), &[]);
    let (_, name) = store(&qdrant).await;
    let mut wrong = settings(&qdrant, &name);
    wrong.server.api_key = Some(vecsync::config::Secret::new("canary".to_owned()));
    let refused = QdrantStore::new(wrong).unwrap().open().await.expect_err("it was let in");
    let told = format!("{} {refused:?}", vecsync::retry::Chain(&refused));
    assert!(told.contains("API key") && !told.contains("canary"), "{told}");
}
