//! vecsync with Qdrant as the primary store, as a user runs it: rows land in it, searches ask it, and it may be away.

use std::collections::BTreeMap;
use std::time::Duration;

use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateAliasBuilder, CreateCollectionBuilder, DeleteCollectionBuilder,
    DeletePointsBuilder, Distance, Filter, PointStruct, ScrollPointsBuilder, UpsertPointsBuilder, VectorParamsBuilder,
};
use serde_json::{Value, json};

use crate::support::postgres::{PASSWORD, USER};
use crate::support::process::wait_until;
use crate::support::qdrant::{Qdrant, WIDTH};
use crate::support::site::Site;
use crate::support::table::{self, category, values};
use crate::support::vecsync::{PIPELINE, Vecsync};
use crate::writer::Writer;

pub const SOON: Duration = Duration::from_secs(30);
const CAUGHT_UP: Duration = Duration::from_secs(120);

/// PostgreSQL, a Qdrant and a vecsync that is told of both, not started.
pub struct Pair {
    pub site: Site,
    pub qdrant: Qdrant,
    pub alias: String,
    pub runtime: tokio::runtime::Runtime,
}

impl Pair {
    pub fn prepare(qdrant: Qdrant, rows: i64) -> Pair {
        Pair::prepare_with(qdrant, rows, &[])
    }

    /// With settings of PostgreSQL.
    pub fn prepare_with(qdrant: Qdrant, rows: i64, settings: &[(&str, &str)]) -> Pair {
        let site = Site::prepare_with(settings);
        if rows > 0 {
            let rows: Vec<String> = (1..=rows)
                .map(|id| values(id, &format!("Question {id}?"), &format!("Answer {id}."), &category(id as usize)))
                .collect();
            site.sql.execute(&table::insert(&rows));
        }
        let alias = qdrant.name("faq");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut pair = Pair { site, qdrant, alias, runtime };
        for (name, value) in pair.settings() {
            pair.site.vecsync.set(name, value);
        }
        pair
    }

