//! Documents out of several tables over Kafka, each role in a process of its own, into Qdrant and the mirror.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::joined::{A_FAN_OUT, QUERY, TABLES, WATCH, fill_alike, pipeline, wanted};
use crate::kafka::Cluster;
use crate::pipelines;
use crate::qdrant_run::Pair;
use crate::support::dice::Dice;
use crate::support::kafka::Kafka;
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::vecsync::Vecsync;

/// Documents of the large category, and a few more.
const MANY: usize = 3_000;
const SOON: Duration = Duration::from_secs(60);

/// PostgreSQL, a broker and a Qdrant, and the tables.
struct Apart {
    pair: Pair,
    kafka: std::sync::Arc<Kafka>,
    prefix: String,
}

impl Apart {
    fn prepare() -> Apart {
        let pair = Pair::prepare(Qdrant::start(), 0);
        pair.site.sql.execute(TABLES);
        let prefix = format!("t{}", pair.site.postgres.port);
        Apart { pair, kafka: Kafka::shared(), prefix }
    }

    /// A process with some roles and a data directory of its own, not started.
    fn process(&self, roles: &str) -> Vecsync {
        let mut vecsync = Cluster::process_on(&self.pair.site, &self.kafka, &self.prefix, roles);
        for (name, value) in self.pair.settings() {
            vecsync.set(name, value);
        }
        vecsync.write_pipeline(&pipeline(QUERY, WATCH));
        vecsync
    }

    fn started(&self, roles: &str) -> Vecsync {
        let mut vecsync = self.process(roles);
        vecsync.start();
        vecsync
    }

    /// Waits until Qdrant has what the query gives for the whole table.
    #[track_caller]
    fn expect_in_qdrant(&self, limit: Duration) {
        wait_until("Qdrant to have what the query gives", limit, || {
            let wanted = wanted(&self.pair.site.sql, QUERY);
            let mut found = self.pair.documents(&self.pair.alias)?;
            for fields in found.values_mut().filter_map(Value::as_object_mut) {
                fields.retain(|name, _| name != "_vecsync" && name != "passage");
            }
            let wanted: BTreeMap<i64, Value> =
                wanted.into_iter().map(|row| (row["id"].as_i64().expect("a number"), row)).collect();
            let other: Vec<_> =
                wanted.iter().filter(|(id, row)| found.get(id) != Some(row)).map(|(id, _)| id).collect();
            match (other.len(), found.len() == wanted.len()) {
                (0, true) => Ok(()),
                (others, _) => {
                    Err(format!("{} wanted, {} found, {others} other: {:?}", wanted.len(), found.len(), other.first()))
                }
            }
        });
    }
}

/// Changes of single rows that leave all texts as they are.
fn single_change(dice: &mut Dice) -> String {
    let id = 1 + dice.below(MANY);
    match dice.below(4) {
        0 => format!("UPDATE faq_faq SET category_id = {} WHERE id = {id}", 1 + dice.below(2)),
        1 => format!("INSERT INTO faq_faq_tags (faq_id, tag_id) VALUES ({id}, 1) ON CONFLICT DO NOTHING"),
        2 => format!("DELETE FROM faq_faq_tags WHERE faq_id = {id}"),
        _ => format!("UPDATE faq_faq SET is_active = NOT is_active WHERE id = {id}"),
    }
}

fn texts(vecsync: &mut Vecsync) -> f64 {
    vecsync.metric("vecsync_embeddings_total", "result=\"computed\"").unwrap_or_default()
}

