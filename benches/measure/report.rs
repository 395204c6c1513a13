//! Writes figures down: a JSON file, and the table in docs/benchmarks.md between its markers.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::Figures;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md");
const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// What must be reached: part, figure, bound, and whether it is the least or the most.
const BOUNDS: &[(&str, &str, Bound)] = &[
    ("freshness", "p50_ms", Bound::Most(40.0)),
    ("freshness", "p99_ms", Bound::Most(200.0)),
    ("backfill", "of_bare", Bound::Least(0.95)),
    ("backfill", "bare_padding_percent", Bound::Most(5.0)),
    ("backfill", "first_row_ms", Bound::Most(1000.0)),
    ("backfill", "peak_rss_mb", Bound::MostOf { fp32: 400.0, int8: 250.0 }),
    ("models", "int8_of_fp32", Bound::Least(1.8)),
    ("unchanged text", "of_embedding_cpu_percent", Bound::Most(1.0)),
    ("unchanged text", "model_calls", Bound::Most(0.0)),
    ("query", "in_backfill_of_idle_p99", Bound::Most(3.0)),
    ("peers", "of_theirs", Bound::LeastOf { fp32: 2.0, int8: 4.0 }),
    ("kafka freshness", "p50_ms", Bound::Most(40.0)),
    ("kafka freshness", "p99_ms", Bound::Most(200.0)),
    ("kafka capture", "rows_per_s", Bound::Least(40_000.0)),
    ("kafka replay", "points_per_s", Bound::Least(30_000.0)),
    ("qdrant upsert", "of_bare_loop", Bound::Least(0.9)),
    ("qdrant upsert", "own_cpu_percent", Bound::Most(20.0)),
    ("capture stream", "of_bare", Bound::Least(0.8)),
    ("capture stream", "rows_per_s", Bound::Least(100_000.0)),
    ("capture copy", "rows_per_s", Bound::Least(300_000.0)),
    ("capture transaction", "peak_above_idle_mb", Bound::Most(256.0)),
    ("capture beside", "retained_mb", Bound::Most(64.0)),
    ("joins", "rename_s", Bound::Most(40.0)),
    ("joins", "rename_embeddings", Bound::Most(0.0)),
    ("joins", "single_slowest_ms", Bound::Most(1000.0)),
    // Whatever the number of documents.
    ("joins", "peak_above_idle_mb", Bound::Most(256.0)),
    ("single table", "load_of_before", Bound::Least(0.98)),
    ("single table", "transaction_of_before", Bound::Least(0.98)),
    ("single table", "commits_of_before", Bound::Least(0.98)),
    ("single table", "indexed_of_before", Bound::Least(0.98)),
    ("failover", "errors", Bound::Most(0.0)),
    ("failover", "slowest_beyond_hedge_ms", Bound::Most(50.0)),
    ("search", "of_model_latency", Bound::Most(1.15)),
    ("search", "of_model_per_s", Bound::Least(0.9)),
    ("search", "cached_per_s", Bound::Least(10_000.0)),
    ("idle", "connections_mb", Bound::Most(50.0)),
    ("qdrant replay", "embeddings", Bound::Most(0.0)),
    ("scan", "p50_ms", Bound::Most(4.0)),
    ("scan", "p99_ms", Bound::Most(10.0)),
    ("scan", "recall_at_10", Bound::Least(1.0)),
    ("idle", "cpu_percent", Bound::Most(1.0)),
    ("idle", "start_to_ready_p50_ms", Bound::Most(2000.0)),
];

#[derive(Clone, Copy)]
enum Bound {
    Least(f64),
    Most(f64),
    /// By the model.
    LeastOf {
        fp32: f64,
        int8: f64,
    },
    MostOf {
        fp32: f64,
        int8: f64,
    },
}

impl Bound {
    fn holds(self, model: &str, value: f64) -> bool {
        let of = |fp32, int8| if model == "fp32" { fp32 } else { int8 };
        match self {
            Bound::Least(bound) => value >= bound,
            Bound::Most(bound) => value <= bound,
            Bound::LeastOf { fp32, int8 } => value >= of(fp32, int8),
            Bound::MostOf { fp32, int8 } => value <= of(fp32, int8),
        }
    }