    /// How a vecsync is told of the Qdrant.
    pub fn settings(&self) -> [(&'static str, String); 5] {
        let settings = self.qdrant.settings();
        [
            ("QDRANT_HOST", settings.host.clone()),
            ("QDRANT_PORT", settings.port.to_string()),
            ("QDRANT_GRPC_PORT", settings.grpc_port.to_string()),
            ("QDRANT_COLLECTION_NAME", self.alias.clone()),
            ("QDRANT_TIMEOUT", "5".to_owned()),
        ]
    }

    /// The documents that can be found behind a name, by key.
    pub fn documents(&self, name: &str) -> Result<BTreeMap<i64, Value>, String> {
        let (client, mut found, mut offset) = (self.qdrant.client(), BTreeMap::new(), None);
        loop {
            let request = ScrollPointsBuilder::new(name)
                .filter(Filter::must([Condition::matches("_vecsync.deleted", false)]))
                .limit(1000)
                .with_payload(true)
                .with_vectors(false);
            let request = match offset {
                Some(offset) => request.offset::<qdrant_client::qdrant::PointId>(offset),
                None => request,
            };
            let page = self.runtime.block_on(client.scroll(request)).map_err(|error| error.to_string())?;
            for point in page.result {
                let payload =
                    json!(point.payload.into_iter().map(|(k, v)| (k, v.into_json())).collect::<BTreeMap<_, _>>());
                let id = payload["id"].as_i64().ok_or("a document without its key")?;
                if found.insert(id, payload).is_some() {
                    return Err(format!("{id} is there twice"));
                }
            }
            match page.next_page_offset {
                Some(next) => offset = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// Waits until what Qdrant has equals the table, row by row.
    #[track_caller]
    pub fn expect_equal(&self, limit: Duration) {
        wait_until("Qdrant to equal the table", limit, || {
            let rows = self.site.sql.query("SELECT id, question, answer, category FROM faq_faq WHERE is_active");
            let text = |row: &tokio_postgres::SimpleQueryRow, column| row.get(column).unwrap().to_owned();
            let wanted: BTreeMap<i64, [String; 3]> = rows
                .iter()
                .map(|row| (text(row, 0).parse().unwrap(), [1, 2, 3].map(|column| text(row, column))))
                .collect();
            let found = self.documents(&self.alias)?;
            let found: BTreeMap<i64, [String; 3]> = found
                .iter()
                .map(|(id, row)| {
                    (
                        *id,
                        ["question", "answer", "category"].map(|name| row[name].as_str().unwrap_or("NULL").to_owned()),
                    )
                })
                .collect();
            if found == wanted {
                return Ok(());
            }
            let missing = wanted.keys().filter(|id| !found.contains_key(id)).count();
            let extra = found.keys().filter(|id| !wanted.contains_key(id)).count();
            Err(format!("{} rows wanted, {} found, {missing} missing, {extra} too many", wanted.len(), found.len()))
        });
    }

    /// Waits until searches give the table, whichever store answers.
    #[track_caller]
    pub fn expect_searched(&mut self, limit: Duration) {
        table::expect_equal_once(&mut self.site.vecsync, &self.site.sql, limit);
    }

    /// Waits until searches are answered by this store.
    #[track_caller]
    pub fn expect_served_by(&mut self, store: &str, limit: Duration) {
        wait_until(&format!("searches to be answered by {store}"), limit, || {
            let answer = self.site.vecsync.search("anything", "");
            let degraded = store != "qdrant";
            if answer["served_by"] == store && answer["degraded"] == degraded {
                Ok(())
            } else {
                Err(format!("{:.200}", answer.to_string()))
            }
        });
    }

    /// The collections behind the alias, by name.
    pub fn collections(&self) -> Vec<String> {
        let listed = self.runtime.block_on(self.qdrant.client().list_collections()).unwrap().collections;
        let mut names: Vec<String> = listed.into_iter().map(|collection| collection.name).collect();
        names.retain(|name| name.starts_with(&self.alias));
        names.sort();
        names
    }

    fn count(&self, name: &str) -> u64 {
        let counted = self.runtime.block_on(self.qdrant.client().count(CountPointsBuilder::new(name).exact(true)));
        counted.unwrap().result.unwrap().count
    }
}

fn health(vecsync: &mut Vecsync) -> (u16, Value) {
    let answer = vecsync.get("/health/qdrant/");
    (answer.status, answer.json())
}

#[test]
fn rows_land_in_qdrant_and_are_searched_there() {
    let mut pair = Pair::prepare(Qdrant::start(), 120);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    pair.site.sql.execute("UPDATE faq_faq SET answer = 'Better.' WHERE id <= 20; DELETE FROM faq_faq WHERE id > 100");
    pair.expect_equal(SOON);
    // What each row says is found in Qdrant as it is in the mirror.
    pair.expect_searched(SOON);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.site.row(7).unwrap()["answer"], "Better.");
    pair.expect_served_by("qdrant", SOON);

    let (status, body) = health(&mut pair.site.vecsync);
    assert_eq!((status, &body["status"], &body["store_type"]), (200, &json!("healthy"), &json!("qdrant")), "{body}");
    let settings = pair.qdrant.settings();
    assert_eq!((&body["server"]["host"], &body["server"]["port"]), (&json!(settings.host), &json!(settings.port)));
    assert!(body["server"]["response_time_ms"].is_f64() && body["server"]["collections_count"].is_u64(), "{body}");
    let collection = &body["collection"];
    assert_eq!((&collection["name"], &collection["exists"]), (&json!(pair.alias), &json!(true)));
    let stats = &collection["stats"];
    assert_eq!((&stats["vector_dimension"], &stats["distance_metric"]), (&json!(384), &json!("COSINE")));
    wait_until("the points to be counted", SOON, || match &health(&mut pair.site.vecsync).1["collection"]["stats"] {
        stats if stats["total_points"] == 100 => Ok(()),
        stats => Err(stats.to_string()),
    });
    wait_until("the metric to say so", SOON, || {
        match pair.site.vecsync.metric("vecsync_store_points", "store=\"qdrant\"") {
            Some(100.0) => Ok(()),
            points => Err(format!("{points:?}")),
        }
    });

    pair.site.sql.execute("TRUNCATE faq_faq");
    pair.site.sql.execute(&table::insert(&[values(1, "First?", "The first after it.", "c01")]));
    pair.expect_equal(SOON);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
}

#[test]
fn qdrant_may_be_away_as_long_as_it_likes() {
    let mut pair = Pair::prepare(Qdrant::own(), 50);
    pair.qdrant.kill();
    pair.site.vecsync.start_ready();
    pair.expect_served_by("local", SOON);
    let (status, body) = health(&mut pair.site.vecsync);
    assert_eq!((status, &body["status"]), (503, &json!("unhealthy")), "{body}");
    assert!(body["error"].as_str().is_some_and(|error| !error.is_empty()));
    assert_eq!(pair.site.get("/health/").status, 200);
    assert_eq!(pair.site.get("/health/").json()["status"], "degraded");
    pair.qdrant.restart();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);

    let writer = Writer::start(&pair.site.postgres, 3, Duration::from_millis(20));
    for harm in ["KILL", "STOP"] {
        writer.wait_for_more(20);
        match harm {
            "KILL" => pair.qdrant.kill(),
            signal => pair.qdrant.signal(signal),
        }
        // Every search is answered, from the first on; soon nobody waits for Qdrant any more.
        for _ in 0..100 {
            let answer = pair.site.vecsync.search("anything", "");
            assert!(!answer["results"].as_array().unwrap().is_empty(), "{answer}");
        }
        pair.expect_served_by("local", SOON);
        writer.wait_for_more(100);
        let vecsync = &mut pair.site.vecsync;
        wait_until("what Qdrant lacks to be known", SOON, || {
            let lag = &health(vecsync).1["sink"]["lag_records"];
            let state = vecsync.get("/status").json();
            let shown = state["stores"][0]["lag_records"].as_u64();
            match vecsync.metric("vecsync_sink_lag_records", "qdrant") {
                Some(lacks) if lacks >= 20.0 && lag.as_u64() >= Some(20) && shown >= Some(20) => Ok(()),
                lacks => Err(format!("{lacks:?}, health says {lag}, the status {shown:?}")),
            }
        });
        match harm {
            "KILL" => pair.qdrant.restart(),
            _ => pair.qdrant.signal("CONT"),
        }
        pair.expect_served_by("qdrant", CAUGHT_UP);
    }
    writer.finish();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(CAUGHT_UP);
    let answered = pair.site.vecsync.metric("vecsync_queries_total", "code=\"200\"").unwrap();
    assert_eq!(pair.site.vecsync.metric("vecsync_queries_total", "").unwrap(), answered, "some were not answered");
    assert!(pair.site.vecsync.metric("vecsync_fallbacks_total", "").unwrap() > 0.0);
}

#[test]
fn killed_at_any_moment_qdrant_equals_the_table() {
    let mut pair = Pair::prepare(Qdrant::own(), 100);
    pair.site.vecsync.start_ready();
    let writer = Writer::start(&pair.site.postgres, 11, Duration::from_millis(5));
    let rounds = std::env::var("VECSYNC_TEST_ROUNDS").map_or(50, |text| text.parse().expect("a number of rounds"));
    for round in 0..rounds {
        writer.wait_for_more(20 + round % 10 * 7);
        pair.site.vecsync.kill();
        if round % 3 == 2 {
            pair.qdrant.kill();
            pair.qdrant.restart();
        }
        pair.site.vecsync.start_ready();
    }
    writer.finish();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_searched(CAUGHT_UP);
}

#[test]
fn another_revision_is_filled_beside_the_one_before_and_takes_its_place_when_it_is_whole() {
    let mut pair = Pair::prepare(Qdrant::start(), 80);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));

