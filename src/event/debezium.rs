//! Reads what Debezium's PostgreSQL connector writes: its JSON with schemas, and its placeholder. No I/O.
//!
//! Formats: Kafka Connect's JsonConverter with `schemas.enable`, and the manual of Debezium's connector for PostgreSQL,
//! "Data type mappings". With a schema at hand values get the spelling that our own capture gives them; what it does
//! not explain stays as it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Change, EventError, Row};

/// What stands for a large column that did not change, unless `unavailable.value.placeholder` says otherwise.
const UNAVAILABLE: &str = "__debezium_unavailable_value";
/// The same in a column of bytes.
const UNAVAILABLE_BYTES: &str = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
/// The same in an array of UUIDs: the version 3 UUID of those bytes.
const UNAVAILABLE_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// The Julian day of 1970-01-01.
const EPOCH_JULIAN_DAY: i64 = 2_440_588;
const DAY_NS: i64 = 86_400_000_000_000;

/// A Connect schema, as far as it decides over a value's spelling.
#[derive(Deserialize)]
struct Schema {
    /// The logical type.
    name: Option<String>,
    /// The column's name.
    field: Option<String>,
    #[serde(default)]
    fields: Vec<Schema>,
    items: Option<Box<Schema>>,
    parameters: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Wrapped {
    schema: Schema,
    payload: Box<Change>,
}

/// What tells a logical message from other values.
#[derive(Deserialize)]
struct Kind {
    op: Option<String>,
    payload: Option<Box<Kind>>,
}

/// Whether a value has its schema with it. JsonConverter writes that first, and no envelope begins so.
pub(super) fn is_wrapped(value: &[u8]) -> bool {
    value.trim_ascii_start().starts_with(br#"{"schema":"#)
}

/// Whether a value concerns no row: a logical message.
pub(super) fn is_message(value: &[u8]) -> bool {
    let is = |kind: &Kind| kind.op.as_deref() == Some("m");
    serde_json::from_slice(value).is_ok_and(|kind: Kind| is(&kind) || kind.payload.as_deref().is_some_and(is))
}

/// Reads a value that has its schema with it.
pub(super) fn change(value: &[u8]) -> Result<Box<Change>, EventError> {
    let read = serde_json::from_slice(value).map_err(|source| EventError::Json { part: "value", source });
    let Wrapped { schema, payload: mut change } = read?;
    for image in &schema.fields {
        let row = match image.field.as_deref() {
            Some("before") => change.before.as_mut(),
            Some("after") => change.after.as_mut(),
            _ => None,
        };
        if let Some(row) = row {
            spell_row(image, row);
        }
    }
    Ok(change)
}

/// A key without the schema that it may have with it.
pub(super) fn unwrapped_key(mut key: Row) -> Row {
    let is_struct = key.get("schema").is_some_and(|schema| schema["type"] == "struct" && schema["fields"].is_array());
    if key.len() != 2 || !is_struct {
        return key;
    }
    let schema =
        key.get_mut("schema").map(Value::take).and_then(|schema| serde_json::from_value::<Schema>(schema).ok());
    match (key.remove("payload"), schema) {
        (Some(Value::Object(mut columns)), Some(schema)) => {
            spell_row(&schema, &mut columns);
            columns
        }
        _ => Row::new(),
    }
}

/// Whether a value only says that the column did not change and was not sent.
pub fn is_unavailable(value: &Value) -> bool {
    match value {
        Value::String(text) => text == UNAVAILABLE || text == UNAVAILABLE_BYTES || is_map_text(text),
        Value::Array(items) => match items.as_slice() {
            [Value::String(item)] => [UNAVAILABLE, UNAVAILABLE_BYTES, UNAVAILABLE_UUID].contains(&item.as_str()),
            items => {
                items.len() == UNAVAILABLE.len()
                    && items.iter().zip(UNAVAILABLE.bytes()).all(|(item, byte)| item.as_u64() == Some(byte.into()))
            }
        },
        Value::Object(map) => map.len() == 1 && map.contains_key(UNAVAILABLE),
        _ => false,
    }
}

/// An hstore, which Debezium writes as JSON in a text.
fn is_map_text(text: &str) -> bool {
    text.len() < 4 * UNAVAILABLE.len() && text.starts_with("{\"") && text[2..].starts_with(UNAVAILABLE)
}

fn spell_row(schema: &Schema, row: &mut Row) {
    for column in &schema.fields {
        if let Some(value) = column.field.as_deref().and_then(|name| row.get_mut(name)) {
            spell(column, value);
        }
    }
}

/// Gives a value the spelling that `capture::values` has for its type.
fn spell(schema: &Schema, value: &mut Value) {
    if value.is_null() || is_unavailable(value) {
        return;
    }
    if let (Some(items), Value::Array(values)) = (&schema.items, &mut *value) {
        return values.iter_mut().for_each(|value| spell(items, value));
    }
    if let Some(spelt) = schema.name.as_deref().and_then(|name| spelt(name, schema, value)) {
        *value = spelt;
    }
}

fn spelt(name: &str, schema: &Schema, value: &Value) -> Option<Value> {
    let text = || value.as_str();
    let scaled = |unit_ns: i64| value.as_i64()?.checked_mul(unit_ns);
    let parameter = |name: &str| schema.parameters.as_ref()?.get(name)?.as_str()?.parse::<usize>().ok();
    Some(Value::from(match name {
        "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => date(value.as_i64()?)?,
        "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => clock(scaled(1_000_000)?),
        "io.debezium.time.MicroTime" => clock(scaled(1_000)?),
        "io.debezium.time.NanoTime" => clock(scaled(1)?),
        "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => moment(value.as_i64()?, 1_000_000)?,
        "io.debezium.time.MicroTimestamp" => moment(value.as_i64()?, 1_000)?,
        "io.debezium.time.NanoTimestamp" => moment(value.as_i64()?, 1)?,
        "io.debezium.time.ZonedTimestamp" | "io.debezium.time.ZonedTime" => without_zeros(text()?),
        "io.debezium.time.IsoDate" | "io.debezium.time.IsoTime" | "io.debezium.time.IsoTimestamp" => {
            // Types without a time zone, with the letter of one.
            without_zeros(text()?.trim_end_matches('Z'))
        }
        "org.apache.kafka.connect.data.Decimal" => match value {
            Value::Number(number) => number.to_string(),
            _ => decimal(&STANDARD.decode(text()?).ok()?, parameter("scale")?),
        },
        "io.debezium.data.VariableScaleDecimal" => {
            decimal(&STANDARD.decode(value["value"].as_str()?).ok()?, usize::try_from(value["scale"].as_u64()?).ok()?)
        }
        "io.debezium.data.Bits" => bits(&STANDARD.decode(text()?).ok()?, parameter("length")?),
        "io.debezium.data.Json" => return serde_json::from_str(text()?).ok(),
        _ => return None,
    }))
}

/// RFC 3339's full-date; none outside of the years that it has.
fn date(days: i64) -> Option<String> {
    let day = i32::try_from(days.checked_add(EPOCH_JULIAN_DAY)?).ok()?;
    let date = time::Date::from_julian_day(day).ok().filter(|date| (1..=9999).contains(&date.year()))?;
    Some(format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day()))
}

/// RFC 3339's partial-time, without zeros at the end of its fraction.
fn clock(ns: i64) -> String {
    let (seconds, fraction) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    without_zeros(&format!("{hours:02}:{minutes:02}:{:02}.{fraction:09}", seconds % 60))
}

fn moment(count: i64, unit_ns: i64) -> Option<String> {
    let units_a_day = DAY_NS / unit_ns;
    let (days, rest) = (count.div_euclid(units_a_day), count.rem_euclid(units_a_day));
    Some(format!("{}T{}", date(days)?, clock(rest * unit_ns)))
}

/// PostgreSQL writes no zeros at the end of a fraction of a second; Debezium fills up.
fn without_zeros(text: &str) -> String {
    let Some((whole, rest)) = text.split_once('.') else { return text.to_owned() };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at(end);
    match fraction.trim_end_matches('0') {
        "" => format!("{whole}{zone}"),
        fraction => format!("{whole}.{fraction}{zone}"),
    }
}

/// A number of `scale` decimal places; `bytes` are its two's complement, the high byte first.
fn decimal(bytes: &[u8], scale: usize) -> String {
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let mut magnitude: Vec<u8> = bytes.to_vec();
    if negative {
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            let (sum, more) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (sum, more);
        }
    }
    let mut digits = vec![];
    while magnitude.iter().any(|byte| *byte != 0) {
        let mut rest = 0;
        for byte in &mut magnitude {
            let part = rest * 256 + u32::from(*byte);
            // Below 256, because the rest is below 10.
            (*byte, rest) = ((part / 10) as u8, part % 10);
        }
        digits.push(char::from_digit(rest, 10).unwrap_or('0'));
    }
    while digits.len() <= scale {
        digits.push('0');
    }
    if scale > 0 {
        digits.insert(scale, '.');
    }
    if negative {
        digits.push('-');
    }
    digits.iter().rev().collect()
}

