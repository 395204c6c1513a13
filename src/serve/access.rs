//! The access log: a line a request, where it is asked for. Never a key, and the text of a query only where that is asked for.

use std::borrow::Cow;
use std::time::Instant;

use hyper::body::Body;
use hyper::{Method, Request, Response};

/// The target that `VECSYNC_LOG` names: `info` gives the lines, `debug` the queries in them as well. It is silent unless it
/// is named: a general `debug` must not begin to write down what people look for.
const TARGET: &str = "vecsync::access";
/// Characters of a path in a line.
const PATH_CHARS: usize = 200;

/// The status that is logged for a request whose client went away: nginx's, since HTTP has none.
pub(super) const CLIENT_GONE: u16 = 499;

/// One request; its line is written when it is dropped.
pub(super) struct Access(Option<Line>);

struct Line {
    started: Instant,
    id: String,
    method: Method,
    path: String,
    query: Option<String>,
    status: u16,
    bytes: u64,
}

impl Access {
    /// Costs next to nothing where nobody wants the line.
    pub(super) fn begin<B>(request: &Request<B>, id: &str) -> Self {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return Access(None);
        }
        Access(Some(Line {
            started: Instant::now(),
            id: id.to_owned(),
            method: request.method().clone(),
            path: shortened(request.uri().path()).into_owned(),
            query: None,
            status: CLIENT_GONE,
            bytes: 0,
        }))
    }

    /// This is looked for.
    pub(super) fn asks(&mut self, query: &str) {
        if let Some(line) = &mut self.0
            && tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
        {
            line.query = Some(query.to_owned());
        }
    }

    /// This is answered.
    pub(super) fn ends<B: Body>(mut self, answer: &Response<B>) {
        if let Some(line) = &mut self.0 {
            line.status = answer.status().as_u16();
            line.bytes = if line.method == Method::HEAD { 0 } else { answer.body().size_hint().lower() };
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let Some(Line { started, id, method, path, query, status, bytes }) = self.0.take() else { return };
        let took_ms = started.elapsed().as_micros() as f64 / 1000.0;
        // A field without a value is left out.
        let query = query.as_deref();
        tracing::info!(target: TARGET, request_id = id, %method, path, status, took_ms, bytes, query, "answered");
    }
}

fn shortened(path: &str) -> Cow<'_, str> {
    match path.char_indices().nth(PATH_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &path[..end])),
        None => Cow::Borrowed(path),
    }
}
