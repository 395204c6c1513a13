//! From a request to its answer: path, method, key, limits, the search itself. No sockets.

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant as Deadline, timeout, timeout_at};

use super::access::{Access, CLIENT_GONE};
use super::control::{self, Peer};
use super::health::{self, Endpoint};
use super::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX, Limits, URI_BYTES_MAX};
use super::problem::{Problem, shown};
use super::refusal;
use super::search::{self, AnswerBody, SearchAnswer, SearchError, SearchRequest};
use super::{Keys, SearchFn, Service, Services, openapi, page, status};
use crate::metrics::PipelineMetrics;
use crate::shutdown::Shutdown;

/// Names a request in its answer and in the log.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// When asking again makes sense after an overload or a missed deadline, in seconds.
const RETRY_AFTER_S: u64 = 1;
/// `served_by` of a search that no store answered.
const NOBODY: &str = "none";

const JSON: HeaderValue = HeaderValue::from_static("application/json");

type Answer = Response<Full<Bytes>>;

/// Answers requests.
pub(super) struct Api {
    services: Services,
    openapi: Bytes,
    keys: Keys,
    search_deadline: Duration,
    limits: Arc<Limits>,
    admission: Admission,
    commands: Arc<Semaphore>,
    /// Of each pipeline.
    metrics: Vec<PipelineMetrics>,
    request_ids: RequestIds,
    shutdown: Shutdown,
}

impl Api {
    pub(super) fn new(
        services: Services,
        keys: Keys,
        search_deadline: Duration,
        limits: Arc<Limits>,
        shutdown: Shutdown,
    ) -> Self {
        Api {
            admission: Admission::new(&limits),
            commands: Arc::new(Semaphore::new(control::COMMANDS_MAX)),
            metrics: services.pipelines.iter().map(|service| PipelineMetrics::new(&service.pipeline)).collect(),
            request_ids: RequestIds::new(),
            openapi: openapi::document(&services, !keys.is_empty()).into(),
            services,
            keys,
            search_deadline,
            limits,
            shutdown,
        }
    }