/// A bit string as PostgreSQL writes it; `bytes` has its low byte first.
fn bits(bytes: &[u8], length: usize) -> String {
    let bit = |n: usize| bytes.get(n / 8).is_some_and(|byte| byte >> (n % 8) & 1 == 1);
    (0..length.min(8 * bytes.len())).rev().map(|n| if bit(n) { '1' } else { '0' }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{ChangeEvent, Op, Record};
    use super::*;
    use serde_json::json;

    fn column(kind: &str, name: &str) -> Value {
        json!({"type": kind, "optional": true, "name": name, "version": 1, "field": "x"})
    }

    fn check(mut column: Value, value: Value, wanted: Value) {
        column["field"] = json!("x");
        let mut row = json!({"x": value}).as_object().expect("an object").clone();
        let schema: Schema = serde_json::from_value(json!({"type": "struct", "fields": [column]})).expect("a schema");
        spell_row(&schema, &mut row);
        assert_eq!(row["x"].to_string(), wanted.to_string(), "{column}");
    }

    #[test]
    fn values_get_the_spelling_of_our_capture() {
        for (kind, name, value, wanted) in [
            ("int32", "io.debezium.time.Date", json!(20455), json!("2026-01-02")),
            ("int32", "org.apache.kafka.connect.data.Date", json!(-1), json!("1969-12-31")),
            ("int32", "io.debezium.time.Date", json!(2932897), json!(2932897)),
            ("int32", "io.debezium.time.Time", json!(49_545_500), json!("13:45:45.5")),
            ("int64", "io.debezium.time.MicroTime", json!(86_400_000_000_i64), json!("24:00:00")),
            ("int64", "io.debezium.time.Timestamp", json!(1_767_361_545_000_i64), json!("2026-01-02T13:45:45")),
            (
                "int64",
                "io.debezium.time.MicroTimestamp",
                json!(1_767_361_545_078_727_i64),
                json!("2026-01-02T13:45:45.078727"),
            ),
            ("int64", "io.debezium.time.MicroTimestamp", json!(-1), json!("1969-12-31T23:59:59.999999")),
            (
                "int64",
                "io.debezium.time.MicroTimestamp",
                json!(9_223_372_036_825_200_000_i64),
                json!(9_223_372_036_825_200_000_i64),
            ),
            (
                "string",
                "io.debezium.time.ZonedTimestamp",
                json!("2026-01-02T13:45:45.500000Z"),
                json!("2026-01-02T13:45:45.5Z"),
            ),
            (
                "string",
                "io.debezium.time.ZonedTimestamp",
                json!("2026-01-02T13:45:45.000000Z"),
                json!("2026-01-02T13:45:45Z"),
            ),
            ("string", "io.debezium.time.ZonedTime", json!("13:45:45Z"), json!("13:45:45Z")),
            ("string", "io.debezium.time.IsoDate", json!("2026-01-02Z"), json!("2026-01-02")),
            (
                "string",
                "io.debezium.time.IsoTimestamp",
                json!("2026-01-02T13:45:45.100Z"),
                json!("2026-01-02T13:45:45.1"),
            ),
            ("string", "io.debezium.data.Json", json!("{\"a\": [1]}"), json!({"a": [1]})),
            ("string", "io.debezium.data.Json", json!(UNAVAILABLE), json!(UNAVAILABLE)),
            ("string", "io.debezium.data.Uuid", json!("b68a35a7"), json!("b68a35a7")),
            ("string", "io.debezium.data.Enum", json!("red"), json!("red")),
            ("bytes", "of.our.own", json!("/w=="), json!("/w==")),
            ("struct", "io.debezium.data.VariableScaleDecimal", json!({"scale": 2, "value": "Bf8="}), json!("15.35")),
        ] {
            check(column(kind, name), value, wanted);
        }
        for (value, scale, wanted) in [
            ("Bf8=", "0", "1535"),
            ("+gE=", "2", "-15.35"),
            ("AA==", "2", "0.00"),
            ("/w==", "3", "-0.001"),
            ("gA==", "0", "-128"),
        ] {
            let mut column = column("bytes", "org.apache.kafka.connect.data.Decimal");
            column["parameters"] = json!({"scale": scale});
            check(column, json!(value), json!(wanted));
        }
        let mut flags = column("bytes", "io.debezium.data.Bits");
        flags["parameters"] = json!({"length": "10"});
        check(flags, json!("BQI="), json!("1000000101"));
        let dates = json!({"type": "array", "items": {"type": "int32", "name": "io.debezium.time.Date"}});
        check(dates, json!([0, null, 1]), json!(["1970-01-01", null, "1970-01-02"]));
    }

    #[test]
    fn placeholders_are_known_in_every_form() {
        let numbers: Vec<u8> = UNAVAILABLE.bytes().collect();
        for value in [
            json!(UNAVAILABLE),
            json!(STANDARD.encode(UNAVAILABLE)),
            json!([UNAVAILABLE]),
            json!([STANDARD.encode(UNAVAILABLE)]),
            json!([UNAVAILABLE_UUID]),
            json!(numbers),
            json!({UNAVAILABLE: UNAVAILABLE}),
            json!(format!(r#"{{"{UNAVAILABLE}":"{UNAVAILABLE}"}}"#)),
        ] {
            assert!(is_unavailable(&value), "{value}");
        }
        for value in
            [json!(null), json!(""), json!([]), json!("{\"é"), json!(["a"]), json!({}), json!(UNAVAILABLE_UUID)]
        {
            assert!(!is_unavailable(&value), "{value}");
        }
    }

    fn read(key: &str, value: Option<Value>) -> Result<ChangeEvent, EventError> {
        let value = value.map(|value| value.to_string().into());
        ChangeEvent::from_record(&Record { key: key.to_owned().into(), value, headers: vec![], timestamp_ms: 0 })
    }

    #[test]
    fn records_read_the_same_with_their_schema_and_without() {
        let day = json!({"type": "int32", "name": "io.debezium.time.Date", "field": "day"});
        let id = json!({"type": "int64", "field": "id"});
        let row = json!({"type": "struct", "field": "after", "fields": [id, day]});
        let key = json!({"schema": {"type": "struct", "fields": [id]}, "payload": {"id": 1}}).to_string();
        let envelope = |day: Value| {
            json!({"before": null, "after": {"id": 1, "day": day}, "op": "u", "ts_ms": 2, "ts_us": 2, "transaction": null,
                "source": {"lsn": 7, "txId": 8, "ts_ms": 9, "snapshot": "false", "sequence": "[null,\"7\"]", "xmin": null}})
        };
        let wrapped = json!({"schema": {"type": "struct", "fields": [row]}, "payload": envelope(json!(0))});
        let plain = read(r#"{"id":1}"#, Some(envelope(json!("1970-01-01")))).expect("readable");
        assert_eq!(read(&key, Some(wrapped)).expect("readable"), plain);
        assert_eq!(read(&key, None).expect("readable"), read(r#"{"id":1}"#, None).expect("readable"));
        let ChangeEvent::Row { change, .. } = plain else { unreachable!("a row") };
        assert_eq!((change.source.lsn, change.source.tx_id), (Some(7), Some(8)));
    }

    #[test]
    fn what_concerns_no_row_or_all_rows_has_no_key() {
        let source = json!({"lsn": 7, "ts_ms": 9});
        let truncate = json!({"before": null, "after": null, "op": "t", "ts_ms": 2, "source": source});
        let schema = json!({"type": "struct", "fields": []});
        for value in [truncate.clone(), json!({"schema": schema, "payload": truncate})] {
            let event = read("", Some(value)).expect("readable");
            assert!(
                matches!(&event, ChangeEvent::Truncate { change, fences } if change.op == Op::Truncate && fences.is_empty())
            );
        }
        let message = json!({"op": "m", "ts_ms": 1, "source": source, "message": {"prefix": "p", "content": "AA=="}});
        for value in [message.clone(), json!({"schema": schema, "payload": message})] {
            for key in ["", r#"{"prefix":"p"}"#] {
                assert_eq!(read(key, Some(value.clone())).expect("readable"), ChangeEvent::Nothing);
            }
        }
        let row = json!({"before": null, "after": {"id": 1}, "op": "c", "ts_ms": 2, "source": source});
        assert!(read("", Some(row)).is_err(), "a row without a key");
        assert!(read("", Some(json!({"a": 1}))).is_err());
        assert!(read("", None).is_err());
    }

    #[test]
    fn a_key_with_columns_of_these_names_stays_as_it_is() {
        let key = json!({"schema": "public", "payload": 3}).as_object().expect("an object").clone();
        assert_eq!(unwrapped_key(key.clone()), key);
    }
}
