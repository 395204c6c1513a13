//! Every metric vecsync has: name, unit, labels, buckets, and the one registry. No label carries a key, a text or an LSN.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};

/// Latencies from a local search (0.5 ms) to an outage's edge (60 s).
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// By convention without the prefix, and a counter.
const CPU_SECONDS: &str = "process_cpu_seconds_total";
/// Texts in one call of the model.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Installs the registry. Call once, before anything is counted.
pub fn install(version: &'static str, model: &str) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Full("vecsync_embed_batch_size".into()), BATCH)?
        .install_recorder()?;
    describe();
    gauge!("vecsync_build_info", "version" => version, "model" => model.to_owned()).set(1.0);
    Ok(handle)
}

fn describe() {
    let gauges = [
        ("vecsync_pipeline_up", Unit::Count, "1 while a pipeline runs, 0 while it failed and is tried again"),
        ("vecsync_capture_state", Unit::Count, "1 for what capture is doing, 0 for the others"),
        ("vecsync_staleness_seconds", Unit::Seconds, "How old what a store holds may be; NaN: not known"),
        ("vecsync_store_searchable", Unit::Count, "1 while searches may ask a store, else 0"),
        ("vecsync_embed_lag_records", Unit::Count, "Records of changes that embed has not yet taken"),
        ("vecsync_dead_letters_open", Unit::Count, "Records put aside whose rows are not mended"),
        ("process_resident_memory_bytes", Unit::Bytes, "Memory in use"),
        ("process_open_fds", Unit::Count, "Open file descriptors"),
        ("process_max_fds", Unit::Count, "Most file descriptors that may be open"),
        ("process_threads", Unit::Count, "Threads"),
        (CPU_SECONDS, Unit::Seconds, "Time on processors"),
        ("process_start_time_seconds", Unit::Seconds, "When the process began, Unix time"),
        ("vecsync_source_lag_bytes", Unit::Bytes, "WAL written by the source and not yet in the log"),
        ("vecsync_slot_retained_wal_bytes", Unit::Bytes, "WAL that the replication slot keeps on the source"),
        ("vecsync_slot_safe_wal_bytes", Unit::Bytes, "WAL that can still be written before the slot is lost"),
        (
            "vecsync_last_event_commit_timestamp_seconds",
            Unit::Seconds,
            "Commit time of the last event of a stage, Unix time",
        ),
        ("vecsync_store_points", Unit::Count, "Points in a store"),
        ("vecsync_store_bytes", Unit::Bytes, "Size of a store on disk"),
        ("vecsync_data_dir_free_bytes", Unit::Bytes, "Free space where VECSYNC_DATA_DIR is"),
        ("vecsync_sink_lag_records", Unit::Count, "Records of vectors that a store has not yet taken"),
        (
            "vecsync_breaker_state",
            Unit::Count,
            "1 for the state that the breaker before Qdrant is in, 0 for the others",
        ),
        ("vecsync_build_info", Unit::Count, "Version and model, always 1"),
        ("vecsync_drift_rows", Unit::Count, "Rows that a store held otherwise than the table, at the last verify"),
        (
            "vecsync_verify_last_success_timestamp_seconds",
            Unit::Seconds,
            "When a verify last compared the table with every store, Unix time",
        ),
    ];
    for (name, unit, text) in gauges {
        describe_gauge!(name, unit, text);
    }
    let counters = [
        ("vecsync_events_total", "Events through a stage"),
        ("vecsync_embeddings_total", "Texts embedded, by result"),
        ("vecsync_texts_split_total", "Texts that needed more than one window"),
        ("vecsync_titles_cut_total", "Titles too long to stand whole in front of their windows"),
        ("vecsync_store_requests_total", "Requests to a store"),
        ("vecsync_store_connections_total", "Connections made to a store, and openings of its folder, by result"),
        ("vecsync_queries_total", "Searches answered"),
        ("vecsync_fallbacks_total", "Searches answered by the mirror in Qdrant's place, by reason"),
        ("vecsync_dead_letters_total", "Records put aside, by reason"),
        ("vecsync_retries_total", "Attempts that failed and are made again"),
    ];
    for (name, text) in counters {
        describe_counter!(name, Unit::Count, text);
    }
    let histograms = [
        ("vecsync_end_to_end_latency_seconds", "Commit in the source to durable in the store"),
        ("vecsync_embed_duration_seconds", "One call of the model"),
        ("vecsync_store_request_duration_seconds", "One request to a store"),
        ("vecsync_query_duration_seconds", "One search, from request to answer"),
    ];
    for (name, text) in histograms {
        describe_histogram!(name, Unit::Seconds, text);
    }
    describe_histogram!("vecsync_embed_batch_size", Unit::Count, "Texts in one call of the model");
}

