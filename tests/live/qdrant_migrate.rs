//! `vecsync init --migrate`: mirrors and files are loaded into Qdrant, collections of that name are taken over, and a kill at
//! any moment loses and doubles nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qdrant_client::qdrant::{
    CreateAliasBuilder, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder, DeletePointsBuilder, Distance,
    FieldType, HnswConfigDiffBuilder, NamedVectors, PointId, PointStruct, PointsIdsList, ScrollPointsBuilder,
    UpdateCollection, UpsertPointsBuilder, Value, VectorParamsBuilder, VectorsConfigBuilder,
};
use qdrant_client::{Payload, QdrantError};
use serde_json::json;

use crate::qdrant_run::{Pair, SOON};
use crate::support::process::wait_until;
use crate::support::qdrant::{Qdrant, WIDTH};
use crate::support::vecsync::{Ended, PIPELINE};

const CAUGHT_UP: Duration = Duration::from_secs(120);
/// Each write takes so long that a kill can come between two.
const SLOWLY: &[(&str, &str)] = &[("QDRANT_TEST_DELAY_MS", "25")];

/// What a collection holds: by id, vectors and payload as they are shown.
type Points = BTreeMap<String, String>;

#[track_caller]
fn init(pair: &Pair, flags: &[&str], code: i32, words: &[&str]) -> String {
    let ended = pair.site.vecsync.run_within(&[&["init"], flags].concat(), CAUGHT_UP);
    told(&ended, flags, code, words)
}

#[track_caller]
fn told(ended: &Ended, flags: &[&str], code: i32, words: &[&str]) -> String {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(code), "init {flags:?}: {said}");
    for word in words {
        assert!(said.contains(word), "init {flags:?}: {word:?} is not in {said}");
    }
    said
}

impl Pair {
    fn call<T>(&self, call: impl Future<Output = Result<T, QdrantError>>) -> T {
        self.runtime.block_on(call).unwrap()
    }

    fn points(&self, name: &str) -> Points {
        let client = self.qdrant.client();
        let (mut found, mut offset) = (Points::new(), None);
        loop {
            let request = ScrollPointsBuilder::new(name).limit(1000).with_payload(true).with_vectors(true);
            let request = match offset {
                Some(offset) => request.offset::<PointId>(offset),
                None => request,
            };
            let page = self.call(client.scroll(request));
            for point in page.result {
                let payload: BTreeMap<_, _> =
                    point.payload.into_iter().map(|(name, value)| (name, value.into_json().to_string())).collect();
                let shown = match point.vectors.and_then(|vectors| vectors.vectors_options) {
                    Some(qdrant_client::qdrant::vectors_output::VectorsOptions::Vectors(named)) => {
                        format!("{:?}", named.vectors.into_iter().collect::<BTreeMap<_, _>>())
                    }
                    other => format!("{other:?}"),
                };
                found.insert(format!("{:?}", point.id), format!("{shown} {payload:?}"));
            }
            match page.next_page_offset {
                Some(next) => offset = Some(next),
                None => return found,
            }
        }
    }

    /// The collection that a name is an alias of.
    fn named(&self, name: &str) -> Option<String> {
        let aliases = self.call(self.qdrant.client().list_aliases()).aliases;
        aliases.into_iter().find(|alias| alias.alias_name == name).map(|alias| alias.collection_name)
    }

    /// A collection as an application makes it, with so many points.
    fn plain(&self, points: u64) {
        let client = self.qdrant.client();
        let vectors = VectorParamsBuilder::new(WIDTH as u64, Distance::Cosine);
        self.call(client.create_collection(CreateCollectionBuilder::new(&self.alias).vectors_config(vectors)));
        for start in (0..points).step_by(500) {
            let points = (start..points.min(start + 500)).map(plain_point).collect::<Vec<_>>();
            self.call(client.upsert_points(UpsertPointsBuilder::new(&self.alias, points).wait(true)));
        }
    }
}

fn plain_point(id: u64) -> PointStruct {
    let vector: Vec<f32> = (0..WIDTH).map(|place| ((id * 31 + place as u64 * 17) % 101) as f32 - 50.0).collect();
    let payload: Payload = json!({"text": format!("number {id}"), "nested": {"id": id}}).try_into().unwrap();
    PointStruct::new(id, vector, payload)
}

