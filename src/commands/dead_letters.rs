//! `vecsync dead-letters`: asks the running vecsync, or the log where none runs, and says it in lines.

use std::fmt::Write;

use serde_json::Value;

use crate::app::{self, AppError};
use crate::client::{plain, visible};
use crate::config::Config;
use crate::config::settings::Settings;
use crate::control::{self, ControlError, Reply, Request};
use crate::topic::LetterId;

/// Characters of an error on a line of the list.
const ERROR_CHARS_MAX: usize = 80;

/// A dead letter was not shown or not retried.
#[derive(Debug, thiserror::Error)]
pub enum DeadLettersError {
    /// The running vecsync did not do it, or there is none and it takes one.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The log cannot be read.
    #[error(transparent)]
    App(#[from] AppError),
    /// Nothing runs, and nothing is there.
    #[error("read dead letters: no vecsync runs on VECSYNC_DATA_DIR {0}, and there is no log in it")]
    NoLog(String),
    /// One was asked for and could not be shown.
    #[error("show dead letter {id}: {reason}")]
    NotShown {
        /// Which.
        id: LetterId,
        /// Why not.
        reason: String,
    },
    /// Some were not retried.
    #[error("retry dead letters: {0}")]
    NotRetried(String),
}

/// What a running vecsync answers. `None`: none runs on this data directory, or none that captures.
pub async fn ask(settings: &Settings, request: Request) -> Result<Option<Value>, DeadLettersError> {
    match control::call(&settings.data_dir, request.clone(), |_, _| ()).await {
        Ok(value) => Ok(Some(value)),
        Err(ControlError::NotRunning { .. }) => Ok(None),
        Err(ControlError::Failed(reason)) => Err(refused(request, reason)),
        Err(error) => Err(error.into()),
    }
}

/// The same, read from the log where none runs.
pub async fn read(config: Config, request: Request) -> Result<Value, DeadLettersError> {
    let folder = config.data_dir.display().to_string();
    match app::answer_from_log(config, request.clone()).await? {
        Some(Reply::Done(value)) => Ok(value),
        Some(Reply::Failed(reason)) => Err(refused(request, reason)),
        None => Err(DeadLettersError::NoLog(folder)),
    }
}

fn refused(request: Request, reason: String) -> DeadLettersError {
    match request {
        Request::DeadLetter { id } => DeadLettersError::NotShown { id, reason },
        _ => ControlError::Failed(reason).into(),
    }
}

/// Retries these; all where none is named. Gives what to print, and what was not retried.
pub async fn retry(
    settings: &Settings,
    ids: Vec<LetterId>,
) -> Result<(String, Option<DeadLettersError>), DeadLettersError> {
    let done = control::call(&settings.data_dir, Request::RetryDeadLetters { ids }, |_, _| ()).await?;
    Ok(outcomes(&done))
}

fn outcomes(done: &Value) -> (String, Option<DeadLettersError>) {
    let lines = |list: &str, what: &str| -> Vec<String> {
        let line = |one: &Value| format!("{}: {}", text(&one["id"]), plain(&text(&one[what])));
        done[list].as_array().into_iter().flatten().map(line).collect()
    };
    let (retried, failed) = (lines("retried", "outcome"), lines("failed", "reason"));
    let mut said: String = retried.iter().map(|line| format!("{line}\n")).collect();
    if retried.is_empty() && failed.is_empty() {
        NONE.clone_into(&mut said);
    }
    (said, (!failed.is_empty()).then(|| DeadLettersError::NotRetried(failed.join("; "))))
}

const NONE: &str = "There are no dead letters.\n";

/// The list, a line each: id, key, reason, time, error, size.
pub fn list_lines(list: &Value) -> String {
    let letters = list["dead_letters"].as_array().map_or(&[][..], Vec::as_slice);
    if letters.is_empty() {
        return NONE.to_owned();
    }
    let mut lines = String::new();
    for letter in letters {
        let error = plain(&text(&letter["error"]));
        let mut short: String = error.chars().take(ERROR_CHARS_MAX).collect();
        if short.len() < error.len() {
            short.push('…');
        }
        let [id, reason, time, bytes] = ["id", "reason", "time", "bytes"].map(|name| text(&letter[name]));
        let key = plain(&text(key(letter)));
        let _ = writeln!(lines, "{id:<8} {key}  {reason}  {time}  {short}  {bytes} bytes");
    }
    if list["more"] == true {
        let _ = writeln!(lines, "These are the newest {}; there are older ones.", letters.len());
    }
    lines
}

/// One dead letter, a line for each of its parts, its bytes last.
pub fn letter_lines(letter: &Value) -> String {
    let mut lines = String::new();
    for (name, value) in letter.as_object().into_iter().flatten() {
        match name.as_str() {
            "value" => {
                let _ = writeln!(lines, "value:\n{}", visible(&text(value)));
            }
            "headers" if value.as_object().is_some_and(|headers| headers.is_empty()) => {}
            _ => {
                let _ = writeln!(lines, "{:<13} {}", format!("{name}:"), plain(&text(value)));
            }
        }
    }
    lines
}

fn key(letter: &Value) -> &Value {
    letter.get("key").unwrap_or(&letter["key_base64"])
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_is_a_line_each_and_says_when_it_is_empty() {
        assert_eq!(list_lines(&json!({"dead_letters": [], "more": false})), "There are no dead letters.\n");
        let letter = |id: &str, error: &str| json!({"id": id, "key": {"id": 5}, "reason": "template", "time": "2026-01-02T13:45:45Z", "error": error, "bytes": 11});
        let list = json!({"dead_letters": [letter("3-7", "not\na\u{1b}[2J number"), letter("0-1", &"é".repeat(100))], "more": true});
        let lines = list_lines(&list);
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[0], r#"3-7      {"id":5}  template  2026-01-02T13:45:45Z  not a[2J number  11 bytes"#);
        assert!(lines[1].contains(&format!("{}…  11 bytes", "é".repeat(80))), "{}", lines[1]);
        assert_eq!(lines[2..], ["These are the newest 2; there are older ones."]);
    }

    #[test]
    fn a_letter_is_shown_with_its_place_and_its_bytes_last() {
        let letter = json!({"id": "3-7", "topic": "t.changes", "headers": {}, "value": "{\"a\":\n 1}"});
        assert_eq!(letter_lines(&letter), "id:           3-7\ntopic:        t.changes\nvalue:\n{\"a\":\n 1}\n");
    }

    #[test]
    fn what_was_not_retried_is_named() {
        let (said, failed) = outcomes(&json!({
            "retried": [{"id": "3-7", "outcome": "published"}],
            "failed": [{"id": "9-9", "reason": "there is none"}, {"id": "9-10", "reason": "no row"}],
        }));
        assert_eq!(said, "3-7: published\n");
        let failed = failed.expect("a failure").to_string();
        assert_eq!(failed, "retry dead letters: 9-9: there is none; 9-10: no row");
        let (said, failed) = outcomes(&json!({"retried": [], "failed": []}));
        assert_eq!((said.as_str(), failed.is_none()), (NONE, true));
    }
}
