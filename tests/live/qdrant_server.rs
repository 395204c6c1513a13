//! What vecsync relies on in a Qdrant, shown with the official client: against the test server, or the real one that
//! `QDRANT_TEST_URL` names. Tests that kill or stop it always take the test server.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{
    CollectionStatus, Condition, CountPointsBuilder, CreateAliasBuilder, CreateCollection, CreateCollectionBuilder,
    CreateFieldIndexCollectionBuilder, DeletePointsBuilder, DeleteSnapshotRequestBuilder, Distance, FieldType, Filter,
    GetPointsBuilder, HnswConfigDiffBuilder, NamedVectors, OptimizersConfigDiffBuilder, PayloadSchemaType, PointId,
    PointStruct, QueryPointsBuilder, Range, RecommendPointsBuilder, RenameAliasBuilder, ScoredPoint,
    ScrollPointsBuilder, SearchParamsBuilder, SetPayloadPointsBuilder, UpdateCollectionBuilder, UpdateStatus,
    UpsertPointsBuilder, Value, VectorParamsBuilder, Vectors, vectors_config,
};
use qdrant_client::{Payload, QdrantError};
use tonic::Code;

use crate::support::dice::Dice;
use crate::support::qdrant::{Qdrant, WIDTH};

fn vector(dice: &mut Dice) -> Vec<f32> {
    (0..WIDTH).map(|_| dice.below(2_001) as f32 / 1_000.0 - 1.0).collect()
}

fn point(id: u64, vector: Vec<f32>, fields: &[(&str, Value)]) -> PointStruct {
    let fields: HashMap<String, Value> =
        fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    PointStruct::new(id, vector, Payload::from(fields))
}

/// A point that is not to be found by any search: it has a payload and no vector.
fn without_vector(id: u64, fields: &[(&str, Value)]) -> PointStruct {
    let empty = VectorsOptions::Vectors(NamedVectors { vectors: HashMap::new() });
    let mut point = point(id, vec![], fields);
    point.vectors = Some(Vectors { vectors_options: Some(empty) });
    point
}

fn number(id: &Option<PointId>) -> u64 {
    match id.as_ref().and_then(|id| id.point_id_options.as_ref()) {
        Some(PointIdOptions::Num(number)) => *number,
        other => panic!("not a number: {other:?}"),
    }
}

fn upsert(collection: &str, points: Vec<PointStruct>) -> UpsertPointsBuilder {
    UpsertPointsBuilder::new(collection, points).wait(true)
}

