//! The state of the pipeline for people who look at it, row text included: stores, freshness, the last changes. No I/O.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::health::{Component, LOCAL, Report, Status, timestamp};
use crate::index::Arrival;

/// What health does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The store that would answer a search now; `None`: nobody here can.
    pub served_by: Option<&'static str>,
    /// The field of the payload that is a row's title, where one is.
    pub title_field: Option<String>,
    /// The stages that are at work here, in the order data flows.
    pub stages: Vec<Stage>,
    /// The slot's WAL on the source, where capture is here.
    pub slot: Option<Slot>,
    /// The state of the breaker before Qdrant, where one is configured.
    pub breaker: Option<&'static str>,
    /// Records that were put aside and are not mended, where embed is here and knows.
    pub dead_letters_open: Option<u64>,
    /// The stores that are kept here.
    pub stores: Vec<Store>,
    /// The last changes that reached a store, the newest first.
    pub changes: Vec<Arrival>,
}

/// A stage of the pipeline. A number that is not known, or not said of this stage, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stage {
    /// `capture`, `embed` or `index`.
    pub name: &'static str,
    /// What it is doing, where that can be told: capture alone.
    pub state: Option<&'static str>,
    /// Events since the process began.
    pub events: u64,
    /// Where it is: in the source's WAL, or in its topic, the records of all partitions counted together.
    pub position: Option<String>,
    /// WAL of the source that it lacks, in bytes.
    pub lag_bytes: Option<u64>,
    /// Records of the topic before it that it lacks.
    pub lag_records: Option<u64>,
}

/// The replication slot, as the source says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// WAL that it keeps, in bytes.
    pub retained_bytes: Option<u64>,
    /// WAL that can still be written before it is lost; `None` where there is no limit.
    pub safe_bytes: Option<u64>,
}

/// A store.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// `qdrant` or `local`.
    pub name: &'static str,
    /// Rows in it, where they are counted.
    pub rows: Option<u64>,
    /// Points in it: each row has one or more.
    pub points: Option<u64>,
    /// How far it may be behind the table, in milliseconds, if known.
    pub staleness_ms: Option<u64>,
    /// Records that are on their way into it; of a store that this process feeds.
    pub lag_records: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    status: &'static str,
    timestamp: String,
    ready: bool,
    waits_for: Option<String>,
    pipeline: &'a str,
    pipelines: &'a [Sibling<'a>],
    searches: bool,
    served_by: Option<&'static str>,
    filters: &'a [String],
    title_field: Option<&'a str>,
    faults: Vec<Fault<'a>>,
    load: Option<Load>,
    stages: &'a [Stage],
    slot: Option<Slot>,
    breaker: Option<&'static str>,
    dead_letters_open: Option<u64>,
    stores: Vec<StoreBody<'a>>,
    changes: Vec<Change<'a>>,
}

#[derive(Serialize)]
struct Fault<'a> {
    component: &'a str,
    status: &'static str,
    error: &'a str,
}

/// The first load, while it is not complete.
#[derive(Serialize)]
struct Load {
    rows: u64,
    expected: u64,
}

#[derive(Serialize)]
struct StoreBody<'a> {
    name: &'a str,
    status: &'static str,
    rows: Option<u64>,
    points: Option<u64>,
    staleness_ms: Option<u64>,
    lag_records: Option<u64>,
}

#[derive(Serialize)]
struct Change<'a> {
    op: &'a str,
    id: &'a Option<Value>,
    title: Option<&'a str>,
    committed_at: Option<String>,
    latency_ms: &'a BTreeMap<&'static str, u64>,
}

/// Whose state it is.
pub(super) struct Of<'a> {
    pub(super) pipeline: &'a str,
    /// Fields that searches may filter by.
    pub(super) filters: &'a [String],
    /// All pipelines of the process, this one among them.
    pub(super) siblings: &'a [Sibling<'a>],
}

/// One of the pipelines of a process.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sibling<'a> {
    pub(super) name: &'a str,
    /// Whether it answers under the paths that name no pipeline.
    pub(super) default: bool,
    pub(super) status: &'static str,
}

/// The body of an answer.
pub(super) fn body(
    Of { pipeline, filters, siblings }: Of<'_>,
    report: &Report,
    state: &State,
    now: OffsetDateTime,
) -> serde_json::Result<String> {
    let waits_for = report.readiness().err();
    serde_json::to_string(&Body {
        status: report.status().as_str(),
        timestamp: timestamp(now),
        ready: waits_for.is_none(),
        waits_for,
        pipeline,
        pipelines: siblings,
        searches: report.serves,
        served_by: state.served_by,
        filters,
        title_field: state.title_field.as_deref(),
        faults: faults(report),
        load: load(report),
        stages: &state.stages,
        slot: state.slot,
        breaker: state.breaker,
        dead_letters_open: state.dead_letters_open,
        stores: state.stores.iter().map(|one| store(one, report)).collect(),
        changes: state.changes.iter().map(change).collect(),
    })
}

