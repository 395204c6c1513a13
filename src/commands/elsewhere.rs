//! Commands for the vecsync at `VECSYNC_URL`: says whether one is meant, has it done there, and hands on what is said of it. Does none.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;
use tokio::net::lookup_host;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::client::{self, ClientError, visible};
use crate::config::settings::Settings;
use crate::control::{self, Door};
use crate::progress_bar::{self, Progress};
use crate::requests::{RequestError, Target};
use crate::serve::control::{Command, Ended};

/// It says every 5 s that it is still at work. It may say nothing for as long as a connection stands still on the way.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest line that is read: a dead letter of 16 MiB, each byte of which JSON may spell with six.
const LINE_BYTES_MAX: usize = 128 << 20;
/// Largest refusal that is read.
const REFUSAL_BYTES_MAX: usize = 1 << 20;
/// What the answer to a command is.
const LINES: &str = "application/x-ndjson";

/// The command was not done there, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum ElsewhereError {
    /// It did not take it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It has other pipelines, or several and none was named.
    #[error("{url}: {detail}; `--pipeline NAME` says which is meant, else the file that VECSYNC_PIPELINE names does")]
    Pipeline {
        /// The address.
        url: String,
        /// What it says.
        detail: String,
    },
    /// It was asked in a way that it does not take.
    #[error("{detail}")]
    Misused {
        /// What it says.
        detail: String,
    },
    /// The key may not.
    #[error("{url} does not let this key command: {detail}")]
    Forbidden {
        /// The address.
        url: String,
        /// What it says.
        detail: String,
    },
    /// It was asked, and no answer came.
    #[error("{url} was asked to {name}, and it is not known whether it began")]
    Unanswered {
        /// The address.
        url: String,
        /// The command.
        name: &'static str,
        /// What happened.
        source: ClientError,
    },
    /// The answer has no end.
    #[error("{url} ended before it had answered; what it was asked for may be half done")]
    BrokenOff {
        /// The address.
        url: String,
        /// What happened, where that is known.
        source: Option<ClientError>,
    },
}

impl ElsewhereError {
    /// Whether nothing was tried, because of how it was asked for.
    pub fn is_misuse(&self) -> bool {
        matches!(self, ElsewhereError::Misused { .. } | ElsewhereError::Pipeline { .. })
    }

    /// Whether nobody was reached.
    pub fn is_unreachable(&self) -> bool {
        use ClientError::{NobodyThere, Unreachable};
        matches!(self, ElsewhereError::Client(NobodyThere { .. } | Unreachable { .. } | ClientError::Timeout { .. }))
    }
}

/// Whether a command is for the vecsync at `VECSYNC_URL`: one is set, and on the data directory of this machine none runs that
/// could do it.
pub fn is_meant(settings: &Settings, command: &Command) -> bool {
    let either = &[Door::Capture, Door::Store][..];
    let doors = match command {
        Command::Sync(flags) if flags.dry_run => &[Door::Store],
        Command::Sync(flags) if !flags.stats_only => &[Door::Capture],
        Command::DeadLetters(_) => &[Door::Capture],
        Command::Verify(_) | Command::Replay(_) | Command::Backup(_) => &[Door::Store],
        Command::Init(_) | Command::Check(_) | Command::Sync(_) => either,
    };
    settings.url_is_set && !doors.iter().any(|door| control::is_open(&settings.data_dir, *door))
}

/// Has it done there; `said` is given what is for standard output as it comes. `None`: the address is of this machine, and nobody
/// listens there, so that none runs at all.
pub async fn ask(
    settings: &Settings,
    command: &Command,
    said: impl FnMut(&str),
) -> Result<Option<Ended>, ElsewhereError> {
    let url = settings.url.to_string();
    // Not the folder: somebody may have put a secret where its path belongs.
    tracing::info!("no vecsync runs on VECSYNC_DATA_DIR: asking {url}");
    let asked = Asked { url: &url, name: command.name() };
    match asked.send(settings, command, said).await {
        Err(ElsewhereError::Client(ClientError::NobodyThere { .. })) if is_this_machine(settings).await => {
            tracing::info!("nobody listens at {url}");
            Ok(None)
        }
        ended => ended.map(Some),
    }
}

/// Whether the address, or what its name stands for, is loopback's alone.
async fn is_this_machine(settings: &Settings) -> bool {
    let host = settings.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let Ok(addresses) = lookup_host((host, 0)).await else { return false };
    let mut addresses = addresses.peekable();
    addresses.peek().is_some() && addresses.all(|address| address.ip().to_canonical().is_loopback())
}

/// A line of the answer.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Passed { label: String, done: u64, total: u64 },
    Said(String),
    Ended { status: u8, text: String, error: Option<String> },
}

/// Who is asked for what.
#[derive(Clone, Copy)]
struct Asked<'a> {
    url: &'a str,
    name: &'static str,
}

