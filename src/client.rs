//! Asks a running vecsync over HTTP, as `vecsync search` does, and lays answers out for people. Prints nothing.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::timeout;
use tokio_rustls::rustls;

use crate::config::Secret;
use crate::event::Row;
use crate::requests::{RequestError, Target, escaped};

/// For how long an answer may take: longer than any deadline of the server's.
const ANSWER: Duration = Duration::from_secs(15);
/// Largest answer read, in bytes: 100 results of a row's largest size that makes sense to print.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A search, as typed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// What is looked for.
    pub text: String,
    /// Most results wanted; `None`: as many as the server gives unasked.
    pub limit: Option<usize>,
    /// Least score wanted.
    pub min_score: Option<f32>,
    /// Fields and values; the server gives the values their types.
    pub filter: Vec<(String, String)>,
}

/// The answer to a search, as `docs/reference.md` describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What was looked for.
    pub query: String,
    /// The best first.
    pub results: Vec<Hit>,
    /// The store that answered.
    pub served_by: String,
    /// Whether the answer comes from elsewhere than it should.
    pub degraded: bool,
    /// How old the store's state may be, in milliseconds, if known.
    pub staleness_ms: Option<u64>,
    /// How long the server took, in milliseconds.
    pub took_ms: f64,
}

/// One row that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// The row's key.
    pub id: Value,
    /// Cosine similarity, -1 to 1.
    pub score: f32,
    /// The part of the text that fits best.
    pub passage: String,
    /// The document's fields.
    pub payload: Row,
}

/// Searches through the vecsync at `url`, with an API key if it wants one.
///
/// # Errors
/// Each says on one line what went wrong at which address, and what to do.
pub async fn search(url: &str, key: Option<&Secret>, query: &Query) -> Result<Answer, ClientError> {
    let body = get(url, key, &format!("/search?{}", query_string(query))).await?;
    serde_json::from_slice(&body)
        .map_err(|source| ClientError::NotVecsync { url: url.to_owned(), source: source.into() })
}