/// Every file below a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.display().to_string(), fs::read(&path).unwrap())),
        }
    }
    found
}

fn line(id: &str, number: usize, payload: &str) -> String {
    let vector: Vec<String> = (0..WIDTH).map(|place| format!("{}", (number * 7 + place * 3) % 89 + 1)).collect();
    format!("{{\"id\":{id},\"vector\":[{}]{payload}}}\n", vector.join(","))
}

#[test]
fn a_collection_of_that_name_is_taken_over_as_it_is_and_vecsync_fills_its_own_beside_it() {
    let mut pair = Pair::prepare(Qdrant::own(), 40);
    let (client, alias) = (pair.qdrant.client(), pair.alias.clone());
    let mut vectors = VectorsConfigBuilder::default();
    vectors.add_named_vector_params("far", VectorParamsBuilder::new(4, Distance::Euclid));
    vectors.add_named_vector_params("near", VectorParamsBuilder::new(3, Distance::Cosine));
    let create = CreateCollectionBuilder::new(&alias)
        .vectors_config(vectors)
        .hnsw_config(HnswConfigDiffBuilder::default().m(24))
        .metadata(std::collections::HashMap::from([("theirs".to_owned(), json!("kept"))]));
    pair.call(client.create_collection(create));
    let points: Vec<PointStruct> = (0..250_u64)
        .map(|id| {
            let payload: Payload = json!({"kind": "k", "deep": {"list": [id, null, 1.5]}}).try_into().unwrap();
            let far = ("far".to_owned(), vec![id as f32, 1.0, 2.0, 3.0]);
            let near = ("near".to_owned(), vec![id as f32 + 0.3, 7.1, -2.9]);
            let has = if id % 3 == 0 { vec![far] } else { vec![far, near] };
            let vectors =
                has.into_iter().fold(NamedVectors::default(), |all, (name, vector)| all.add_vector(name, vector));
            let id: PointId = match id % 2 {
                0 => id.into(),
                _ => format!("00000000-0000-4000-8000-{id:012}").into(),
            };
            PointStruct::new(id, vectors, payload)
        })
        .collect();
    pair.call(client.upsert_points(UpsertPointsBuilder::new(&alias, points).wait(true)));
    let index = CreateFieldIndexCollectionBuilder::new(&alias, "kind", FieldType::Keyword).wait(true);
    pair.call(client.create_field_index(index));
    let other = format!("{alias}_other");
    pair.call(client.create_alias(CreateAliasBuilder::new(&alias, &other)));
    let before = pair.points(&alias);
    let config = |name: &str| {
        let info = pair.call(client.collection_info(name)).result.unwrap();
        let mut config = info.config.unwrap();
        config.metadata.remove("vecsync");
        (config, info.payload_schema.keys().cloned().collect::<Vec<_>>())
    };
    let made = config(&alias);
    let copy = format!("{alias}__adopted");

    // Nobody else touches it, and they say what to do.
    init(&pair, &[], 1, &[&alias, "vecsync init --migrate"]);
    init(&pair, &["--migrate", "--local-store-path", "/nowhere"], 1, &["it is not there", "vecsync sync"]);
    assert_eq!(pair.points(&alias), before);
    init(&pair, &["--migrate"], 0, &["Took over", "its 250 points are in", &copy, "hash "]);
    assert_eq!((pair.named(&alias), pair.named(&other)), (Some(copy.clone()), Some(copy.clone())));
    assert_eq!(pair.points(&alias), before);
    assert_eq!(config(&alias), made);
    init(&pair, &["--migrate"], 0, &["Nothing to migrate", &copy]);
    init(&pair, &[], 0, &["it stays", "vecsync run"]);
    init(&pair, &["--stats"], 0, &[&copy, "250 points of a collection that was taken over, which searches ask"]);
    init(&pair, &["--validate"], 3, &["taken over"]);

    // vecsync fills its own beside it; until that is whole, who asks by the name finds what was there.
    pair.qdrant.kill();
    pair.qdrant.set("QDRANT_TEST_DELAY_MS", "200");
    pair.qdrant.restart();
    pair.site.vecsync.start();
    pair.site.vecsync.wait_for_log("another generation is filled beside it", SOON);
    wait_until("the generation to be begun", SOON, || match pair.collections() {
        names if names.len() == 2 => Ok(()),
        names => Err(format!("{names:?}")),
    });
    assert_eq!(pair.named(&alias), Some(copy.clone()));
    pair.site.vecsync.wait_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", CAUGHT_UP);
    assert_eq!(pair.named(&alias), Some(format!("{alias}__1")));
    assert_eq!(pair.points(&copy), before);
    // Removing the others does not remove what was theirs.
    init(&pair, &["--recreate"], 0, &["Removed: ", &format!("{alias}__1")]);
    assert_eq!(pair.collections(), [format!("{alias}__2"), copy.clone()]);
    assert_eq!(pair.points(&copy), before);
    init(&pair, &["--stats"], 0, &["40 rows, 40 points, revision ", "which nothing names"]);
}