impl Asked<'_> {
    async fn send(
        self,
        settings: &Settings,
        command: &Command,
        mut said: impl FnMut(&str),
    ) -> Result<Ended, ElsewhereError> {
        let failed = |error| ClientError::from_request(self.url, error);
        let target = Target::parse(self.url).map_err(failed)?;
        let path = format!("/control/{}", self.name);
        let mut request =
            target.request(Method::POST, &path, Full::new(Bytes::from(command.body()))).map_err(failed)?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(LINES));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        client::set_key(headers, settings.server.api_keys.to_command())?;
        let (came, head) = oneshot::channel();
        let (said, has_begun) = (&mut said, &Cell::new(false));
        let answering = target.send(request, move |response| {
            has_begun.set(true);
            // Who waits for it may have given up.
            let _ = came.send(());
            self.read(response, said)
        });
        tokio::pin!(answering);
        let first = async {
            tokio::select! {
                biased;
                ended = &mut answering => Some(ended),
                _ = head => None,
            }
        };
        match timeout(SILENCE, first).await {
            Ok(Some(ended)) => ended.map_err(|fault| self.fault(fault, has_begun.get())),
            Ok(None) => answering.await.map_err(|fault| self.fault(fault, true)),
            Err(_) => Err(self.unanswered(self.silent())),
        }
    }

    async fn read(self, response: Response<Incoming>, said: &mut impl FnMut(&str)) -> Result<Ended, Fault> {
        let status = response.status();
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if status != StatusCode::OK || !kind.starts_with(LINES) {
            let body = timeout(SILENCE, Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect()).await;
            // What it refuses with matters less than that it does.
            let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
            return Err(Fault::Known(self.refused(status, body)));
        }
        let (mut body, mut lines) = (response.into_body(), Lines::default());
        let mut bar: Option<(String, Progress)> = None;
        loop {
            let frame = match timeout(SILENCE, body.frame()).await {
                Err(_) => return Err(Fault::Known(self.broken_off(Some(self.silent())))),
                Ok(None) => return Err(Fault::Known(self.broken_off(None))),
                Ok(Some(Err(error))) => {
                    let error = ClientError::from_request(self.url, RequestError::Broken(error.into()));
                    return Err(Fault::Known(self.broken_off(Some(error))));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            for line in lines.add(&data).map_err(|error| Fault::Known(self.foreign(error)))? {
                let line = serde_json::from_slice(&line).map_err(|error| Fault::Known(self.foreign(error.into())))?;
                match line {
                    Line::Passed { label, done, total } => {
                        if bar.as_ref().is_none_or(|(of, _)| *of != label) {
                            bar = Some((label.clone(), Progress::start(total, Cow::Owned(client::plain(&label)))));
                        }
                        if let Some((_, bar)) = &bar {
                            bar.set_total(total);
                            bar.set(done);
                        }
                    }
                    Line::Said(text) => progress_bar::without_bar(|| said(&visible(&text))),
                    Line::Ended { status, text, error } => {
                        drop(bar.take());
                        return Ok(Ended { status, text: visible(&text), error: error.as_deref().map(visible) });
                    }
                }
            }
        }
    }

    fn refused(self, status: StatusCode, body: Bytes) -> ElsewhereError {
        let is_of_vecsync =
            serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|body| body["detail"].is_string());
        if status == StatusCode::UNAUTHORIZED && is_of_vecsync {
            return ClientError::Unauthorized { url: self.url() }.into();
        }
        match client::refused(self.url, status, body) {
            // A proxy that lost who it had asked.
            lost if !is_of_vecsync && matches!(status.as_u16(), 502 | 504) => self.unanswered(lost),
            _ if !is_of_vecsync && !status.is_server_error() => {
                let found = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
                ClientError::Foreign { url: self.url(), path: "/control/…", found: found.trim().to_owned() }.into()
            }
            ClientError::Refused { detail, status: 400 | 404, .. }
                if ["which pipeline", "no such pipeline"].iter().any(|words| detail.starts_with(words)) =>
            {
                ElsewhereError::Pipeline { url: self.url(), detail }
            }
            ClientError::Refused { detail, status: 400, .. } => ElsewhereError::Misused { detail },
            ClientError::Refused { detail, status: 403, .. } => ElsewhereError::Forbidden { url: self.url(), detail },
            other => other.into(),
        }
    }

    fn fault(self, fault: Fault, has_begun: bool) -> ElsewhereError {
        let error = match fault {
            Fault::Known(error) => return error,
            Fault::Request(error) => error,
        };
        let is_broken = matches!(error, RequestError::Broken(_));
        let source = ClientError::from_request(self.url, error);
        match (is_broken, has_begun) {
            (true, true) => self.broken_off(Some(source)),
            (true, false) => self.unanswered(source),
            (false, _) => source.into(),
        }
    }

    fn unanswered(self, source: ClientError) -> ElsewhereError {
        ElsewhereError::Unanswered { url: self.url(), name: self.name, source }
    }

    fn silent(self) -> ClientError {
        ClientError::Timeout { url: self.url(), after: SILENCE }
    }

    fn broken_off(self, source: Option<ClientError>) -> ElsewhereError {
        ElsewhereError::BrokenOff { url: self.url(), source }
    }

    fn foreign(self, source: Box<dyn std::error::Error + Send + Sync>) -> ElsewhereError {
        ClientError::NotVecsync { url: self.url(), source }.into()
    }

    fn url(self) -> String {
        self.url.to_owned()
    }
}

/// Why there is no end.
enum Fault {
    Request(RequestError),
    Known(ElsewhereError),
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Self {
        Fault::Request(error)
    }
}

/// What came of a line so far. No I/O.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that are whole with these bytes; empty ones say only that it is still at work.
    fn add(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        let mut whole = vec![];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if self.begun.len() > LINE_BYTES_MAX {
                return Err(format!("a line is longer than {LINE_BYTES_MAX} bytes").into());
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                if !line.trim_ascii().is_empty() {
                    whole.push(line);
                }
            }
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_of_any_pieces() {
        let text = b"{\"said\": \"a\"}\n\n\r\n{\"passed\": {\"label\": \"x\", \"done\": 1, \"total\": 2}}\n{\"ended\"";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let found: Vec<Vec<u8>> = text.chunks(size).flat_map(|piece| lines.add(piece).expect("short")).collect();
            let found: Vec<Line> =
                found.iter().map(|line| serde_json::from_slice(line).expect("a line of vecsync's")).collect();
            let passed = Line::Passed { label: "x".to_owned(), done: 1, total: 2 };
            assert_eq!(found, [Line::Said("a".to_owned()), passed], "{size}");
        }
    }
}
