//! A file of JSON lines, `{"id", "vector", "payload"}` each: checked whole, then read as points. Knows no server.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::{PointId, PointStruct, Value, Vectors};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::point;
use crate::event::RowKey;
use crate::index::scan::DIMENSION;

/// Problems that are shown; of more, the number is told.
const SHOWN_MAX: usize = 20;
/// Longest line: a vector takes some ten kilobytes.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// Most points of a file: their ids are in memory, to find those that are there twice.
const POINTS_MAX: u64 = 20_000_000;

/// The file cannot be loaded. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// The file system failed.
    #[error("read {path}")]
    Files {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Lines are not as they should be.
    #[error("load {path}: {total} {}, so nothing was written\n{}{}", problems(*total), shown.join("\n"), more(*total, shown.len()))]
    Problems {
        /// The file.
        path: PathBuf,
        /// The first of them.
        shown: Vec<String>,
        /// How many there are.
        total: u64,
    },
    /// It is not what it was a moment ago.
    #[error("load {path}: it was changed meanwhile; searches do not ask what was loaded of it; run this once more")]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

fn problems(total: u64) -> &'static str {
    if total == 1 { "problem" } else { "problems" }
}

fn more(total: u64, shown: usize) -> String {
    match total - shown as u64 {
        0 => String::new(),
        more => format!("\nand {more} more"),
    }
}

/// A file of which every line was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// How many points it has.
    pub points: u64,
    /// SHA-256 of its bytes, the first half of it, in hexadecimal.
    pub hash: String,
}

/// Checks every line. Blocking; reads the whole file.
pub fn check(path: &Path, pipeline: &str) -> Result<Checked, LinesError> {
    let mut first_lines: HashMap<Known, u64> = HashMap::new();
    let (mut points, mut shown, mut total) = (0_u64, vec![], 0_u64);
    let hash = each_line(path, |number, line| {
        let mut tell = |what: String| {
            total += 1;
            if shown.len() < SHOWN_MAX {
                shown.push(format!("{}:{number}: {what}", path.display()));
            }
        };
        let line = match line {
            Ok(line) => line,
            Err(what) => {
                tell(what);
                return true;
            }
        };
        let id = match parse(line, pipeline) {
            Ok(parsed) => parsed.id,
            Err(Refused { id, problems }) => {
                problems.into_iter().for_each(&mut tell);
                let Some(id) = id else { return true };
                id
            }
        };
        match first_lines.entry(known(&id)) {
            Entry::Occupied(first) => {
                tell(format!("id {} is in line {} already", point::shown(Some(&id)), first.get()));
            }
            Entry::Vacant(place) => {
                place.insert(number);
                points += 1;
            }
        }
        if points > POINTS_MAX {
            tell(format!("more than {POINTS_MAX} points; split the file"));
            return false;
        }
        true
    })?;
    if total == 0 && points == 0 {
        (shown, total) = (vec![format!("{}: it has no line", path.display())], 1);
    }
    if total > 0 {
        return Err(LinesError::Problems { path: path.to_owned(), shown, total });
    }
    Ok(Checked { points, hash })
}

/// Shows every point of a file that was checked to `visit`, until that says no. Blocking.
pub fn each(
    path: &Path,
    pipeline: &str,
    checked: &Checked,
    mut visit: impl FnMut(PointStruct) -> bool,
) -> Result<(), LinesError> {
    let changed = || LinesError::Changed { path: path.to_owned() };
    let (mut is_sound, mut is_wanted) = (true, true);
    let hash = each_line(path, |_, line| match line.ok().and_then(|line| parse(line, pipeline).ok()) {
        Some(parsed) => {
            is_wanted = visit(parsed.point());
            is_wanted
        }
        None => {
            is_sound = false;
            false
        }
    })?;
    if is_wanted && (!is_sound || hash != checked.hash) { Err(changed()) } else { Ok(()) }
}