#[track_caller]
fn expect_refused<T: std::fmt::Debug>(answer: Result<T, QdrantError>, code: Code, words: &str) {
    match answer {
        Err(QdrantError::ResponseError { status }) => {
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(words), "wanted {words:?} in {:?}", status.message());
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// The version of each point that is there.
async fn versions(client: &qdrant_client::Qdrant, collection: &str, ids: std::ops::Range<u64>) -> BTreeMap<u64, i64> {
    let ids: Vec<PointId> = ids.map(PointId::from).collect();
    let found = client.get_points(GetPointsBuilder::new(collection, ids).with_payload(true)).await.unwrap();
    let version = |value: Option<&Value>| value.and_then(Value::as_integer).expect("a version");
    found.result.iter().map(|point| (number(&point.id), version(point.payload.get("version")))).collect()
}

async fn nearest(client: &qdrant_client::Qdrant, collection: &str, vector: Vec<f32>, limit: u64) -> Vec<ScoredPoint> {
    let query = QueryPointsBuilder::new(collection)
        .query(vector)
        .limit(limit)
        .params(SearchParamsBuilder::default().exact(true));
    client.query(query).await.unwrap().result
}

/// `init`'s parameters are kept, changed and shown.
#[tokio::test]
async fn a_collection_shows_what_it_was_made_with() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.name("made"));
    let optimizers = OptimizersConfigDiffBuilder::default()
        .default_segment_number(2)
        .max_segment_size(20_000)
        .memmap_threshold(20_000)
        .indexing_threshold(20_000)
        .flush_interval_sec(5)
        .max_optimization_threads(1);
    let request = || {
        let request = CreateCollectionBuilder::new(&name)
            .vectors_config(VectorParamsBuilder::new(WIDTH as u64, Distance::Cosine))
            .optimizers_config(optimizers.clone())
            .hnsw_config(HnswConfigDiffBuilder::default().m(16))
            .build();
        let metadata = HashMap::from([("revision".to_owned(), Value::from("abc"))]);
        CreateCollection { metadata, ..request }
    };
    assert!(!client.collection_exists(&name).await.unwrap());
    assert!(client.create_collection(request()).await.unwrap().result);
    expect_refused(client.create_collection(request()).await, Code::AlreadyExists, "already exists");
    assert!(client.list_collections().await.unwrap().collections.iter().any(|found| found.name == name));

    client
        .create_field_index(CreateFieldIndexCollectionBuilder::new(&name, "category", FieldType::Keyword).wait(true))
        .await
        .unwrap();
    let change = OptimizersConfigDiffBuilder::default().indexing_threshold(30_000);
    client.update_collection(UpdateCollectionBuilder::new(&name).optimizers_config(change)).await.unwrap();

    let info = client.collection_info(&name).await.unwrap().result.unwrap();
    assert_eq!((info.status(), info.points_count), (CollectionStatus::Green, Some(0)));
    assert_eq!(info.payload_schema["category"].data_type(), PayloadSchemaType::Keyword);
    let config = info.config.unwrap();
    assert_eq!(config.metadata["revision"], Value::from("abc"));
    let optimizers = config.optimizer_config.unwrap();
    assert_eq!(
        (optimizers.default_segment_number, optimizers.indexing_threshold, optimizers.memmap_threshold),
        (Some(2), Some(30_000), Some(20_000))
    );
    match config.params.unwrap().vectors_config.unwrap().config.unwrap() {
        vectors_config::Config::Params(params) => {
            assert_eq!((params.size, params.distance()), (WIDTH as u64, Distance::Cosine));
        }
        other => panic!("{other:?}"),
    }
    assert!(client.delete_collection(&name).await.unwrap().result);
    assert!(!client.collection_exists(&name).await.unwrap());
    expect_refused(client.collection_info(&name).await, Code::NotFound, &format!("Collection `{name}` doesn't exist!"));
}

#[tokio::test]
async fn an_alias_moves_in_one_step_and_is_no_collection() {
    let qdrant = Qdrant::start();
    let client = qdrant.client();
    let (old, new) = (qdrant.collection("old").await, qdrant.collection("new").await);
    let (alias, renamed) = (qdrant.name("alias"), qdrant.name("renamed"));
    let mut dice = Dice::new(1);
    client.upsert_points(upsert(&new, vec![point(1, vector(&mut dice), &[])])).await.unwrap();
    let count = async |name: &str| client.count(CountPointsBuilder::new(name).exact(true)).await;

    client.create_alias(CreateAliasBuilder::new(&old, &alias)).await.unwrap();
    assert_eq!(count(&alias).await.unwrap().result.unwrap().count, 0);
    client.create_alias(CreateAliasBuilder::new(&new, &alias)).await.unwrap();
    assert_eq!(count(&alias).await.unwrap().result.unwrap().count, 1);
    assert!(client.collection_exists(&alias).await.unwrap());

    // Every call takes it.
    client.upsert_points(upsert(&alias, vec![point(2, vector(&mut dice), &[])])).await.unwrap();
    assert_eq!(nearest(&client, &alias, vector(&mut dice), 5).await.len(), 2);
    assert_eq!(client.collection_info(&alias).await.unwrap().result.unwrap().points_count, Some(2));

    expect_refused(client.create_alias(CreateAliasBuilder::new(&new, &old)).await, Code::AlreadyExists, &old);
    let nowhere = qdrant.name("nowhere");
    expect_refused(client.create_alias(CreateAliasBuilder::new(&nowhere, &alias)).await, Code::NotFound, &nowhere);
    let taken = CreateCollectionBuilder::new(&alias).vectors_config(VectorParamsBuilder::new(3, Distance::Dot));
    assert!(client.create_collection(taken).await.is_err());

    client.rename_alias(RenameAliasBuilder::new(&alias, &renamed)).await.unwrap();
    expect_refused(count(&alias).await, Code::NotFound, "doesn't exist!");
    let listed = client.list_collection_aliases(&new).await.unwrap().aliases;
    assert_eq!(listed.iter().map(|alias| alias.alias_name.as_str()).collect::<Vec<_>>(), [renamed.as_str()]);
    assert!(client.list_aliases().await.unwrap().aliases.iter().any(|found| found.alias_name == renamed));
    client.delete_alias(&renamed).await.unwrap();
    expect_refused(count(&renamed).await, Code::NotFound, "doesn't exist!");
    assert_eq!(count(&new).await.unwrap().result.unwrap().count, 2);
    client.delete_collection(&old).await.unwrap();
    client.delete_collection(&new).await.unwrap();
}