    pair.site.vecsync.write_pipeline(&PIPELINE.replace("{{ answer }}", "{{ answer }} ({{ category }})"));
    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", CAUGHT_UP);
    pair.expect_equal(SOON);
    let generation = &health(&mut pair.site.vecsync).1["collection"]["generation"];
    assert_eq!(generation, 2);
    // The one before is kept, and is the other revision's.
    let [old, new] = [1, 2].map(|number| pair.documents(&format!("{}__{number}", pair.alias)).unwrap());
    assert_eq!((old.len(), new.len()), (80, 80));
    let revision = |documents: &BTreeMap<i64, Value>| documents[&7]["_vecsync"]["revision"].clone();
    assert_ne!(revision(&old), revision(&new));
    pair.expect_searched(SOON);
}

#[test]
fn a_generation_that_takes_its_place_while_rows_are_written_lacks_none() {
    // Each write takes long enough for the next batch to be read meanwhile.
    let mut pair = Pair::prepare(Qdrant::own_with(None, &[("QDRANT_TEST_DELAY_MS", "60")]), 80);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    let writer = Writer::start(&pair.site.postgres, 23, Duration::from_millis(3));
    pair.site.vecsync.write_pipeline(&PIPELINE.replace("{{ answer }}", "{{ answer }} ({{ category }})"));
    pair.site.vecsync.start();
    pair.site.vecsync.wait_for_log("a new generation is whole", CAUGHT_UP);
    writer.wait_for_more(50);
    writer.finish();
    pair.expect_equal(CAUGHT_UP);
}

