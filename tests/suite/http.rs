//! The query server on a real port: shapes, refusals, deadlines, keys, TLS, overload, the end. Searches are made up.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use vecsync::client::{self, ClientError, Query};
use vecsync::config::{ApiKeys, Secret};
use vecsync::serve::health::{Component, LOCAL, Report, Status};
use vecsync::serve::status::State;
use vecsync::serve::{
    FilterValue, Keys, Limits, SearchAnswer, SearchError, SearchRequest, SearchResult, ServeError, Service, Services,
    Settings, Tls, run,
};
use vecsync::shutdown::Shutdown;

/// Far above what any step takes, far below what a test may hang.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(crate) async fn start(service: Service, settings: Settings) -> Self {
        Self::start_all(Services::one(service, Arc::new(metrics_text)), settings).await
    }

    pub(crate) async fn start_all(services: Services, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = Shutdown::new();
        let task = tokio::spawn(run(listener, services, settings, shutdown.clone()));
        Server { address, shutdown, task }
    }

    pub(crate) async fn plain() -> Self {
        Server::start(service(one_result), settings(Limits::default())).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connect")
    }

    /// Sends bytes on a connection of its own and reads one answer.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.expect("send");
        Reply::read(&mut stream).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    async fn post(&self, body: &str) -> Reply {
        self.send(post_request(body)).await
    }

    pub(crate) async fn stop(self) {
        self.shutdown.raise();
        within(self.task).await.expect("no panic").expect("no error");
    }
}

