//! What a client is told when it gets no answer: a problem document as RFC 9457 has it. No I/O.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::json;

/// Characters of a client's value that a problem repeats.
const SHOWN_CHARS: usize = 40;

/// An answer that is not what was asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    detail: String,
    parameter: Option<&'static str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem { status, detail: detail.into(), parameter: None, header: None }
    }

    /// A parameter is not what was wanted.
    pub(super) fn parameter(name: &'static str, detail: impl Into<String>) -> Self {
        let problem = Problem::new(StatusCode::BAD_REQUEST, detail);
        Problem { parameter: Some(name), ..problem }
    }

    /// No known key came with the request.
    pub(super) fn unauthorized() -> Self {
        let detail = "wanted the header `Authorization: Bearer KEY` with one of the keys of VECSYNC_API_KEYS";
        Problem::new(StatusCode::UNAUTHORIZED, detail).with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// The path knows other methods.
    pub(super) fn method(allowed: &'static str) -> Self {
        let detail = format!("this path answers {allowed}");
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).with(ALLOW, HeaderValue::from_static(allowed))
    }

    /// Cannot be answered now; the same request may be answered after so many seconds.
    pub(super) fn unavailable(detail: impl Into<String>, retry_after_s: u64) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with(RETRY_AFTER, HeaderValue::from(retry_after_s))
    }

    /// The rest of the request is not read: the connection ends with the answer.
    pub(super) fn closing(self) -> Self {
        self.with(CONNECTION, HeaderValue::from_static("close"))
    }

    pub(super) fn into_response(self, request_id: &str) -> Response<Full<Bytes>> {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(name) = self.parameter {
            body["parameter"] = name.into();
        }
        body["request_id"] = request_id.into();
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }

    fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Problem { header: Some((name, value)), ..self }
    }
}

/// A client's value, quoted, escaped and shortened.
pub(super) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}", format!("{}…", &value[..end])),
        None => format!("{value:?}"),
    }
}
