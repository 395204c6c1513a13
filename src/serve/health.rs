//! How a process is, as the health endpoints say it. No I/O and no clock.

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// Name of the component that is the primary store.
pub const QDRANT: &str = "qdrant";
/// Name of the component that is the mirror.
pub const LOCAL: &str = "local";

/// How a component, a store or the whole process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Does all it should.
    Healthy,
    /// Works, but not all of it, or late.
    Degraded,
    /// Does not work.
    Unhealthy,
    /// Not configured here.
    Disabled,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Status::Healthy => "healthy",
            Status::Degraded => "degraded",
            Status::Unhealthy => "unhealthy",
            Status::Disabled => "disabled",
        }
    }

    fn http(self) -> StatusCode {
        match self {
            Status::Healthy | Status::Degraded | Status::Disabled => StatusCode::OK,
            Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// One part of the process.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// Its name; the stores are [`QDRANT`] and [`LOCAL`].
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// How long it last took to answer, in milliseconds.
    pub latency_ms: Option<f64>,
    /// What is wrong with it. Shown to everybody: no secret, no row.
    pub error: Option<String>,
    /// What else is worth knowing. Qdrant's has `server` and `collection`.
    pub details: Map<String, Value>,
}

impl Component {
    /// A component without latency, error or details.
    pub fn new(name: &'static str, status: Status) -> Self {
        Component { name, status, latency_ms: None, error: None, details: Map::new() }
    }
}

/// How a process is.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its parts, in the order data flows.
    pub components: Vec<Component>,
    /// Whether it can do its work, or what it waits for.
    pub ready: Result<(), String>,
    /// Whether it answers searches. Such a process is ready while a store can answer, whatever its other parts do;
    /// any other is ready only while none of its parts is unhealthy.
    pub serves: bool,
    /// Whether what answers searches has held the whole table; true where nothing here answers any.
    pub is_whole: bool,
}

/// The paths under `/health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Summary,
    Detailed,
    VectorStore,
    Qdrant,
    Ready,
    Started,
    Live,
}

impl Endpoint {
    /// Reads the path below `/health`, without a slash at its end.
    pub(super) fn from_path(path: &str) -> Option<Self> {
        match path {
            "" => Some(Endpoint::Summary),
            "/detailed" => Some(Endpoint::Detailed),
            "/vector-store" => Some(Endpoint::VectorStore),
            "/qdrant" => Some(Endpoint::Qdrant),
            "/ready" => Some(Endpoint::Ready),
            "/started" => Some(Endpoint::Started),
            "/live" => Some(Endpoint::Live),
            _ => None,
        }
    }
}

/// HTTP status and body of an endpoint.
pub(super) fn respond(endpoint: Endpoint, report: impl FnOnce() -> Report, now: OffsetDateTime) -> (StatusCode, Value) {
    let now = timestamp(now);
    match endpoint {
        // Being able to answer is all there is to be said: it must not depend on anything that can fail.
        Endpoint::Live => (StatusCode::OK, json!({"status": Status::Healthy.as_str(), "timestamp": now})),
        Endpoint::Summary => summary(&report(), &now),
        Endpoint::Detailed => detailed(&report(), &now),
        Endpoint::VectorStore => vector_store(&report(), &now),
        Endpoint::Qdrant => qdrant(&report(), &now),
        Endpoint::Ready => {
            let report = report();
            ready(report.status(), report.readiness(), &now)
        }
        Endpoint::Started => {
            let report = report();
            ready(report.status(), report.started(), &now)
        }
    }
}