fn post_request(body: &str) -> String {
    let head = "POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; charset=utf-8";
    format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    async fn read<IO: AsyncRead + Unpin>(stream: &mut IO) -> Reply {
        Self::read_headed(stream, false).await.expect("an answer")
    }

    /// `None`: the connection ended before an answer.
    async fn read_headed<IO: AsyncRead + Unpin>(stream: &mut IO, is_head: bool) -> Option<Reply> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if within(stream.read_buf(&mut bytes)).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).expect("a head in ASCII");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let mut reply = Reply { status, head, body: bytes[end..].to_vec() };
        let length: usize = reply.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while !is_head && reply.body.len() < length {
            assert_ne!(within(stream.read_buf(&mut reply.body)).await.expect("the body"), 0, "{}", reply.head);
        }
        Some(reply)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, detail: &str) -> &Self {
        let body = self.json();
        assert_eq!((self.status, body["status"].as_u64()), (status, Some(status.into())), "{body}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert!(body["type"].is_string() && body["title"].is_string());
        assert!(body["detail"].as_str().is_some_and(|text| text.contains(detail)), "{body}");
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"));
        self
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("done in time")
}

pub(crate) fn service<F>(search: impl Fn(SearchRequest) -> F + Send + Sync + 'static) -> Service
where
    F: Future<Output = Result<SearchAnswer, SearchError>> + Send + 'static,
{
    let boxed = move |request| -> BoxFuture<'static, _> { search(request).boxed() };
    let health = || Report {
        components: vec![Component::new(LOCAL, Status::Healthy)],
        ready: Ok(()),
        serves: true,
        is_whole: true,
    };
    Service {
        pipeline: "faq".into(),
        search: Some(Arc::new(boxed)),
        health: Arc::new(health),
        filters: vec!["category".into()],
        state: Arc::new(State::default),
        control: None,
    }
}

fn metrics_text() -> String {
    "vecsync_build_info 1\n".to_owned()
}

pub(crate) fn settings(limits: Limits) -> Settings {
    Settings { keys: Keys::default(), tls: None, search_deadline: Duration::from_secs(5), limits }
}

fn quick() -> Limits {
    let short = Duration::from_millis(150);
    Limits {
        handshake: short,
        head: short,
        idle: short,
        body: short,
        write_stall: short,
        linger: short,
        drain_idle: short,
        ..Limits::default()
    }
}

fn answer(results: Vec<SearchResult>) -> SearchAnswer {
    SearchAnswer { results, served_by: "local", degraded: false, staleness_ms: Some(3) }
}

/// One result whose passage tells the request.
pub(crate) async fn one_result(request: SearchRequest) -> Result<SearchAnswer, SearchError> {
    let payload = json!({"id": 7, "question": "How?"}).as_object().cloned().expect("an object");
    let filter: Vec<String> = request
        .filter
        .iter()
        .map(|(field, value)| match value {
            FilterValue::Text(text) => format!("{field}~{text}"),
            FilterValue::Json(value) => format!("{field}={value}"),
        })
        .collect();
    let passage = format!("{}|{}|{}|{}", request.query, request.limit, request.min_score, filter.join(","));
    Ok(answer(vec![SearchResult { id: json!(7), score: 0.7, passage, payload }]))
}

async fn nothing(_: SearchRequest) -> Result<SearchAnswer, SearchError> {
    Ok(answer(vec![]))
}

#[tokio::test]
async fn get_and_post_answer_in_the_shape_of_the_contract() {
    let server = Server::plain().await;
    let get = server.get("/search?q=a+%C3%A9&limit=9&min_score=0.25&filter=category:b&filter=n:1").await;
    assert_eq!((get.status, get.header("content-type")), (200, Some("application/json")));
    let mut body = get.json();
    assert!(body["took_ms"].take().is_u64());
    let result = json!({"id": 7, "score": 0.7, "passage": "a é|9|0.25|category~b,n~1",
        "payload": {"id": 7, "question": "How?"}});
    let wanted = json!({"query": "a é", "results": [result], "served_by": "local", "degraded": false,
        "staleness_ms": 3, "took_ms": null});
    assert_eq!(body, wanted);
    let fields: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["query", "results", "served_by", "degraded", "staleness_ms", "took_ms"]);

    let post =
        server.post(r#"{"query":"a é","limit":9,"min_score":0.25,"filter":{"category":"b","n":1}}"#).await.json();
    assert_eq!(post["results"][0]["passage"], r#"a é|9|0.25|category="b",n=1"#);
    assert!(post["results"][0]["score"].to_string().starts_with("0.7") && post["results"][0]["score"] == json!(0.7));

    for path in ["/search/?q=x", "/pipelines/faq/search?q=x", "/pipelines/faq/search/?q=x"] {
        assert_eq!(server.get(path).await.json()["results"][0]["passage"], "x|5|0|", "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let server = Server::plain().await;
    for path in ["/search?q=x", "/health/", "/metrics"] {
        let mut stream = server.connect().await;
        let both = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\nGET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(both.as_bytes()).await.expect("send");
        let head = Reply::read_headed(&mut stream, true).await.expect("an answer");
        // What follows the head is the next answer, or would be the body that must not be there.
        let rest = if head.body.is_empty() {
            Reply::read(&mut stream).await.head
        } else {
            String::from_utf8(head.body.clone()).expect("text")
        };
        assert_eq!(head.status, 200);
        assert!(head.header("content-length").is_some_and(|length| length != "0"), "{}", head.head);
        assert!(rest.starts_with("HTTP/1.1 200"), "{rest}");
    }
    server.stop().await;
}

#[tokio::test]
async fn bad_searches_are_told_what_was_wanted() {
    let server = Server::plain().await;
    server.get("/search").await.is_problem(400, "q: missing");
    server.get("/search?q=%20").await.is_problem(400, "q: empty");
    server.get("/search?q=a&limit=1000000000").await.is_problem(400, "limit: 1000000000 is not a whole number");
    server.get("/search?q=a&min_score=NaN").await.is_problem(400, "min_score: NaN");
    server.get("/search?q=%ff%fe").await.is_problem(400, "not UTF-8");
    server.get("/search?q=a&nope=1").await.is_problem(400, "nope");
    server.post("{").await.is_problem(400, "not JSON");
    server.post(r#"{"query":"a","limit":1000000000}"#).await.is_problem(400, "limit: 1000000000");
    server.post(r#"{"query":"a","fliter":{}}"#).await.is_problem(400, "fliter");
    server.post(&"[".repeat(60_000)).await.is_problem(400, "not JSON");
    let posted = post_request(r#"{"query":"a"}"#);
    server.send(posted.replace("POST /search", "POST /search?limit=5")).await.is_problem(400, "in the body");
    server.send(posted.replace("application/json", "text/plain")).await.is_problem(415, "wanted application/json");
    server.send(posted.replace("Content-Type", "X-Type")).await.is_problem(415, "missing");
    server.send(posted.replace("Host: x", "Content-Encoding: gzip")).await.is_problem(415, "Content-Encoding");
    server
        .send(b"POST /search HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n\"\xff\"")
        .await
        .is_problem(400, "not UTF-8");
    let reply = server.send("DELETE /search HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(reply.is_problem(405, "GET, HEAD, POST").header("allow"), Some("GET, HEAD, POST"));
    let reply = server.send("POST /health/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(reply.is_problem(405, "GET, HEAD").header("allow"), Some("GET, HEAD"));
    for path in ["/nope", "/pipelines/faq/nope", "/health/nope/"] {
        server.get(path).await.is_problem(404, "no such path");
    }
    server.get("/pipelines/other/search?q=a").await.is_problem(404, "no such pipeline: \"other\"; there are faq");
    server.stop().await;
}

#[tokio::test]
async fn the_longest_query_fits_both_ways_and_longer_heads_are_refused() {
    let server = Server::plain().await;
    let longest = "😀".repeat(4096);
    let escaped = "%F0%9F%98%80".repeat(4096);
    let get = server.get(&format!("/search?q={escaped}")).await.json();
    let post = server.post(&json!({"query": longest}).to_string()).await.json();
    assert_eq!((&get["query"], &post["query"]), (&json!(longest), &json!(longest)));
    server.get(&format!("/search?q={escaped}%F0%9F%98%80")).await.is_problem(400, "longer than 4096");
    server.get(&format!("/search?q={}", "a".repeat(60_000))).await.is_problem(414, "more than");
    let header = format!("GET /search?q=a HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(20_000));
    server.send(header).await.is_problem(431, "headers");
    // Beyond what is read at all, hyper answers by itself, and is given our words.
    let long = format!("/search?q={}", "a".repeat(70_000));
    server.get(&long).await.is_problem(414, "more than 57344 bytes");
    let endless = format!("GET /search?q=a HTTP/1.1\r\nX-Long: {}", "a".repeat(1_000_000));
    server.send(endless).await.is_problem(431, "more than 81920 bytes");
    let many = format!("GET /search?q=a HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-One: 1\r\n".repeat(200));
    server.send(many).await.is_problem(431, "too many");
    for head in [
        "NONSENSE",
        "GET /search?q=a HTTP/9.9",
        "GET /search?q=a HTTP/1.1\r\nno header",
        "GET / HTTP/1.1\r\nContent-Length: x",
    ] {
        let reply = server.send(format!("{head}\r\n\r\n")).await;
        let reply = reply.is_problem(400, "RFC 9112");
        assert!(reply.header("connection") == Some("close") && reply.header("date").is_some(), "{head:?}");
    }
    // Behind a request that was answered.
    let mut stream = server.connect().await;
    stream.write_all(b"GET /health/ HTTP/1.1\r\nHost: x\r\n\r\nNONSENSE\r\n\r\n").await.expect("send");
    let mut said = vec![];
    within(stream.read_to_end(&mut said)).await.expect("it is closed");
    let said = String::from_utf8(said).expect("text");
    let (first, second) = said.split_once("HTTP/1.1 400 Bad Request\r\n").expect("two answers");
    assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    assert!(second.contains("\r\ncontent-type: application/problem+json\r\n") && second.contains("RFC 9112"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn a_large_body_is_refused_and_its_sender_reads_why() {
    let server = Server::plain().await;
    let large = json!({"query": "x".repeat(10_000_000)}).to_string();
    server.post(&large).await.is_problem(413, "larger than 65536");
    // The same without an announced length.
    let mut stream = server.connect().await;
    let head = "POST /search HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("send");
    for _ in 0..1000 {
        stream.write_all(format!("2710\r\n{}\r\n", "x".repeat(10_000)).as_bytes()).await.expect("send");
    }
    Reply::read(&mut stream).await.is_problem(413, "larger than 65536");
    // A client that asks first does not send it.
    let asking = "POST /search HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\
                  Expect: 100-continue\r\n\r\n";
    server.send(asking).await.is_problem(413, "larger than 65536");
    server.stop().await;
}

#[tokio::test]
async fn faults_of_a_search_have_their_status_and_reason() {
    let server = Server::start(
        service(|request: SearchRequest| async move {
            match request.query.as_str() {
                "filter" => Err(SearchError::UnknownFilter { field: "x".into(), known: vec!["category".into()] }),
                "kind" => Err(SearchError::BadFilter { field: "n".into(), wanted: "a whole number".into() }),
                "out" => Err(SearchError::Unavailable { reason: "no store: a, b".into(), retry_after_s: 7 }),
                "busy" => Err(SearchError::Overloaded),
                "late" => std::future::pending().await,
                "broken" => Err(SearchError::Internal("canary".into())),
                _ => panic!("a bug"),
            }
        }),
        Settings { search_deadline: Duration::from_millis(50), ..settings(Limits::default()) },
    )
    .await;
    server.get("/search?q=filter").await.is_problem(400, r#""x" is no field to filter by; this pipeline has category"#);
    server.get("/search?q=kind").await.is_problem(400, r#"the value of "n" is not a whole number"#);
    let out = server.get("/search?q=out").await;
    assert_eq!(out.is_problem(503, "no store: a, b").header("retry-after"), Some("7"));
    let busy = server.get("/search?q=busy").await;
    assert_eq!(busy.is_problem(503, "more searches than").header("retry-after"), Some("1"));
    let late = server.get("/search?q=late").await;
    assert_eq!(late.is_problem(503, "within 50 ms").header("retry-after"), Some("1"));
    let broken = server.get("/search?q=broken").await;
    assert!(!String::from_utf8_lossy(&broken.is_problem(500, "request_id").body).contains("canary"));
    server.get("/search?q=bug").await.is_problem(500, "request_id");
    server.stop().await;
}

#[tokio::test]
async fn health_and_metrics_answer_with_and_without_slash() {
    let broken = Component { error: Some("slot lost".into()), ..Component::new("capture", Status::Unhealthy) };
    let mut service = service(nothing);
    service.health = Arc::new(move || Report {
        components: vec![broken.clone(), Component::new(LOCAL, Status::Healthy)],
        ready: Ok(()),
        serves: true,
        is_whole: true,
    });
    let server = Server::start(service, settings(Limits::default())).await;
    for (path, status) in [
        ("/health", "degraded"),
        ("/health/detailed", "degraded"),
        ("/health/vector-store", "healthy"),
        ("/health/qdrant", "disabled"),
        ("/health/ready", "degraded"),
        ("/health/started", "degraded"),
        ("/health/live", "healthy"),
        ("/pipelines/faq/health/ready", "degraded"),
    ] {
        for path in [path.to_owned(), format!("{path}/")] {
            let reply = server.get(&path).await;
            assert_eq!((reply.status, &reply.json()["status"]), (200, &json!(status)), "{path}");
            let timestamp = reply.json()["timestamp"].as_str().map(str::len);
            assert_eq!(timestamp, Some("2026-01-02T13:45:45.078727".len()));
        }
    }
    let metrics = server.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(metrics.body, b"vecsync_build_info 1\n");
    server.stop().await;
}

#[tokio::test]
async fn a_process_without_the_role_serve_says_so() {
    let service = Service { search: None, ..service(nothing) };
    let server = Server::start(service, settings(Limits::default())).await;
    server.get("/search?q=a").await.is_problem(404, "without the role");
    assert_eq!(server.get("/health/live").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn answers_carry_security_headers_and_a_request_id() {
    let server = Server::plain().await;
    for path in ["/search?q=x", "/nope", "/health/"] {
        let reply = server.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path}");
        }
        assert!(reply.header("x-request-id").is_some_and(|id| !id.is_empty()));
    }
    let named = server.send("GET /nope HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine-1\r\n\r\n").await;
    assert_eq!(named.is_problem(404, "path").header("x-request-id"), Some("mine-1"));
    server.stop().await;
}

/// Keys that may all.
pub(crate) fn commanding<const N: usize>(keys: [&str; N]) -> ApiKeys {
    ApiKeys { commanding: keys.map(|key| Secret::new(key.to_owned())).into(), ..ApiKeys::default() }
}

#[tokio::test]
async fn all_but_health_needs_a_key_when_there_are_keys() {
    let keys = ApiKeys { searching: commanding(["new"]).commanding, ..commanding(["old"]) };
    let keys = Keys::new(&keys);
    let server = Server::start(service(nothing), Settings { keys, ..settings(Limits::default()) }).await;
    for path in ["/search?q=x", "/search", "/metrics", "/nope", "/pipelines/other/health/"] {
        for header in ["X: y", "Authorization: Bearer wrong", "Authorization: Basic old"] {
            let reply = server.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n")).await;
            assert_eq!(reply.is_problem(401, "Bearer KEY").header("www-authenticate"), Some("Bearer"), "{path}");
        }
    }
    for key in ["old", "new"] {
        for (path, status) in [("/search?q=x", 200), ("/metrics", 200), ("/nope", 404)] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n");
            assert_eq!(server.send(request).await.status, status, "{path}");
        }
    }
    for path in ["/health/", "/health/ready", "/pipelines/faq/health/live/"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    server.stop().await;
}

/// Waits until the server closes, and says how long that took.
async fn closed<IO: AsyncRead + Unpin>(mut stream: IO) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    // A reset is a way to close, too.
    let _ = within(stream.read_to_end(&mut rest)).await;
    started.elapsed()
}

#[tokio::test]
async fn slow_clients_are_closed_at_the_deadline() {
    let server = Server::start(service(nothing), settings(quick())).await;
    let (least, most) = (quick().head / 2, Limits::default().head / 2);

    // Nothing at all.
    let took = closed(server.connect().await).await;
    assert!((least..most).contains(&took), "{took:?}");

    // A head that drips: what comes does not move the deadline.
    let (mut reader, mut writer) = server.connect().await.into_split();
    let drip = tokio::spawn(async move {
        while writer.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = within(reader.read_to_end(&mut rest)).await;
    assert!((least..most).contains(&started.elapsed()) && rest.is_empty(), "{rest:?}");
    within(drip).await.expect("no panic");

    // A body that does not come.
    let mut stream = server.connect().await;
    stream.write_all(post_request(r#"{"query":"x"}"#).trim_end_matches('}').as_bytes()).await.expect("send");
    let reply = Reply::read(&mut stream).await;
    assert_eq!(reply.is_problem(408, "within 150 ms").header("connection"), Some("close"));
    closed(stream).await;

    // Silence after an answer.
    let mut stream = server.connect().await;
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    assert_eq!(Reply::read(&mut stream).await.status, 200);
    assert!((least..most).contains(&closed(stream).await));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let large = "x".repeat(1_000_000);
    let search = move |_| {
        let result = SearchResult { id: json!(1), score: 0.5, passage: large.clone(), payload: serde_json::Map::new() };
        async { Ok(answer(vec![result; 20])) }
    };
    let limits = Limits { idle: PATIENCE, ..quick() };
    let server = Server::start(service(search), settings(limits)).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    // The server must let go by itself: nothing is read here, and the drain waits for its connections.
    stream.readable().await.expect("the beginning of the answer");
    let started = Instant::now();
    server.stop().await;
    assert!(started.elapsed() < Limits::default().drain / 2);
}

/// Reads byte by byte, so that nothing behind the end is taken.
async fn read_until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(within(stream.read_u8()).await.expect("more"));
    }
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_its_answer() {
    let large = "x".repeat(10_000_000);
    let search = move |_| {
        let result = SearchResult { id: json!(1), score: 0.5, passage: large.clone(), payload: serde_json::Map::new() };
        async { Ok(answer(vec![result])) }
    };
    let limits = Limits { idle: Duration::from_millis(300), write_stall: PATIENCE, ..quick() };
    let server = Server::start(service(search), settings(limits.clone())).await;
    let (mut asking, silent) = tokio::join!(read_slowly(&server, limits.idle), read_slowly(&server, limits.idle));
    // Silence begins only with the last byte, and then it has its deadline.
    asking.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    assert_eq!(Reply::read(&mut asking).await.status, 200);
    assert!(closed(silent).await < PATIENCE / 2);
    server.stop().await;
}

/// Takes nothing of an answer for a third of the deadline at a time, for several deadlines, and then the rest of it.
async fn read_slowly(server: &Server, idle: Duration) -> TcpStream {
    let mut stream = server.connect().await;
    stream.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    let started = Instant::now();
    let head = read_until(&mut stream, b"\r\n\r\n").await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let (mut left, mut buffer): (usize, _) = (length.parse().expect("a number"), vec![0; 500_000]);
    while left > 0 {
        if started.elapsed() < idle * 4 {
            tokio::time::sleep(idle / 3).await;
        }
        let step = left.min(buffer.len());
        let came = within(stream.read(&mut buffer[..step])).await.expect("the answer");
        assert_ne!(came, 0, "cut {left} bytes before the end");
        left -= came;
    }
    assert!(started.elapsed() >= idle * 4, "read too fast to tell");
    stream
}

#[tokio::test]
async fn a_search_is_given_up_when_its_client_goes_away() {
    struct Given(Arc<Notify>);
    impl Drop for Given {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let (begun, given_up) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, give_up) = (begun.clone(), given_up.clone());
    let search = move |_| {
        let (begin, given) = (begin.clone(), Given(give_up.clone()));
        async move {
            begin.notify_one();
            let _given = given;
            std::future::pending().await
        }
    };
    let slow = Settings { search_deadline: PATIENCE * 10, ..settings(Limits::default()) };
    let server = Server::start(service(search), slow).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    within(begun.notified()).await;
    drop(stream);
    within(given_up.notified()).await;
    server.stop().await;
}

#[tokio::test]
async fn every_search_is_counted_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let registry = recorder.handle();
    // Holds for this thread, which is the only one of this test's runtime.
    let _guard = metrics::set_default_local_recorder(&recorder);
    let begun = Arc::new(Notify::new());
    let begin = begun.clone();
    let search = move |request: SearchRequest| {
        let begin = begin.clone();
        async move {
            match request.query.as_str() {
                "found" => Ok(answer(vec![])),
                "bug" => panic!("a bug"),
                _ => {
                    begin.notify_one();
                    std::future::pending().await
                }
            }
        }
    };
    let server = Server::start(service(search), settings(Limits::default())).await;
    for path in ["/search?q=found", "/search?q=found", "/search", "/search?q=bug", "/health/", "/nope"] {
        server.get(path).await;
    }
    let mut stream = server.connect().await;
    stream.write_all(b"GET /search?q=wait HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    within(begun.notified()).await;
    drop(stream);
    server.stop().await;
    let text = registry.render();
    let mut counts: Vec<&str> = text.lines().filter(|line| line.starts_with("vecsync_queries_total{")).collect();
    counts.sort_unstable();
    let count =
        |by, code, count| format!(r#"vecsync_queries_total{{pipeline="faq",served_by="{by}",code="{code}"}} {count}"#);
    let wanted = [count("local", 200, 2), count("none", 400, 1), count("none", 499, 1), count("none", 500, 1)];
    assert_eq!(counts, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_at_once_and_the_admitted_are_answered() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let (door, counter) = (gate.clone(), begun.clone());
    let search = move |_| {
        let (door, counter) = (door.clone(), counter.clone());
        async move {
            counter.fetch_add(1, Ordering::SeqCst);
            let _pass = door.acquire().await.map_err(|_| SearchError::Internal("closed".into()))?;
            Ok(answer(vec![]))
        }
    };
    let limits = Limits { searches: 2, searches_queued: 3, queue_wait: PATIENCE, ..Limits::default() };
    let settings = Settings { search_deadline: PATIENCE, ..settings(limits) };
    let server = Arc::new(Server::start(service(search), settings).await);
    let mut asked = JoinSet::new();
    for _ in 0..20 {
        let server = server.clone();
        asked.spawn(async move { server.get("/search?q=x").await });
    }
    // 2 are being made, 3 wait, 15 are refused while nothing is finished.
    for _ in 0..15 {
        let reply = within(asked.join_next()).await.expect("an answer").expect("no panic");
        assert_eq!(reply.is_problem(503, "more searches than").header("retry-after"), Some("1"));
    }
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    gate.add_permits(2);
    while let Some(reply) = within(asked.join_next()).await {
        assert_eq!(reply.expect("no panic").status, 200);
    }
    assert_eq!(begun.load(Ordering::SeqCst), 5);
    Arc::into_inner(server).expect("the last one").stop().await;
}

#[tokio::test]
async fn who_waits_too_long_for_a_place_is_refused() {
    let limits = Limits { searches: 1, queue_wait: Duration::from_millis(30), ..Limits::default() };
    let begun = Arc::new(Notify::new());
    let begin = begun.clone();
    let search = move |_| {
        begin.notify_one();
        std::future::pending()
    };
    let server = Server::start(service(search), settings(limits)).await;
    let mut first = server.connect().await;
    first.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    within(begun.notified()).await;
    server.get("/search?q=x").await.is_problem(503, "more searches than");
    drop(first);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_silent_sockets_hurt_nobody_and_are_closed() {
    let head = Duration::from_secs(4);
    let server = Server::start(service(nothing), settings(Limits { head, ..Limits::default() })).await;
    let mut silent = Vec::new();
    for _ in 0..2000 {
        silent.push(server.connect().await);
    }
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(server.get("/search?q=x").await.status, 200);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "50 searches took {:?}", started.elapsed());
    for stream in silent {
        closed(stream).await;
    }
    // All of them, not only the first: each has its own deadline.
    assert!(started.elapsed() < head * 2, "{:?}", started.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn at_the_limit_the_longest_silent_connection_gives_way() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let begun = Arc::new(Notify::new());
    let door = Arc::new(Notify::new());
    let (begin, open) = (begun.clone(), door.clone());
    let search = move |_| {
        let (begin, open) = (begin.clone(), open.clone());
        async move {
            begin.notify_one();
            open.notified().await;
            Ok(answer(vec![]))
        }
    };
    let slow = Settings { search_deadline: PATIENCE, ..settings(limits) };
    let server = Server::start(service(search), slow).await;
    // The oldest waits for its answer and must stay; the next two are silent.
    let mut busy = server.connect().await;
    busy.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    within(begun.notified()).await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
        assert_eq!(Reply::read(&mut stream).await.status, 200);
        silent.push(stream);
    }
    assert_eq!(server.get("/health/live").await.status, 200);
    closed(silent.remove(0)).await;
    door.notify_one();
    assert_eq!(Reply::read(&mut busy).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_end_answers_what_was_asked_and_takes_in_nothing_more() {
    let (begun, door) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, open) = (begun.clone(), door.clone());
    let search = move |_| {
        let (begin, open) = (begin.clone(), open.clone());
        async move {
            begin.notify_one();
            open.notified().await;
            Ok(answer(vec![]))
        }
    };
    let patient = Settings { search_deadline: PATIENCE, ..settings(Limits::default()) };
    let server = Server::start(service(search), patient).await;
    let mut asked = server.connect().await;
    asked.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    within(begun.notified()).await;
    let mut kept = server.connect().await;
    kept.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    assert_eq!(Reply::read(&mut kept).await.header("connection"), None);

    server.shutdown.raise();
    // A connection that is kept open may bring one more request, and is told to go with its answer.
    kept.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    let last = Reply::read(&mut kept).await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    // The listener is closed by now: the answer came after the loop had ended.
    within(async {
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!server.task.is_finished(), "a search is in flight");
    door.notify_one();
    let reply = Reply::read(&mut asked).await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    within(server.task).await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn the_end_still_answers_who_has_connected_before_it() {
    let server = Server::plain().await;
    assert_eq!(server.get("/health/live").await.status, 200);
    // Nothing is awaited from here to the signal: the server, on the same thread, cannot have accepted this connection.
    let mut early = std::net::TcpStream::connect(server.address).expect("connect");
    std::io::Write::write_all(&mut early, b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
    server.shutdown.raise();
    early.set_nonblocking(true).expect("a mode");
    let mut early = TcpStream::from_std(early).expect("a stream");
    assert_eq!(Reply::read(&mut early).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_end_comes_at_the_deadline_even_for_a_search_that_never_ends() {
    let begun = Arc::new(Notify::new());
    let begin = begun.clone();
    let search = move |_| {
        begin.notify_one();
        std::future::pending()
    };
    let limits = Limits { drain: Duration::from_millis(200), drain_idle: Duration::ZERO, ..Limits::default() };
    let slow = Settings { search_deadline: PATIENCE * 10, ..settings(limits) };
    let server = Server::start(service(search), slow).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    within(begun.notified()).await;
    let silent = server.connect().await;
    server.stop().await;
    closed(stream).await;
    assert!(closed(silent).await < PATIENCE / 2);
}

/// Certificate and key in files, and the certificate for a client to trust.
fn certificate(dir: &std::path::Path, name: &str) -> (Tls, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&cert, made.cert.pem()).expect("write");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("write");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    (Tls::load(&cert, &key).expect("a pair"), roots)
}

async fn over_tls(stream: TcpStream, roots: RootCertStore) -> impl AsyncRead + AsyncWrite + Unpin {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    within(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.expect("a handshake")
}

#[tokio::test]
async fn tls_answers_and_closes_who_does_not_speak_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (tls, roots) = certificate(dir.path(), "server");
    let server = Server::start(service(one_result), Settings { tls: Some(tls), ..settings(quick()) }).await;
    let mut stream = over_tls(server.connect().await, roots.clone()).await;
    stream.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    assert_eq!(Reply::read(&mut stream).await.status, 200);
    closed(stream).await;
    // A refusal is read to its end over TLS, too.
    let mut stream = over_tls(server.connect().await, roots).await;
    stream.write_all(post_request(&"x".repeat(1_000_000)).as_bytes()).await.expect("send");
    stream.flush().await.expect("send");
    Reply::read(&mut stream).await.is_problem(413, "larger than");

    closed(server.connect().await).await;
    let mut plain = server.connect().await;
    plain.write_all(b"GET /search?q=x HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("send");
    assert!(Reply::read_headed(&mut plain, false).await.is_none());
    server.stop().await;
}

#[test]
fn certificates_are_checked_before_anything_listens() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    certificate(dir.path(), "one");
    certificate(dir.path(), "two");
    std::fs::write(path("empty"), "nothing here\n").expect("write");
    let check = |cert: &str, key: &str, wanted: &str| {
        let error = Tls::load(&path(cert), &path(key)).expect_err("refused");
        let text = vecsync::retry::Chain(&error).to_string();
        assert!(text.contains(wanted), "{text}");
    };
    check("missing", "one.key", "VECSYNC_TLS_CERT");
    check("empty", "one.key", "wanted a certificate");
    check("one.pem", "missing", "VECSYNC_TLS_KEY");
    check("one.pem", "one.pem", "wanted an unencrypted private key");
    check("one.pem", "two.key", "keys may not be consistent");
}

#[tokio::test]
async fn the_client_searches_and_says_what_is_wrong() {
    let keys = Keys::new(&commanding(["right"]));
    let server = Server::start(service(one_result), Settings { keys, ..settings(Limits::default()) }).await;
    let url = format!("http://{}", server.address);
    let right = Secret::new("right".into());
    let query = Query {
        text: "a+b & é".into(),
        limit: Some(2),
        filter: vec![("category".into(), "x:y".into())],
        ..Query::default()
    };
    let answer = client::search(&url, Some(&right), &query).await.expect("an answer");
    assert_eq!(answer.results[0].passage, "a+b & é|2|0|category~x:y");
    assert!(client::render(&answer, false).contains("How?"));
    let health = client::document(&url, None, "/health/detailed/").await.expect("a document");
    assert_eq!(health["status"], "healthy");

    for key in [None, Some(Secret::new("wrong".into()))] {
        let error = client::search(&url, key.as_ref(), &query).await.expect_err("refused").to_string();
        assert!(error.contains("VECSYNC_API_KEYS") && !error.contains("wrong"), "{error}");
    }
    let bad = Query { limit: Some(1000), ..query.clone() };
    let error = client::search(&url, Some(&right), &bad).await.expect_err("refused").to_string();
    assert!(error.ends_with("answers 400: limit: 1000 is not a whole number from 1 to 100"), "{error}");
    server.stop().await;

    let error = client::search(&url, None, &query).await.expect_err("nobody");
    assert!(matches!(error, ClientError::NobodyThere { .. }));
    let wanted = format!("no vecsync answers at {url}: start it with `vecsync run`, or set VECSYNC_URL");
    assert_eq!(error.to_string(), wanted);
}

/// Three pipelines, of which `b` is the default and `c` does not run.
fn three() -> Services {
    let named = |name: &'static str| {
        let search = move |request: SearchRequest| async move {
            match name {
                "c" => Err(SearchError::Unavailable { reason: "it does not run".into(), retry_after_s: 5 }),
                _ => one_result(SearchRequest { query: format!("{name} {}", request.query), ..request }).await,
            }
        };
        let part = Component::new("pipeline", Status::Unhealthy);
        let broken = move || Report {
            components: vec![part.clone()],
            ready: Err("no table".into()),
            serves: true,
            is_whole: false,
        };
        let mut service = Service { pipeline: name.into(), filters: vec![name.into()], ..service(search) };
        if name == "c" {
            service.health = Arc::new(broken);
        }
        service
    };
    let pipelines = ["a", "b", "c"].map(named).into();
    Services {
        pipelines,
        default: 1,
        ready: Arc::new(|| Ok(())),
        started: Arc::new(|| Err("pipeline a: the whole table".into())),
        metrics: Arc::new(metrics_text),
    }
}

#[tokio::test]
async fn each_pipeline_answers_under_its_name_and_the_default_one_under_none() {
    let server = Server::start_all(three(), settings(Limits::default())).await;
    let passage = async |path: &str| server.get(path).await.json()["results"][0]["passage"].clone();
    assert_eq!(passage("/search?q=x").await, "b x|5|0|");
    assert_eq!(passage("/pipelines/b/search?q=x").await, "b x|5|0|");
    assert_eq!(passage("/pipelines/a/search/?q=x").await, "a x|5|0|");
    server.get("/pipelines/c/search?q=x").await.is_problem(503, "it does not run");
    server.get("/pipelines/d/search?q=x").await.is_problem(404, "no such pipeline: \"d\"; there are a, b, c");
    server.get("/pipelines/d/health/").await.is_problem(404, "there are a, b, c");
    server.get("/pipelines/a/metrics").await.is_problem(404, "no such path");

    // Of all together, and of one.
    let all = server.get("/health/detailed/").await;
    let body = all.json();
    assert_eq!((all.status, &body["status"], &body["ready"]), (200, &json!("degraded"), &json!(true)), "{body}");
    assert_eq!(body["pipelines"]["c"]["waits_for"], "no table");
    assert_eq!(body["pipelines"]["a"]["status"], "healthy");
    for (path, status) in [
        ("/health/", 200),
        ("/health/ready/", 200),
        ("/health/qdrant/", 200),
        ("/pipelines/a/health/ready/", 200),
        ("/pipelines/c/health/ready/", 503),
        ("/pipelines/c/health/live/", 200),
        ("/pipelines/c/health/detailed/", 503),
        ("/health/started/", 503),
        ("/pipelines/a/health/started/", 200),
        ("/pipelines/c/health/started/", 503),
    ] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.json());
    }
    let one = server.get("/pipelines/a/health/detailed/").await.json();
    assert!(one.get("pipelines").is_none() && one["components"].get(LOCAL).is_some(), "{one}");

    let state = server.get("/status").await.json();
    let pipelines = json!([{"name": "a", "default": false, "status": "healthy"},
        {"name": "b", "default": true, "status": "healthy"}, {"name": "c", "default": false, "status": "unhealthy"}]);
    assert_eq!((&state["pipeline"], &state["pipelines"]), (&json!("b"), &pipelines));
    assert_eq!(server.get("/pipelines/c/status").await.json()["pipeline"], "c");
    server.stop().await;
}

#[tokio::test]
async fn searches_are_counted_for_their_pipeline() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let server = Server::start_all(three(), settings(Limits::default())).await;
    for path in ["/search?q=x", "/pipelines/a/search?q=x", "/pipelines/a/search?q=y", "/pipelines/c/search?q=x"] {
        server.get(path).await;
    }
    let text = handle.render();
    for (pipeline, code, count) in [("a", 200, 2), ("b", 200, 1), ("c", 503, 1)] {
        let line = |line: &&str| {
            line.starts_with("vecsync_queries_total")
                && line.contains(&format!("pipeline=\"{pipeline}\""))
                && line.contains(&format!("code=\"{code}\""))
        };
        let found = text.lines().find(line).unwrap_or_else(|| panic!("{pipeline} is not in {text}"));
        assert!(found.ends_with(&format!(" {count}")), "{found}");
    }
    server.stop().await;
}
