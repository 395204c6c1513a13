//! Commands over HTTP, for who is not on the machine that has the data directory: who may ask, and the answer's lines. Does none
//! of them: a closure does.

mod command;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, poll_fn};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Response, StatusCode, Uri, Version};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, interval};

pub use self::command::{Backup, Check, Command, DeadLetters, Init, Replay, Sync, Verify};
pub(super) use self::command::{name, parse};
use super::problem::Problem;
use crate::shutdown::Shutdown;

/// Commands at the same time: one is long (`sync`), and another looks meanwhile.
pub(super) const COMMANDS_MAX: usize = 4;
/// How often at most a client is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// A client that hears nothing for longer than this may take the server for dead.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// Lines that wait for the client. A check has some twenty.
const LINES_WAITING: usize = 64;
/// Exit status of a command that failed, and of one that was not asked for as it could be done.
const FAILED: u8 = 1;
const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// A whole answer, or one that comes line by line.
pub(super) type Body = Either<Full<Bytes>, StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

/// How it ended, as on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit status.
    pub status: u8,
    /// For standard output.
    pub text: String,
    /// For standard error.
    pub error: Option<String>,
}

/// Told meanwhile.
#[derive(Clone, Debug)]
pub struct Teller {
    progress: watch::Sender<(String, u64, u64)>,
    said: mpsc::Sender<String>,
}

impl Teller {
    /// So much of so much of this is done.
    pub fn passed(&self, label: &str, done: u64, total: u64) {
        self.progress.send_replace((label.to_owned(), done, total));
    }

    /// For standard output, at once.
    pub fn says(&self, text: String) {
        if let Err(error) = self.said.try_send(text) {
            tracing::debug!("a line of a command was not told: {error}");
        }
    }
}

/// Does a command. Dropping the future gives up waiting for it, as Ctrl-C does.
pub type ControlFn = dyn Fn(Command, Teller) -> BoxFuture<'static, Ended> + Send + std::marker::Sync;

/// Where a request came from; an extension of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub IpAddr);

/// Headers that a proxy or a browser adds.
const OF_OTHERS: [&str; 9] = [
    "forwarded",
    "via",
    "origin",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "x-cluster-client-ip",
    "fastly-client-ip",
    "cdn-loop",
];
/// How others of theirs begin.
const OF_OTHERS_BEGIN: [&str; 3] = ["x-forwarded", "cf-", "sec-fetch-"];