/// The same of a process with several pipelines: of all of them together, but for the stores, which are those of the default
/// one. `is_ready`, `has_started`: see [`super::Services::ready`], [`super::Services::started`].
pub(super) fn respond_for_all(
    endpoint: Endpoint,
    (names, default): (&[&str], usize),
    report: impl Fn(usize) -> Report,
    (is_ready, has_started): (impl FnOnce() -> Result<(), String>, impl FnOnce() -> Result<(), String>),
    now: OffsetDateTime,
) -> (StatusCode, Value) {
    if matches!(endpoint, Endpoint::Live | Endpoint::VectorStore | Endpoint::Qdrant) {
        return respond(endpoint, || report(default), now);
    }
    let reports: Vec<Report> = (0..names.len()).map(report).collect();
    let all = Report::of_all(&reports, is_ready());
    if endpoint == Endpoint::Started {
        return ready(all.status(), has_started(), &timestamp(now));
    }
    if matches!(endpoint, Endpoint::Summary | Endpoint::Ready) {
        return respond(endpoint, || all, now);
    }
    let (status, mut body) = respond(endpoint, || all, now);
    let each = names.iter().zip(&reports).map(|(name, report)| ((*name).to_owned(), of_pipeline(report)));
    body["pipelines"] = Value::Object(each.collect());
    body["components"] = components(&reports[default]);
    (status, body)
}

fn of_pipeline(report: &Report) -> Value {
    let waits_for = report.readiness().err();
    json!({
        "status": report.status().as_str(), "ready": waits_for.is_none(), "waits_for": waits_for,
        "components": components(report),
    })
}

fn components(report: &Report) -> Value {
    report.components.iter().map(|part| (part.name.to_owned(), component(part))).collect::<Map<_, _>>().into()
}

fn summary(report: &Report, now: &str) -> (StatusCode, Value) {
    let status = report.status();
    (status.http(), json!({"status": status.as_str(), "timestamp": now}))
}

fn detailed(report: &Report, now: &str) -> (StatusCode, Value) {
    let status = report.status();
    let waits_for = report.readiness().err();
    let body = json!({
        "status": status.as_str(), "timestamp": now, "ready": waits_for.is_none(), "waits_for": waits_for,
        "components": components(report),
    });
    (status.http(), body)
}

fn vector_store(report: &Report, now: &str) -> (StatusCode, Value) {
    let stores: Vec<&Component> =
        [QDRANT, LOCAL].into_iter().filter_map(|name| report.component(name)).filter(|store| store.is_used()).collect();
    let works = |store: &&Component| matches!(store.status, Status::Healthy | Status::Degraded);
    let status = if stores.iter().all(|store| store.status == Status::Healthy) {
        if stores.is_empty() { Status::Disabled } else { Status::Healthy }
    } else if stores.iter().any(works) {
        Status::Degraded
    } else {
        Status::Unhealthy
    };
    let bodies: Map<String, Value> = stores.iter().map(|store| (store.name.to_owned(), component(store))).collect();
    let body =
        json!({"status": status.as_str(), "timestamp": now, "store_type": report.store_type(), "stores": bodies});
    (status.http(), body)
}

fn qdrant(report: &Report, now: &str) -> (StatusCode, Value) {
    let Some(store) = report.component(QDRANT).filter(|store| store.is_used()) else {
        return (StatusCode::OK, json!({"status": "disabled", "timestamp": now, "store_type": report.store_type()}));
    };
    let mut body = json!({"status": store.status.as_str(), "timestamp": now, "store_type": QDRANT});
    for (name, value) in &store.details {
        body[name] = value.clone();
    }
    if let Some(error) = &store.error {
        body["error"] = error.clone().into();
    }
    (store.status.http(), body)
}

fn ready(status: Status, readiness: Result<(), String>, now: &str) -> (StatusCode, Value) {
    match readiness {
        Ok(()) => (StatusCode::OK, json!({"status": status.as_str(), "timestamp": now, "ready": true})),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({"status": status.as_str(), "timestamp": now, "ready": false, "waits_for": reason}),
        ),
    }
}

impl Report {
    /// Of several pipelines: ready as it is told, and degraded while one of them is not well.
    fn of_all(reports: &[Report], ready: Result<(), String>) -> Report {
        let is_well = reports.iter().all(|report| report.status() == Status::Healthy);
        let status = if is_well { Status::Healthy } else { Status::Degraded };
        Report { components: vec![Component::new("pipelines", status)], ready, serves: true, is_whole: true }
    }