/// The filter is asked of the stored points, and of all points of a request alike.
#[tokio::test]
async fn a_conditional_upsert_replaces_what_matches_and_inserts_what_is_absent() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("conditional").await);
    let mut dice = Dice::new(2);
    let mut versioned = |id: u64, version: i64| point(id, vector(&mut dice), &[("version", version.into())]);
    client.upsert_points(upsert(&name, vec![versioned(1, 5), versioned(2, 5)])).await.unwrap();

    let older_than = |version: f64| Condition::range("version", Range { lt: Some(version), ..Range::default() });
    let request = upsert(&name, vec![versioned(1, 9), versioned(2, 4), versioned(3, 4)])
        .update_filter(Filter::must([older_than(5.0)]));
    let answer = client.upsert_points(request).await.unwrap();
    assert_eq!(answer.result.unwrap().status(), UpdateStatus::Completed);
    assert_eq!(versions(&client, &name, 1..4).await, BTreeMap::from([(1, 5), (2, 5), (3, 4)]));

    // One filter for all: the older version of 2 passes, because the filter was made for 1.
    let request = upsert(&name, vec![versioned(1, 9), versioned(2, 4)]).update_filter(Filter::must([older_than(9.0)]));
    client.upsert_points(request).await.unwrap();
    assert_eq!(versions(&client, &name, 1..4).await, BTreeMap::from([(1, 9), (2, 4), (3, 4)]));

    // A branch a point decides for each.
    let branch = |id: u64, version: f64| Filter::must([Condition::has_id([id]), older_than(version)]).into();
    let request = upsert(&name, vec![versioned(1, 8), versioned(2, 7), versioned(4, 1)])
        .update_filter(Filter::should([branch(1, 8.0), branch(2, 7.0), branch(4, 1.0)]));
    client.upsert_points(request).await.unwrap();
    assert_eq!(versions(&client, &name, 1..5).await, BTreeMap::from([(1, 9), (2, 7), (3, 4), (4, 1)]));

    // Integers compare as 64-bit floats.
    let large = (1_i64 << 53) - 1;
    client.upsert_points(upsert(&name, vec![versioned(5, large)])).await.unwrap();
    let request =
        upsert(&name, vec![versioned(5, large + 1)]).update_filter(Filter::must([older_than((large + 1) as f64)]));
    client.upsert_points(request).await.unwrap();
    assert_eq!(versions(&client, &name, 5..6).await, BTreeMap::from([(5, large + 1)]));
    client.delete_collection(&name).await.unwrap();
}

