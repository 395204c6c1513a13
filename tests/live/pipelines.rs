//! Several pipelines in one process: each with its table, its stores and its paths, and none in the way of another.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::escape;
use crate::support::kafka::Kafka;
use crate::support::postgres::{Sql, USER, quote};
use crate::support::process::wait_until;
use crate::support::qdrant::Qdrant;
use crate::support::site::Site;
use crate::support::vecsync::{PIPELINE, Vecsync};
use crate::writer::fill;

const SOON: Duration = Duration::from_secs(60);
/// From a fault to the next attempt, and that.
const MENDED: Duration = Duration::from_secs(90);

/// A pipeline over a table of its own kind: a name and a text.
pub fn pipeline(name: &str, more: &str) -> String {
    format!(
        "name = \"{name}\"\n{more}\n[source]\ntable = \"public.{name}\"\n[document]\ntext = \"{{{{ label }}}} {{{{ about }}}}\"\n\
         payload = [\"sku\", \"label\"]\n[index]\nfilters = [\"label\"]\n"
    )
}

/// Makes the table of such a pipeline, as its owner does.
pub fn make_table(sql: &Sql, name: &str) {
    sql.execute(&format!("CREATE TABLE {name} (sku text PRIMARY KEY, label text NOT NULL, about text NOT NULL)"));
    publish(sql, name);
}

fn publish(sql: &Sql, name: &str) {
    sql.execute(&format!(
        "GRANT SELECT ON {name} TO {USER}; DROP PUBLICATION IF EXISTS vecsync_{name}; CREATE PUBLICATION vecsync_{name} FOR TABLE {name}"
    ));
}

pub fn add(sql: &Sql, table: &str, sku: &str, label: &str, about: &str) {
    sql.execute(&format!("INSERT INTO {table} VALUES ({}, {}, {})", quote(sku), quote(label), quote(about)));
}

fn ask(sql: &Sql, id: i64, question: &str, answer: &str) {
    sql.execute(&format!(
        "INSERT INTO faq_faq (id, question, answer) VALUES ({id}, {}, {})",
        quote(question),
        quote(answer)
    ));
}

/// Gives the files of a folder to a vecsync that has not begun.
pub fn give(vecsync: &mut Vecsync, files: &[(&str, String)]) {
    let folder = vecsync.path("pipelines");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    for (name, text) in files {
        fs::write(format!("{folder}/{name}"), text).unwrap();
    }
    vecsync.set("VECSYNC_PIPELINE", folder);
}

