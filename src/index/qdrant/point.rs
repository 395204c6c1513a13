//! How rows, tombstones and positions are written as points, and read back. No I/O.

use std::collections::{BTreeMap, HashMap};

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{Condition, Filter, NamedVectors, PointId, PointStruct, Range, Struct, Value, Vectors};
use serde_json::Value as Json;
use uuid::{Uuid, uuid};

use crate::event::{EmbeddedRow, Row, RowKey, Version};
use crate::index::drift::RowHash;
use crate::index::mirror::Hit;
use crate::topic::Partition;

/// The reserved object of a payload.
pub(super) const RESERVED: &str = "_vecsync";
/// The field with the text of the window. The configuration lets no document have these two.
const PASSAGE: &str = "passage";

/// What stands in a position's place of the log while a local store is being loaded: such a generation is nobody's.
pub(super) const LOADING: &str = "loading ";

// Paths into the reserved object, as filters name them.
pub(super) const KEY: &str = "_vecsync.key";
pub(super) const VERSION: &str = "_vecsync.version";
pub(super) const WINDOW: &str = "_vecsync.window";
pub(super) const WINDOWS: &str = "_vecsync.windows";
pub(super) const PARTITION: &str = "_vecsync.partition";
pub(super) const DELETED: &str = "_vecsync.deleted";
pub(super) const DELETED_AT: &str = "_vecsync.deleted_at_ms";
pub(super) const ROW_HASH: &str = "_vecsync.row_hash";
pub(super) const POSITION: &str = "_vecsync.position";

/// The namespace of the points' UUIDs, version 5; drawn once, by chance.
const NAMESPACE: Uuid = uuid!("6f1d0a5e-3c1b-4c47-9d0e-8f5a2b7c4e19");

/// The id of a row's window: the key itself for window 0 of a row whose key is one integer that is not negative, else
/// a UUID of pipeline, window and key. A pipeline's name has no slash, so no two of them are the same.
pub(super) fn id(pipeline: &str, key: &RowKey, window: usize) -> PointId {
    match key.id().as_u64() {
        Some(number) if window == 0 => number.into(),
        _ => uuid_of(&format!("{pipeline}/{window}/{}", key.as_str())),
    }
}

/// The id of the point that has a partition's position.
pub(super) fn position_id(pipeline: &str, partition: Partition) -> PointId {
    uuid_of(&format!("{pipeline}/position/{partition}"))
}

fn uuid_of(name: &str) -> PointId {
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string().into()
}

/// Everything that is the same in the points of one generation.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) pipeline: &'a str,
    pub(super) revision: &'a str,
    /// What tells the log from every other.
    pub(super) log: &'a str,
}

/// A row's window.
pub(super) fn window(
    origin: Origin<'_>,
    key: &RowKey,
    partition: Partition,
    row: &EmbeddedRow,
    payload: &Row,
    place: usize,
) -> PointStruct {
    let window = &row.windows[place];
    let mut fields: HashMap<String, Value> =
        payload.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let mut reserved = reserved(origin, key, partition, Version(row.version), place);
    reserved.insert("row_hash".to_owned(), hex(&row.row_hash).into());
    reserved.insert("text_hash".to_owned(), hex(&row.text_hash).into());
    reserved.insert("windows".to_owned(), integer(row.windows.len() as u64));
    reserved.insert("deleted".to_owned(), false.into());
    fields.insert(PASSAGE.to_owned(), window.passage.clone().into());
    fields.insert(RESERVED.to_owned(), object(reserved));
    PointStruct {
        id: Some(id(origin.pipeline, key, place)),
        payload: fields,
        vectors: Some(Vectors::from(window.vector())),
    }
}

/// What stays of a window that is gone, so that no older one takes its place. `windows` are those that the row has.
pub(super) fn tombstone(
    origin: Origin<'_>,
    key: &RowKey,
    partition: Partition,
    version: Version,
    (place, windows): (usize, usize),
    now_ms: i64,
) -> PointStruct {
    let mut reserved = reserved(origin, key, partition, version, place);
    reserved.insert("windows".to_owned(), integer(windows as u64));
    reserved.insert("deleted".to_owned(), true.into());
    reserved.insert("deleted_at_ms".to_owned(), now_ms.into());
    without_vector(id(origin.pipeline, key, place), reserved)
}

fn reserved(
    origin: Origin<'_>,
    key: &RowKey,
    partition: Partition,
    version: Version,
    window: usize,
) -> HashMap<String, Value> {
    HashMap::from([
        ("key".to_owned(), key.as_str().into()),
        ("version".to_owned(), integer(version.0)),
        ("revision".to_owned(), origin.revision.into()),
        ("window".to_owned(), integer(window as u64)),
        ("partition".to_owned(), integer(u64::from(partition))),
    ])
}