#[tokio::test]
async fn a_point_without_vector_is_kept_and_found_by_no_search() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("tombstones").await);
    let mut dice = Dice::new(3);
    let points = vec![point(1, vector(&mut dice), &[]), point(2, vector(&mut dice), &[("dead", false.into())])];
    client.upsert_points(upsert(&name, points)).await.unwrap();
    client.upsert_points(upsert(&name, vec![without_vector(2, &[("dead", true.into())])])).await.unwrap();

    let found = nearest(&client, &name, vector(&mut dice), 10).await;
    assert_eq!(found.iter().map(|point| number(&point.id)).collect::<Vec<_>>(), [1]);
    let dead = Filter::must([Condition::matches("dead", true)]);
    let counted = client.count(CountPointsBuilder::new(&name).filter(dead.clone()).exact(true)).await.unwrap();
    assert_eq!(counted.result.unwrap().count, 1);
    client.delete_points(DeletePointsBuilder::new(&name).points(dead).wait(true)).await.unwrap();
    assert_eq!(client.count(CountPointsBuilder::new(&name).exact(true)).await.unwrap().result.unwrap().count, 1);
    client.delete_points(DeletePointsBuilder::new(&name).points(vec![PointId::from(1)]).wait(true)).await.unwrap();
    assert_eq!(client.count(CountPointsBuilder::new(&name).exact(true)).await.unwrap().result.unwrap().count, 0);

    let mut absent = point(3, vec![], &[]);
    absent.vectors = None;
    expect_refused(
        client.upsert_points(upsert(&name, vec![absent])).await,
        Code::InvalidArgument,
        "Expected some vectors",
    );
    let short = upsert(&name, vec![point(3, vec![1.0; 3], &[])]);
    let words = format!("expected dim: {WIDTH}, got 3");
    expect_refused(client.upsert_points(short).await, Code::InvalidArgument, &words);
    let query = QueryPointsBuilder::new(&name).query(vec![1.0; 3]);
    expect_refused(client.query(query).await, Code::InvalidArgument, &words);
    let nowhere = upsert("no_such_collection", vec![point(3, vector(&mut dice), &[])]);
    expect_refused(
        client.upsert_points(nowhere).await,
        Code::NotFound,
        "Collection `no_such_collection` doesn't exist!",
    );
    client.delete_collection(&name).await.unwrap();
}

#[tokio::test]
async fn filters_choose_what_they_say() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("filters").await);
    let mut dice = Dice::new(4);
    let points = (0..60_u64).map(|id| {
        let category = ["billing", "delivery", "returns"][id as usize % 3];
        let mut fields = vec![
            ("category", Value::from(category)),
            ("partition", Value::from((id % 4) as i64)),
            ("offset", Value::from(id as i64)),
            ("even", Value::from(id % 2 == 0)),
        ];
        if id < 10 {
            fields.push(("note", if id < 5 { Value::from("seen") } else { Value { kind: None } }));
        }
        point(id, vector(&mut dice), &fields)
    });
    client.upsert_points(upsert(&name, points.collect())).await.unwrap();

    let check = async |filter: Filter, wanted: &dyn Fn(u64) -> bool| {
        let wanted: Vec<u64> = (0..60).filter(|id| wanted(*id)).collect();
        // Small pages, so that offsets are walked.
        let (mut found, mut offset) = (vec![], None);
        loop {
            let mut page = ScrollPointsBuilder::new(&name).filter(filter.clone()).limit(7).with_payload(false);
            if let Some(offset) = offset {
                page = page.offset::<PointId>(offset);
            }
            let page = client.scroll(page).await.unwrap();
            found.extend(page.result.iter().map(|point| number(&point.id)));
            offset = page.next_page_offset;
            if offset.is_none() {
                break;
            }
        }
        assert_eq!(found, wanted, "{filter:?}");
        let counted = client.count(CountPointsBuilder::new(&name).filter(filter.clone()).exact(true)).await.unwrap();
        assert_eq!(counted.result.unwrap().count, wanted.len() as u64, "{filter:?}");
    };
    for indexed in [false, true] {
        if indexed {
            for (field, kind) in
                [("category", FieldType::Keyword), ("partition", FieldType::Integer), ("offset", FieldType::Integer)]
            {
                let request = CreateFieldIndexCollectionBuilder::new(&name, field, kind).wait(true);
                client.create_field_index(request).await.unwrap();
            }
        }
        let category = |name: &str| Condition::matches("category", name.to_owned());
        let below = |end: f64| Condition::range("offset", Range { lt: Some(end), ..Range::default() });
        let partition = |number: i64| Condition::matches("partition", number);
        check(Filter::must([category("billing")]), &|id| id % 3 == 0).await;
        check(Filter::must([category("billing"), below(30.0)]), &|id| id % 3 == 0 && id < 30).await;
        check(Filter::should([partition(1), partition(3)]), &|id| id % 2 == 1).await;
        check(Filter::must_not([partition(0), below(20.0)]), &|id| id % 4 != 0 && id >= 20).await;
        check(Filter::must([Condition::matches("even", true)]), &|id| id % 2 == 0).await;
        let any = Condition::matches("category", vec!["billing".to_owned(), "returns".to_owned()]);
        check(Filter::must([any]), &|id| id % 3 != 1).await;
        check(Filter::must([Condition::matches("partition", vec![0, 1])]), &|id| id % 4 < 2).await;
        check(Filter::must([Condition::has_id([3, 4, 99])]), &|id| id == 3 || id == 4).await;
        check(Filter::must([Condition::is_empty("note")]), &|id| id >= 5).await;
        check(Filter::must([Condition::is_null("note")]), &|id| (5..10).contains(&id)).await;
        let branch = |number: i64, end: f64| Filter::must([partition(number), below(end)]).into();
        check(Filter::should([branch(0, 10.0), branch(1, 20.0)]), &|id| {
            id % 4 == 0 && id < 10 || id % 4 == 1 && id < 20
        })
        .await;
        let between = Range { gte: Some(10.0), lte: Some(12.0), ..Range::default() };
        check(Filter::must([Condition::range("offset", between)]), &|id| (10..=12).contains(&id)).await;
    }
    client.delete_collection(&name).await.unwrap();
}