#[test]
fn a_takeover_that_is_killed_anywhere_loses_nothing() {
    let mut pair = Pair::prepare(Qdrant::own_with(None, SLOWLY), 10);
    let (alias, copy) = (pair.alias.clone(), format!("{}__adopted", pair.alias));
    pair.plain(1500);
    let mut wanted = pair.points(&alias);
    let mut copied = 0;
    for round in 0..4_u64 {
        let mut running = pair.site.vecsync.spawn(&["init", "--migrate"]);
        // Killed later each time: while it is copied.
        copied = wait_until("some of it to be copied", SOON, || {
            if !pair.collections().contains(&copy) {
                return Err("not begun".to_owned());
            }
            let count = pair.points(&copy).len();
            if count as u64 > round * 300 { Ok(count) } else { Err(format!("{count}")) }
        });
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!((pair.named(&alias), pair.points(&alias)), (None, wanted.clone()), "round {round}");
        // Whoever writes to it between two attempts is followed.
        let client = pair.qdrant.client();
        let mut changed = plain_point(7 + round);
        changed.payload.insert("round".to_owned(), (round as i64).into());
        pair.call(client.upsert_points(UpsertPointsBuilder::new(&alias, vec![changed]).wait(true)));
        let gone = PointsIdsList { ids: vec![(20 + round).into()] };
        pair.call(client.delete_points(DeletePointsBuilder::new(&alias).points(gone).wait(true)));
        wanted = pair.points(&alias);
    }
    assert!(copied > 900, "{copied}");
    init(&pair, &["--migrate"], 0, &["its 1496 points are in"]);
    assert_eq!((pair.named(&alias), pair.points(&alias)), (Some(copy.clone()), wanted.clone()));

    // What a kill leaves that comes between the removal and the alias: the next one finishes it, whoever that is.
    for next in ["init --migrate", "run"] {
        let client = pair.qdrant.client();
        pair.call(client.delete_alias(&alias));
        let stamp = Value::from("pipeline faq, copied to be taken over");
        let metadata = [("vecsync".to_owned(), stamp)].into();
        let update = UpdateCollection { collection_name: copy.clone(), metadata, ..UpdateCollection::default() };
        pair.call(client.update_collection(update));
        match next {
            "run" => {
                pair.site.vecsync.start_ready();
                pair.site.vecsync.wait_for_log("another generation is filled beside it", SOON);
                pair.expect_equal(CAUGHT_UP);
                pair.expect_served_by("qdrant", SOON);
            }
            _ => {
                init(&pair, &["--migrate"], 0, &["its 1496 points are in"]);
                assert_eq!(pair.named(&alias), Some(copy.clone()));
            }
        }
        assert_eq!(pair.points(&copy), wanted, "{next}");
    }
    assert_eq!(pair.named(&alias), Some(format!("{alias}__1")));
}