#[test]
fn a_category_is_renamed_while_rows_change_and_capture_is_killed_and_both_stores_are_what_the_query_gives() {
    let apart = Apart::prepare();
    let sql = &apart.pair.site.sql;
    fill_alike(sql, MANY);
    let mut capture = apart.started("capture");
    let mut embed = apart.started("embed");
    let mut index = apart.started("index");
    let mut serve = apart.started("serve");
    apart.expect_in_qdrant(A_FAN_OUT);
    serve.wait_ready();
    let before = texts(&mut embed);
    let mut dice = Dice::new(7);
    sql.execute("UPDATE faq_category SET name = 'Renamed' WHERE id = 1");
    // The middle of it, wherever the log puts which rows.
    wait_until("the fan-out to have begun", A_FAN_OUT, || {
        sql.execute(&single_change(&mut dice));
        let ids = [10, MANY / 2, MANY - 10];
        let is_renamed = |id: &usize| serve.row_if_answered(*id as i64).is_some_and(|row| row["category"] == "Renamed");
        if ids.iter().any(is_renamed) { Ok(()) } else { Err("nothing has come".to_owned()) }
    });
    capture.kill();
    for _ in 0..40 {
        sql.execute(&single_change(&mut dice));
    }
    capture.start();
    for _ in 0..60 {
        sql.execute(&single_change(&mut dice));
    }
    sql.execute("UPDATE faq_tag SET name = 'other'; UPDATE faq_category SET name = 'Small, too' WHERE id = 2");
    apart.expect_in_qdrant(A_FAN_OUT);
    // Its mirror, and Qdrant once more, by what the documents are hashed to.
    for vecsync in [&mut index, &mut serve] {
        let verified = vecsync.run_within(&["verify", "--json"], A_FAN_OUT);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        let report: Value = serde_json::from_str(&verified.stdout).unwrap();
        assert_eq!(report["rows"], MANY, "{report}");
    }
    for id in [1, 6, MANY / 2, MANY] {
        let wanted = wanted(sql, QUERY).into_iter().find(|row| row["id"] == id);
        assert_eq!(serve.row_if_answered(id as i64), wanted);
    }
    // A row that was left out and comes back has its text in the cache.
    assert_eq!(texts(&mut embed) - before, 0.0, "no text has changed");
    for (name, vecsync) in
        [("capture", &mut capture), ("embed", &mut embed), ("index", &mut index), ("serve", &mut serve)]
    {
        assert_eq!(vecsync.ended(), None, "{name}");
    }
}

#[test]
fn a_folder_of_pipelines_has_its_roles_in_two_processes() {
    let apart = Apart::prepare();
    let sql = &apart.pair.site.sql;
    fill_alike(sql, 20);
    pipelines::make_table(sql, "products");
    pipelines::add(sql, "products", "kettle", "Kettle", "Boils water.");
    let files = [
        ("a.toml", pipeline(QUERY, WATCH)),
        ("b.toml", pipelines::pipeline("products", "") + &format!("collection = \"{}_products\"\n", apart.pair.alias)),
    ];
    let [mut capture, mut serve] = ["capture", "embed,index,serve"].map(|roles| apart.process(roles));
    for vecsync in [&mut capture, &mut serve] {
        pipelines::give(vecsync, &files);
        vecsync.start();
    }
    let ids: Vec<Value> = (1..=20).map(|id| json!(id)).collect();
    pipelines::expect_rows(&mut serve, "", &ids, SOON);
    pipelines::expect_rows(&mut serve, "/pipelines/products", &[json!("kettle")], SOON);
    capture.kill();
    sql.execute("UPDATE faq_category SET name = 'Renamed' WHERE id = 1; DELETE FROM faq_faq WHERE id = 7");
    pipelines::add(sql, "products", "lamp", "Lamp", "Gives light.");
    capture.start();
    serve.kill();
    serve.start();
    pipelines::expect_rows(&mut serve, "/pipelines/products", &[json!("kettle"), json!("lamp")], SOON);
    apart.expect_in_qdrant(SOON);
    wait_until("the mirror to be what the query gives", SOON, || crate::joined::difference(&mut serve, sql, QUERY));
    // Each process names both, and answers for what it does.
    for (vecsync, what) in [(&mut capture, "capture"), (&mut serve, "serve")] {
        let health = vecsync.get("/health/detailed/").json();
        for name in ["faq", "products"] {
            assert_eq!(health["pipelines"][name]["ready"], true, "{what}: {health}");
        }
    }
    for pipeline in ["faq", "products"] {
        let synced = capture.run_within(&["sync", "--pipeline", pipeline], SOON);
        assert_eq!(synced.code, Some(0), "{synced:?}");
        let verified = serve.run_within(&["verify", "--pipeline", pipeline], SOON);
        assert_eq!(verified.code, Some(0), "{verified:?}");
    }
}