/// How far a partition of `vectors` is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// The next offset to take.
    pub(super) position: u64,
    /// Rows with an older version are gone.
    pub(super) barrier: u64,
    /// The last heartbeat, milliseconds since the Unix epoch; 0: none.
    pub(super) as_of_ms: i64,
}

/// The point of a partition's position.
pub(super) fn position(origin: Origin<'_>, partition: Partition, progress: Progress) -> PointStruct {
    let reserved = HashMap::from([
        ("position".to_owned(), integer(progress.position)),
        ("barrier".to_owned(), integer(progress.barrier)),
        ("as_of_ms".to_owned(), progress.as_of_ms.into()),
        ("partition".to_owned(), integer(u64::from(partition))),
        ("revision".to_owned(), origin.revision.into()),
        ("log".to_owned(), origin.log.into()),
    ]);
    without_vector(position_id(origin.pipeline, partition), reserved)
}

/// The log that a position is about.
pub(super) fn log_of(payload: &HashMap<String, Value>) -> Option<&str> {
    field(payload, "log")?.as_str().map(String::as_str)
}

/// Reads what `position` wrote.
pub(super) fn progress(payload: &HashMap<String, Value>) -> Option<Progress> {
    let number = |name| field(payload, name)?.as_integer();
    Some(Progress {
        position: number("position")?.try_into().ok()?,
        barrier: number("barrier")?.try_into().ok()?,
        as_of_ms: number("as_of_ms")?,
    })
}

/// The version of a row's state and its windows, as its window 0 has them.
pub(super) fn state(payload: &HashMap<String, Value>) -> Option<(Version, usize)> {
    let is_deleted = field(payload, "deleted")?.as_bool()?;
    let windows = if is_deleted { 0 } else { usize::try_from(field(payload, "windows")?.as_integer()?).ok()? };
    Some((version(payload)?, windows))
}

/// What one point has of a row, but for its vector and the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A window of this state of the row.
    Of {
        /// The hash of all that is indexed.
        hash: RowHash,
        /// The row's version.
        version: Version,
        /// Windows of the row.
        windows: usize,
    },
    /// A tombstone.
    Gone,
}

impl Part {
    /// Windows that the row has.
    pub(super) fn windows(&self) -> usize {
        match self {
            Part::Of { windows, .. } => *windows,
            Part::Gone => 0,
        }
    }
}

/// Reads what `window` or `tombstone` wrote of a row's state; `None`: it is neither.
pub(super) fn part(payload: &HashMap<String, Value>) -> Option<Part> {
    if field(payload, "deleted")?.as_bool()? {
        return Some(Part::Gone);
    }
    let hash = unhex(field(payload, "row_hash")?.as_str()?)?;
    let windows = usize::try_from(field(payload, "windows")?.as_integer()?).ok()?;
    Some(Part::Of { hash, version: version(payload)?, windows })
}

/// Which window of which row a point says that it is.
pub(super) fn place(payload: &HashMap<String, Value>) -> Option<(RowKey, usize)> {
    Some((key(payload)?, usize::try_from(field(payload, "window")?.as_integer()?).ok()?))
}

/// Whether it is a tombstone.
pub(super) fn is_deleted(payload: &HashMap<String, Value>) -> bool {
    field(payload, "deleted").and_then(Value::as_bool) == Some(true)
}

fn key(payload: &HashMap<String, Value>) -> Option<RowKey> {
    RowKey::from_bytes(field(payload, "key")?.as_str()?.as_bytes()).ok()
}

fn version(payload: &HashMap<String, Value>) -> Option<Version> {
    Some(Version(field(payload, "version")?.as_integer()?.try_into().ok()?))
}

/// The version of a row's state and the hash of all that is indexed of it.
pub(super) fn content(payload: &HashMap<String, Value>) -> Option<(Version, Option<String>)> {
    let hash = field(payload, "row_hash").and_then(Value::as_str).map(|hash| hash.to_string());
    Some((version(payload)?, hash))
}

/// A point that a search found, and which of its row's windows it is; `None`: not one of ours. Qdrant keeps no order of a
/// payload's fields; those of `order` come first, in that order, the others by name.
pub(super) fn hit(mut payload: HashMap<String, Value>, score: f32, order: &[String]) -> Option<(Hit, usize)> {
    let (key, window) = place(&payload)?;
    let version = version(&payload)?;
    let passage = payload.remove(PASSAGE)?.as_str()?.clone();
    payload.remove(RESERVED);
    let ordered: Vec<(String, Value)> = order.iter().filter_map(|name| payload.remove_entry(name)).collect();
    let others: BTreeMap<String, Value> = payload.into_iter().collect();
    let payload = ordered.into_iter().chain(others).map(|(name, value)| (name, Json::from(value))).collect();
    Some((Hit { key, score, passage, payload, version }, window))
}