#[test]
fn kills_about_the_moment_when_the_name_changes_hands_lose_nothing() {
    let pair = Pair::prepare(Qdrant::own(), 0);
    let (alias, copy) = (pair.alias.clone(), format!("{}__adopted", pair.alias));
    let mut states = BTreeMap::new();
    for round in 0..12 {
        pair.plain(200);
        let wanted = pair.points(&alias);
        let mut running = pair.site.vecsync.spawn(&["init", "--migrate"]);
        // Killed when the copy is there, is whole, or when the original is gone, which is told before it is answered.
        wait_for(|| {
            let collections = pair.collections();
            match round % 3 {
                0 => collections.contains(&copy),
                1 => collections.contains(&copy) && pair.points(&copy).len() == 200,
                _ => !collections.contains(&alias),
            }
        });
        running.kill().unwrap();
        running.wait().unwrap();
        let plain = pair.collections().contains(&alias);
        let state = match (plain, pair.named(&alias)) {
            (true, _) => "before",
            (false, None) => "between",
            (false, Some(_)) => "after",
        };
        *states.entry(state).or_insert(0) += 1;
        let holder = if plain { &alias } else { &copy };
        assert_eq!(pair.points(holder), wanted, "round {round}: {state}");
        init(&pair, &["--migrate"], 0, &[]);
        assert_eq!((pair.named(&alias), pair.points(&alias)), (Some(copy.clone()), wanted), "round {round}: {state}");
        let client = pair.qdrant.client();
        pair.call(client.delete_alias(&alias));
        pair.call(client.delete_collection(&copy));
    }
    eprintln!("killed {states:?}");
    assert!(states.contains_key("before") && states.len() > 1, "{states:?}");
}

/// Asks as fast as it is answered: what is waited for lasts for milliseconds.
fn wait_for(mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < SOON, "it does not come");
    }
}

#[test]
fn a_collection_that_is_written_to_while_it_is_taken_over_stays() {
    let pair = Pair::prepare(Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "5")]), 0);
    pair.plain(1000);
    let copy = format!("{}__adopted", pair.alias);
    let stop = AtomicBool::new(false);
    let (url, alias) = (pair.qdrant.url(), &pair.alias);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let client = runtime.block_on(async { qdrant_client::Qdrant::from_url(&url).build().unwrap() });
            for number in 0_i64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let mut point = plain_point(1);
                point.payload.insert("number".to_owned(), number.into());
                let write = client.upsert_points(UpsertPointsBuilder::new(alias, vec![point]).wait(true));
                runtime.block_on(write).unwrap();
            }
        });
        let ended = pair.site.vecsync.run_within(&["init", "--migrate"], CAUGHT_UP);
        stop.store(true, Ordering::Relaxed);
        told(&ended, &["--migrate"], 1, &["was written to while it was copied", "It stays as it was", &copy]);
    });
    assert_eq!((pair.named(&pair.alias), pair.points(&pair.alias).len()), (None, 1000));
    let wanted = pair.points(&pair.alias);
    init(&pair, &["--migrate"], 0, &["its 1000 points are in"]);
    assert_eq!(pair.points(&pair.alias), wanted);

    // What was taken over before is never written over by another collection of that name.
    pair.call(pair.qdrant.client().delete_alias(&pair.alias));
    pair.plain(3);
    init(&pair, &["--migrate"], 1, &["it has 3 points", "taken over by that name before", "Nothing was changed"]);
    assert_eq!((pair.points(&pair.alias).len(), pair.points(&copy)), (3, wanted));
}