/// What a search finds, by id.
fn found(vecsync: &mut Vecsync, path: &str, query: &str) -> Result<Vec<Value>, String> {
    let answer = vecsync.http.get(&format!("{path}/search?q={}&limit=100&min_score=-1", escape(query)));
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.status {
        200 => Ok(answer.json()["results"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect()),
        status => Err(format!("{status} {}", answer.body)),
    }
}

/// Waits until a pipeline has exactly these rows.
#[track_caller]
pub fn expect_rows(vecsync: &mut Vecsync, path: &str, ids: &[Value], limit: Duration) {
    wait_until(&format!("{path} to have {ids:?}"), limit, || {
        let mut rows = found(vecsync, path, "anything")?;
        let mut wanted = ids.to_vec();
        rows.sort_by_key(Value::to_string);
        wanted.sort_by_key(Value::to_string);
        if rows == wanted { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

/// Waits until the process is ready; by then each pipeline that can be has its table.
#[track_caller]
fn start(vecsync: &mut Vecsync) {
    vecsync.start();
    wait_until("vecsync to be ready", SOON, || {
        if let Some(status) = vecsync.ended() {
            panic!("vecsync ended with {status}");
        }
        match vecsync.http.get("/health/ready/") {
            Ok(answer) if answer.status == 200 => Ok(()),
            answer => Err(format!("{answer:?}")),
        }
    });
}

/// A line of the metrics of one pipeline.
fn metric(vecsync: &mut Vecsync, name: &str, pipeline: &str) -> Option<f64> {
    vecsync.metric(name, &format!("pipeline=\"{pipeline}\""))
}

fn state_of(vecsync: &mut Vecsync, pipeline: &str) -> Value {
    vecsync.get("/health/detailed/").json()["pipelines"][pipeline].clone()
}

#[test]
fn each_of_three_follows_its_table_and_two_that_break_disturb_nobody() {
    let (mut site, qdrant) = (Site::prepare(), Qdrant::start());
    let settings = qdrant.settings();
    for (name, value) in [
        ("QDRANT_HOST", settings.host.clone()),
        ("QDRANT_PORT", settings.port.to_string()),
        ("QDRANT_GRPC_PORT", settings.grpc_port.to_string()),
        ("QDRANT_COLLECTION_NAME", qdrant.name("faq")),
    ] {
        site.set(name, value);
    }
    for table in ["products", "articles"] {
        make_table(&site.sql, table);
    }
    let with = |name: &str, more: &str| pipeline(name, more) + &format!("collection = \"{}\"\n", qdrant.name(name));
    let files = [
        ("1.toml", with("products", "")),
        ("2.toml", format!("default = true\n{PIPELINE}")),
        ("3.toml", with("articles", "")),
        ("4.toml", with("broken", "")),
    ];
    give(&mut site.vecsync, &files);
    ask(&site.sql, 1, "How do I get a refund?", "Money comes back within two weeks.");
    add(&site.sql, "products", "kettle", "Kettle", "Boils water.");
    start(&mut site.vecsync);

    // Each by its path, the default one by the paths that name none, and nothing of one in another.
    let vecsync = &mut site.vecsync;
    expect_rows(vecsync, "", &[json!(1)], SOON);
    expect_rows(vecsync, "/pipelines/faq", &[json!(1)], SOON);
    expect_rows(vecsync, "/pipelines/products", &[json!("kettle")], SOON);
    expect_rows(vecsync, "/pipelines/articles", &[], SOON);
    ask(&site.sql, 2, "Where do penguins live?", "On the ice.");
    add(&site.sql, "products", "lamp", "Lamp", "Gives light.");
    add(&site.sql, "articles", "a1", "Tea", "How tea is made.");
    site.sql.execute("DELETE FROM products WHERE sku = 'kettle'");
    expect_rows(vecsync, "", &[json!(1), json!(2)], SOON);
    expect_rows(vecsync, "/pipelines/products", &[json!("lamp")], SOON);
    expect_rows(vecsync, "/pipelines/articles", &[json!("a1")], SOON);
    // Its own filters, and nobody else's.
    assert_eq!(vecsync.get("/pipelines/products/search?q=x&filter=label:Lamp").status, 200);
    assert_eq!(vecsync.get("/search?q=x&filter=label:Lamp").status, 400);
    wait_until("all to be searched in Qdrant", SOON, || {
        for path in ["", "/pipelines/products", "/pipelines/articles"] {
            let answer = vecsync.get(&format!("{path}/search?q=anything&min_score=-1")).json();
            if answer["served_by"] != "qdrant" || answer["results"].as_array().is_none_or(Vec::is_empty) {
                return Err(format!("{path}: {answer:.300}"));
            }
        }
        Ok(())
    });

    // The one that is broken from the start is named, and asked for in vain; the others are ready.
    let broken = vecsync.get("/pipelines/broken/search?q=x");
    assert_eq!(broken.status, 503, "{}", broken.body);
    assert!(broken.body.contains("public.broken"), "{}", broken.body);
    let health = vecsync.get("/health/detailed/").json();
    assert_eq!((&health["ready"], &health["status"]), (&json!(true), &json!("degraded")), "{health}");
    assert!(health["pipelines"]["broken"]["waits_for"].as_str().unwrap().contains("public.broken"), "{health}");
    assert_eq!(health["pipelines"]["products"]["ready"], true);
    assert_eq!(vecsync.get("/pipelines/broken/health/ready/").status, 503);
    let verified = vecsync.run(&["verify", "--pipeline", "broken"]);
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(
        verified.stderr.contains("/pipelines/broken says: ") && verified.stderr.contains("public.broken"),
        "{verified:?}"
    );
    assert_eq!(vecsync.get("/pipelines/products/health/ready/").status, 200);
    let up = ["faq", "products", "articles", "broken"].map(|name| metric(vecsync, "vecsync_pipeline_up", name));
    assert_eq!(up, [Some(1.0), Some(1.0), Some(1.0), Some(0.0)]);
    let points = ["faq", "products", "articles"].map(|name| metric(vecsync, "vecsync_store_searchable", name));
    assert_eq!(points, [Some(2.0); 3], "a series for each store of each pipeline");
    assert_eq!(metric(vecsync, "vecsync_embeddings_total", "products"), Some(2.0));
    let state = vecsync.get("/status").json();
    assert_eq!((&state["pipeline"], state["pipelines"].as_array().map(Vec::len)), (&json!("faq"), Some(4)), "{state}");

    // One that has lost its table goes on answering; the others follow theirs.
    site.sql.execute("DROP TABLE articles");
    wait_until("articles to say what is wrong", SOON, || {
        let source = state_of(vecsync, "articles")["components"]["source"].clone();
        if source["error"].as_str().is_some_and(|error| error.contains("articles")) {
            Ok(())
        } else {
            Err(source.to_string())
        }
    });
    add(&site.sql, "products", "mug", "Mug", "Holds tea.");
    expect_rows(vecsync, "/pipelines/products", &[json!("lamp"), json!("mug")], SOON);
    assert_eq!(vecsync.get("/health/ready/").status, 200);
    assert_eq!(state_of(vecsync, "products")["status"], "healthy");

    // What is mended is found without a restart.
    make_table(&site.sql, "broken");
    add(&site.sql, "broken", "b", "Bowl", "Was broken.");
    expect_rows(vecsync, "/pipelines/broken", &[json!("b")], MENDED);
    assert_eq!(metric(vecsync, "vecsync_pipeline_up", "broken"), Some(1.0));

    // Killed, and while it is away all tables change: nothing is lost, and nothing embedded that was.
    vecsync.kill();
    make_table(&site.sql, "articles");
    add(&site.sql, "articles", "a2", "Milk", "A new table of the same name.");
    ask(&site.sql, 3, "What is new?", "This.");
    add(&site.sql, "products", "pan", "Pan", "Fries.");
    start(vecsync);
    expect_rows(vecsync, "", &[json!(1), json!(2), json!(3)], MENDED);
    expect_rows(vecsync, "/pipelines/products", &[json!("lamp"), json!("mug"), json!("pan")], MENDED);
    expect_rows(vecsync, "/pipelines/broken", &[json!("b")], MENDED);
    expect_rows(vecsync, "/pipelines/articles", &[json!("a2")], MENDED);
    assert_eq!(metric(vecsync, "vecsync_embeddings_total{pipeline=\"products\",result=\"computed\"}", ""), None);
    let computed = vecsync.metric("vecsync_embeddings_total", "pipeline=\"products\",result=\"computed\"");
    assert_eq!(computed, Some(1.0), "only the new product is embedded");
    let ended = vecsync.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn commands_name_the_pipeline_that_they_are_about() {
    let mut site = Site::prepare();
    make_table(&site.sql, "products");
    let files = [("a.toml", PIPELINE.to_owned()), ("b.toml", pipeline("products", ""))];
    give(&mut site.vecsync, &files);
    ask(&site.sql, 1, "How do I get a refund?", "Money comes back.");
    add(&site.sql, "products", "kettle", "Kettle", "Boils water.");
    // What needs no running vecsync is told which one, too.
    let told = site.run(&["sync", "--pipeline", "products"]);
    assert_eq!(told.code, Some(0), "{}", told.stderr);
    start(&mut site.vecsync);
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("kettle")], SOON);
    expect_rows(&mut site.vecsync, "", &[json!(1)], SOON);

    for command in [
        &["sync"][..],
        &["verify"],
        &["replay"],
        &["dead-letters", "list"],
        &["backup", "there"],
        &["init"],
        &["sync", "--stats-only"],
    ] {
        let refused = site.run(command);
        assert_eq!(refused.code, Some(2), "{command:?}: {}", refused.stderr);
        assert!(
            refused.stderr.contains("--pipeline: is missing") && refused.stderr.contains("faq, products"),
            "{}",
            refused.stderr
        );
        let unknown = site.run(&[command, &["--pipeline", "other"]].concat());
        assert_eq!(unknown.code, Some(2), "{command:?}: {}", unknown.stderr);
        assert!(
            unknown.stderr.contains("--pipeline = \"other\": there is no such pipeline; there are faq, products"),
            "{}",
            unknown.stderr
        );
    }
    let refused = site.run(&["run", "--pipeline", "faq"]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("--pipeline: is for commands about one"),
        "{}",
        refused.stderr
    );

    let done = |words: &[&str]| {
        let ended = site.run(&[words, &["--pipeline", "products"]].concat());
        assert_eq!(ended.code, Some(0), "{words:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    assert!(done(&["sync"]).contains("Read 1 rows"));
    assert!(done(&["sync", "--stats-only"]).contains("public.products"));
    assert!(done(&["verify"]).contains("public.products"));
    assert!(done(&["replay"]).contains("1 rows"));
    assert!(done(&["dead-letters", "list"]).contains("no dead letters"));
    assert!(done(&["search", "hot water"]).contains("Kettle"));
    assert!(done(&["status"]).contains("/pipelines/products"));
    assert!(done(&["healthcheck"]).contains("ready"));
    assert!(done(&["check"]).contains("public.products"));
    let there = site.path("backup");
    assert!(done(&["backup", &there]).contains("1 rows"));
    assert!(fs::read_to_string(format!("{there}/manifest.json")).unwrap().contains("products"));

    // Without a name: the default one is searched, all are checked and shown.
    let said = site.run(&["search", "refund"]);
    assert!(said.code == Some(0) && said.stdout.contains("refund"), "{}{}", said.stdout, said.stderr);
    let said = site.run(&["check"]);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(
        ["pipeline faq\n", "pipeline products\n", "public.products"].iter().all(|part| said.stdout.contains(part)),
        "{}",
        said.stdout
    );
    let said = site.run(&["status"]);
    assert!(said.stdout.contains("faq") && said.stdout.contains("products"), "{}", said.stdout);
    let listed = site.run(&["config"]).stdout;
    assert!(listed.ends_with("Pipelines: faq (the default), products\n"), "{listed}");

    // A backup of one is restored beside the other.
    site.vecsync.terminate();
    fs::remove_dir_all(site.path("data/pipelines/products")).unwrap();
    let restored = site.run(&["restore", &there, "--pipeline", "products"]);
    assert_eq!(restored.code, Some(0), "{}{}", restored.stdout, restored.stderr);
    start(&mut site.vecsync);
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("kettle")], SOON);
    expect_rows(&mut site.vecsync, "", &[json!(1)], SOON);
}

/// The command that a text tells to run, without the program's name.
fn command_in(text: &str) -> Option<Vec<&str>> {
    let (_, rest) = text.split_once("`vecsync ")?;
    Some(rest.split_once('`')?.0.split(' ').collect())
}

/// Waits until health names what is wrong with the source of a pipeline and what mends it, and does that as it stands there.
#[track_caller]
fn do_as_told(site: &mut Site, name: &str) {
    let told = wait_until(&format!("{name} to say what mends it"), MENDED, || {
        let state = state_of(&mut site.vecsync, name);
        let error = state["components"]["source"]["error"].as_str().unwrap_or_default().to_owned();
        if command_in(&error).is_some() { Ok(error) } else { Err(state.to_string()) }
    });
    let command = command_in(&told).unwrap();
    assert_eq!(command, ["sync", "--pipeline", name], "{told}");
    let ended = site.run_within(&command, MENDED);
    assert_eq!(ended.code, Some(0), "{told}: {}{}", ended.stdout, ended.stderr);
}

#[test]
fn one_that_breaks_after_it_was_well_is_named_with_the_command_that_mends_it() {
    let mut site = Site::prepare();
    for table in ["products", "articles"] {
        make_table(&site.sql, table);
        add(&site.sql, table, "a", "First", "Is there.");
    }
    let large = pipeline("articles", "")
        .replace("{{ label }} {{ about }}", "{{ label }}")
        .replace("\"label\"]\n[index]", "\"label\", \"about\"]\n[index]");
    let files = [("a.toml", PIPELINE.to_owned()), ("b.toml", pipeline("products", "")), ("c.toml", large)];
    give(&mut site.vecsync, &files);
    ask(&site.sql, 1, "How do I get a refund?", "Money comes back.");
    start(&mut site.vecsync);
    for (path, id) in [("", json!(1)), ("/pipelines/products", json!("a")), ("/pipelines/articles", json!("a"))] {
        expect_rows(&mut site.vecsync, path, &[id], SOON);
    }

    // Its slot is gone: what is there is searched, and the others go on.
    site.sql.query(
        "SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE slot_name = 'vecsync_products'",
    );
    for table in ["products", "articles"] {
        add(&site.sql, table, "b", "Second", "Came later.");
    }
    expect_rows(&mut site.vecsync, "/pipelines/articles", &[json!("a"), json!("b")], SOON);
    do_as_told(&mut site, "products");
    let log = site.vecsync.log();
    let named = log.lines().find(|line| line.contains("`vecsync sync --pipeline products`"));
    assert!(named.is_some_and(|line| line.contains("pipeline=\"products\"")), "{named:?}");
    assert!(!log.contains("`vecsync sync`"), "a command names no pipeline");
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("a"), json!("b")], SOON);

    // Its data is removed under it: it ends with the first file that it wants to make, and is opened again on nothing, and reads its table anew.
    fs::remove_dir_all(site.path("data/pipelines/articles")).unwrap();
    site.sql.execute(
        "INSERT INTO articles SELECT 'c', 'Third', string_agg(md5(n::text), ' ') FROM generate_series(1, 30000) n",
    );
    wait_until("articles to be named", SOON, || {
        let log = site.vecsync.log();
        if log.contains("pipeline articles: ") {
            Ok(())
        } else {
            Err(state_of(&mut site.vecsync, "articles").to_string())
        }
    });
    add(&site.sql, "products", "c", "Third", "Came beside it.");
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("a"), json!("b"), json!("c")], SOON);
    assert_eq!(site.vecsync.get("/health/ready/").status, 200);
    assert_eq!(state_of(&mut site.vecsync, "products")["status"], "healthy");
    expect_rows(&mut site.vecsync, "/pipelines/articles", &[json!("a"), json!("b"), json!("c")], SOON);
    wait_until("articles to be up", SOON, || match metric(&mut site.vecsync, "vecsync_pipeline_up", "articles") {
        Some(1.0) => Ok(()),
        up => Err(format!("{up:?}")),
    });
    let ended = site.vecsync.terminate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// Texts that were embedded since the start, of one pipeline.
fn computed(vecsync: &mut Vecsync, pipeline: &str) -> Option<f64> {
    vecsync.metric("vecsync_embeddings_total", &format!("pipeline=\"{pipeline}\",result=\"computed\""))
}

#[test]
fn one_becomes_several_and_several_one_and_nothing_is_embedded_again() {
    let mut site = Site::prepare();
    make_table(&site.sql, "products");
    fill(&site.sql, 20);
    add(&site.sql, "products", "kettle", "Kettle", "Boils water.");
    site.vecsync.start_ready();
    assert_eq!(computed(&mut site.vecsync, "faq").map(|count| count >= 20.0), Some(true));
    let ids = found(&mut site.vecsync, "", "anything").unwrap();
    assert_eq!(ids.len(), 20);
    assert_eq!(fs::read_to_string(site.path("data/pipeline")).unwrap(), "faq\n");
    site.vecsync.terminate();

    // As an earlier version left it: the mirror says whose it is.
    fs::remove_file(site.path("data/pipeline")).unwrap();
    let files = [("a.toml", pipeline("products", "")), ("b.toml", PIPELINE.to_owned())];
    give(&mut site.vecsync, &files);
    start(&mut site.vecsync);
    expect_rows(&mut site.vecsync, "", &[json!("kettle")], SOON);
    expect_rows(&mut site.vecsync, "/pipelines/faq", &ids, SOON);
    assert_eq!(computed(&mut site.vecsync, "faq").unwrap_or(0.0), 0.0);
    assert!(!site.vecsync.log().contains("read the table again"), "its slot and its log are those of before");
    assert_eq!(fs::read_to_string(site.path("data/pipeline")).unwrap(), "faq\n");
    assert!(fs::exists(site.path("data/pipelines/products/log")).unwrap());
    site.vecsync.terminate();

    // Either of them alone goes on with what is its own.
    fs::write(site.path("pipeline.toml"), pipeline("products", "")).unwrap();
    site.vecsync.set("VECSYNC_PIPELINE", site.path("pipeline.toml"));
    site.vecsync.start_ready();
    expect_rows(&mut site.vecsync, "", &[json!("kettle")], SOON);
    assert_eq!(computed(&mut site.vecsync, "products").unwrap_or(0.0), 0.0);
    // The other one's slot keeps WAL.
    assert!(site.log().contains("pipeline faq has data in VECSYNC_DATA_DIR and no pipeline file"), "{}", site.log());
    assert!(!site.log().contains("pipeline products has data"), "{}", site.log());
    site.vecsync.terminate();
    site.vecsync.write_pipeline(PIPELINE);
    site.vecsync.start_ready();
    expect_rows(&mut site.vecsync, "", &ids, SOON);
    assert_eq!(computed(&mut site.vecsync, "faq").unwrap_or(0.0), 0.0);
}

/// Single rows beside a backfill.
const ROWS: u32 = 10;

#[test]
fn a_backfill_of_one_does_not_hold_up_the_rows_of_another() {
    let mut site = Site::prepare();
    make_table(&site.sql, "products");
    let files = [("a.toml", PIPELINE.to_owned()), ("b.toml", pipeline("products", ""))];
    give(&mut site.vecsync, &files);
    add(&site.sql, "products", "kettle", "Kettle", "Boils water.");
    start(&mut site.vecsync);
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("kettle")], SOON);
    // Long rows, each with words of its own.
    site.sql.execute(
        "INSERT INTO faq_faq (question, answer) SELECT 'Question ' || n, (SELECT string_agg(md5((n * 1000 + m)::text), ' ') \
         FROM generate_series(1, 40) m) FROM generate_series(1, 3000) n",
    );
    wait_until("the backfill to be under way", SOON, || match computed(&mut site.vecsync, "faq") {
        Some(count) if count > 200.0 => Ok(()),
        count => Err(format!("{count:?}")),
    });
    let (began, before) = (Instant::now(), computed(&mut site.vecsync, "faq").unwrap());
    let mut slowest = Duration::ZERO;
    for n in 0..ROWS {
        let (sku, asked) = (format!("row{n}"), Instant::now());
        add(&site.sql, "products", &sku, &sku, "Comes while another one is filled.");
        wait_until("a single row to be found", SOON, || {
            let rows = found(&mut site.vecsync, "/pipelines/products", "anything")?;
            if rows.contains(&json!(sku)) { Ok(()) } else { Err(format!("{rows:?}")) }
        });
        slowest = slowest.max(asked.elapsed());
    }
    let (took, after) = (began.elapsed(), computed(&mut site.vecsync, "faq").unwrap());
    let left = site.vecsync.metric("vecsync_embed_lag_records", "pipeline=\"faq\"");
    assert!(left > Some(100.0), "the backfill was over before the rows were: {left:?}");
    // Counted by what the backfill does meanwhile, whatever the machine does besides: two of its batches have 256 texts.
    let meanwhile = (after - before) / f64::from(ROWS);
    eprintln!("beside a backfill {ROWS} rows took {took:?}, the slowest {slowest:?}; {meanwhile} texts of it for each");
    assert!(meanwhile < 100.0, "{meanwhile} texts of the backfill for each row");
    site.vecsync.kill();
}

