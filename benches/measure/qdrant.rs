//! The store in Qdrant by itself: rows that are ready, against a bare loop of the client that writes the same points under the
//! same conditions into a collection made in the same way, one round of each after the other.

use std::time::{Duration, Instant};

use qdrant_client::qdrant::{
    Condition, Filter, PointStruct, Range, ScrollPointsBuilder, UpsertPointsBuilder, vector_output,
};
use serde_json::Value;
use vecsync::embed::normalise;
use vecsync::event::{EmbeddedRow, RowKey, VectorEvent, Window};
use vecsync::index::scan::DIMENSION;
use vecsync::index::{QdrantSettings, QdrantStore};

use super::Figures;
use crate::support::dice::Dice;
use crate::support::process::{cpu_seconds, wait_until};
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;

const ROWS: u64 = 10_000;
/// Rows of a replay, and how many texts they have.
const REPLAYED: u64 = 100_000;
const TEXTS: u64 = 50;
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Rows of one batch, as the sink takes them at most.
const BATCH: u64 = 1_000;
/// Points of one request of the bare loop, as the store sends them.
const REQUEST: usize = 100;

pub fn upsert() -> Figures {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(measure())
}

/// All rows of the log into a new generation, while the one before is asked.
pub fn replay() -> Figures {
    eprintln!("qdrant: {REPLAYED} points into a new generation");
    let (qdrant, mut site) = (Qdrant::own(), Site::prepare());
    // They share their texts, so that making them needs no model to speak of.
    site.sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer, category)
         SELECT n, 'Question ' || n % {TEXTS}, repeat('some words of it ', (n % {TEXTS})::int + 1), 'c00'
         FROM generate_series(1, {REPLAYED}) n"
    ));
    let server = qdrant.settings();
    site.vecsync.set("QDRANT_HOST", &server.host);
    site.vecsync.set("QDRANT_PORT", server.port);
    site.vecsync.set("QDRANT_GRPC_PORT", server.grpc_port);
    site.vecsync.start();
    wait_until("Qdrant to have all", LIMIT, || {
        std::thread::sleep(LOOK);
        match site.vecsync.metric("vecsync_store_points", "store=\"qdrant\"") {
            Some(points) if points >= REPLAYED as f64 => Ok(()),
            points => Err(format!("{points:?} of {REPLAYED}")),
        }
    });
    let embeddings = |site: &mut Site| site.vecsync.metric("vecsync_embeddings_total", "computed").unwrap_or_default();
    let (before, begun) = (embeddings(&mut site), Instant::now());
    let said = site.vecsync.run_within(&["replay", "--topic", "vectors", "--into", "new", "--json"], LIMIT);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let seconds = begun.elapsed().as_secs_f64();
    let points = said.stdout.parse::<Value>().expect("JSON")["qdrant"]["difference"]["points"].as_f64();
    assert_eq!(points, Some(REPLAYED as f64), "{}", said.stdout);
    vec![
        ("points_per_s", REPLAYED as f64 / seconds),
        ("seconds", seconds),
        ("embeddings", embeddings(&mut site) - before),
    ]
}

async fn measure() -> Figures {
    let qdrant = Qdrant::own();
    let (store, bare) = (made(&qdrant, "store").await, made(&qdrant, "bare").await);
    let mut dice = Dice::new(5);
    let rows: Vec<Vec<f32>> = (0..ROWS).map(|_| vector(&mut dice)).collect();
    let (mut ours, mut theirs, mut busy) = (vec![], vec![], vec![]);
    // New rows, then newer versions of them.
    for round in 0..2 {
        let batches: Vec<Vec<_>> = (0..ROWS)
            .step_by(BATCH as usize)
            .map(|first| (first..first + BATCH).map(|id| event(id, round * ROWS + id, &rows[id as usize])).collect())
            .collect();
        let (began, worked) = (Instant::now(), cpu_seconds(std::process::id()));
        for batch in batches {
            store.apply(batch).await.expect("it is written");
        }
        let took = began.elapsed().as_secs_f64();
        busy.push((cpu_seconds(std::process::id()) - worked) / took);
        ours.push(ROWS as f64 / took);
        let points = stored(&qdrant, store.collection()).await;
        let client = qdrant.client();
        let began = Instant::now();
        for points in points.chunks(REQUEST) {
            let request =
                UpsertPointsBuilder::new(bare.collection(), points).update_filter(unless_newer(points)).wait(true);
            client.upsert_points(request).await.expect("it is written");
        }
        theirs.push(points.len() as f64 / began.elapsed().as_secs_f64());
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    vec![
        ("points_per_s", mean(&ours)),
        ("of_bare_loop", mean(&ours) / mean(&theirs)),
        ("own_cpu_percent", 100.0 * mean(&busy)),
    ]
}

async fn made(qdrant: &Qdrant, what: &str) -> QdrantStore {
    let store = QdrantStore::new(QdrantSettings {
        server: qdrant.settings(),
        collection: qdrant.name(what),
        pipeline: "faq".to_owned(),
        revision: "rev".to_owned(),
        partitions: 1,
        log: Some("log".to_owned()),
        payload: vec![],
        filters: vec!["category".to_owned()],
    });
    let store = store.expect("an address");
    store.create().await.expect("it is made");
    store
}

fn vector(dice: &mut Dice) -> Vec<f32> {
    let mut vector: Vec<f32> = (0..DIMENSION).map(|_| dice.below(2001) as f32 / 1000.0 - 1.0).collect();
    normalise(&mut vector).expect("it has a length");
    vector
}

fn event(id: u64, offset: u64, vector: &[f32]) -> (u16, u64, VectorEvent) {
    let key = RowKey::from_bytes(format!(r#"{{"id":{id}}}"#).as_bytes()).expect("a key");
    let windows = vec![Window::new(vector, format!("What row {id} says, in about as many words as an answer has."))];
    let payload = format!(r#"{{"id":{id},"question":"Question {id}?","category":"c{:02}"}}"#, id % 50);
    let row = EmbeddedRow { version: offset + 1, payload, windows, row_hash: vec![7; 16], ..EmbeddedRow::default() };
    (0, offset, VectorEvent::Upsert { key, row })
}

/// All points with a vector, as they are stored.
async fn stored(qdrant: &Qdrant, collection: &str) -> Vec<PointStruct> {
    let (client, mut points, mut offset) = (qdrant.client(), vec![], None);
    loop {
        let mut request = ScrollPointsBuilder::new(collection).limit(1_000).with_payload(true).with_vectors(true);
        request = offset.map_or(request.clone(), |offset| request.offset(offset));
        let answer = client.scroll(request).await.expect("it answers");
        points.extend(answer.result.into_iter().filter_map(|point| {
            let vector = match point.vectors.as_ref()?.get_vector()? {
                vector_output::Vector::Dense(vector) => vector.data,
                other => panic!("not dense: {other:?}"),
            };
            Some(PointStruct::new(point.id?, vector, qdrant_client::Payload::from(point.payload)))
        }));
        offset = answer.next_page_offset;
        if offset.is_none() {
            return points;
        }
    }
}

/// The store's own condition: no newer version is there.
fn unless_newer(points: &[PointStruct]) -> Filter {
    let branch = |point: &PointStruct| {
        let payload = Value::from(qdrant_client::Payload::from(point.payload.clone()));
        let newer = Range { gt: payload["_vecsync"]["version"].as_f64(), ..Range::default() };
        let newer = vec![Condition::range("_vecsync.version", newer)];
        Filter { must: vec![Condition::has_id(point.id.clone())], must_not: newer, ..Default::default() }.into()
    };
    Filter::should(points.iter().map(branch))
}