    /// Answers one request. Dropping the future gives up what it asked for.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<control::Body> {
        let id = self.request_ids.of(request.headers());
        let mut access = Access::begin(&request, &id);
        let command = match of_pipeline(request.uri().path()) {
            Some((pipeline, path)) => control::name(path).map(|name| (pipeline.map(str::to_owned), name.to_owned())),
            None => None,
        };
        let responding = async {
            match command {
                Some((pipeline, name)) => self.control(pipeline.as_deref(), &name, request).await,
                None => self.respond(request, &id, &mut access).await.map(|answer| answer.map(Either::Left)),
            }
        };
        let mut answer = match AssertUnwindSafe(responding).catch_unwind().await {
            Ok(Ok(answer)) => answer,
            Ok(Err(problem)) => problem.into_response(&id).map(Either::Left),
            Err(_) => internal(&id, &"a panic").into_response(&id).map(Either::Left),
        };
        self.set_headers(answer.headers_mut(), &id);
        access.ends(&answer);
        answer
    }

    /// What is written in the place of an answer that hyper gives by itself, in which it says nothing; `None`: this is none.
    pub(super) fn in_words(&self, written: &[u8]) -> Option<Bytes> {
        let status = refusal::status(written)?;
        let id = self.request_ids.of(&HeaderMap::new());
        let mut answer = refusal::problem(status).into_response(&id);
        self.set_headers(answer.headers_mut(), &id);
        Some(refusal::written(answer, written))
    }

    async fn respond(&self, request: Request<Incoming>, id: &str, access: &mut Access) -> Result<Answer, Problem> {
        let Some((named, route)) = route(request.uri().path()) else {
            check_head(&request)?;
            self.check_key(request.headers())?;
            return Err(Problem::new(StatusCode::NOT_FOUND, "no such path; searches are at /search"));
        };
        let place = match named.map(|name| self.place(name)) {
            None => self.services.default,
            Some(Ok(place)) => place,
            Some(Err(problem)) => {
                check_head(&request)?;
                self.check_key(request.headers())?;
                return Err(problem);
            }
        };
        let service = &self.services.pipelines[place];
        match route {
            Route::Search => {
                let mut count = SearchCount::begin(&self.metrics[place]);
                let result = self.search(request, id, service, &mut count, access).await;
                count.end(result.as_ref().map_or_else(|problem| problem.status, Response::status));
                result
            }
            Route::Health(endpoint) => {
                check_head(&request)?;
                check_is_read(request.method())?;
                let now = OffsetDateTime::now_utc();
                let is_of_all = named.is_none() && self.services.pipelines.len() > 1;
                let (status, body) = match is_of_all {
                    true => {
                        let report = |place: usize| (self.services.pipelines[place].health)();
                        let names = (&*self.services.names(), self.services.default);
                        let asked = (|| (self.services.ready)(), || (self.services.started)());
                        health::respond_for_all(endpoint, names, report, asked, now)
                    }
                    false => health::respond(endpoint, || (service.health)(), now),
                };
                Ok(json(status, body.to_string()))
            }
            Route::Metrics => {
                check_head(&request)?;
                self.check_key(request.headers())?;
                check_is_read(request.method())?;
                let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                Ok(response(StatusCode::OK, kind, (self.services.metrics)()))
            }
            Route::Status => {
                check_head(&request)?;
                self.check_key(request.headers())?;
                check_is_read(request.method())?;
                let (report, state) = ((service.health)(), (service.state)());
                let siblings = self.siblings();
                let of = status::Of { pipeline: &service.pipeline, filters: &service.filters, siblings: &siblings };
                let body = status::body(of, &report, &state, OffsetDateTime::now_utc());
                Ok(json(StatusCode::OK, body.map_err(|error| internal(id, &error))?))
            }
            Route::OpenApi => {
                check_head(&request)?;
                check_is_read(request.method())?;
                Ok(response(StatusCode::OK, JSON, self.openapi.clone()))
            }
            Route::Page(file) => {
                check_head(&request)?;
                check_is_read(request.method())?;
                let kind = HeaderValue::from_static(file.kind);
                let mut answer = response(StatusCode::OK, kind, file.text);
                answer.headers_mut().insert(CONTENT_SECURITY_POLICY, page::POLICY);
                Ok(answer)
            }
        }
    }

    /// The place of the pipeline of this name.
    fn place(&self, name: &str) -> Result<usize, Problem> {
        self.services.place(name).ok_or_else(|| {
            let detail = format!("no such pipeline: {}; there are {}", shown(name), self.services.names().join(", "));
            Problem::new(StatusCode::NOT_FOUND, detail)
        })
    }

    /// All pipelines of this process, as the status lists them.
    fn siblings<'a>(&'a self) -> Vec<status::Sibling<'a>> {
        let sibling = |(place, service): (usize, &'a Service)| {
            let status = (service.health)().status().as_str();
            status::Sibling { name: &service.pipeline, default: place == self.services.default, status }
        };
        self.services.pipelines.iter().enumerate().map(sibling).collect()
    }

    /// Does a command about a pipeline. It has to be named where there are several, as on a command line.
    async fn control(
        &self,
        pipeline: Option<&str>,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Response<control::Body>, Problem> {
        check_head(&request)?;
        self.check_key(request.headers())?;
        if self.keys.is_empty() {
            let peer = request.extensions().get::<Peer>().copied();
            control::admit_without_key(peer, request.version(), request.uri(), request.headers())?;
        } else if !self.keys.may_command(request.headers()) {
            let detail = "this key may search, and not command: `search:` stands in front of it in the server's VECSYNC_API_KEYS";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        if request.method() != Method::POST {
            return Err(Problem::method("POST"));
        }
        let place = match pipeline {
            Some(pipeline) => self.place(pipeline)?,
            None if self.services.pipelines.len() > 1 => {
                let names = self.services.names().join(", ");
                let detail =
                    format!("which pipeline? ask /pipelines/NAME/control/{name} (--pipeline NAME); there are {names}");
                return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
            }
            None => self.services.default,
        };
        let Some(control) = &self.services.pipelines[place].control else {
            return Err(Problem::new(StatusCode::NOT_FOUND, "this vecsync takes no commands over HTTP"));
        };
        check_no_query_string(&request)?;
        check_content_type(request.headers())?;
        let command = control::parse(name, &self.read_body(request.into_body()).await?)?;
        let Ok(place) = Arc::clone(&self.commands).try_acquire_owned() else {
            return Err(Problem::unavailable("more commands than can be done at once", RETRY_AFTER_S));
        };
        Ok(control::answer(control, command, place, self.shutdown.clone()))
    }

    async fn search(
        &self,
        request: Request<Incoming>,
        id: &str,
        service: &Service,
        count: &mut SearchCount<'_>,
        access: &mut Access,
    ) -> Result<Answer, Problem> {
        check_head(&request)?;
        self.check_key(request.headers())?;
        let Some(search) = &service.search else {
            return Err(Problem::new(StatusCode::NOT_FOUND, "this vecsync runs without the role `serve`"));
        };
        let wanted = self.read_search(request).await?;
        let query = wanted.query.clone();
        access.asks(&query);
        let started = Instant::now();
        let found = self.find(search, wanted).await.map_err(|error| self.search_problem(&error, id))?;
        count.served_by = found.served_by;
        let body = AnswerBody {
            query: &query,
            results: &found.results,
            served_by: found.served_by,
            degraded: found.degraded,
            staleness_ms: found.staleness_ms,
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let body = serde_json::to_string(&body).map_err(|error| internal(id, &error))?;
        Ok(json(StatusCode::OK, body))
    }

    async fn read_search(&self, request: Request<Incoming>) -> Result<SearchRequest, Problem> {
        let query_string = request.uri().query().unwrap_or("");
        if is_read(request.method()) {
            return search::from_query_string(query_string);
        }
        if request.method() != Method::POST {
            return Err(Problem::method("GET, HEAD, POST"));
        }
        check_no_query_string(&request)?;
        check_content_type(request.headers())?;
        search::from_json(&self.read_body(request.into_body()).await?)
    }

    async fn read_body(&self, body: Incoming) -> Result<Bytes, Problem> {
        let too_large = || {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).closing()
        };
        // What is announced as too large is not waited for.
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        match timeout(self.limits.body, Limited::new(body, BODY_BYTES_MAX).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Problem::new(StatusCode::BAD_REQUEST, "the body ends before its end").closing()),
            Err(_) => {
                let detail = format!("the body did not come within {} ms", self.limits.body.as_millis());
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail).closing())
            }
        }
    }

    /// Waits for a place and makes the search, both within the deadline.
    async fn find(&self, search: &Arc<SearchFn>, wanted: SearchRequest) -> Result<SearchAnswer, SearchError> {
        let deadline = Deadline::now() + self.search_deadline;
        let _place = self.admission.enter(deadline).await?;
        timeout_at(deadline, search(wanted)).await.unwrap_or(Err(SearchError::Deadline))
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.keys.admit(headers) { Ok(()) } else { Err(Problem::unauthorized()) }
    }

    fn search_problem(&self, error: &SearchError, id: &str) -> Problem {
        match error {
            SearchError::UnknownFilter { field, known } => {
                let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
                let detail = format!("filter: {} is no field to filter by; this pipeline has {known}", shown(field));
                Problem::parameter("filter", detail)
            }
            SearchError::BadFilter { field, wanted } => {
                Problem::parameter("filter", format!("filter: the value of {} is not {wanted}", shown(field)))
            }
            SearchError::Unavailable { reason, retry_after_s } => Problem::unavailable(reason.clone(), *retry_after_s),
            SearchError::Overloaded => Problem::unavailable("more searches than can be made now", RETRY_AFTER_S),
            SearchError::Deadline => {
                let detail = format!("the search had no answer within {} ms", self.search_deadline.as_millis());
                Problem::unavailable(detail, RETRY_AFTER_S)
            }
            SearchError::Internal(fault) => internal(id, fault),
        }
    }

    fn set_headers(&self, headers: &mut HeaderMap, id: &str) {
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(nothing);
        if let Ok(id) = HeaderValue::from_str(id) {
            headers.insert(X_REQUEST_ID, id);
        }
        if self.shutdown.is_raised() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// What is asked for.
#[derive(Debug, PartialEq)]
enum Route {
    Search,
    Health(Endpoint),
    Metrics,
    Status,
    OpenApi,
    Page(&'static page::File),
}

/// The pipeline that a path names, and what stands behind that, without a slash at its end.
fn of_pipeline(path: &str) -> Option<(Option<&str>, &str)> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(rest) = path.strip_prefix("/pipelines/") else { return Some((None, path)) };
    let (name, _) = rest.split_once('/')?;
    Some((Some(name), &rest[name.len()..]))
}

/// What a path leads to, and the pipeline that it names.
fn route(path: &str) -> Option<(Option<&str>, Route)> {
    let (pipeline, path) = of_pipeline(path)?;
    let route = match path {
        "/search" => Route::Search,
        "/status" => Route::Status,
        "/metrics" if pipeline.is_none() => Route::Metrics,
        "/openapi.json" if pipeline.is_none() => Route::OpenApi,
        _ => match page::file(path).filter(|_| pipeline.is_none()) {
            Some(file) => Route::Page(file),
            None => path.strip_prefix("/health").and_then(Endpoint::from_path).map(Route::Health)?,
        },
    };
    Some((pipeline, route))
}

/// Lets in as many searches as can be made and as many as can wait; the others are refused at once, so that those let
/// in are as quick as ever.
struct Admission {
    inside: Semaphore,
    running: Semaphore,
    wait: Duration,
}

struct Place<'a> {
    _inside: SemaphorePermit<'a>,
    _running: SemaphorePermit<'a>,
}