/// Gets the JSON document at `path`, such as `/health/detailed/`, whatever its status says of the health.
///
/// # Errors
/// As [`search`]'s.
pub async fn document(url: &str, key: Option<&Secret>, path: &str) -> Result<Value, ClientError> {
    match get(url, key, path).await {
        // Health that is bad has a document, too; what is no JSON is refused as it came.
        Err(ClientError::Refused { url, status, detail, body }) => {
            serde_json::from_slice(&body).map_err(|_| ClientError::Refused { url, status, detail, body })
        }
        body => serde_json::from_slice(&body?)
            .map_err(|source| ClientError::NotVecsync { url: url.to_owned(), source: source.into() }),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error("read VECSYNC_URL {0:?}: wanted http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// Nobody listens there.
    #[error("no vecsync answers at {url}: start it with `vecsync run`, or set VECSYNC_URL")]
    NobodyThere {
        /// The address.
        url: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It cannot be reached.
    #[error("reach {url}")]
    Unreachable {
        /// The address.
        url: String,
        /// What the system or TLS said.
        source: std::io::Error,
    },
    /// The TLS client cannot be made.
    #[error("set up TLS for {url}")]
    Tls {
        /// The address.
        url: String,
        /// What TLS said.
        source: rustls::Error,
    },
    /// The key has bytes that no header can have.
    #[error("send the API key: VECSYNC_API_KEYS holds a key with characters that HTTP cannot carry")]
    Key,
    /// It wants another key, or one at all.
    #[error("{url} wants an API key: set VECSYNC_API_KEYS to one of those it was started with")]
    Unauthorized {
        /// The address.
        url: String,
    },
    /// It answered, but not with what was asked for.
    #[error("{url} answers {status}: {detail}")]
    Refused {
        /// The address.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it says itself.
        detail: String,
        /// The whole answer.
        body: Bytes,
    },
    /// A JSON document that no vecsync gives at that path.
    #[error("{url} is not a vecsync: {path} answers {found}; set VECSYNC_URL")]
    Foreign {
        /// The address.
        url: String,
        /// What was asked for.
        path: &'static str,
        /// The beginning of the answer.
        found: String,
    },
    /// No answer in time.
    #[error("{url} does not answer within {} s", .after.as_secs())]
    Timeout {
        /// The address.
        url: String,
        /// For how long it was waited.
        after: Duration,
    },
    /// The connection broke.
    #[error("ask {url}: the connection broke; is it a vecsync, and is it https?")]
    Broken {
        /// The address.
        url: String,
        /// What HTTP said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// What answers there is something else.
    #[error("read the answer of {url}: it is not a vecsync's; set VECSYNC_URL")]
    NotVecsync {
        /// The address.
        url: String,
        /// What the parser said.
        source: Box<dyn Error + Send + Sync>,
    },
}

fn query_string(query: &Query) -> String {
    let mut text = format!("q={}", escaped(&query.text));
    if let Some(limit) = query.limit {
        text.push_str(&format!("&limit={limit}"));
    }
    if let Some(score) = query.min_score {
        text.push_str(&format!("&min_score={score}"));
    }
    for (field, value) in &query.filter {
        text.push_str(&format!("&filter={}", escaped(&format!("{field}:{value}"))));
    }
    text
}

async fn get(url: &str, key: Option<&Secret>, path: &str) -> Result<Bytes, ClientError> {
    let failed = |error| ClientError::from_request(url, error);
    let target = Target::parse(url).map_err(failed)?;
    let mut request = target.request(Method::GET, path, Empty::<Bytes>::new()).map_err(failed)?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    set_key(headers, key)?;
    let read = async |response: Response<Incoming>| {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|source| {
            if source.is::<LengthLimitError>() {
                Fault::TooLong(source)
            } else {
                Fault::Request(RequestError::Broken(source))
            }
        })?;
        Ok::<_, Fault>((status, body.to_bytes()))
    };
    let answered = timeout(ANSWER, target.send(request, read)).await;
    let answered = answered.map_err(|_| ClientError::Timeout { url: url.to_owned(), after: ANSWER })?;
    let (status, body) = answered.map_err(|fault| match fault {
        Fault::Request(error) => ClientError::from_request(url, error),
        Fault::TooLong(source) => ClientError::NotVecsync { url: url.to_owned(), source },
    })?;
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::UNAUTHORIZED => Err(ClientError::Unauthorized { url: url.to_owned() }),
        status => Err(refused(url, status, body)),
    }
}

pub(crate) fn set_key(headers: &mut HeaderMap, key: Option<&Secret>) -> Result<(), ClientError> {
    if let Some(key) = key {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| ClientError::Key)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(())
}

/// Why an answer was not read.
enum Fault {
    Request(RequestError),
    TooLong(Box<dyn Error + Send + Sync>),
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Self {
        Fault::Request(error)
    }
}

impl ClientError {
    pub(crate) fn from_request(url: &str, error: RequestError) -> Self {
        let url = url.to_owned();
        match error {
            RequestError::Address => ClientError::Url(plain(&url)),
            RequestError::Unreachable(source) if source.kind() == std::io::ErrorKind::ConnectionRefused => {
                ClientError::NobodyThere { url, source }
            }
            RequestError::Unreachable(source) => ClientError::Unreachable { url, source },
            RequestError::Tls(source) => ClientError::Tls { url, source },
            RequestError::Timeout(after) => ClientError::Timeout { url, after },
            RequestError::Broken(source) => ClientError::Broken { url, source },
        }
    }
}

pub(crate) fn refused(url: &str, status: StatusCode, body: Bytes) -> ClientError {
    let problem: Option<Value> = serde_json::from_slice(&body).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    let detail = detail.or(status.canonical_reason()).unwrap_or("no reason given");
    ClientError::Refused { url: url.to_owned(), status: status.as_u16(), detail: plain(detail), body }
}

/// Width of the page that answers are laid out on, in characters.
const PAGE: usize = 80;
/// Left margin of all but a result's first line.
const MARGIN: &str = "            ";
/// Lines of a passage that are shown.
const PASSAGE_LINES: usize = 3;

/// Lays an answer out for a terminal of 80 columns, in colour if wanted. Control characters in the texts are removed: a
/// row must not be able to drive the terminal.
pub fn render(answer: &Answer, colour: bool) -> String {
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut page = String::new();
    for (rank, hit) in answer.results.iter().enumerate() {
        let title = wrapped(&title(hit), PAGE - MARGIN.len(), 1).pop().unwrap_or_default();
        let score = format!("{:>5.2}", hit.score);
        page += &format!("{:>3}  {}", rank + 1, paint("36", &score));
        if !title.is_empty() {
            page += &format!("  {}", paint("1", &title));
        }
        page.push('\n');
        for line in wrapped(&plain(&hit.passage), PAGE - MARGIN.len(), PASSAGE_LINES) {
            page += &format!("{MARGIN}{line}\n");
        }
        let id = hit.id.as_str().map_or_else(|| hit.id.to_string(), plain);
        page += &format!("{MARGIN}{}\n\n", paint("2", &format!("id {id}")));
    }
    page + &paint("2", &summary(answer)) + "\n"
}

/// The first text of the payload that is not the id: the question of an FAQ, the name of a product.
fn title(hit: &Hit) -> String {
    let texts = hit.payload.values().filter(|value| **value != hit.id).filter_map(Value::as_str);
    plain(texts.map(str::trim).find(|text| !text.is_empty()).unwrap_or(""))
}

fn summary(answer: &Answer) -> String {
    let count = match answer.results.len() {
        0 => "nothing found".to_owned(),
        1 => "1 result".to_owned(),
        count => format!("{count} results"),
    };
    let mut text = format!("{count}, from {} in {} ms", plain(&answer.served_by), answer.took_ms.round());
    if answer.degraded {
        text += ", degraded";
    }
    match answer.staleness_ms {
        Some(stale) if stale >= 1000 => text += &format!(", up to {} s behind the table", stale.div_ceil(1000)),
        _ => {}
    }
    text
}

/// Text on one line, without what could drive a terminal.
pub(crate) fn plain(text: &str) -> String {
    visible(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text without what could drive a terminal.
pub(crate) fn visible(text: &str) -> String {
    let visible = |c: &char| {
        let turns_text = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        !turns_text && (!c.is_control() || c.is_whitespace())
    };
    text.chars().filter(visible).collect()
}

/// At most `lines` lines of at most `width` characters, broken at spaces; an ellipsis where there is more.
fn wrapped(text: &str, width: usize, lines: usize) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.char_indices().nth(width).map_or(rest.len(), |(end, _)| end);
        if end == rest.len() {
            out.push(rest.to_owned());
            break;
        }
        if out.len() + 1 == lines {
            // Room for the ellipsis.
            let end = rest.char_indices().nth(width - 1).map_or(rest.len(), |(end, _)| end);
            out.push(format!("{}…", rest[..end].trim_end()));
            break;
        }
        // A space just after the line's last character is a break, too.
        let end_with_space = rest[end..].chars().next().map_or(end, |c| end + c.len_utf8());
        let cut = rest[..end_with_space].rfind(' ').filter(|cut| *cut > 0).unwrap_or(end);
        out.push(rest[..cut].trim_end().to_owned());
        rest = rest[cut..].trim_start();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(results: Value) -> Answer {
        let answer = json!({"query": "q", "results": results, "served_by": "local", "degraded": false,
            "staleness_ms": 12, "took_ms": 4});
        serde_json::from_value(answer).expect("an answer")
    }

    #[test]
    fn a_query_is_escaped() {
        let query = Query {
            text: "a b&c=d+é".into(),
            limit: Some(3),
            min_score: Some(-0.5),
            filter: vec![("category".into(), "x:y &z".into())],
        };
        let wanted = "q=a%20b%26c%3Dd%2B%C3%A9&limit=3&min_score=-0.5&filter=category%3Ax%3Ay%20%26z";
        assert_eq!(query_string(&query), wanted);
    }

    #[test]
    fn an_answer_fits_the_page() {
        let long = "word ".repeat(100);
        let answer = answer(json!([
            {"id": 17, "score": 0.734, "passage": long, "payload": {"id": 17, "question": "How?", "answer": "x"}},
            {"id": "how", "score": -0.1, "passage": "short", "payload": {"slug": "how", "question": "y".repeat(200)}},
        ]));
        let page = render(&answer, false);
        let lines: Vec<&str> = page.lines().collect();
        assert!(page.lines().all(|line| line.chars().count() <= PAGE), "{page}");
        assert_eq!(lines[0], "  1   0.73  How?");
        assert_eq!(lines[1], format!("{MARGIN}{}", "word ".repeat(13).trim_end()));
        assert!(lines[3].ends_with('…'));
        assert_eq!(lines[4], format!("{MARGIN}id 17"));
        assert!(lines[6].starts_with("  2  -0.10  yyy") && lines[6].ends_with("y…"), "{page}");
        assert_eq!(lines[8], format!("{MARGIN}id how"));
        assert_eq!(lines.last(), Some(&"2 results, from local in 4 ms"));
    }

    #[test]
    fn nothing_found_and_a_late_store_are_said() {
        let mut nothing = answer(json!([]));
        assert_eq!(render(&nothing, false), "nothing found, from local in 4 ms\n");
        (nothing.degraded, nothing.staleness_ms) = (true, Some(61_500));
        let wanted = "nothing found, from local in 4 ms, degraded, up to 62 s behind the table\n";
        assert_eq!(render(&nothing, false), wanted);
    }

    #[test]
    fn a_row_cannot_drive_the_terminal() {
        let answer = answer(json!([{"id": "\u{1b}c", "score": 1.0, "passage": "a\u{1b}[2J\u{7}b\u{202e}c\nd",
            "payload": {"t": "\u{9b}31mx"}}]));
        let page = render(&answer, false);
        assert!(!page.chars().any(|c| c.is_control() && c != '\n') && !page.contains('\u{202e}'), "{page:?}");
        assert!(page.contains("a[2Jbc d"));
        assert!(render(&answer, true).contains("\u{1b}[1m31mx\u{1b}[0m"));
    }

    #[test]
    fn lines_are_broken_at_spaces() {
        for (text, width, lines, wanted) in [
            ("", 5, 3, vec![]),
            ("abc", 5, 3, vec!["abc"]),
            ("abcde fgh", 5, 3, vec!["abcde", "fgh"]),
            ("ab cd ef", 5, 3, vec!["ab cd", "ef"]),
            ("abcdefgh", 5, 3, vec!["abcde", "fgh"]),
            ("ab cd ef", 5, 1, vec!["ab c…"]),
            ("éé éé éé", 5, 2, vec!["éé éé", "éé"]),
        ] {
            assert_eq!(wrapped(text, width, lines), wanted, "{text}");
        }
    }
}