/// The stages of the pipeline, as the label `stage` names them.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// Events into `changes`.
    Capture,
    /// Events out of `changes` into `vectors`.
    Embed,
    /// Events into a store.
    Index,
}

impl Stage {
    fn as_label(self) -> &'static str {
        match self {
            Stage::Capture => "capture",
            Stage::Embed => "embed",
            Stage::Index => "index",
        }
    }

    /// What events of it are counted as, whatever comes.
    fn ops(self) -> &'static [&'static str] {
        match self {
            Stage::Capture | Stage::Embed => &["create", "update", "delete", "truncate", "read"],
            Stage::Index => &["upsert", "delete", "truncate"],
        }
    }
}

/// The metrics of one pipeline: each carries its name.
#[derive(Clone, Debug)]
pub struct PipelineMetrics {
    pipeline: String,
    tally: Arc<Tally>,
}

/// What is counted for people, too: commands that see the beginning and the end of a time, and the status.
#[derive(Debug)]
struct Tally {
    computed: AtomicU64,
    cached: AtomicU64,
    changed: AtomicU64,
    /// By stage, in the order of [`Stage`].
    events: [AtomicU64; 3],
    /// [`UNKNOWN`] before they were counted.
    open_letters: AtomicU64,
    embeds: AtomicBool,
    embed_lag: AtomicU64,
    embed_position: AtomicU64,
}

/// Stands for a number that nobody has said yet.
const UNKNOWN: u64 = u64::MAX;

impl Default for Tally {
    fn default() -> Self {
        let [computed, cached, changed] = [0; 3].map(AtomicU64::new);
        let [open_letters, embed_lag, embed_position] = [UNKNOWN; 3].map(AtomicU64::new);
        let (events, embeds) = Default::default();
        Tally { computed, cached, changed, events, open_letters, embeds, embed_lag, embed_position }
    }
}

/// What was done since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Texts whose vector was computed.
    pub computed: u64,
    /// Texts whose vector was known.
    pub cached: u64,
    /// Rows of the mirror that came to say something else, or were new.
    pub changed: u64,
}

impl PipelineMetrics {
    /// Metrics with the label `pipeline`.
    pub fn new(pipeline: &str) -> Self {
        PipelineMetrics { pipeline: pipeline.to_owned(), tally: Arc::default() }
    }

    fn label(&self) -> String {
        self.pipeline.clone()
    }

    /// The pipeline's name.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// `count` events with this `op` went through `stage`.
    pub fn events(&self, stage: Stage, op: &'static str, count: u64) {
        self.tally.events[stage as usize].fetch_add(count, Ordering::Relaxed);
        counter!("vecsync_events_total", "pipeline" => self.label(), "stage" => stage.as_label(), "op" => op)
            .increment(count);
    }

    /// Events can come through this stage here. Without a count from the beginning, the first is no increase.
    pub fn has_stage(&self, stage: Stage) {
        stage.ops().iter().for_each(|op| self.events(stage, op, 0));
    }

    /// How many events came through a stage so far.
    pub fn events_of(&self, stage: Stage) -> u64 {
        self.tally.events[stage as usize].load(Ordering::Relaxed)
    }