impl Admission {
    fn new(limits: &Limits) -> Self {
        Admission {
            inside: Semaphore::new(limits.searches + limits.searches_queued),
            running: Semaphore::new(limits.searches),
            wait: limits.queue_wait,
        }
    }

    async fn enter(&self, deadline: Deadline) -> Result<Place<'_>, SearchError> {
        let inside = self.inside.try_acquire().map_err(|_| SearchError::Overloaded)?;
        let until = deadline.min(Deadline::now() + self.wait);
        match timeout_at(until, self.running.acquire()).await {
            Ok(Ok(running)) => Ok(Place { _inside: inside, _running: running }),
            Ok(Err(_)) | Err(_) => Err(SearchError::Overloaded),
        }
    }
}

/// Counts a search once, whatever becomes of it.
struct SearchCount<'a> {
    metrics: &'a PipelineMetrics,
    started: Instant,
    served_by: &'static str,
    code: u16,
}

impl<'a> SearchCount<'a> {
    fn begin(metrics: &'a PipelineMetrics) -> Self {
        SearchCount { metrics, started: Instant::now(), served_by: NOBODY, code: CLIENT_GONE }
    }

    fn end(mut self, status: StatusCode) {
        self.code = status.as_u16();
    }
}

impl Drop for SearchCount<'_> {
    fn drop(&mut self) {
        let code = if std::thread::panicking() { 500 } else { self.code };
        self.metrics.query(self.served_by, code, self.started.elapsed());
    }
}