#[tokio::test]
async fn exact_scores_are_the_cosine() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("scores").await);
    let mut dice = Dice::new(5);
    let vectors: Vec<Vec<f32>> = (0..500).map(|_| vector(&mut dice)).collect();
    for (batch, vectors) in vectors.chunks(100).enumerate() {
        let points = vectors.iter().enumerate().map(|(place, vector)| {
            let id = (batch * 100 + place) as u64;
            point(id, vector.clone(), &[("third", Value::from((id % 3) as i64))])
        });
        client.upsert_points(upsert(&name, points.collect())).await.unwrap();
    }
    let cosine = |one: &[f32], other: &[f32]| {
        let dot =
            |one: &[f32], other: &[f32]| one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(one, other) / (dot(one, one).sqrt() * dot(other, other).sqrt())
    };
    for _ in 0..20 {
        let asked = vector(&mut dice);
        let query = QueryPointsBuilder::new(&name)
            .query(asked.clone())
            .limit(10)
            .filter(Filter::must([Condition::matches("third", 1)]))
            .with_payload(true)
            .params(SearchParamsBuilder::default().exact(true));
        let found = client.query(query.clone()).await.unwrap().result;
        let mut wanted: Vec<(u64, f64)> =
            (0..500).filter(|id| id % 3 == 1).map(|id| (id, cosine(&asked, &vectors[id as usize]))).collect();
        wanted.sort_by(|one, other| other.1.total_cmp(&one.1));
        assert_eq!(found.len(), 10);
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(number(&found.id), wanted.0);
            assert!((f64::from(found.score) - wanted.1).abs() < 1e-5, "{} and {}", found.score, wanted.1);
            assert_eq!(found.payload["third"], Value::from(1));
        }
        let threshold = found[4].score;
        let above = client.query(query.score_threshold(threshold - 1e-6)).await.unwrap().result;
        assert_eq!(above.len(), 5);
    }
    client.delete_collection(&name).await.unwrap();
}

/// A filtered change of a payload says Completed whether it met a point or not: it is no proof of one.
#[tokio::test]
async fn a_filtered_set_payload_completes_without_a_point() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("payload").await);
    let payload = Payload::from(HashMap::from([("a".to_owned(), Value::from(1))]));
    let request =
        SetPayloadPointsBuilder::new(&name, payload).points_selector(Filter::must([Condition::has_id([7])])).wait(true);
    assert_eq!(client.set_payload(request).await.unwrap().result.unwrap().status(), UpdateStatus::Completed);
    client.delete_collection(&name).await.unwrap();
}

