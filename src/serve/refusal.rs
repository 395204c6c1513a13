//! What hyper answers by itself to a head that it cannot read, before anybody is asked: a status and no word. No I/O.

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::{Response, StatusCode};

use super::limits::{HEAD_BYTES_MAX, URI_BYTES_MAX};
use super::problem::Problem;

/// hyper's own answers are shorter: a status, two or three headers, no body.
const ANSWER_BYTES_MAX: usize = 200;

/// The status of an answer of hyper's own; `None` for everything else that is written. Ours have a type and a body, and no text in
/// them has line ends like these.
pub(super) fn status(written: &[u8]) -> Option<StatusCode> {
    if written.len() > ANSWER_BYTES_MAX || !written.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let head = std::str::from_utf8(written).ok()?.strip_prefix("HTTP/1.1 ")?.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = StatusCode::from_bytes(lines.next()?.as_bytes().get(..3)?).ok()?;
    let is_bare =
        lines.clone().any(|line| line == "content-length: 0") && lines.all(|line| !line.starts_with("content-type"));
    (status.is_client_error() && is_bare).then_some(status)
}

/// What is to be said in its place.
pub(super) fn problem(status: StatusCode) -> Problem {
    let detail = match status {
        StatusCode::URI_TOO_LONG => format!("path and query string have more than {URI_BYTES_MAX} bytes"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            format!("the headers are too many, or the head of the request has more than {HEAD_BYTES_MAX} bytes")
        }
        _ => "the request line or a header is not what HTTP/1.1 has (RFC 9112)".to_owned(),
    };
    Problem::new(status, detail).closing()
}

/// The answer as it is written in the place of hyper's, whose date it keeps.
pub(super) fn written(answer: Response<Full<Bytes>>, in_place_of: &[u8]) -> Bytes {
    let (head, body) = answer.into_parts();
    // It is there as a whole.
    let body = body.collect().now_or_never().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let reason = head.status.canonical_reason().unwrap_or_default();
    let mut written =
        format!("HTTP/1.1 {} {reason}\r\ncontent-length: {}\r\n", head.status.as_u16(), body.len()).into_bytes();
    for (name, value) in &head.headers {
        written.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    let date = String::from_utf8_lossy(in_place_of);
    if let Some(date) = date.split("\r\n").find(|line| line.starts_with("date: ")) {
        written.extend([date.as_bytes(), b"\r\n"].concat());
    }
    written.extend(b"\r\n");
    written.extend(body);
    written.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypers_own_answers_are_known_and_no_other() {
        fn check(written: &str, wanted: Option<u16>) {
            assert_eq!(status(written.as_bytes()).map(|status| status.as_u16()), wanted, "{written:?}");
        }
        check("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: now\r\n\r\n", Some(400));
        check("HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n", Some(431));
        check("HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: 0\r\n\r\n", None);
        check("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n", None);
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None);
        check("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n", None);
        check("HTTP/1.1 \u{e9}\u{e9}\r\ncontent-length: 0\r\n\r\n", None);
        check("", None);
    }
}