    /// The whole process: unhealthy while it is not ready, degraded while a part is not well.
    pub(super) fn status(&self) -> Status {
        if self.readiness().is_err() {
            Status::Unhealthy
        } else if self.components.iter().any(|part| matches!(part.status, Status::Degraded | Status::Unhealthy)) {
            Status::Degraded
        } else {
            Status::Healthy
        }
    }

    /// Whether it is ready, or what it waits for.
    ///
    /// # Errors
    /// What it waits for.
    pub fn readiness(&self) -> Result<(), String> {
        self.ready.clone()?;
        let broken = self.components.iter().find(|part| part.status == Status::Unhealthy);
        match broken {
            Some(part) if !self.serves => {
                Err(format!("{}: {}", part.name, part.error.as_deref().unwrap_or("does not work")))
            }
            _ => Ok(()),
        }
    }

    /// Ready, and no longer filled for the first time: another server beside those that are whole may be asked from now on.
    ///
    /// # Errors
    /// What it waits for.
    pub fn started(&self) -> Result<(), String> {
        self.readiness()?;
        if self.is_whole { Ok(()) } else { Err("the whole table: the load is not complete".to_owned()) }
    }

    pub(super) fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|part| part.name == name)
    }

    fn store_type(&self) -> &'static str {
        if self.component(QDRANT).is_some_and(Component::is_used) { QDRANT } else { LOCAL }
    }
}

impl Component {
    fn is_used(&self) -> bool {
        self.status != Status::Disabled
    }
}

fn component(part: &Component) -> Value {
    let mut body =
        json!({"status": part.status.as_str(), "latency_ms": part.latency_ms.map(rounded), "error": part.error});
    if !part.details.is_empty() {
        body["details"] = Value::Object(part.details.clone());
    }
    body
}