#[tokio::test]
async fn snapshots_are_made_listed_and_removed_over_rest_and_an_upload_is_compared_with_its_hash() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("rest").await);
    client.upsert_points(upsert(&name, vec![point(1, vector(&mut Dice::new(8)), &[])])).await.unwrap();
    let ask = |method: &str, path: &str| {
        let (status, body) = qdrant.rest(method, &format!("/collections/{name}{path}"), "application/json", b"");
        (status, serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default())
    };
    let (status, made) = ask("POST", "/snapshots?wait=true");
    assert_eq!((status, &made["status"], made["time"].is_number()), (200, &"ok".into(), true), "{made}");
    let snapshot = made["result"]["name"].as_str().unwrap().to_owned();
    let checksum = made["result"]["checksum"].as_str().unwrap().to_owned();
    assert_eq!(checksum.len(), 64, "{made}");
    assert_eq!(ask("GET", "/snapshots").1["result"], serde_json::json!([made["result"]]));
    let path = format!("/collections/{name}/snapshots/{snapshot}");
    let (status, file) = qdrant.rest("GET", &path, "text/plain", b"");
    assert_eq!((status, file.len() as u64), (200, made["result"]["size"].as_u64().unwrap()));

    let other = format!("{name}_other");
    let (status, answer) = qdrant.try_upload(&other, &file, &format!("&checksum={}", "0".repeat(64)));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(status == 400 && answer.to_lowercase().contains("checksum"), "{status} {answer}");
    assert!(!client.collection_exists(&other).await.unwrap());
    let (status, _) = qdrant.try_upload(&other, &file, &format!("&checksum={checksum}"));
    assert_eq!(status, 200);
    assert!(client.collection_exists(&other).await.unwrap());

    let (status, removed) = ask("DELETE", &format!("/snapshots/{snapshot}"));
    assert_eq!((status, &removed["result"]), (200, &true.into()), "{removed}");
    assert_eq!(ask("GET", "/snapshots").1["result"], serde_json::json!([]));
    for (method, path) in [("GET", &*format!("/snapshots/{snapshot}")), ("DELETE", &*format!("/snapshots/{snapshot}"))]
    {
        let (status, answer) = ask(method, path);
        assert!(status == 404 && answer["status"]["error"].is_string(), "{method}: {status} {answer}");
    }
    client.delete_collection(&name).await.unwrap();
    client.delete_collection(&other).await.unwrap();
    assert_eq!(ask("POST", "/snapshots").0, 404);
}

#[tokio::test]
async fn a_snapshot_brings_back_what_was_there() {
    let qdrant = Qdrant::start();
    let (client, name) = (qdrant.client(), qdrant.collection("snapshot").await);
    let mut dice = Dice::new(6);
    let mut versioned = |id: u64, version: i64| point(id, vector(&mut dice), &[("version", version.into())]);
    client.upsert_points(upsert(&name, (0..50).map(|id| versioned(id, 1)).collect())).await.unwrap();
    let snapshot = client.create_snapshot(&name).await.unwrap().snapshot_description.unwrap();
    assert!(snapshot.size > 0 && snapshot.checksum.is_some());
    assert_eq!(client.list_snapshots(&name).await.unwrap().snapshot_descriptions, std::slice::from_ref(&snapshot));
    let (status, file) =
        qdrant.rest("GET", &format!("/collections/{name}/snapshots/{}", snapshot.name), "text/plain", b"");
    assert_eq!((status, file.len() as i64), (200, snapshot.size));

    let later = (0..80).map(|id| versioned(id, 2)).collect();
    client.upsert_points(upsert(&name, later)).await.unwrap();
    qdrant.upload(&name, &file);
    assert_eq!(versions(&client, &name, 0..80).await, (0..50).map(|id| (id, 1)).collect());
    // What is written to it afterwards counts.
    client.upsert_points(upsert(&name, vec![versioned(3, 3), versioned(60, 3)])).await.unwrap();
    let after = versions(&client, &name, 0..80).await;
    assert_eq!((after[&3], after[&60], after.len()), (3, 3, 51));

    client.delete_snapshot(DeleteSnapshotRequestBuilder::new(&name, &snapshot.name)).await.unwrap();
    assert_eq!(client.list_snapshots(&name).await.unwrap().snapshot_descriptions, []);
    // Into an empty place.
    client.delete_collection(&name).await.unwrap();
    qdrant.upload(&name, &file);
    assert_eq!(versions(&client, &name, 0..80).await.len(), 50);
    client.delete_collection(&name).await.unwrap();
}