/// Without keys only this machine is let in, and only by itself: what a proxy hands on, or a page in a browser makes, may come
/// from anybody. Proxies that say nothing of themselves mostly speak HTTP/1.0, or leave the name they were asked by; a page
/// whose name was pointed at this machine has that name.
pub(super) fn admit_without_key(
    peer: Option<Peer>,
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    let is_local = peer.is_some_and(|Peer(peer)| peer.to_canonical().is_loopback());
    let is_of_others = headers
        .keys()
        .map(HeaderName::as_str)
        .any(|name| OF_OTHERS.contains(&name) || OF_OTHERS_BEGIN.iter().any(|beginning| name.starts_with(beginning)));
    let hosts = headers.get_all(HOST).iter().map(|host| Authority::try_from(host.as_bytes()).ok());
    let mut hosts = hosts.chain(uri.authority().cloned().map(Some));
    let is_asked_for_here = headers.contains_key(HOST) && hosts.all(|host| host.is_some_and(|host| is_loopback(&host)));
    if is_local && !is_of_others && is_asked_for_here && version == Version::HTTP_11 {
        return Ok(());
    }
    let detail = "commands are taken from this machine alone, by localhost or 127.0.0.1, and not through a proxy or from a web \
                  page, as long as there are no keys: set VECSYNC_API_KEYS";
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

/// Whether a name can only mean the machine that it is used on.
fn is_loopback(host: &Authority) -> bool {
    let name = host.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Begins the command and gives its answer, which ends with it. A client that goes away gives it up.
pub(super) fn answer(
    control: &Arc<ControlFn>,
    command: Command,
    place: OwnedSemaphorePermit,
    shutdown: Shutdown,
) -> Response<Body> {
    let (control, (lines, mut written)) = (Arc::clone(control), mpsc::channel(LINES_WAITING));
    tokio::spawn(async move {
        tokio::select! {
            () = lines.closed() => tracing::debug!("who asked for a command has gone"),
            () = tell(&control, command, &lines, &shutdown) => {}
        }
        drop(place);
    });
    let stream = poll_fn(move |cx| written.poll_recv(cx)).map(|line: Bytes| Ok(Frame::data(line)));
    let mut response = Response::new(Either::Right(StreamBody::new(stream.boxed())));
    response.headers_mut().insert(CONTENT_TYPE, LINES);
    response
}

async fn tell(control: &Arc<ControlFn>, command: Command, lines: &mpsc::Sender<Bytes>, shutdown: &Shutdown) {
    let (progress, mut passed) = watch::channel((String::new(), 0, 0));
    let (said, mut saying) = mpsc::channel(LINES_WAITING);
    let mut done = control(command, Teller { progress, said });
    let (mut ticks, mut told_at) = (interval(TELL_EVERY), Instant::now());
    let ended = loop {
        let line = tokio::select! {
            biased;
            Some(text) = saying.recv() => json!({"said": text}),
            ended = &mut done => break ended,
            () = shutdown.raised() => {
                let error = Some("vecsync stops; what it was asked for may be half done".to_owned());
                break Ended { status: FAILED, text: String::new(), error };
            }
            _ = ticks.tick() => {
                if passed.has_changed().unwrap_or(false) {
                    let (label, done, total) = passed.borrow_and_update().clone();
                    json!({"passed": {"label": label, "done": done, "total": total}})
                } else if told_at.elapsed() >= ALIVE_EVERY {
                    Value::Null
                } else {
                    continue;
                }
            }
        };
        told_at = Instant::now();
        if lines.send(line_of(&line)).await.is_err() {
            return;
        }
    };
    while let Ok(text) = saying.try_recv() {
        if lines.send(line_of(&json!({"said": text}))).await.is_err() {
            return;
        }
    }
    let Ended { status, text, error } = ended;
    let last = json!({"ended": {"status": status, "text": text, "error": error}});
    // Who does not read on does not want to know.
    let _ = lines.send(line_of(&last)).await;
}

/// Nothing to say is an empty line.
fn line_of(value: &Value) -> Bytes {
    let text = if value.is_null() { String::new() } else { value.to_string() };
    Bytes::from(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_this_machine_alone_is_let_in() {
        let own = || HeaderMap::from_iter([(HOST, HeaderValue::from_static("127.0.0.1:8000"))]);
        let ask = |peer: Option<&str>, version: Version, uri: &'static str, headers: &HeaderMap| {
            let peer = peer.map(|peer| Peer(peer.parse().expect("an address")));
            admit_without_key(peer, version, &Uri::from_static(uri), headers).is_ok()
        };
        let admitted = |peer: &str, header: Option<&'static str>| {
            let mut headers = own();
            if let Some(name) = header {
                headers.insert(name, HeaderValue::from_static("x"));
            }
            ask(Some(peer), Version::HTTP_11, "/control/sync", &headers)
        };
        for peer in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(admitted(peer, None), "{peer}");
            let begin = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-server", "x-forwarded-anything"];
            let begin_too = ["cf-ray", "cf-connecting-ip", "sec-fetch-site", "sec-fetch-mode"];
            for name in OF_OTHERS.into_iter().chain(begin).chain(begin_too) {
                assert!(!admitted(peer, Some(name)), "{peer} {name}");
            }
            assert!(admitted(peer, Some("x-request-id")) && admitted(peer, Some("user-agent")), "{peer}");
        }
        for peer in ["10.0.0.1", "172.17.0.1", "::", "::ffff:10.0.0.1", "0.0.0.0"] {
            assert!(!admitted(peer, None), "{peer}");
        }
        assert!(!ask(None, Version::HTTP_11, "/", &own()));
        let here = Some("127.0.0.1");
        assert!(!ask(here, Version::HTTP_10, "/", &own()));
        assert!(!ask(here, Version::HTTP_11, "/", &HeaderMap::new()));
        assert!(ask(here, Version::HTTP_11, "http://localhost:8000/control/sync", &own()));
        assert!(!ask(here, Version::HTTP_11, "http://evil.example/control/sync", &own()));
        for (host, wanted) in [
            ("localhost", true),
            ("LocalHost:8000", true),
            ("127.9.9.9", true),
            ("[::1]:8000", true),
            ("[::1]", true),
            ("evil.example", false),
            ("evil.example:8000", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("localhost@evil.example", false),
            ("10.0.0.1:8000", false),
            ("0.0.0.0:8000", false),
            ("[::]:8000", false),
            ("", false),
            ("a b", false),
        ] {
            let mut headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            assert_eq!(ask(here, Version::HTTP_11, "/", &headers), wanted, "{host}");
            headers.append(HOST, HeaderValue::from_static("evil.example"));
            assert!(!ask(here, Version::HTTP_11, "/", &headers), "{host}, and another");
        }
    }
}