fn faults(report: &Report) -> Vec<Fault<'_>> {
    let is_faulty = |part: &&Component| matches!(part.status, Status::Degraded | Status::Unhealthy);
    report.components.iter().filter(is_faulty).map(fault).collect()
}

fn fault(part: &Component) -> Fault<'_> {
    let error = part.error.as_deref().unwrap_or("does not work");
    Fault { component: part.name, status: part.status.as_str(), error }
}

/// Rows that are searchable, of those that the table has, while the store has never held all of them.
fn load(report: &Report) -> Option<Load> {
    let detail = |part, name| report.component(part)?.details.get(name);
    let rows = detail(LOCAL, "rows").and_then(Value::as_u64)?;
    let expected = detail("source", "snapshot_rows_expected").and_then(Value::as_u64)?;
    (detail(LOCAL, "loaded") == Some(&Value::Bool(false)) && expected > 0).then_some(Load { rows, expected })
}

fn store<'a>(store: &'a Store, report: &Report) -> StoreBody<'a> {
    let Store { name, rows, points, staleness_ms, lag_records } = store;
    let status = report.component(name).map_or(Status::Disabled, |part| part.status).as_str();
    StoreBody { name, status, rows: *rows, points: *points, staleness_ms: *staleness_ms, lag_records: *lag_records }
}

fn change(arrival: &Arrival) -> Change<'_> {
    let at =
        arrival.commit_ts_ms.and_then(|ms| OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok());
    Change {
        op: arrival.op,
        id: &arrival.id,
        title: arrival.title.as_deref(),
        committed_at: at.map(|at| timestamp(at) + "Z"),
        latency_ms: &arrival.reached,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_says_what_is_wrong_how_far_the_stores_are_and_what_came() {
        let mut source = Component { error: Some("gone".into()), ..Component::new("source", Status::Degraded) };
        source.details.insert("snapshot_rows_expected".into(), json!(9));
        let mut local = Component::new(LOCAL, Status::Healthy);
        local.details.insert("rows".into(), json!(3));
        local.details.insert("loaded".into(), json!(false));
        let report = Report { components: vec![source, local], ready: Ok(()), serves: true, is_whole: true };
        let store = Store { name: LOCAL, rows: Some(5), points: Some(6), staleness_ms: Some(7), lag_records: Some(0) };
        let change = Arrival {
            op: "upsert",
            id: Some(json!({"a": 1})),
            title: Some("How?".into()),
            commit_ts_ms: Some(1_767_361_545_078),
            reached: [(LOCAL, 4)].into(),
        };
        let state = State {
            served_by: Some(LOCAL),
            title_field: Some("question".into()),
            stages: vec![Stage {
                name: "capture",
                state: Some("streaming"),
                events: 9,
                position: Some("0/A".into()),
                lag_bytes: Some(3),
                lag_records: None,
            }],
            slot: Some(Slot { retained_bytes: Some(5), safe_bytes: None }),
            breaker: Some("closed"),
            dead_letters_open: Some(2),
            stores: vec![store],
            changes: vec![change],
        };
        let siblings = [Sibling { name: "faq", default: true, status: "degraded" }];
        let of = Of { pipeline: "faq", filters: &["category".into()], siblings: &siblings };
        let text = body(of, &report, &state, OffsetDateTime::UNIX_EPOCH).expect("a body");
        let wanted = json!({
            "status": "degraded", "timestamp": "1970-01-01T00:00:00.000000", "ready": true, "waits_for": null,
            "pipeline": "faq", "pipelines": [{"name": "faq", "default": true, "status": "degraded"}], "searches": true, "served_by": "local", "filters": ["category"],
            "title_field": "question",
            "faults": [{"component": "source", "status": "degraded", "error": "gone"}],
            "load": {"rows": 3, "expected": 9},
            "stages": [{"name": "capture", "state": "streaming", "events": 9, "position": "0/A", "lag_bytes": 3,
                "lag_records": null}],
            "slot": {"retained_bytes": 5, "safe_bytes": null}, "breaker": "closed", "dead_letters_open": 2,
            "stores": [{"name": "local", "status": "healthy", "rows": 5, "points": 6, "staleness_ms": 7,
                "lag_records": 0}],
            "changes": [{"op": "upsert", "id": {"a": 1}, "title": "How?",
                "committed_at": "2026-01-02T13:45:45.078000Z", "latency_ms": {"local": 4}}],
        });
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), wanted);
    }
}