#[tokio::test]
async fn its_rest_says_that_it_is_well() {
    let qdrant = Qdrant::start();
    for path in ["/healthz", "/livez", "/readyz", "/", "/collections"] {
        assert_eq!(qdrant.rest("GET", path, "text/plain", b"").0, 200, "{path}");
    }
    assert!(!qdrant.client().health_check().await.unwrap().version.is_empty());
}

#[tokio::test]
async fn what_was_completed_outlives_a_kill() {
    kill_and_look(OptimizersConfigDiffBuilder::default().default_segment_number(2), 10, 5..45).await;
}

/// The same while segments are flushed, indexed and replaced all the time.
#[tokio::test]
async fn what_was_completed_outlives_a_kill_while_it_is_indexed() {
    let optimizers = OptimizersConfigDiffBuilder::default().flush_interval_sec(1).indexing_threshold(100);
    assert!(kill_and_look(optimizers, 6, 800..2_000).await > 0, "nothing was indexed");
}

/// Every write that was answered with Completed is there after the kill, and each point is whole and there once. Gives
/// how many vectors were in an index at a restart, at most.
async fn kill_and_look(optimizers: OptimizersConfigDiffBuilder, rounds: i64, batches: std::ops::Range<usize>) -> u64 {
    let mut qdrant = Qdrant::own();
    let name = qdrant.collection("durable").await;
    qdrant.client().update_collection(UpdateCollectionBuilder::new(&name).optimizers_config(optimizers)).await.unwrap();
    let alias = qdrant.name("alias");
    qdrant.client().create_alias(CreateAliasBuilder::new(&name, &alias)).await.unwrap();
    let mut dice = Dice::new(7);
    let mut completed: BTreeMap<u64, i64> = BTreeMap::new();
    let mut indexed_max = 0;
    for round in 1..=rounds {
        let client = qdrant.client();
        let (collection, batches) = (alias.clone(), batches.start + dice.below(batches.len()));
        let mut lasting = completed.clone();
        let mut seeds = Dice::new(100 + round as u64);
        // The one that is under way when the kill comes is not counted.
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let writer = tokio::spawn(async move {
            loop {
                let first = seeds.below(400) as u64;
                let ids = first..first + 20;
                let points = ids.clone().map(|id| {
                    // A vector that tells the version, so that a torn point would show.
                    let mut vector = vec![0.0; WIDTH];
                    (vector[0], vector[1]) = (1.0, round as f32);
                    point(id, vector, &[("version", round.into())])
                });
                if client.upsert_points(upsert(&collection, points.collect())).await.is_err() {
                    return lasting;
                }
                lasting.extend(ids.map(|id| (id, round)));
                let _ = told.send(()).await;
            }
        });
        for _ in 0..batches {
            heard.recv().await.expect("the writer writes");
        }
        drop(heard);
        qdrant.kill();
        completed = writer.await.unwrap();
        qdrant.restart();

        let client = qdrant.client();
        let ids: Vec<PointId> = (0..420).map(PointId::from).collect();
        let found = client.get_points(GetPointsBuilder::new(&alias, ids).with_payload(true).with_vectors(true)).await;
        let mut stored = BTreeMap::new();
        for point in found.unwrap().result {
            let version = point.payload["version"].as_integer().unwrap();
            let vector = point.vectors.as_ref().and_then(|vectors| vectors.get_vector()).expect("a vector");
            let qdrant_client::qdrant::vector_output::Vector::Dense(vector) = vector else { panic!("not dense") };
            let ratio = vector.data[1] / vector.data[0];
            assert!((f64::from(ratio) - version as f64).abs() < 1e-3, "a torn point: {ratio} and {version}");
            stored.insert(number(&point.id), version);
        }
        for (id, version) in &completed {
            assert!(
                stored.get(id) >= Some(version),
                "round {round}: point {id} is {:?}, was {version}",
                stored.get(id)
            );
        }
        let count = client.count(CountPointsBuilder::new(&alias).exact(true)).await.unwrap().result.unwrap().count;
        assert_eq!(count, stored.len() as u64, "each point once");
        let info = client.collection_info(&alias).await.unwrap().result.unwrap();
        indexed_max = indexed_max.max(info.indexed_vectors_count.unwrap_or(0));
        completed = stored;
    }
    indexed_max
}