#[test]
fn a_mirror_is_loaded_and_run_goes_on_from_where_it_was() {
    let mut pair = Pair::prepare(Qdrant::own(), 300);
    pair.site.vecsync.set("RAG_VECTOR_STORE_TYPE", "local");
    pair.site.vecsync.start_ready();
    let alias = pair.alias.clone();
    let (data, mirror) = (pair.site.vecsync.path("data"), pair.site.vecsync.path("data/mirror"));
    let noted = || fs::read_to_string(Path::new(&mirror).join("current")).unwrap_or_default();
    wait_until(
        "the mirror's log to be noted",
        SOON,
        || {
            if noted().contains("\"log\"") { Ok(()) } else { Err(noted()) }
        },
    );
    pair.site.sql.execute("DELETE FROM faq_faq WHERE id > 290");
    wait_until("the deletes to arrive", SOON, || match pair.site.vecsync.points() {
        Some(290) => Ok(()),
        points => Err(format!("{points:?}")),
    });
    pair.site.vecsync.set("RAG_VECTOR_STORE_TYPE", "qdrant");
    let migrate = |path| ["--migrate", "--local-store-path", path];
    init(&pair, &migrate(&data), 1, &["that vecsync fills Qdrant by itself once QDRANT_HOST is set"]);
    assert_eq!(pair.collections(), [""; 0]);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));

    // Of another revision it is refused, and both are named.
    pair.site.vecsync.write_pipeline(&PIPELINE.replace("{{ answer }}", "{{ answer }} ({{ category }})"));
    init(&pair, &migrate(&data), 1, &["it is a mirror of pipeline faq, revision ", "wanted pipeline faq, revision "]);
    pair.site.vecsync.write_pipeline(PIPELINE);
    let before = files(Path::new(&mirror));
    // What `init` has made and nobody has filled is in nobody's way.
    init(&pair, &[], 0, &["is made", &format!("{alias}__1")]);
    init(&pair, &migrate(&data), 0, &["290 rows (290 points), each read back", "goes on from where the mirror was"]);
    assert!(files(Path::new(&mirror)) == before, "the mirror was changed");
    assert_eq!(pair.named(&alias), Some(format!("{alias}__2")));
    let generation = fs::read_dir(&mirror).unwrap().flatten().find(|entry| entry.path().is_dir()).unwrap().path();
    for path in [mirror.as_str(), generation.to_str().unwrap()] {
        init(&pair, &migrate(path), 0, &["has the 290 rows of", "already"]);
    }
    let mut entries: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    entries.sort();
    assert!(!entries.iter().any(|name| name.to_string_lossy().contains("migrating")), "{entries:?}");

    pair.site.vecsync.start_ready();
    pair.expect_equal(SOON);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.site.vecsync.metric("vecsync_embeddings_total", "").unwrap_or_default(), 0.0);
    assert_eq!(pair.collections(), [1, 2].map(|number| format!("{alias}__{number}")));
    assert!(!pair.site.vecsync.log().contains("is filled beside it"), "it was filled anew");
    // It goes on, deletes and all.
    pair.site.sql.execute("UPDATE faq_faq SET answer = 'Better.' WHERE id <= 20; DELETE FROM faq_faq WHERE id > 250");
    pair.expect_equal(SOON);
    pair.expect_searched(SOON);
    assert_eq!(pair.collections(), [1, 2].map(|number| format!("{alias}__{number}")));
    let said = pair.site.vecsync.run(&["verify"]);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    // Points of a file would hide it.
    let file = pair.site.vecsync.path("points.jsonl");
    fs::write(&file, line("1", 1, "")).unwrap();
    init(&pair, &migrate(&file), 1, &["would hide it", "vecsync sync"]);
}

#[test]
fn a_mirror_whose_load_is_killed_is_loaded_once_all_the_same() {
    let mut pair = Pair::prepare(Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "60")]), 900);
    pair.site.vecsync.set("RAG_VECTOR_STORE_TYPE", "local");
    pair.site.vecsync.start_ready();
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    pair.site.vecsync.set("RAG_VECTOR_STORE_TYPE", "qdrant");
    let (alias, first) = (pair.alias.clone(), format!("{}__1", pair.alias));
    let data = pair.site.vecsync.path("data");
    for round in 0..2 {
        let mut running = pair.site.vecsync.spawn(&["init", "--migrate", "--local-store-path", &data]);
        wait_until("some of it to be loaded", SOON, || {
            let count = if pair.collections().is_empty() { 0 } else { pair.points(&first).len() };
            if count > 100 + round * 250 { Ok(()) } else { Err(format!("{count}")) }
        });
        running.kill().unwrap();
        running.wait().unwrap();
        // Half of it is nothing that anybody asks.
        init(&pair, &[], 0, &["a local store is being loaded into it, or that was interrupted"]);
        assert_eq!(pair.named(&alias), None);
    }
    init(&pair, &["--migrate", "--local-store-path", &data], 0, &["900 rows (900 points)"]);
    assert_eq!((pair.collections(), pair.named(&alias)), (vec![first.clone()], Some(first.clone())));
    pair.expect_equal(SOON);
    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    pair.expect_searched(SOON);
    assert_eq!(pair.collections(), [first]);
}