    fn text(self) -> String {
        match self {
            Bound::Least(bound) => format!("≥ {}", number(bound)),
            Bound::Most(bound) => format!("≤ {}", number(bound)),
            Bound::LeastOf { fp32, int8 } => format!("≥ {}, int8 {}", number(fp32), number(int8)),
            Bound::MostOf { fp32, int8 } => format!("≤ {}, int8 {}", number(fp32), number(int8)),
        }
    }
}

pub struct Report {
    parts: Vec<(String, &'static str, Figures)>,
}

impl Report {
    pub fn new() -> Self {
        Report { parts: vec![] }
    }

    pub fn add(&mut self, model: &str, part: &'static str, figures: Figures) {
        let told: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        eprintln!("{part}, {model}: {}", told.join(", "));
        self.parts.push((model.to_owned(), part, figures));
    }

    /// What the int8 model's backfill is, and its bare loop, of the fp32 model's.
    pub fn add_ratio(&mut self) {
        let of = |name: &str| {
            let figure = |model| self.figure(model, "backfill", name).unwrap_or(f64::NAN);
            figure("int8") / figure("fp32")
        };
        let figures = vec![("int8_of_fp32", of("texts_per_s")), ("bare_int8_of_fp32", of("bare_texts_per_s"))];
        self.add("int8", "models", figures);
    }

    /// Markdown: a line a figure, a column a model.
    pub fn table(&self) -> String {
        let mut models: Vec<&str> = vec![];
        let mut lines: Vec<(&str, &str)> = vec![];
        for (model, part, figures) in &self.parts {
            if !models.contains(&model.as_str()) {
                models.push(model);
            }
            for (name, _) in figures {
                if !lines.contains(&(*part, *name)) {
                    lines.push((part, name));
                }
            }
        }
        lines.sort_by_key(|(part, _)| self.parts.iter().position(|(_, other, _)| other == part));
        let mut text = format!("{}\n\n| | wanted | {} |\n| --- | --- |", machine(), models.join(" | "));
        text.push_str(&" ---: |".repeat(models.len()));
        for (part, name) in lines {
            let bound = BOUNDS.iter().find(|(p, n, _)| *p == part && *n == name).map(|(_, _, bound)| *bound);
            let wanted = bound.map_or(String::new(), Bound::text);
            text.push_str(&format!("\n| {part} {} | {wanted} |", name.replace('_', " ")));
            for model in &models {
                let cell = self.figure(model, part, name).map_or("-".to_owned(), |value| {
                    let missed = bound.is_some_and(|bound| !bound.holds(model, value));
                    format!("{}{}", number(value), if missed { " (missed)" } else { "" })
                });
                text.push_str(&format!(" {cell} |"));
            }
        }
        text + "\n"
    }

    pub fn write(&self, json: Option<&Path>, docs: bool) -> Result<(), String> {
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&self.json()).expect("figures are JSON");
            fs::write(path, text + "\n").map_err(|error| format!("write {}: {error}", path.display()))?;
        }
        if !docs {
            return Ok(());
        }
        let page = fs::read_to_string(DOCS).map_err(|error| format!("read {DOCS}: {error}"))?;
        let places = page.find(BEGIN).zip(page.find(END)).filter(|(begin, end)| begin < end);
        let (begin, end) = places.ok_or_else(|| format!("{DOCS} lacks the lines {BEGIN} and {END}"))?;
        let page = format!("{}\n{}\n{}", &page[..begin + BEGIN.len()], self.table(), &page[end..]);
        fs::write(DOCS, page).map_err(|error| format!("write {DOCS}: {error}"))
    }

    fn json(&self) -> Value {
        let mut models = Map::new();
        for (model, part, figures) in &self.parts {
            let figures: Map<String, Value> =
                figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            let parts = models.entry(model).or_insert_with(|| json!({}));
            parts[*part] = Value::Object(figures);
        }
        json!({"machine": machine(), "version": env!("CARGO_PKG_VERSION"), "models": models})
    }

    fn figure(&self, model: &str, part: &str, name: &str) -> Option<f64> {
        let (_, _, figures) = self.parts.iter().find(|(m, p, _)| m == model && *p == part)?;
        figures.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }
}

/// Three digits that count, no more than were measured.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores, {}", OffsetDateTime::now_utc().date())
}
