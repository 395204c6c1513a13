//! The JSON Schema of pipeline files accepts what the parser accepts: thousands of files, good and bad, through both.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use toml::Table;
use vecsync::config::pipeline::{SCHEMA, parse};

use crate::dice::Dice;

/// What a schema cannot say: these concern two keys at once, or bytes.
const UNSAYABLE: &[&str] = &["is not in document.payload", "wanted less than half of", "more than 63 bytes"];

/// Asks the schema about one file a line, and checks the schema itself.
const PROGRAM: &str = "
import json, sys, jsonschema_rs
schema = json.loads(sys.argv[1])
jsonschema_rs.meta.validate(schema)
validator = jsonschema_rs.validator_for(schema)
for line in sys.stdin:
    print('good' if validator.is_valid(json.loads(line)) else 'bad')
";

const WHOLE: &str = r#"
name = "faq"
[source]
table = "public.faq_faq"
publication = "Häufig"
slot = "vecsync_faq"
[document]
title = "{{ question }}"
text = "{{ answer }}"
payload = ["id", "question", "category"]
when = "is_active"
title_weight = 0.3
window_tokens = 256
overlap_tokens = 32
[index]
filters = ["category"]
collection = "faq_embeddings"
"#;
const LEAST: &str = r#"
name = "f"
[source]
topic = "shop.public.faq_faq"
[document]
text = "{{ answer }}"
payload = []
"#;

const QUERIED: &str = r#"
name = "faq"
[source]
table = "faq"
query = "SELECT id, a FROM faq WHERE id = ANY($1)"
[[source.watch]]
table = "other"
keys = ["faq_id"]
affects = "SELECT unnest($1::bigint[])"
[document]
text = "{{ a }}"
payload = ["id"]
"#;

/// Every key that there is, with values that fit it and values that do not.
fn values(path: &str) -> Vec<Value> {
    let more = match path {
        "name" => json!(["a_1", "F", "1a", "ä", "a-b", "x".repeat(41), "x".repeat(42), "faq\n"]),
        "source.table" => json!([
            "faq",
            "a.b",
            "a.b.c",
            "public.\"My Table\"",
            "\"a\"\"b\".\"c\"",
            "public.MyTable",
            "a-b",
            "1a",
            "_a$1.ü",
            "\"open",
            "a.",
            ".a",
            "\"\"",
            "a b"
        ]),
        "source.publication" => json!(["Any name", "x".repeat(63), "x".repeat(64), "a\tb"]),
        "source.slot" => json!(["0_a", "A", "a-b", "x".repeat(63), "x".repeat(64)]),
        "source.topic" => {
            json!(["a.b.c", "a", ".b.c", "a..c", "a.b.", "a/b", "ä.b.c", "x".repeat(249), "x".repeat(250)])
        }
        "source.query" => json!(["SELECT 1 WHERE id = ANY($1)", "SELECT 1", " $1; "]),
        "source.watch" => {
            let watch = |table: Value, keys: Value, affects: Value| {
                let mut watch = json!({"table": table, "affects": affects});
                if !keys.is_null() {
                    watch["keys"] = keys;
                }
                json!([watch])
            };
            let sql = json!("SELECT id FROM f WHERE c = ANY($1)");
            json!([
                watch(json!("public.c"), Value::Null, sql.clone()),
                watch(json!("\"C\""), json!(["a", "b"]), sql.clone()),
                watch(json!("C"), Value::Null, sql.clone()),
                watch(json!("c"), json!([]), sql.clone()),
                watch(json!("c"), json!(["a", "a"]), sql.clone()),
                watch(json!("c"), json!("a"), sql.clone()),
                watch(json!("c"), Value::Null, json!("SELECT 1")),
                watch(json!(7), Value::Null, json!("")),
                [{"table": "c"}],
                [{"affects": "$1"}],
                [{"table": "c", "affects": "$1", "key": ["a"]}],
                [{"table": "c", "affects": "$1"}, {"table": "c", "affects": "$1"}]
            ])
        }
        "document.payload" | "index.filters" => {
            json!([[], ["id"], ["id", "id"], [""], [" "], ["id", 1], ["passage"], ["_vecsync"], ["category", "id"]])
        }
        "document.title_weight" => json!([0, 1, 0.0, 0.5, 1.0, 1.01, -0.1, -1, 2]),
        "document.window_tokens" => json!([15, 16, 64, 512, 513]),
        "document.overlap_tokens" => json!([0, 1, 31, 100, 513]),
        "index.collection" => json!([
            ".a",
            "a.b",
            "a/b",
            "a__3",
            "a__3x",
            "a__",
            "a__+3",
            "a\\b",
            "a*",
            "x".repeat(200),
            "x".repeat(201),
            "a__1__b"
        ]),
        _ => json!([]),
    };
    let odd = json!([true, 0, -7, 1_000_000_000, 1.5, "", " ", "text", "{{ answer }}", [], ["x"], [[]], {}, {"x": 1}]);
    [odd, more].iter().flat_map(|list| list.as_array().unwrap().clone()).collect()
}