    /// Whether the pipeline runs, whatever its parts do.
    pub fn is_up(&self, is_up: bool) {
        gauge!("vecsync_pipeline_up", "pipeline" => self.label()).set(f64::from(u8::from(is_up)));
    }

    /// What capture is doing, of all that it can.
    pub fn capture_state(&self, states: &[&'static str], current: &str) {
        for state in states {
            gauge!("vecsync_capture_state", "pipeline" => self.label(), "state" => *state)
                .set(f64::from(u8::from(*state == current)));
        }
    }

    /// The newest event of `stage` was committed at this time, milliseconds since the Unix epoch.
    pub fn last_commit(&self, stage: Stage, commit_ts_ms: i64) {
        gauge!("vecsync_last_event_commit_timestamp_seconds", "pipeline" => self.label(), "stage" => stage.as_label())
            .set(commit_ts_ms as f64 / 1000.0);
    }

    /// WAL of the source, in bytes: not yet captured, kept by the slot, and left before the slot is lost.
    pub fn source(&self, lag: Option<u64>, retained: Option<u64>, safe: Option<u64>) {
        gauge!("vecsync_source_lag_bytes", "pipeline" => self.label()).set(number(lag));
        gauge!("vecsync_slot_retained_wal_bytes", "pipeline" => self.label()).set(number(retained));
        gauge!("vecsync_slot_safe_wal_bytes", "pipeline" => self.label()).set(number(safe));
    }

    /// Embed is at work: records of `changes` that it has not taken, and those that it has, where that is known here.
    pub fn embed_stands(&self, records: Option<u64>, position: Option<u64>) {
        self.tally.embeds.store(true, Ordering::Relaxed);
        self.tally.embed_lag.store(records.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.tally.embed_position.store(position.unwrap_or(UNKNOWN), Ordering::Relaxed);
        gauge!("vecsync_embed_lag_records", "pipeline" => self.label()).set(number(records));
    }

    /// The same, where embed is at work here.
    pub fn embed_standing(&self) -> Option<(Option<u64>, Option<u64>)> {
        let tally = &self.tally;
        tally.embeds.load(Ordering::Relaxed).then(|| (known(&tally.embed_lag), known(&tally.embed_position)))
    }

    /// Texts whose vector was computed, and texts whose vector was known.
    pub fn embeddings(&self, computed: u64, cached: u64) {
        self.tally.computed.fetch_add(computed, Ordering::Relaxed);
        self.tally.cached.fetch_add(cached, Ordering::Relaxed);
        for (result, count) in [("computed", computed), ("cached", cached)] {
            counter!("vecsync_embeddings_total", "pipeline" => self.label(), "result" => result).increment(count);
        }
    }

    /// So many rows of the mirror say something else than before, or are new.
    pub fn rows_changed(&self, count: u64) {
        self.tally.changed.fetch_add(count, Ordering::Relaxed);
    }

    /// What was done so far.
    pub fn done(&self) -> Done {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Tally { computed, cached, changed, .. } = &*self.tally;
        Done { computed: of(computed), cached: of(cached), changed: of(changed) }
    }

    /// `count` texts needed more than one window.
    pub fn texts_split(&self, count: u64) {
        counter!("vecsync_texts_split_total", "pipeline" => self.label()).increment(count);
    }

    /// `count` titles were too long to stand whole in front of their windows.
    pub fn titles_cut(&self, count: u64) {
        counter!("vecsync_titles_cut_total", "pipeline" => self.label()).increment(count);
    }

    /// Records can be put aside for these reasons. Without a count from the beginning, the first is no increase.
    pub fn dead_letter_reasons(&self, reasons: &[&'static str]) {
        for reason in reasons {
            counter!("vecsync_dead_letters_total", "pipeline" => self.label(), "reason" => *reason).increment(0);
        }
    }

    /// A record was put aside.
    pub fn dead_letter(&self, reason: &'static str) {
        counter!("vecsync_dead_letters_total", "pipeline" => self.label(), "reason" => reason).increment(1);
    }

    /// So many records that were put aside are not mended.
    pub fn open_letters(&self, count: Option<u64>) {
        self.tally.open_letters.store(count.unwrap_or(UNKNOWN), Ordering::Relaxed);
        gauge!("vecsync_dead_letters_open", "pipeline" => self.label()).set(number(count));
    }

    /// The same, where it was said.
    pub fn open_letters_known(&self) -> Option<u64> {
        known(&self.tally.open_letters)
    }

    /// A change that was committed at `commit_ts_ms` is durable in the store at `now_ms`.
    pub fn end_to_end(&self, store: &'static str, commit_ts_ms: i64, now_ms: i64) {
        histogram!("vecsync_end_to_end_latency_seconds", "pipeline" => self.label(), "store" => store)
            .record((now_ms - commit_ts_ms).max(0) as f64 / 1000.0);
    }

    /// A store is kept or asked here. Without a count from the beginning, the first is no increase.
    pub fn has_store(&self, store: &'static str) {
        for result in ["ok", "error"] {
            counter!("vecsync_store_connections_total", "pipeline" => self.label(), "store" => store, "result" => result)
                .increment(0);
            for operation in ["search", "upsert"] {
                counter!("vecsync_store_requests_total", "pipeline" => self.label(), "store" => store, "operation" => operation, "result" => result)
                    .increment(0);
            }
        }
    }

    /// How old what a store holds may be, in milliseconds, and whether searches may ask it.
    pub fn store_standing(&self, store: &'static str, staleness_ms: Option<u64>, is_searchable: bool) {
        gauge!("vecsync_staleness_seconds", "pipeline" => self.label(), "store" => store)
            .set(number(staleness_ms) / 1000.0);
        gauge!("vecsync_store_searchable", "pipeline" => self.label(), "store" => store)
            .set(f64::from(u8::from(is_searchable)));
    }

    /// How many points a store holds; `None`: it cannot be asked.
    pub fn store_points(&self, store: &'static str, points: Option<u64>) {
        gauge!("vecsync_store_points", "pipeline" => self.label(), "store" => store).set(number(points));
    }

    /// How large it is on disk.
    pub fn store_bytes(&self, store: &'static str, bytes: u64) {
        gauge!("vecsync_store_bytes", "pipeline" => self.label(), "store" => store).set(bytes as f64);
    }

    /// Records of `vectors` that a store has not yet taken.
    pub fn sink_lag(&self, store: &'static str, records: u64) {
        gauge!("vecsync_sink_lag_records", "pipeline" => self.label(), "store" => store).set(records as f64);
    }

    /// One request to a store.
    pub fn store_request(&self, store: &'static str, operation: &'static str, ok: bool, took: Duration) {
        let result = if ok { "ok" } else { "error" };
        counter!("vecsync_store_requests_total", "pipeline" => self.label(), "store" => store, "operation" => operation, "result" => result)
            .increment(1);
        histogram!("vecsync_store_request_duration_seconds", "pipeline" => self.label(), "store" => store, "operation" => operation)
            .record(took);
    }

    /// A connection to a store came about, or the opening of its folder, or it did not.
    pub fn store_connection(&self, store: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        counter!("vecsync_store_connections_total", "pipeline" => self.label(), "store" => store, "result" => result)
            .increment(1);
    }

    /// A search was answered by the mirror in Qdrant's place.
    pub fn fallback(&self, reason: &'static str) {
        counter!("vecsync_fallbacks_total", "pipeline" => self.label(), "reason" => reason).increment(1);
    }

    /// Searches can be answered by the mirror for these reasons. Without a count from the beginning, the first is no increase.
    pub fn fallback_reasons(&self, reasons: &[&'static str]) {
        for reason in reasons {
            counter!("vecsync_fallbacks_total", "pipeline" => self.label(), "reason" => *reason).increment(0);
        }
    }

    /// Whether the breaker before Qdrant is in this state.
    pub fn breaker_state(&self, state: &'static str, is: bool) {
        gauge!("vecsync_breaker_state", "pipeline" => self.label(), "state" => state).set(f64::from(u8::from(is)));
    }

    /// So many rows of a store differ from the table, in this way.
    pub fn drift(&self, store: &'static str, kind: &'static str, rows: u64) {
        gauge!("vecsync_drift_rows", "pipeline" => self.label(), "store" => store, "kind" => kind).set(rows as f64);
    }

    /// The table was compared with every store, at this time, milliseconds since the Unix epoch.
    pub fn verified(&self, at_ms: i64) {
        gauge!("vecsync_verify_last_success_timestamp_seconds", "pipeline" => self.label()).set(at_ms as f64 / 1000.0);
    }

    /// Searches can end so. Without a count from the beginning, the first is no increase.
    pub fn query_ends(&self, ends: &[(&'static str, u16)]) {
        for (served_by, code) in ends {
            counter!("vecsync_queries_total", "pipeline" => self.label(), "served_by" => *served_by, "code" => code.to_string())
                .increment(0);
        }
    }

    /// One search was answered with this HTTP status.
    pub fn query(&self, served_by: &'static str, code: u16, took: Duration) {
        counter!("vecsync_queries_total", "pipeline" => self.label(), "served_by" => served_by, "code" => code.to_string())
            .increment(1);
        histogram!("vecsync_query_duration_seconds", "pipeline" => self.label(), "served_by" => served_by).record(took);
    }
}

/// One call of the model with `texts` texts.
pub fn model_call(texts: usize, took: Duration) {
    histogram!("vecsync_embed_batch_size").record(texts as f64);
    histogram!("vecsync_embed_duration_seconds").record(took);
}

/// Attempts at `target` can fail. Without a count from the beginning, the first is no increase.
pub fn retries_of(target: &'static str) {
    counter!("vecsync_retries_total", "target" => target).increment(0);
}

/// An attempt at `target` failed and is made again.
pub fn retried(target: &'static str) {
    counter!("vecsync_retries_total", "target" => target).increment(1);
}

/// What the process has taken of its machine so far. The names are those that Prometheus's own clients use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Seconds on processors.
    pub cpu_seconds: f64,
    /// Bytes of memory in use.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Most that may be open.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// When it began, seconds since the Unix epoch.
    pub started: f64,
}

/// What the process has taken so far.
pub fn process(process: &Process) {
    let Process { cpu_seconds, resident_bytes, open_fds, max_fds, threads, started } = *process;
    gauge!("process_resident_memory_bytes").set(resident_bytes as f64);
    gauge!("process_open_fds").set(open_fds as f64);
    gauge!("process_max_fds").set(max_fds as f64);
    gauge!("process_threads").set(threads as f64);
    gauge!("process_start_time_seconds").set(started);
    // A counter of the exporter's counts whole seconds: `exposition` says what it is.
    gauge!(CPU_SECONDS).set(cpu_seconds);
}

/// All metrics, in Prometheus's text format.
pub fn exposition(registry: &PrometheusHandle) -> String {
    registry.render().replace(&format!("# TYPE {CPU_SECONDS} gauge"), &format!("# TYPE {CPU_SECONDS} counter"))
}

fn known(count: &AtomicU64) -> Option<u64> {
    Some(count.load(Ordering::Relaxed)).filter(|count| *count != UNKNOWN)
}

/// A gauge's value; NaN for what is not known, which no comparison holds for.
fn number(known: Option<u64>) -> f64 {
    known.map_or(f64::NAN, |number| number as f64)
}

/// Free space where the data directory is, in bytes.
pub fn data_dir_free(bytes: u64) {
    gauge!("vecsync_data_dir_free_bytes").set(bytes as f64);
}