#[tokio::test]
async fn a_stopped_server_answers_nothing_and_goes_on_when_it_is_let() {
    let mut qdrant = Qdrant::own();
    let name = qdrant.collection("stopped").await;
    let mut dice = Dice::new(8);
    let client = qdrant.client();
    qdrant.signal("STOP");
    let limit = Duration::from_millis(300);
    let asked =
        tokio::time::timeout(limit, client.upsert_points(upsert(&name, vec![point(1, vector(&mut dice), &[])])));
    assert!(asked.await.is_err());
    qdrant.signal("CONT");
    client.upsert_points(upsert(&name, vec![point(2, vector(&mut dice), &[])])).await.unwrap();
    assert!(client.count(CountPointsBuilder::new(&name).exact(true)).await.unwrap().result.unwrap().count >= 1);
}

#[tokio::test]
async fn a_write_that_is_not_waited_for_is_acknowledged_only() {
    let mut qdrant = Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "300")]);
    let name = qdrant.collection("unwaited").await;
    let mut dice = Dice::new(9);
    let client = qdrant.client();
    let unwaited = UpsertPointsBuilder::new(&name, vec![point(1, vector(&mut dice), &[])]);
    let answer = client.upsert_points(unwaited).await.unwrap().result.unwrap();
    assert_eq!(answer.status(), UpdateStatus::Acknowledged);
    qdrant.kill();
    qdrant.restart();
    let client = qdrant.client();
    assert_eq!(client.count(CountPointsBuilder::new(&name).exact(true)).await.unwrap().result.unwrap().count, 0);
    // Too early for its time-out, although it is done later.
    let hasty = upsert(&name, vec![point(1, vector(&mut dice), &[])]).timeout(0);
    assert_eq!(client.upsert_points(hasty).await.unwrap().result.unwrap().status(), UpdateStatus::WaitTimeout);
    let next = upsert(&name, vec![point(2, vector(&mut dice), &[])]);
    assert_eq!(client.upsert_points(next).await.unwrap().result.unwrap().status(), UpdateStatus::Completed);
    assert_eq!(client.count(CountPointsBuilder::new(&name).exact(true)).await.unwrap().result.unwrap().count, 2);
}

#[tokio::test]
async fn who_has_no_key_is_refused_and_what_it_cannot_do_it_says() {
    let qdrant = Qdrant::own_with(Some("secret"), &[("QDRANT_TEST_STATUS", "wait_timeout")]);
    let name = qdrant.collection("keys").await;
    expect_refused(qdrant.client_with(None).list_collections().await, Code::Unauthenticated, "API key");
    expect_refused(
        qdrant.client_with(Some("wrong")).list_collections().await,
        Code::Unauthenticated,
        "Invalid API key",
    );
    assert_eq!(qdrant.rest("GET", "/collections", "text/plain", b"").0, 200);

    let mut dice = Dice::new(10);
    let done = qdrant.client().upsert_points(upsert(&name, vec![point(1, vector(&mut dice), &[])])).await.unwrap();
    assert_eq!(done.result.unwrap().status(), UpdateStatus::WaitTimeout);
    let other = qdrant.client().recommend(RecommendPointsBuilder::new(&name, 3)).await;
    expect_refused(other, Code::Unimplemented, "recommend");
}