#[test]
fn a_file_of_points_is_checked_whole_loaded_and_verified() {
    let pair = Pair::prepare(Qdrant::own_with(None, SLOWLY), 20);
    let (alias, path) = (pair.alias.clone(), pair.site.vecsync.path("points.jsonl"));
    let load = ["--migrate", "--local-store-path", path.as_str()];
    // Nothing is written of a file with problems, and all of them are told.
    let bad = line("1", 1, "") + &line("1", 2, "") + "{}\n" + &"junk\n".repeat(30) + &line("2", 2, ",\"payload\":7");
    fs::write(&path, bad).unwrap();
    let words = [
        "34 problems, so nothing was written",
        "points.jsonl:2: id 1 is in line 1 already",
        "points.jsonl:3: there is no vector",
        "and 14 more",
    ];
    init(&pair, &load, 1, &words);
    for (bytes, what) in [
        (&b"SQLite format 3\0"[..], "it is a SQLite database"),
        (b"", "it is an empty file"),
        (b"[1]", "one JSON array"),
    ] {
        fs::write(&path, bytes).unwrap();
        init(&pair, &load, 1, &[what, "a mirror of vecsync's", "vecsync sync"]);
    }
    assert_eq!(pair.collections(), [""; 0]);

    let uuid = "0b0e5c1e-8a5b-4c8c-9a45-0f3c2a1b7d10";
    let mut text = line(&format!("\"{uuid}\""), 0, "") + &line("\"seven\"", 7, ",\"payload\":{\"category\":\"c01\"}");
    (0..1200).for_each(|id| text += &line(&id.to_string(), id, ",\"payload\":{\"deep\":{\"list\":[1,null,2.5]}}"));
    fs::write(&path, &text).unwrap();
    for round in 0..2 {
        let mut running = pair.site.vecsync.spawn(&[&["init"], &load[..]].concat());
        wait_until("some of it to be loaded", SOON, || {
            let count = pair.collections().first().map_or(0, |name| pair.points(name).len());
            if count > 100 + round * 400 { Ok(()) } else { Err(format!("{count}")) }
        });
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(pair.named(&alias), None);
    }
    let first = format!("{alias}__1");
    let said = init(&pair, &load, 0, &["1202 points, each read back and found the same (hash ", &first]);
    let hash = said.split("(hash ").nth(1).unwrap()[..32].to_owned();
    assert_eq!((pair.collections(), pair.named(&alias)), (vec![first.clone()], Some(first.clone())));
    let points = pair.points(&alias);
    assert_eq!(points.len(), 1202);
    let shown = format!("{points:?}");
    assert!(
        shown.contains(uuid) && shown.contains(r#"\\\\\\\"id\\\\\\\":"#) && shown.contains("seven"),
        "the key is lost"
    );
    // Once more it is the same, and another file takes its place.
    init(&pair, &load, 0, &[&hash, &first]);
    assert_eq!(pair.points(&alias), points);
    fs::write(&path, line("5", 5, "")).unwrap();
    init(&pair, &load, 0, &["1 points", &format!("{alias}__2")]);
    assert_eq!((pair.points(&alias).len(), pair.points(&first)), (1, points));
    init(&pair, &["--stats"], 0, &["1202 points of a file that was loaded, which nothing names"]);
}

#[test]
fn points_of_a_file_answer_until_the_table_is_indexed() {
    let mut pair = Pair::prepare(Qdrant::own(), 30);
    let (alias, path) = (pair.alias.clone(), pair.site.vecsync.path("points.jsonl"));
    fs::write(&path, line("1", 1, ",\"payload\":{\"from\":\"file\"}")).unwrap();
    init(&pair, &["--migrate", "--local-store-path", &path], 0, &["1 points"]);
    pair.site.vecsync.start_ready();
    pair.site.vecsync.wait_for_log("another generation is filled beside it", SOON);
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.collections(), [1, 2].map(|number| format!("{alias}__{number}")));
    assert_eq!(pair.named(&alias), Some(format!("{alias}__2")));
    init(&pair, &["--recreate"], 0, &["20 of 20 searches gave the same", &format!("Removed: {alias}__2")]);
    assert_eq!(pair.points(&format!("{alias}__1")).len(), 1);
}

#[test]
fn flags_that_make_no_sense_together_are_refused() {
    let pair = Pair::prepare(Qdrant::own(), 0);
    for flags in [
        &["--local-store-path", "data"][..],
        &["--migrate", "--recreate"],
        &["--migrate", "--validate"],
        &["--migrate", "--stats"],
        &["--migrate", "--health-check-only"],
    ] {
        init(&pair, flags, 2, &["Usage"]);
    }
    init(&pair, &["--migrate"], 0, &["Nothing to migrate: there is no"]);
    assert_eq!(pair.collections(), [""; 0]);
}
