//! Answers the commands for dead letters: reads them from the log, and has capture publish their rows again.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{mpsc, oneshot};

use crate::capture::{self, REPUBLISH_KEYS_MAX, Republished};
use crate::control::{Reply, Request};
use crate::event::{Record, RowKey};
use crate::retry::Chain;
use crate::topic::{Letter, LetterId, Log, LogError};

/// Dead letters that are listed, or retried by one command.
pub(super) const LETTERS_MAX: usize = 10_000;
/// Characters of an error in a list; `show` has all of it.
const ERROR_CHARS_MAX: usize = 200;
/// What the headers of a dead letter are called that are told by other names.
const OWN_HEADERS: &str = "vecsync.";

/// Answers what needs nothing but the log.
pub(super) async fn answer(log: &Log, request: Request) -> Reply {
    let answered = match request {
        Request::DeadLetters => list(log).await,
        Request::DeadLetter { id } => show(log, id).await,
        Request::Sync { .. }
        | Request::Arrive { .. }
        | Request::SourceStats
        | Request::StoreStats
        | Request::RetryDeadLetters { .. }
        | Request::Replay { .. }
        | Request::Recreate
        | Request::Drill { .. }
        | Request::Backup { .. }
        | Request::Verify { .. }
        | Request::Republish { .. } => {
            return Reply::Failed("that takes a vecsync that runs".to_owned());
        }
    };
    match answered {
        Ok(Some(value)) => Reply::Done(value),
        Ok(None) => Reply::Failed(NONE_OF_THIS_ID.to_owned()),
        Err(error) => Reply::Failed(Chain(&error).to_string()),
    }
}

/// Why an ID leads nowhere.
const NONE_OF_THIS_ID: &str =
    "there is no dead letter of this ID; `vecsync dead-letters list` shows those that are open";

async fn list(log: &Log) -> Result<Option<Value>, LogError> {
    let letters = log.dead_letters(LETTERS_MAX).await?;
    let listed: Vec<Value> = letters.newest.iter().map(|letter| Value::Object(outline(letter))).collect();
    Ok(Some(json!({"dead_letters": listed, "more": letters.more})))
}

async fn show(log: &Log, id: LetterId) -> Result<Option<Value>, LogError> {
    let Some(record) = log.dead_letter(id).await? else { return Ok(None) };
    Ok(Letter::read(&record).map(|letter| Value::Object(whole(&letter, &record))))
}

fn outline(letter: &Letter) -> Map<String, Value> {
    let mut error: String = letter.error.chars().take(ERROR_CHARS_MAX).collect();
    if error.len() < letter.error.len() {
        error.push('…');
    }
    let mut outline = Map::new();
    outline.insert("id".into(), json!(letter.id));
    match letter.row_key() {
        Some(key) => drop(outline.insert("key".into(), Value::Object(key.columns()))),
        None => insert_bytes(&mut outline, "key", &letter.key),
    }
    outline.insert("reason".into(), json!(letter.reason));
    outline.insert("time".into(), json!(rfc_3339(letter.at_ms)));
    outline.insert("error".into(), json!(error));
    outline.insert("bytes".into(), json!(letter.bytes));
    outline
}

fn whole(letter: &Letter, record: &Record) -> Map<String, Value> {
    let mut whole = outline(letter);
    whole.insert("error".into(), json!(letter.error));
    whole.insert("topic".into(), json!(letter.topic));
    whole.insert("partition".into(), json!(letter.id.partition));
    whole.insert("offset".into(), json!(letter.id.offset));
    let mut headers = Map::new();
    for (name, value) in record.headers.iter().filter(|(name, _)| !name.starts_with(OWN_HEADERS)) {
        insert_bytes(&mut headers, name, value);
    }
    whole.insert("headers".into(), Value::Object(headers));
    insert_bytes(&mut whole, "value", record.value.as_deref().unwrap_or_default());
    whole
}

/// Bytes under their name as text, or, where they are not UTF-8, under `<name>_base64`.
fn insert_bytes(into: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => into.insert(name.to_owned(), json!(text)),
        Err(_) => into.insert(format!("{name}_base64"), json!(STANDARD.encode(bytes))),
    };
}

fn rfc_3339(at_ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{at_ms} ms"))
}

