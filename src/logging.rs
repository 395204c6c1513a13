//! The one set-up of `tracing`: one line an event on standard error, above a progress bar where there is one.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::TryInitError;

use crate::config::{Log, LogFormat};
use crate::{progress_bar, remedy};

/// What is said only where the setting names it: the access log; libraries that say at `info` what only their own developers
/// need.
const QUIET: &str = "vecsync::access=off,ort=warn,sled=warn,tokenizers=warn,hyper=warn,rustls=warn,tokio_postgres=warn";

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one. Settings are checked before, so this is a defect.
    #[error("read log filter {filter:?}")]
    Filter {
        /// The filter.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else has set it up already.
    #[error("start logging")]
    Started(#[source] TryInitError),
}

/// Starts logging for the whole process. Call once.
pub fn start(log: &Log) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let filter = EnvFilter::builder()
        .parse(directives(&log.filter))
        .map_err(|source| LoggingError::Filter { filter: log.filter.clone(), source })?;
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveTheBar);
    let started = match log.format {
        LogFormat::Pretty => events.with_ansi(colours()).compact().finish().try_init(),
        LogFormat::Json => events.with_ansi(false).json().flatten_event(true).finish().try_init(),
    };
    std::panic::set_hook(Box::new(|panic| tracing::error!("panic: {}", what_panicked(panic))));
    started.map_err(LoggingError::Started)
}

/// The setting as `tracing` is given it. A level that stands alone is meant for vecsync: of others it would bring thousands of
/// lines that say nothing of it, so they go no lower than `info` unless they are named.
fn directives(setting: &str) -> String {
    let (mut alone, mut named) = (vec![], vec![]);
    // Commas inside of a span's braces part nothing.
    let mut depth = 0_i32;
    for directive in setting.split(',') {
        let is_outside = depth == 0;
        depth += directive.chars().map(|c| i32::from("[{".contains(c)) - i32::from("]}".contains(c))).sum::<i32>();
        match directive.trim().to_ascii_lowercase() {
            level if is_outside && ["debug", "trace"].contains(&&*level) => alone.push(format!("info,vecsync={level}")),
            _ => named.push(directive),
        }
    }
    // What is named counts, wherever it stands.
    let all = [QUIET].into_iter().chain(alone.iter().map(String::as_str)).chain(named);
    all.collect::<Vec<_>>().join(",")
}

/// A panic as one line: what it says, and where, without the folders of the machine that built it.
fn what_panicked(panic: &PanicHookInfo<'_>) -> String {
    let text = panic.payload_as_str().unwrap_or("no message").split_whitespace().collect::<Vec<_>>().join(" ");
    match panic.location() {
        Some(place) => {
            let file = Path::new(place.file()).file_name().unwrap_or_default().to_string_lossy();
            format!("{text} ({file}:{})", place.line())
        }
        None => text,
    }
}

/// Colours are for terminals, and there only where they are wanted (<https://no-color.org>).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Standard error, with the progress bar taken away for as long as a line is written.
struct AboveTheBar;

impl<'a> MakeWriter<'a> for AboveTheBar {
    type Writer = AboveTheBar;

    fn make_writer(&'a self) -> AboveTheBar {
        AboveTheBar
    }
}

impl Write for AboveTheBar {
    /// Gets one whole event: that is how `tracing_subscriber` writes.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let named = of_pipeline(event);
        progress_bar::without_bar(|| io::stderr().lock().write_all(&one_line(&named)))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// With the name of the pipeline of several that has said it, in each command that a person may paste.
fn of_pipeline(event: &[u8]) -> Cow<'_, [u8]> {
    let (Some(pipeline), Ok(text)) = (remedy::pipeline(), std::str::from_utf8(event)) else {
        return Cow::Borrowed(event);
    };
    match remedy::named(text, &pipeline) {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// A line break inside an event would look like an event of its own.
fn one_line(event: &[u8]) -> Cow<'_, [u8]> {
    let (body, end) = match event.strip_suffix(b"\n") {
        Some(body) => (body, &b"\n"[..]),
        None => (event, &b""[..]),
    };
    if !body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Cow::Borrowed(event);
    }
    let mut line = Vec::with_capacity(event.len() + 16);
    for byte in body {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            other => line.push(*other),
        }
    }
    line.extend_from_slice(end);
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::{QUIET, directives, one_line};

    #[test]
    fn a_level_that_stands_alone_is_meant_for_vecsync() {
        let check = |setting: &str, wanted: &str| assert_eq!(directives(setting), format!("{QUIET},{wanted}"));
        check("debug", "info,vecsync=debug");
        check(" TRACE", "info,vecsync=trace");
        check("debug,h2=debug", "info,vecsync=debug,h2=debug");
        check("vecsync::serve=info,debug", "info,vecsync=debug,vecsync::serve=info");
        for kept in
            ["info", "warn", "off", "h2=debug", "info,vecsync=debug", "warn,vecsync[a{b,debug}]=trace,tower=debug"]
        {
            check(kept, kept);
        }
    }

    #[test]
    fn an_event_stays_one_line() {
        fn check(event: &str, wanted: &str) {
            assert_eq!(String::from_utf8_lossy(&one_line(event.as_bytes())), wanted);
        }
        check("INFO all well\n", "INFO all well\n");
        check("INFO a\nERROR forged\r\n", "INFO a\\nERROR forged\\r\n");
        check("", "");
    }
}