/// The keys that the schema knows.
fn keys() -> BTreeSet<String> {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut keys = BTreeSet::new();
    for (name, property) in schema["properties"].as_object().unwrap() {
        keys.insert(name.clone());
        if let Some(of) = property["$ref"].as_str().and_then(|place| place.strip_prefix("#/$defs/")) {
            let section = &schema["$defs"][of];
            assert!(section["description"].is_string(), "{name} is not described");
            for (key, property) in section["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{name}.{key} is not described");
                keys.insert(format!("{name}.{key}"));
            }
        } else {
            assert!(property["description"].is_string(), "{name} is not described");
        }
    }
    keys
}

fn put(file: &mut Table, path: &str, value: Option<toml::Value>) {
    let (section, key) = path.split_once('.').unwrap_or(("", path));
    let table = match section {
        "" => Some(file),
        // What became something else in an earlier step stays that.
        _ => file.entry(section).or_insert_with(|| Table::new().into()).as_table_mut(),
    };
    if let Some(table) = table {
        match value {
            Some(value) => drop(table.insert(key.to_owned(), value)),
            None => drop(table.remove(key)),
        }
    }
}

#[test]
fn the_schema_accepts_what_the_parser_accepts() {
    let mut paths: Vec<String> = keys().into_iter().collect();
    assert_eq!(paths.len(), 20, "{paths:?}");
    paths.extend(["names", "source.watches", "source.tables", "document.titel", "index.x", "sink"].map(String::from));
    let mut files: Vec<Table> = vec![];
    for whole in [WHOLE, LEAST, QUERIED] {
        let whole: Table = toml::from_str(whole).unwrap();
        files.push(whole.clone());
        for path in &paths {
            for value in values(path).iter().map(Some).chain([None]) {
                let mut file = whole.clone();
                put(&mut file, path, value.map(|value| toml::Value::try_from(value).unwrap()));
                files.push(file);
            }
        }
    }
    // Two to four changes at once.
    let mut dice = Dice::new(9);
    for _ in 0..3_000 {
        let whole = *dice.pick(&[LEAST, WHOLE, WHOLE, QUERIED]);
        let mut file: Table = toml::from_str(whole).unwrap();
        for _ in 0..2 + dice.below(3) {
            let path = &paths[dice.below(paths.len())];
            let values = values(path);
            let value = values.get(dice.below(values.len() + 1));
            put(&mut file, path, value.map(|value| toml::Value::try_from(value).unwrap()));
        }
        files.push(file);
    }

    let said = ask(&files);
    let (mut good, mut bad) = (0, 0);
    for (file, by_schema) in files.iter().zip(said) {
        let text = toml::to_string(file).unwrap();
        let problems = match parse("p.toml", &text, &|_| vec![]) {
            Ok(_) => String::new(),
            Err(problems) => problems.to_string(),
        };
        let sayable = problems.lines().any(|problem| !UNSAYABLE.iter().any(|words| problem.contains(words)));
        if problems.is_empty() {
            assert!(by_schema, "the parser accepts and the schema refuses:\n{text}");
            good += 1;
        } else if sayable {
            assert!(!by_schema, "the schema accepts and the parser says {problems}:\n{text}");
            bad += 1;
        }
    }
    assert!(good > 100 && bad > 1_000, "{good} good ones, {bad} bad ones");
}

fn ask(files: &[Table]) -> Vec<bool> {
    let libraries = std::env::var("VECSYNC_TEST_SCHEMATHESIS").expect("VECSYNC_TEST_SCHEMATHESIS is set: `make setup`");
    let mut asked = Command::new("python3")
        .args(["-c", PROGRAM, SCHEMA])
        .env("PYTHONPATH", libraries)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start python3");
    let mut input = asked.stdin.take().unwrap();
    let lines: Vec<String> = files.iter().map(|file| serde_json::to_string(file).unwrap() + "\n").collect();
    let writer = std::thread::spawn(move || lines.iter().try_for_each(|line| input.write_all(line.as_bytes())));
    let ended = asked.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(ended.status.success(), "the schema cannot be used");
    let said: Vec<bool> = String::from_utf8(ended.stdout).unwrap().lines().map(|line| line == "good").collect();
    assert_eq!(said.len(), files.len());
    said
}

#[test]
fn the_example_names_the_schema_that_the_program_prints() {
    let example = std::fs::read_to_string("pipelines/faq.toml").unwrap();
    let path = example.lines().next().unwrap().strip_prefix("#:schema ./").expect("the line that editors know");
    assert_eq!(std::fs::read_to_string(format!("pipelines/{path}")).unwrap(), SCHEMA);
    let printed = Command::new(env!("CARGO_BIN_EXE_vecsync")).args(["pipeline", "schema"]).output().unwrap();
    assert!(printed.status.success());
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), SCHEMA);
}