/// Milliseconds to the microsecond.
fn rounded(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

/// `2026-01-02T13:45:45.078727`: UTC, microseconds.
pub(super) fn timestamp(now: OffsetDateTime) -> String {
    let (date, time) = (now.date(), now.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.microsecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T13:45:45.078727";

    fn report(parts: &[(&'static str, Status)], ready: Result<(), &str>, serves: bool) -> Report {
        let components = parts
            .iter()
            .map(|(name, status)| Component {
                error: (*status == Status::Unhealthy).then(|| format!("{name} is out")),
                ..Component::new(name, *status)
            })
            .collect();
        Report { components, ready: ready.map_err(str::to_owned), serves, is_whole: true }
    }

    fn ask(endpoint: Endpoint, report: Report) -> (StatusCode, Value) {
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_767_361_545_078_727_900).expect("a time");
        respond(endpoint, || report, now)
    }

    #[track_caller]
    fn check(endpoint: Endpoint, report: Report, http: u16, status: &str) -> Value {
        let (code, body) = ask(endpoint, report);
        assert_eq!((code.as_u16(), body["status"].as_str()), (http, Some(status)), "{body}");
        assert_eq!(body["timestamp"], NOW);
        body
    }

    #[test]
    fn the_whole_is_degraded_by_a_part_and_unhealthy_when_not_ready() {
        use Status::{Degraded, Disabled, Healthy, Unhealthy};
        let ask = |part, ready, serves| report(&[("capture", part), (LOCAL, Healthy)], ready, serves);
        check(Endpoint::Summary, ask(Healthy, Ok(()), true), 200, "healthy");
        check(Endpoint::Summary, ask(Disabled, Ok(()), true), 200, "healthy");
        check(Endpoint::Summary, ask(Degraded, Ok(()), true), 200, "degraded");
        check(Endpoint::Summary, ask(Unhealthy, Ok(()), true), 200, "degraded");
        check(Endpoint::Summary, ask(Unhealthy, Ok(()), false), 503, "unhealthy");
        check(Endpoint::Summary, ask(Degraded, Ok(()), false), 200, "degraded");
        check(Endpoint::Summary, ask(Healthy, Err("the first rows"), true), 503, "unhealthy");
        check(Endpoint::Detailed, ask(Healthy, Err("the first rows"), true), 503, "unhealthy");
    }

    #[test]
    fn readiness_is_the_stores_of_a_serving_process_and_every_part_of_another() {
        use Status::{Healthy, Unhealthy};
        let parts = [("capture", Unhealthy), (LOCAL, Healthy)];
        let body = check(Endpoint::Ready, report(&parts, Ok(()), true), 200, "degraded");
        assert_eq!(body["ready"], true);
        let body = check(Endpoint::Ready, report(&parts, Ok(()), false), 503, "unhealthy");
        assert_eq!((&body["ready"], &body["waits_for"]), (&json!(false), &json!("capture: capture is out")));
        let body = check(Endpoint::Ready, report(&[], Err("the mirror"), true), 503, "unhealthy");
        assert_eq!(body["waits_for"], "the mirror");
        check(Endpoint::Live, report(&parts, Err("the mirror"), false), 200, "healthy");
    }

    #[test]
    fn a_server_has_started_when_it_is_ready_and_whole() {
        let parts = [(LOCAL, Status::Degraded)];
        let filled = report(&parts, Ok(()), true);
        check(Endpoint::Started, filled.clone(), 200, "degraded");
        let filling = Report { is_whole: false, ..filled };
        check(Endpoint::Ready, filling.clone(), 200, "degraded");
        let body = check(Endpoint::Started, filling, 503, "degraded");
        assert_eq!(
            (&body["ready"], &body["waits_for"]),
            (&json!(false), &json!("the whole table: the load is not complete"))
        );
        let body = check(Endpoint::Started, report(&parts, Err("the first rows"), true), 503, "unhealthy");
        assert_eq!(body["waits_for"], "the first rows");
    }

    #[test]
    fn either_store_keeps_the_vector_store_up() {
        use Status::{Degraded, Disabled, Healthy, Unhealthy};
        for (qdrant, local, http, status, kind) in [
            (Disabled, Healthy, 200, "healthy", LOCAL),
            (Disabled, Degraded, 200, "degraded", LOCAL),
            (Disabled, Unhealthy, 503, "unhealthy", LOCAL),
            (Healthy, Healthy, 200, "healthy", QDRANT),
            (Unhealthy, Healthy, 200, "degraded", QDRANT),
            (Healthy, Unhealthy, 200, "degraded", QDRANT),
            (Unhealthy, Unhealthy, 503, "unhealthy", QDRANT),
            (Disabled, Disabled, 200, "disabled", LOCAL),
        ] {
            let body =
                check(Endpoint::VectorStore, report(&[(QDRANT, qdrant), (LOCAL, local)], Ok(()), true), http, status);
            assert_eq!(body["store_type"], kind);
        }
    }

    #[test]
    fn qdrant_has_its_own_shape_and_is_disabled_where_it_is_not_configured() {
        let body = check(Endpoint::Qdrant, report(&[(LOCAL, Status::Healthy)], Ok(()), true), 200, "disabled");
        assert_eq!(body["store_type"], LOCAL);
        check(Endpoint::Qdrant, report(&[(QDRANT, Status::Disabled)], Ok(()), true), 200, "disabled");
        let body = check(Endpoint::Qdrant, report(&[(QDRANT, Status::Unhealthy)], Ok(()), true), 503, "unhealthy");
        assert_eq!(body["error"], "qdrant is out");
        let mut healthy = report(&[(QDRANT, Status::Healthy)], Ok(()), true);
        healthy.components[0].details.insert("server".into(), json!({"host": "q", "port": 6333}));
        let body = check(Endpoint::Qdrant, healthy, 200, "healthy");
        assert_eq!((&body["store_type"], &body["server"]["port"]), (&json!("qdrant"), &json!(6333)));
        assert!(body.get("error").is_none());
    }

    #[test]
    fn details_name_every_part_with_latency_and_error() {
        let mut parts = report(&[(LOCAL, Status::Healthy), ("capture", Status::Unhealthy)], Ok(()), true);
        parts.components[0].latency_ms = Some(1.234_567_8);
        parts.components[0].details.insert("rows".into(), json!(5));
        let body = check(Endpoint::Detailed, parts, 200, "degraded");
        let wanted = json!({"status": "healthy", "latency_ms": 1.235, "error": null, "details": {"rows": 5}});
        assert_eq!(body["components"]["local"], wanted);
        assert_eq!(body["components"]["capture"]["error"], "capture is out");
        assert_eq!((&body["ready"], &body["waits_for"]), (&json!(true), &Value::Null));
    }

    #[test]
    fn of_several_pipelines_one_that_does_not_run_is_named_and_the_others_stay_ready() {
        use Status::{Healthy, Unhealthy};
        let reports = [
            report(&[(LOCAL, Healthy)], Ok(()), true),
            report(&[("pipeline", Unhealthy)], Err("pipeline is out"), true),
            report(&[(QDRANT, Healthy), (LOCAL, Healthy)], Ok(()), true),
        ];
        let ask = |endpoint, default, ready: Result<(), String>| {
            let report = |place: usize| reports[place].clone();
            let started = Err("pipeline a: the whole table".to_owned());
            let (code, body) = respond_for_all(
                endpoint,
                (&["a", "b", "c"], default),
                report,
                (|| ready, || started),
                OffsetDateTime::UNIX_EPOCH,
            );
            (code.as_u16(), body["status"].as_str().unwrap_or_default().to_owned(), body)
        };
        let (code, status, body) = ask(Endpoint::Detailed, 2, Ok(()));
        assert_eq!((code, status.as_str(), &body["ready"]), (200, "degraded", &json!(true)));
        assert_eq!(body["pipelines"]["b"]["components"]["pipeline"]["error"], "pipeline is out");
        assert_eq!(
            (&body["pipelines"]["a"]["status"], &body["pipelines"]["b"]["status"]),
            (&json!("healthy"), &json!("unhealthy"))
        );
        assert_eq!(body["components"], body["pipelines"]["c"]["components"]);
        let (code, status, body) = ask(Endpoint::Ready, 1, Ok(()));
        assert_eq!((code, status.as_str(), &body["ready"]), (200, "degraded", &json!(true)));
        let (code, _, body) = ask(Endpoint::Ready, 1, Err("pipeline a: the first rows".into()));
        assert_eq!((code, &body["waits_for"]), (503, &json!("pipeline a: the first rows")));
        let (code, status, body) = ask(Endpoint::Started, 1, Ok(()));
        assert_eq!(
            (code, status.as_str(), &body["waits_for"]),
            (503, "degraded", &json!("pipeline a: the whole table"))
        );
        assert_eq!(ask(Endpoint::VectorStore, 2, Ok(())).2["store_type"], QDRANT);
        assert_eq!(ask(Endpoint::Qdrant, 0, Ok(())).1, "disabled");
        assert_eq!(ask(Endpoint::Live, 1, Err(String::new())).0, 200);
    }

    #[test]
    fn paths_below_health() {
        for (path, wanted) in [
            ("", Some(Endpoint::Summary)),
            ("/detailed", Some(Endpoint::Detailed)),
            ("/vector-store", Some(Endpoint::VectorStore)),
            ("/qdrant", Some(Endpoint::Qdrant)),
            ("/ready", Some(Endpoint::Ready)),
            ("/started", Some(Endpoint::Started)),
            ("/live", Some(Endpoint::Live)),
            ("/other", None),
            ("y", None),
        ] {
            assert_eq!(Endpoint::from_path(path), wanted, "{path}");
        }
    }
}