#[test]
fn a_collection_of_somebody_else_is_left_alone_and_searches_go_on() {
    let mut pair = Pair::prepare(Qdrant::start(), 30);
    let (client, alias) = (pair.qdrant.client(), pair.alias.clone());
    let vectors = VectorParamsBuilder::new(WIDTH as u64, Distance::Cosine);
    pair.runtime.block_on(async {
        client.create_collection(CreateCollectionBuilder::new(&alias).vectors_config(vectors)).await.unwrap();
        let point = PointStruct::new(1, vec![1.0; WIDTH], [("theirs", 1.into())]);
        client.upsert_points(UpsertPointsBuilder::new(&alias, vec![point]).wait(true)).await.unwrap();
    });
    pair.site.vecsync.start_ready();
    let told = wait_until("health to say what to do", SOON, || match health(&mut pair.site.vecsync) {
        (_, body) if body["error"].as_str().is_some_and(|error| error.contains("set QDRANT_COLLECTION_NAME")) => {
            Ok(body)
        }
        (status, body) => Err(format!("{status} {body}")),
    });
    assert!(told["error"].as_str().unwrap().contains(&alias), "{told}");
    pair.expect_served_by("local", SOON);
    pair.expect_searched(SOON);
    assert_eq!(pair.count(&alias), 1);
    pair.runtime.block_on(client.delete_collection(DeleteCollectionBuilder::new(&alias))).unwrap();
    // Mended while it runs.
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
}

#[test]
fn a_collection_that_is_emptied_while_nothing_is_written_is_filled_again() {
    let mut pair = Pair::prepare(Qdrant::start(), 60);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let everything = DeletePointsBuilder::new(&pair.alias).points(Filter::default()).wait(true);
    pair.runtime.block_on(pair.qdrant.client().delete_points(everything)).unwrap();
    // No search finds less meanwhile than there is, but for the moment until it is noticed.
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    pair.expect_searched(SOON);
}

#[test]
fn a_lost_collection_and_a_lost_alias_are_made_again() {
    let mut pair = Pair::prepare(Qdrant::start(), 60);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let first = format!("{}__1", pair.alias);
    pair.runtime.block_on(pair.qdrant.client().delete_collection(DeleteCollectionBuilder::new(&first))).unwrap();
    pair.site.sql.execute(&table::insert(&[values(900, "New?", "Written after it was lost.", "c09")]));
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    pair.expect_searched(SOON);

    pair.runtime.block_on(pair.qdrant.client().delete_alias(&pair.alias)).unwrap();
    pair.site.sql.execute("UPDATE faq_faq SET answer = 'Without an alias.' WHERE id = 900");
    pair.expect_equal(SOON);
    pair.expect_served_by("qdrant", SOON);

    // An alias that somebody has moved to another collection is theirs.
    let (client, theirs) = (pair.qdrant.client(), pair.qdrant.name("theirs"));
    let vectors = VectorParamsBuilder::new(WIDTH as u64, Distance::Cosine);
    pair.runtime.block_on(async {
        client.create_collection(CreateCollectionBuilder::new(&theirs).vectors_config(vectors)).await.unwrap();
        client.create_alias(CreateAliasBuilder::new(&theirs, &pair.alias)).await.unwrap();
    });
    pair.expect_served_by("local", SOON);
    pair.expect_searched(SOON);
    assert_eq!(pair.count(&theirs), 0);
}