/// A branch of a conditional write: a point of these ids may be written unless it is newer in `field` than `number`.
/// A point that has no such field may be; one that is not there is, whatever the branches say.
pub(super) fn unless_newer(ids: Vec<PointId>, field: &str, number: u64) -> Condition {
    let newer = Range { gt: Some(number as f64), ..Range::default() };
    Filter { must: vec![Condition::has_id(ids)], must_not: vec![Condition::range(field, newer)], ..Filter::default() }
        .into()
}

/// Shows an id in a message.
pub(super) fn shown(id: Option<&PointId>) -> String {
    match id.and_then(|id| id.point_id_options.as_ref()) {
        Some(PointIdOptions::Num(number)) => number.to_string(),
        Some(PointIdOptions::Uuid(uuid)) => uuid.clone(),
        None => "without an id".to_owned(),
    }
}

fn without_vector(id: PointId, reserved: HashMap<String, Value>) -> PointStruct {
    // Named vectors that are none; vectors that are absent would be refused.
    let vectors = Vectors { vectors_options: Some(VectorsOptions::Vectors(NamedVectors::default())) };
    PointStruct {
        id: Some(id),
        payload: HashMap::from([(RESERVED.to_owned(), object(reserved))]),
        vectors: Some(vectors),
    }
}

fn field<'a>(payload: &'a HashMap<String, Value>, name: &str) -> Option<&'a Value> {
    match payload.get(RESERVED)?.kind.as_ref()? {
        Kind::StructValue(reserved) => reserved.fields.get(name),
        _ => None,
    }
}

fn object(fields: HashMap<String, Value>) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// Versions and offsets are below 2^53.
fn integer(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<RowHash> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(columns: Json) -> RowKey {
        RowKey::from_columns(columns.as_object().expect("an object").clone())
    }

    #[test]
    fn an_integer_key_is_the_id_of_window_0_and_everything_else_is_a_uuid_of_its_own() {
        let seven = key(json!({"id": 7}));
        assert_eq!(id("faq", &seven, 0), 7.into());
        let others = [
            id("faq", &seven, 1),
            id("faq", &seven, 11),
            id("other", &seven, 1),
            id("faq", &key(json!({"id": -7})), 0),
            id("faq", &key(json!({"id": "7"})), 0),
            id("faq", &key(json!({"id": 7, "part": 1})), 0),
            id("faq", &key(json!({"nr": "7"})), 0),
            position_id("faq", 0),
            position_id("faq", 1),
        ];
        let uuids: std::collections::HashSet<_> = others.iter().map(|id| shown(Some(id))).collect();
        assert_eq!(uuids.len(), others.len());
        assert!(uuids.iter().all(|uuid| Uuid::parse_str(uuid).is_ok_and(|uuid| uuid.get_version_num() == 5)));
        // It must never change: points are found by it.
        assert_eq!(shown(Some(&others[0])), Uuid::new_v5(&NAMESPACE, b"faq/1/{\"id\":7}").to_string());
    }

    #[test]
    fn a_row_its_passage_and_a_position_come_back_as_they_were() {
        let origin = Origin { pipeline: "faq", revision: "r", log: "l" };
        let windows = vec![crate::event::Window::new(&[1.0; 384], "said".into())];
        let mut hash = [0; 16];
        (hash[0], hash[15]) = (1, 255);
        let row = EmbeddedRow { version: 9, row_hash: hash.to_vec(), windows, ..EmbeddedRow::default() };
        let payload = json!({"a": [1, null, 2.5], "b": {"c": true}});
        let payload = payload.as_object().expect("an object").clone();
        let point = window(origin, &key(json!({"id": 7})), 3, &row, &payload, 0);
        assert_eq!(state(&point.payload), Some((Version(9), 1)));
        assert_eq!(part(&point.payload), Some(Part::Of { hash, version: Version(9), windows: 1 }));
        assert_eq!((place(&point.payload), is_deleted(&point.payload)), (Some((key(json!({"id": 7})), 0)), false));
        let (hit, window) = hit(point.payload, 0.5, &["b".into(), "c".into()]).expect("a hit");
        assert_eq!(window, 0);
        assert_eq!((hit.passage.as_str(), hit.version, &hit.payload), ("said", Version(9), &payload));
        assert_eq!(hit.payload.keys().collect::<Vec<_>>(), ["b", "a"]);
        let gone = tombstone(origin, &key(json!({"id": 7})), 3, Version(10), (0, 0), 5);
        assert_eq!((state(&gone.payload), part(&gone.payload)), (Some((Version(10), 0)), Some(Part::Gone)));
        assert!(is_deleted(&gone.payload));
        let wanted = Progress { position: 1 << 52, barrier: 3, as_of_ms: -1 };
        assert_eq!(progress(&position(origin, 3, wanted).payload), Some(wanted));
        assert_eq!(hit_of_position(), None);
        assert_eq!(part(&position(origin, 3, wanted).payload), None);
    }

    fn hit_of_position() -> Option<(Hit, usize)> {
        hit(position(Origin { pipeline: "faq", revision: "r", log: "l" }, 3, Progress::default()).payload, 1.0, &[])
    }
}
