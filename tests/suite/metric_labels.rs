//! docs/reference.md lists the values that labels of metrics have: those that stand in the code, and no others. The code is read, so
//! that a value that is added anywhere is missed in the list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::deploy::read;

type Values = BTreeSet<String>;

/// The values of each metric's labels, as the reference lists them.
fn listed() -> BTreeMap<(String, String), Values> {
    let reference = read("docs/reference.md");
    let rows = reference
        .split("\n## Metrics\n")
        .nth(1)
        .expect("a chapter")
        .lines()
        .filter_map(|line| line.strip_prefix("| `"));
    let mut listed = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        // No label at all.
        if cells[1].starts_with('|') {
            continue;
        }
        let names = cells[0].split(", ").map(|name| name.trim_matches('`'));
        let labels = without_remarks(cells[1].trim_end_matches('|'));
        for (name, label) in names.flat_map(|name| labels.split(';').map(move |label| (name, label.to_owned()))) {
            let Some((label, values)) = label.split_once(" = ") else { continue };
            // Labels without a list stand before it.
            let label = label.rsplit(',').next().unwrap_or(label);
            let values = values.split(',').map(|value| value.trim().trim_matches('`').to_owned()).collect();
            let before = listed.insert((name.to_owned(), label.trim().trim_matches('`').to_owned()), values);
            assert!(before.is_none(), "{name} is listed twice");
        }
    }
    listed
}

/// Without what stands in parentheses, which explains.
fn without_remarks(text: &str) -> String {
    let mut depth = 0_i32;
    let kept = text.chars().filter(|c| {
        depth += i32::from(*c == '(') - i32::from(*c == ')');
        depth == 0 && *c != ')'
    });
    kept.collect()
}

/// A file of the program without its tests.
fn code(path: &str) -> String {
    let text = read(path);
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

/// The texts that stand behind each occurrence of what comes before them, quotation mark included.
fn texts_after(code: &str, before: &str) -> Values {
    code.split(before).skip(1).filter_map(|rest| rest.split('"').next().map(str::to_owned)).collect()
}

/// What a type's variants are called: `Kind::Stale => "stale"`.
fn arms(path: &str, name: &str) -> Values {
    let (code, before) = (code(path), format!("{name}::"));
    let arms = code.split(&before).skip(1).filter_map(|rest| {
        let (variant, text) = rest.split_once(" => \"")?;
        variant.chars().all(char::is_alphanumeric).then(|| text.split('"').next().unwrap().to_owned())
    });
    let found: Values = arms.collect();
    assert!(found.len() > 1, "{name} of {path}: {found:?}");
    found
}

/// A constant text, of the file or of the module around it.
fn constant(path: &Path, name: &str) -> String {
    let name = name.rsplit("::").next().unwrap();
    let around = path.parent().map(|folder| folder.with_extension("rs"));
    let files = [Some(path.to_owned()), around.clone(), around.map(|file| file.with_extension("").join("mod.rs"))];
    let found = files.into_iter().flatten().filter(|file| file.is_file()).find_map(|file| {
        let text = fs::read_to_string(file).unwrap();
        texts_after(&text, &format!("const {name}: &str = \"")).pop_first()
    });
    found.unwrap_or_else(|| panic!("{}: what is {name}?", path.display()))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs")
            && path.file_name().is_some_and(|name| name != "tests.rs")
        {
            found.push(path);
        }
    }
}

/// What is given first to any of these functions, as a text or as a constant.
fn given_first(functions: &[&str]) -> Values {
    let (root, mut files) = (Path::new(env!("CARGO_MANIFEST_DIR")), vec![]);
    sources(&root.join("src"), &mut files);
    let mut found = Values::new();
    for file in files {
        let code = code(file.strip_prefix(root).unwrap().to_str().unwrap());
        for rest in functions.iter().flat_map(|function| code.split(function).skip(1)) {
            let first = rest.trim_start().split([',', ')']).next().unwrap();
            found.insert(match first.strip_prefix('"') {
                Some(text) => text.trim_end_matches('"').to_owned(),
                // Within these functions themselves.
                None if first.contains(':') && !first.contains("::") || first == "target" => continue,
                None => constant(&file, first),
            });
        }
    }
    found
}