#[test]
fn the_model_is_loaded_once_for_all() {
    // Each has a slot, and one more for its snapshot.
    let mut site = Site::prepare_with(&[("max_replication_slots", "20"), ("max_wal_senders", "20")]);
    let names: Vec<String> = (1..=8).map(|n| format!("table{n}")).collect();
    for name in &names {
        make_table(&site.sql, name);
        site.sql.execute(&format!(
            "INSERT INTO {name} SELECT n::text, 'Label ' || n, 'About number ' || n FROM generate_series(1, 100) n"
        ));
    }
    let mut taken = vec![];
    for count in [1, 3, 8] {
        let files: Vec<(String, String)> =
            names[..count].iter().map(|name| (format!("{name}.toml"), pipeline(name, ""))).collect();
        let files: Vec<(&str, String)> = files.iter().map(|(file, text)| (file.as_str(), text.clone())).collect();
        give(&mut site.vecsync, &files);
        start(&mut site.vecsync);
        for name in &names[..count] {
            wait_until(&format!("{name} to have its rows"), SOON, || {
                match found(&mut site.vecsync, &format!("/pipelines/{name}"), "anything")?.len() {
                    100 => Ok(()),
                    rows => Err(format!("{rows}")),
                }
            });
        }
        taken.push((count, site.vecsync.memory_kb().0 / 1000));
        site.vecsync.terminate();
    }
    eprintln!("pipelines and memory in MB: {taken:?}");
    let [(_, one), (_, three), (_, eight)] = taken[..] else { panic!("{taken:?}") };
    // The model takes more than 100 MB.
    assert!(three < one + 2 * 40 && eight < one + 7 * 40, "{taken:?}");
}

