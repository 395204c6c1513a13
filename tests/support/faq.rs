//! The real FAQ text, as `make setup` fetched it. Not committed: it belongs to two Debian packages.

use std::path::PathBuf;

use serde_json::Value;

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    pub question: String,
    pub answer: String,
    pub category: String,
}

/// The entries in the order of their rows: in the table of `make run` the first has the id 1.
pub fn faq() -> Vec<Entry> {
    let path = std::env::var_os("VECSYNC_TEST_FAQ").map_or(".local/faq.jsonl".into(), PathBuf::from);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("read {}: {error}; `make setup` makes it", path.display()));
    let entry = |line: &str| {
        let value: Value = serde_json::from_str(line).expect("a line is JSON");
        let text = |field: &str| value[field].as_str().expect("a text").to_owned();
        Entry { question: text("question"), answer: text("answer"), category: text("category") }
    };
    text.lines().map(entry).collect()
}