#[test]
fn what_another_log_has_filled_is_filled_anew() {
    let mut pair = Pair::prepare(Qdrant::own(), 60);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    assert_eq!(pair.site.vecsync.terminate().code, Some(0));
    pair.qdrant.kill();
    // The machine is lost with its log; a new one begins at the same offsets with other rows at them.
    std::fs::remove_dir_all(pair.site.vecsync.path("data")).unwrap();
    pair.site.sql.query("SELECT pg_drop_replication_slot('vecsync_faq')");
    pair.site.sql.execute("DELETE FROM faq_faq WHERE id <= 5; UPDATE faq_faq SET answer = 'Changed.' WHERE id = 15");
    pair.site.sql.execute(&table::insert(&[values(500, "New?", "Written between the logs.", "c01")]));
    pair.site.vecsync.start_ready();
    for id in 501..600 {
        pair.site.sql.execute(&table::insert(&[values(
            id,
            "More?",
            "So that it is further than before.",
            &category(id as usize),
        )]));
    }
    pair.qdrant.restart();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    pair.expect_searched(SOON);
    assert_eq!(pair.collections(), [1, 2].map(|number| format!("{}__{number}", pair.alias)));
}

#[test]
fn of_two_revisions_at_work_the_later_one_has_the_alias() {
    let mut pair = Pair::prepare(Qdrant::start(), 40);
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
    pair.expect_served_by("qdrant", SOON);
    let mut other = Vecsync::prepare(&pair.site.postgres.url(USER, PASSWORD));
    for (name, value) in pair.settings() {
        other.set(name, value);
    }
    pair.site.sql.execute("CREATE PUBLICATION other FOR TABLE faq_faq");
    let pipeline = PIPELINE.replace("{{ answer }}", "{{ answer }} ({{ category }})");
    other.write_pipeline(&pipeline.replace("[source]", "[source]\npublication = \"other\"\nslot = \"other\""));
    other.start_ready();
    wait_until("the later one to be asked", CAUGHT_UP, || match &health(&mut other).1 {
        body if body["collection"]["generation"] == 2 && body["status"] == "healthy" => Ok(()),
        body => Err(body.to_string()),
    });
    wait_until("the earlier one to stand down", SOON, || match &health(&mut pair.site.vecsync).1["error"] {
        error if error.as_str().is_some_and(|error| error.contains("stands down")) => Ok(()),
        error => Err(error.to_string()),
    });
    pair.expect_served_by("local", SOON);
    // Neither fills another one; what is written goes on to come into both mirrors and into the later one's generation.
    pair.site.sql.execute(&table::insert(&[values(700, "Still?", "Followed by both.", "c01")]));
    pair.expect_searched(SOON);
    pair.expect_equal(SOON);
    assert_eq!(pair.collections(), [1, 2].map(|number| format!("{}__{number}", pair.alias)));
}

#[test]
fn a_qdrant_that_hangs_does_not_hold_up_the_end() {
    let mut pair = Pair::prepare(Qdrant::own(), 20);
    pair.site.vecsync.set("QDRANT_TIMEOUT", "30");
    pair.site.vecsync.start_ready();
    pair.expect_served_by("qdrant", SOON);
    pair.qdrant.signal("STOP");
    pair.site.sql.execute(&table::insert(&[values(900, "New?", "Written while it hangs.", "c09")]));
    pair.expect_served_by("local", SOON);
    let ended = pair.site.vecsync.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    pair.qdrant.signal("CONT");
    pair.site.vecsync.start_ready();
    pair.expect_equal(CAUGHT_UP);
}