#[test]
fn where_all_fail_the_process_ends() {
    let mut site = Site::prepare();
    give(&mut site.vecsync, &[("a.toml", pipeline("one", "")), ("b.toml", pipeline("two", ""))]);
    site.vecsync.start();
    let ended = site.vecsync.wait_for_exit(SOON);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.contains("no pipeline runs") && last.contains("public.one") && last.contains("public.two"), "{last}");
}

#[test]
fn over_kafka_each_has_its_topics_and_groups() {
    let (mut site, kafka) = (Site::prepare(), Kafka::shared());
    make_table(&site.sql, "products");
    let files = [("a.toml", PIPELINE.to_owned()), ("b.toml", pipeline("products", ""))];
    give(&mut site.vecsync, &files);
    site.vecsync.set("KAFKA_BROKERS", kafka.brokers());
    let prefix = format!("t{}", site.postgres.port);
    site.vecsync.set("VECSYNC_TOPIC_PREFIX", &prefix);
    ask(&site.sql, 1, "How do I get a refund?", "Money comes back.");
    add(&site.sql, "products", "kettle", "Kettle", "Boils water.");
    start(&mut site.vecsync);
    expect_rows(&mut site.vecsync, "", &[json!(1)], MENDED);
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("kettle")], MENDED);
    for (table, topic) in [("faq_faq", "faq"), ("products", "products")] {
        let records = kafka.read(&format!("{prefix}.{topic}.changes"));
        let rows = records.iter().filter_map(|entry| serde_json::from_slice::<Value>(entry.value.as_ref()?).ok());
        let tables: Vec<String> = rows.filter_map(|row| row["source"]["table"].as_str().map(str::to_owned)).collect();
        assert!(!tables.is_empty() && tables.iter().all(|of| of == table), "{topic}: {tables:?}");
    }
    site.vecsync.kill();
    ask(&site.sql, 2, "And now?", "Now, too.");
    add(&site.sql, "products", "lamp", "Lamp", "Gives light.");
    start(&mut site.vecsync);
    expect_rows(&mut site.vecsync, "", &[json!(1), json!(2)], MENDED);
    expect_rows(&mut site.vecsync, "/pipelines/products", &[json!("kettle"), json!("lamp")], MENDED);
}