/// Gives every request a name: the client's own if it is a sane one.
struct RequestIds {
    process: u32,
    next: AtomicU64,
}

impl RequestIds {
    fn new() -> Self {
        // The standard library's hasher is seeded at random: enough to tell processes apart in a log.
        RequestIds { process: RandomState::new().hash_one(std::process::id()) as u32, next: AtomicU64::new(1) }
    }

    fn of(&self, headers: &HeaderMap) -> String {
        let is_sane = |id: &&str| {
            (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        match headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_sane) {
            Some(id) => id.to_owned(),
            None => format!("{:08x}-{:x}", self.process, self.next.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

fn check_head(request: &Request<Incoming>) -> Result<(), Problem> {
    let uri = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    if uri > URI_BYTES_MAX {
        let detail = format!("path and query string have {uri} bytes, more than {URI_BYTES_MAX}");
        return Err(Problem::new(StatusCode::URI_TOO_LONG, detail));
    }
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers > HEADER_BYTES_MAX {
        let detail = format!("the headers have {headers} bytes, more than {HEADER_BYTES_MAX}");
        return Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail));
    }
    Ok(())
}

/// What a POST asks for is in its body: a flag elsewhere must not go unheard.
fn check_no_query_string(request: &Request<Incoming>) -> Result<(), Problem> {
    match request.uri().query().unwrap_or("") {
        "" => Ok(()),
        given => {
            let detail = format!("query string {}: a POST has its parameters in the body", shown(given));
            Err(Problem::new(StatusCode::BAD_REQUEST, detail))
        }
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: String| Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    let given = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let Some(given) = given else { return refused("Content-Type: missing, wanted application/json".to_owned()) };
    let media_type = given.split(';').next().unwrap_or("").trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return refused(format!("Content-Type: {}, wanted application/json", shown(&given)));
    }
    match headers.get(CONTENT_ENCODING) {
        Some(coding) if coding != "identity" => refused("Content-Encoding: wanted none".to_owned()),
        _ => Ok(()),
    }
}

fn check_is_read(method: &Method) -> Result<(), Problem> {
    if is_read(method) { Ok(()) } else { Err(Problem::method("GET, HEAD")) }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn internal(id: &str, fault: &dyn Display) -> Problem {
    tracing::error!(request_id = id, "answer a request: {fault}");
    let detail = "the request failed inside vecsync; its log says why, under this request_id";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

fn json(status: StatusCode, body: String) -> Answer {
    response(status, JSON, body)
}

fn response(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_one_place_each() {
        let health = |endpoint| Some((None, Route::Health(endpoint)));
        let page = |path| page::file(path).map(|file| (None, Route::Page(file)));
        for (path, wanted) in [
            ("/search", Some((None, Route::Search))),
            ("/search/", Some((None, Route::Search))),
            ("/pipelines/faq/search", Some((Some("faq"), Route::Search))),
            ("/pipelines/faq2/search/", Some((Some("faq2"), Route::Search))),
            ("/pipelines//search", Some((Some(""), Route::Search))),
            ("/pipelines/faq/health/ready/", Some((Some("faq"), Route::Health(Endpoint::Ready)))),
            ("/pipelines/faq/health", Some((Some("faq"), Route::Health(Endpoint::Summary)))),
            ("/pipelines/faq/status", Some((Some("faq"), Route::Status))),
            ("/health", health(Endpoint::Summary)),
            ("/health/", health(Endpoint::Summary)),
            ("/health/vector-store/", health(Endpoint::VectorStore)),
            ("/metrics", Some((None, Route::Metrics))),
            ("/metrics/", Some((None, Route::Metrics))),
            ("/status", Some((None, Route::Status))),
            ("/status/", Some((None, Route::Status))),
            ("/openapi.json", Some((None, Route::OpenApi))),
            ("/", page("")),
            ("", page("")),
            ("/page.js", page("/page.js")),
            ("//", None),
            ("/index.html", None),
            ("//search", None),
            ("/search//", None),
            ("/searching", None),
            ("/healthy", None),
            ("/pipelines", None),
            ("/pipelines/faq", None),
            ("/pipelines/faq/", None),
            ("/pipelines/faq/metrics", None),
            ("/pipelines/faq/page.js", None),
            ("/pipelines/faq/openapi.json", None),
        ] {
            assert_eq!(route(path), wanted, "{path}");
        }
    }

    #[test]
    fn a_client_names_its_request_only_sanely() {
        let ids = RequestIds::new();
        let of = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_bytes(value).expect("a header"));
            ids.of(&headers)
        };
        assert_eq!(of(b"a-1_2.Z"), "a-1_2.Z");
        for bad in [&b""[..], b"a b", b"\"x\"", b"a\tb", &[0xff], &[b'a'; 129]] {
            assert_ne!(of(bad).as_bytes(), bad);
        }
        assert_ne!(of(b""), of(b""));
    }
}