/// Shows every line that is not blank, with its number, from 1, and gives the hash of what was read.
fn each_line(path: &Path, mut visit: impl FnMut(u64, Result<&[u8], String>) -> bool) -> Result<String, LinesError> {
    let failed = |source| LinesError::Files { path: path.to_owned(), source };
    let mut file = BufReader::with_capacity(1 << 18, File::open(path).map_err(failed)?);
    let (mut hasher, mut line, mut number) = (Sha256::new(), vec![], 0);
    loop {
        line.clear();
        number += 1;
        if (&mut file).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        hasher.update(&line);
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < LINE_BYTES_MAX;
        let goes_on = if !is_whole {
            skip_line(&mut file).map_err(failed)?;
            visit(number, Err(format!("longer than {LINE_BYTES_MAX} bytes")))
        } else if line.trim_ascii().is_empty() {
            true
        } else {
            visit(number, Ok(line.trim_ascii_end()))
        };
        if !goes_on {
            break;
        }
    }
    Ok(hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn skip_line(file: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = file.fill_buf()?;
        let (length, found) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(place) => (place + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        file.consume(length);
        if found {
            return Ok(());
        }
    }
}

/// An id in few bytes.
#[derive(PartialEq, Eq, Hash)]
enum Known {
    Number(u64),
    Uuid(u128),
}

fn known(id: &PointId) -> Known {
    match &id.point_id_options {
        Some(PointIdOptions::Num(number)) => Known::Number(*number),
        Some(PointIdOptions::Uuid(uuid)) => Known::Uuid(Uuid::parse_str(uuid).map_or(0, |uuid| uuid.as_u128())),
        None => Known::Uuid(0),
    }
}

/// A line's point.
struct Parsed {
    id: PointId,
    /// What the id was in the file, where it cannot be a point's id.
    key: Option<RowKey>,
    vector: Vec<f32>,
    payload: Map<String, Json>,
}

/// What is wrong with a line, and its id if that can be told.
struct Refused {
    id: Option<PointId>,
    problems: Vec<String>,
}

impl Parsed {
    fn point(self) -> PointStruct {
        let mut payload: HashMap<String, Value> =
            self.payload.into_iter().map(|(name, value)| (name, value.into())).collect();
        if let Some(key) = self.key {
            payload.insert(point::RESERVED.to_owned(), json!({"key": key.as_str()}).into());
        }
        PointStruct { id: Some(self.id), payload, vectors: Some(Vectors::from(self.vector)) }
    }
}

fn parse(line: &[u8], pipeline: &str) -> Result<Parsed, Refused> {
    let refused = |what: String| Refused { id: None, problems: vec![what] };
    let line: Json = serde_json::from_slice(line).map_err(|error| refused(format!("not JSON: {}", told(&error))))?;
    let Json::Object(mut fields) = line else {
        return Err(refused("wanted an object with id, vector and payload".to_owned()));
    };
    let mut problems = vec![];
    let id = match fields.remove("id") {
        Some(id) => id_of(&id, pipeline),
        None => Err("there is no id".to_owned()),
    };
    let vector = match fields.remove("vector") {
        Some(vector) => vector_of(&vector),
        None => Err("there is no vector".to_owned()),
    };
    let payload = match fields.remove("payload") {
        None => Ok(Map::new()),
        Some(Json::Object(payload)) => payload_of(payload),
        Some(other) => Err(format!("payload is {}, wanted an object", kind(&other))),
    };
    for unknown in fields.keys() {
        problems.push(format!("{unknown:?} is unknown; a line has id, vector and payload"));
    }
    let mut take = |what: String| problems.push(what);
    let id = id.map_err(&mut take).ok();
    let vector = vector.map_err(&mut take).ok();
    let payload = payload.map_err(&mut take).ok();
    match (id, vector, payload) {
        (Some((id, key)), Some(vector), Some(payload)) if problems.is_empty() => {
            Ok(Parsed { id, key, vector, payload })
        }
        (id, ..) => Err(Refused { id: id.map(|(id, _)| id), problems }),
    }
}

/// serde_json counts lines of what it was given, which is one.
fn told(error: &serde_json::Error) -> String {
    let (said, place) = (error.to_string(), format!(" at line {} column {}", error.line(), error.column()));
    match said.strip_suffix(&place) {
        Some(said) => format!("{said} at column {}", error.column()),
        None => said,
    }
}

/// The point's id, and the key that stands for an id that cannot be a point's.
fn id_of(id: &Json, pipeline: &str) -> Result<(PointId, Option<RowKey>), String> {
    match id {
        Json::Number(number) => match number.as_u64() {
            Some(number) => Ok((number.into(), None)),
            None => Err(format!("id is {number}, wanted a whole number from 0 to {}, or a string", u64::MAX)),
        },
        Json::String(text) => match Uuid::parse_str(text) {
            Ok(uuid) => Ok((uuid.to_string().into(), None)),
            Err(_) => {
                let columns = Map::from_iter([("id".to_owned(), id.clone())]);
                let key = RowKey::from_columns(columns);
                Ok((point::id(pipeline, &key, 0), Some(key)))
            }
        },
        other => Err(format!("id is {}, wanted a whole number or a string", kind(other))),
    }
}

/// The vector at unit length, as a cosine collection stores it.
fn vector_of(vector: &Json) -> Result<Vec<f32>, String> {
    let Json::Array(numbers) = vector else {
        return Err(format!("vector is {}, wanted {DIMENSION} numbers", kind(vector)));
    };
    if numbers.len() != DIMENSION {
        return Err(format!("vector has {} numbers, wanted {DIMENSION}", numbers.len()));
    }
    let mut vector = Vec::with_capacity(DIMENSION);
    for (place, number) in numbers.iter().enumerate() {
        match number.as_f64().filter(|number| number.is_finite()) {
            Some(number) => vector.push(number),
            None => return Err(format!("vector[{place}] is {}, wanted a finite number", kind(number))),
        }
    }
    let largest = vector.iter().fold(0.0, |largest: f64, number| largest.max(number.abs()));
    if largest == 0.0 {
        return Err("vector is all zeros, which has no direction".to_owned());
    }
    // Divided first, so that no square leaves the range.
    let length = vector.iter().map(|number| (number / largest).powi(2)).sum::<f64>().sqrt();
    Ok(vector.into_iter().map(|number| (number / largest / length) as f32).collect())
}

fn payload_of(payload: Map<String, Json>) -> Result<Map<String, Json>, String> {
    if payload.contains_key(point::RESERVED) {
        return Err(format!("payload has {}, which is vecsync's own", point::RESERVED));
    }
    match payload.iter().find_map(|(name, value)| too_large(value).map(|number| (name, number))) {
        Some((name, number)) => Err(format!("payload.{name} has {number}, which Qdrant cannot store exactly")),
        None => Ok(payload),
    }
}

/// An integer that a payload of Qdrant would round.
fn too_large(value: &Json) -> Option<u64> {
    match value {
        Json::Number(number) if number.as_i64().is_none() => number.as_u64(),
        Json::Array(values) => values.iter().find_map(too_large),
        Json::Object(fields) => fields.values().find_map(too_large),
        _ => None,
    }
}

fn kind(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(_) => "a string".to_owned(),
        Json::Array(_) => "an array".to_owned(),
        Json::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    fn line(id: &str, more: &str) -> String {
        let vector = vec!["0.5"; DIMENSION].join(",");
        format!("{{\"id\":{id},\"vector\":[{vector}]{more}}}\n")
    }

    #[track_caller]
    fn refused(text: &str, wanted: &[&str]) {
        let file = file(text);
        let said = check(file.path(), "faq").expect_err("refused").to_string();
        for part in wanted {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    }

    #[test]
    fn every_problem_of_every_line_is_told_with_its_place() {
        let nan = line("3", "").replacen("0.5", "\"x\"", 1);
        let zeros = line("4", "").replace("0.5", "0");
        let text = line("1", "")
            + "\n{\n"
            + &line("-1", ",\"payload\":[],\"extra\":1")
            + &nan
            + &zeros
            + "{\"id\":5,\"vector\":[1]}\n{}\n[]\n"
            + &line("1", "")
            + &line("\"a\"", ",\"payload\":{\"_vecsync\":{}}")
            + &line("\"a\"", ",\"payload\":{\"n\":[18446744073709551615]}");
        refused(
            &text,
            &[
                "14 problems, so nothing was written",
                ":3: not JSON: EOF while parsing an object at column 1",
                ":4: \"extra\" is unknown",
                ":4: id is -1, wanted a whole number",
                ":4: payload is an array, wanted an object",
                ":5: vector[0] is a string",
                ":6: vector is all zeros",
                ":7: vector has 1 numbers, wanted 384",
                ":8: there is no id",
                ":8: there is no vector",
                ":9: wanted an object",
                ":10: id 1 is in line 1 already",
                ":11: payload has _vecsync",
                ":12: payload.n has 18446744073709551615",
                "is in line 11 already",
            ],
        );
        refused(&"x\n".repeat(30), &["30 problems", ":20: ", "and 10 more"]);
        refused("\n\n", &["it has no line"]);
        refused(&format!("{{\"id\":1,\"vector\":[{}1e999]}}", "1,".repeat(383)), &["number out of range"]);
    }

    #[test]
    fn ids_stay_or_are_kept_and_vectors_have_unit_length() {
        let uuid = "0B0E5C1E-8A5B-4C8C-9A45-0F3C2A1B7D10";
        let text = line("7", ",\"payload\":{\"a\":{\"b\":[1,null]}}")
            + &line("18446744073709551615", "")
            + &line(&format!("\"{uuid}\""), "")
            + &line("\"seven\"", ",\"payload\":{\"c\":1}")
            + &line("\"7\"", "").replace("0.5", "1e300");
        let file = file(&text);
        let checked = check(file.path(), "faq").expect("checked");
        assert_eq!(checked.points, 5);
        let mut found = vec![];
        each(file.path(), "faq", &checked, |point| {
            found.push(point);
            true
        })
        .expect("read");
        let key = RowKey::from_bytes(br#"{"id":"seven"}"#).expect("a key");
        let ids: Vec<String> = found.iter().map(|point| point::shown(point.id.as_ref())).collect();
        let seven = point::shown(Some(&point::id("faq", &key, 0)));
        assert_eq!(ids[..4], ["7".to_owned(), u64::MAX.to_string(), uuid.to_lowercase(), seven]);
        let kept = Json::from(found[3].payload[point::RESERVED].clone());
        assert_eq!(kept, json!({"key": r#"{"id":"seven"}"#}));
        for point in &found {
            let vectors = format!("{:?}", point.vectors);
            assert!(vectors.contains("0.05103"), "{vectors:.200}");
        }
        std::fs::write(file.path(), text.replace("\"c\":1", "\"c\":2")).expect("written");
        let again = each(file.path(), "faq", &checked, |_| true).expect_err("another file");
        assert!(matches!(again, LinesError::Changed { .. }), "{again}");
    }
}