fn union(sets: &[Values]) -> Values {
    sets.iter().flatten().cloned().collect()
}

fn set(values: &[&str]) -> Values {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn the_reference_lists_the_values_that_labels_have() {
    let intake = code("src/embed/intake.rs");
    let stores = set(&[vecsync::index::mirror::STORE, vecsync::index::primary::STORE]);
    let operations = ["src/app/qdrant.rs", "src/index/sink.rs", "src/index/primary.rs", "src/index/mirror/search.rs"];
    let operations = operations.map(|path| texts_after(&code(path), ".store_request(STORE, \""));
    let fallbacks = code("src/app/qdrant.rs").split("FALLBACK_REASONS: [&str; 5] = [").nth(1).map(|rest| {
        let names = rest.split(']').next().unwrap().split(", ").map(str::to_owned).collect::<Vec<_>>();
        let files = ["src/app/qdrant.rs", "src/app/failover.rs", "src/serve/failover.rs"]
            .map(|file| Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
        names
            .iter()
            .map(|name| {
                let of = |file: &PathBuf| {
                    texts_after(&fs::read_to_string(file).unwrap(), &format!("const {name}: &str = \"")).pop_first()
                };
                files.iter().find_map(of).unwrap_or_else(|| panic!("what is {name}?"))
            })
            .collect::<Values>()
    });
    let ops = arms("src/event.rs", "Op");
    let embedded = [
        ops.clone(),
        texts_after(&intake, "counts.entry(\""),
        texts_after(&intake, " => (\""),
        texts_after(&code("src/embed/rows.rs"), "counts.entry(\""),
        texts_after(&code("src/index/batch.rs"), "for (op, count) in [(\""),
        set(&["truncate"]),
    ];
    let served_by = union(&[stores.clone(), texts_after(&code("src/serve/api.rs"), "const NOBODY: &str = \"")]);
    let results = set(&["error", "ok"]);
    let wanted = [
        ("events_total", "stage", arms("src/metrics.rs", "Stage")),
        ("events_total", "op", union(&[union(&embedded), set(&["upsert", "delete"])])),
        ("capture_state", "state", vecsync::capture::Phase::NAMES.map(str::to_owned).into()),
        ("embeddings_total", "result", set(&["cached", "computed"])),
        ("store_requests_total", "store", stores.clone()),
        ("store_requests_total", "operation", union(&operations)),
        ("store_requests_total", "result", results.clone()),
        ("store_connections_total", "store", stores),
        ("store_connections_total", "result", results),
        ("breaker_state", "state", arms("src/serve/failover.rs", "State")),
        ("fallbacks_total", "reason", fallbacks.expect("a list")),
        ("queries_total", "served_by", served_by),
        (
            "dead_letters_total",
            "reason",
            union(&[arms("src/embed/rows.rs", "Reason"), texts_after(&code("src/index/batch.rs"), ".dead_letter(\"")]),
        ),
        ("drift_rows", "kind", arms("src/index/drift.rs", "Kind")),
        ("retries_total", "target", given_first(&["Retry::new(", "Retry::paced("])),
    ];
    let mut listed = listed();
    for (metric, label, wanted) in wanted {
        let found = listed.remove(&(metric.to_owned(), label.to_owned())).unwrap_or_default();
        assert_eq!(found, wanted, "{label} of {metric}: what docs/reference.md has, and what the code has");
    }
    assert!(listed.is_empty(), "the code is not asked for these: {listed:?}");
}

#[test]
fn a_list_in_the_reference_is_read() {
    assert_eq!(without_remarks("`a` (one `b`, (c)), `d`"), "`a` , `d`");
    assert_eq!(texts_after(r#"x.f("a", 1) y.f("b")"#, ".f(\""), set(&["a", "b"]));
    let listed = listed();
    assert!(listed[&("drift_rows".to_owned(), "kind".to_owned())].contains("stale"), "{listed:?}");
}