/// Has the rows of these dead letters published again; of all of them where none is named.
pub(super) async fn retry(log: &Log, requests: &mpsc::Sender<capture::Request>, ids: Vec<LetterId>) -> Reply {
    let letters = match log.dead_letters(LETTERS_MAX).await {
        Ok(letters) => letters,
        Err(error) => return Reply::Failed(Chain(&error).to_string()),
    };
    let mut open: BTreeMap<LetterId, Letter> = letters.newest.into_iter().map(|letter| (letter.id, letter)).collect();
    let wanted: BTreeSet<LetterId> =
        if ids.is_empty() { open.keys().copied().collect() } else { BTreeSet::from_iter(ids) };
    let mut keys: BTreeMap<RowKey, LetterId> = BTreeMap::new();
    let mut outcomes: BTreeMap<LetterId, Result<&str, String>> = BTreeMap::new();
    for id in wanted {
        let letter = match open.remove(&id) {
            Some(letter) => Some(letter),
            None if letters.more => match log.dead_letter(id).await {
                Ok(record) => record.as_ref().and_then(Letter::read),
                Err(error) => return Reply::Failed(Chain(&error).to_string()),
            },
            None => None,
        };
        match letter.map(|letter| letter.row_key()) {
            Some(Some(key)) => drop(keys.insert(key, id)),
            Some(None) => drop(outcomes.insert(id, Err("its key names no row, so nothing can be read again".into()))),
            None => drop(outcomes.insert(id, Err(NONE_OF_THIS_ID.into()))),
        }
    }
    let all: Vec<RowKey> = keys.keys().cloned().collect();
    for some in all.chunks(REPUBLISH_KEYS_MAX) {
        match republish(requests, some.to_vec()).await {
            Ok(republished) => {
                for (key, became) in republished {
                    let Some(id) = keys.remove(&key) else { continue };
                    outcomes.insert(id, outcome(became));
                }
            }
            Err(reason) => {
                // What stops some of them stops the others.
                outcomes.extend(std::mem::take(&mut keys).into_values().map(|id| (id, Err(reason.clone()))));
                break;
            }
        }
    }
    let (mut retried, mut failed) = (vec![], vec![]);
    for (id, outcome) in outcomes {
        match outcome {
            Ok(outcome) => retried.push(json!({"id": id, "outcome": outcome})),
            Err(reason) => failed.push(json!({"id": id, "reason": reason})),
        }
    }
    Reply::Done(json!({"retried": retried, "failed": failed}))
}

fn outcome(became: Republished) -> Result<&'static str, String> {
    match became {
        Republished::Row => Ok("its row was read again and published"),
        Republished::Gone => Ok("its row is gone, and its delete was published"),
        Republished::Changed => Ok("its row changed by itself meanwhile and was published"),
        Republished::Refused(reason) => Err(reason),
    }
}

/// Has rows published again, at most [`REPUBLISH_KEYS_MAX`].
pub(super) async fn republish(
    requests: &mpsc::Sender<capture::Request>,
    keys: Vec<RowKey>,
) -> Result<Vec<(RowKey, Republished)>, String> {
    let (done, answered) = oneshot::channel();
    let ended = || "capture was interrupted; try again".to_owned();
    requests.send(capture::Request::Republish(keys, done)).await.map_err(|_| ended())?;
    answered.await.map_err(|_| ended())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn record(key: &[u8], value: &[u8]) -> Record {
        let header = |name: &str, value: &str| (format!("vecsync.{name}"), Bytes::copy_from_slice(value.as_bytes()));
        Record {
            key: Bytes::copy_from_slice(key),
            value: Some(Bytes::copy_from_slice(value)),
            headers: vec![
                ("theirs".into(), Bytes::from_static(b"\xff")),
                header("reason", "template"),
                header("topic", "t.changes"),
                header("partition", "3"),
                header("offset", "7"),
                header("error", &"é".repeat(300)),
            ],
            timestamp_ms: 1_767_361_545_078,
        }
    }

    #[test]
    fn a_list_has_outlines_and_show_has_all() {
        let record_of_a_row = record(br#"{"id":5}"#, b"{\"after\":1}");
        let letter = Letter::read(&record_of_a_row).expect("a letter");
        let error = format!("{}…", "é".repeat(200));
        let outlined = json!({
            "id": "3-7", "key": {"id": 5}, "reason": "template", "time": "2026-01-02T13:45:45.078Z", "error": error,
            "bytes": 11
        });
        assert_eq!(Value::Object(outline(&letter)), outlined);
        let shown = Value::Object(whole(&letter, &record_of_a_row));
        assert_eq!(shown["error"], "é".repeat(300));
        assert_eq!(
            (&shown["topic"], &shown["partition"], &shown["offset"]),
            (&json!("t.changes"), &json!(3), &json!(7))
        );
        assert_eq!((&shown["value"], &shown["headers"]), (&json!("{\"after\":1}"), &json!({"theirs_base64": "/w=="})));
    }

    #[test]
    fn what_is_not_text_is_base64() {
        let record = record(b"\xfe", b"\xff\x00");
        let shown = Value::Object(whole(&Letter::read(&record).expect("a letter"), &record));
        assert_eq!((&shown["key_base64"], &shown["value_base64"]), (&json!("/g=="), &json!("/wA=")));
        assert!(shown.get("key").is_none() && shown.get("value").is_none(), "{shown}");
    }
}
