//! PostgreSQL's text form of a value to JSON, and a line of COPY to its fields. No I/O.
//!
//! Holds for sessions with the settings that `sql` and `connection` pin. Formats: PostgreSQL's manual, "Data Types",
//! "Array Input and Output Syntax", and "COPY", file formats.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};

/// Arrays of PostgreSQL have at most this many dimensions.
const DIMENSIONS_MAX: usize = 6;

/// How a type's values become JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// `boolean`: true or false.
    Bool,
    /// `smallint`, `integer`, `bigint`, `oid`: a number.
    Integer,
    /// `real`, `double precision`: a number; NaN and the infinities are strings.
    Float,
    /// `numeric`: a string, so that no digit is lost.
    Numeric,
    /// `json`, `jsonb`: the JSON itself.
    Json,
    /// `bytea`: base64, standard alphabet with padding.
    Bytea,
    /// `timestamp`: RFC 3339's date-time without an offset.
    Timestamp,
    /// `timestamptz`: RFC 3339's date-time.
    TimestampTz,
    /// `date`: RFC 3339's full-date.
    Date,
    /// `time`: RFC 3339's partial-time.
    Time,
    /// `timetz`: RFC 3339's full-time.
    TimeTz,
    /// Everything else: PostgreSQL's text.
    Text,
    /// An array of any of these.
    Array {
        /// Its elements' kind.
        element: Box<ColumnKind>,
        /// What stands between them: a comma, for `box` a semicolon.
        delimiter: char,
    },
}

impl ColumnKind {
    /// The kind of a base type by its OID, which is fixed for built-in types (`pg_type.dat`).
    pub fn of_base_type(oid: u32) -> Self {
        match oid {
            16 => ColumnKind::Bool,
            20 | 21 | 23 | 26 => ColumnKind::Integer,
            700 | 701 => ColumnKind::Float,
            1700 => ColumnKind::Numeric,
            114 | 3802 => ColumnKind::Json,
            17 => ColumnKind::Bytea,
            1114 => ColumnKind::Timestamp,
            1184 => ColumnKind::TimestampTz,
            1082 => ColumnKind::Date,
            1083 => ColumnKind::Time,
            1266 => ColumnKind::TimeTz,
            _ => ColumnKind::Text,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            ColumnKind::Bool => "boolean",
            ColumnKind::Integer => "integer",
            ColumnKind::Float => "floating-point",
            ColumnKind::Numeric => "numeric",
            ColumnKind::Json => "json",
            ColumnKind::Bytea => "bytea",
            ColumnKind::Timestamp => "timestamp",
            ColumnKind::TimestampTz => "timestamptz",
            ColumnKind::Date => "date",
            ColumnKind::Time => "time",
            ColumnKind::TimeTz => "timetz",
            ColumnKind::Text => "text",
            ColumnKind::Array { .. } => "array",
        }
    }
}

/// A value to JSON.
///
/// What has no form in RFC 3339 (infinity, years before 1 or above 9999, offsets with seconds) stays as PostgreSQL
/// writes it. JSON's numbers are read as integers of 64 bits or as double precision; JSON that cannot be held so
/// (a number such as 1e400, more than 128 levels) becomes a string with its text.
pub fn to_json(kind: &ColumnKind, text: &str) -> Result<Value, ValueError> {
    let malformed = || ValueError::Malformed { kind: kind.name() };
    Ok(match kind {
        ColumnKind::Bool => match text {
            "t" | "true" => Value::Bool(true),
            "f" | "false" => Value::Bool(false),
            _ => return Err(malformed()),
        },
        ColumnKind::Integer => Value::from(text.parse::<i64>().map_err(|_| malformed())?),
        ColumnKind::Float => match text {
            "NaN" | "Infinity" | "-Infinity" => Value::from(text),
            _ => {
                let number = text.parse().ok().and_then(Number::from_f64);
                Value::Number(number.ok_or_else(malformed)?)
            }
        },
        ColumnKind::Json => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        ColumnKind::Bytea => {
            let bytes = text.strip_prefix("\\x").and_then(unhex).ok_or_else(malformed)?;
            Value::from(STANDARD.encode(bytes))
        }
        ColumnKind::Timestamp => timestamp(text).map_or_else(|| Value::from(text), Value::from),
        ColumnKind::TimestampTz => timestamp_tz(text).map_or_else(|| Value::from(text), Value::from),
        ColumnKind::TimeTz => with_offset(text).map_or_else(|| Value::from(text), Value::from),
        ColumnKind::Numeric | ColumnKind::Date | ColumnKind::Time | ColumnKind::Text => Value::from(text),
        ColumnKind::Array { element, delimiter } => array(element, *delimiter, text)?,
    })
}

/// A value of a key, as [`to_json`] made it, to a text that PostgreSQL reads as that value. None for what no key column
/// of ours is written as: NULL, and arrays, whose elements' types JSON does not keep.
pub fn to_text(kind: &ColumnKind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::Null) | (ColumnKind::Array { .. }, _) => None,
        (ColumnKind::Json, value) => Some(value.to_string()),
        (ColumnKind::Bytea, Value::String(text)) => {
            let bytes = STANDARD.decode(text).ok()?;
            Some(bytes.iter().fold("\\x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")))
        }
        (_, Value::String(text)) => Some(text.clone()),
        (_, Value::Number(number)) => Some(number.to_string()),
        (_, Value::Bool(truth)) => Some(truth.to_string()),
        (_, Value::Array(_) | Value::Object(_)) => None,
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

/// `2026-01-02 13:45:45.07` with a T.
fn timestamp(text: &str) -> Option<String> {
    let (date, time) = text.split_once(' ')?;
    (is_date(date) && is_time(time)).then(|| format!("{date}T{time}"))
}

fn timestamp_tz(text: &str) -> Option<String> {
    let (date, time) = text.split_once(' ')?;
    is_date(date).then(|| with_offset(time)).flatten().map(|time| format!("{date}T{time}"))
}

/// A time with its offset in full: `13:45:45+00` is `13:45:45Z`, `13:45:45-03:30` stays.
fn with_offset(text: &str) -> Option<String> {
    let (time, offset) = text.split_at(text.find(['+', '-'])?);
    if !is_time(time) {
        return None;
    }
    match offset.len() {
        3 if is_digits(offset, &[1, 2]) && &offset[1..] == "00" => Some(format!("{time}Z")),
        3 if is_digits(offset, &[1, 2]) => Some(format!("{time}{offset}:00")),
        6 if is_digits(offset, &[1, 2, 4, 5]) && offset.as_bytes()[3] == b':' => Some(text.to_owned()),
        _ => None,
    }
}

/// Four digits of a year, two of a month, two of a day.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10 && bytes[4] == b'-' && bytes[7] == b'-' && is_digits(text, &[0, 1, 2, 3, 5, 6, 8, 9])
}

/// Hours, minutes and seconds, with or without a fraction.
fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let whole = bytes.len() >= 8 && bytes[2] == b':' && bytes[5] == b':' && is_digits(text, &[0, 1, 3, 4, 6, 7]);
    whole
        && match &bytes[8..] {
            [] => true,
            [b'.', fraction @ ..] => !fraction.is_empty() && fraction.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

fn is_digits(text: &str, places: &[usize]) -> bool {
    places.iter().all(|&place| text.as_bytes().get(place).is_some_and(u8::is_ascii_digit))
}

/// `{1,NULL,"a b"}`, nested for several dimensions, after bounds like `[0:1][5:6]=` where they do not begin at 1.
/// The bounds are left out: JSON arrays have none.
fn array(element: &ColumnKind, delimiter: char, text: &str) -> Result<Value, ValueError> {
    let malformed = || ValueError::Malformed { kind: "array" };
    let text = match text.starts_with('[') {
        true => text.split_once('=').ok_or_else(malformed)?.1,
        false => text,
    };
    let mut reader = ArrayReader { rest: text, element, delimiter };
    let value = reader.list(1)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(malformed()) }
}

struct ArrayReader<'a> {
    rest: &'a str,
    element: &'a ColumnKind,
    delimiter: char,
}

impl ArrayReader<'_> {
    fn list(&mut self, depth: usize) -> Result<Value, ValueError> {
        if depth > DIMENSIONS_MAX || !self.skip('{') {
            return Err(ValueError::Malformed { kind: "array" });
        }
        let mut values = Vec::new();
        if self.skip('}') {
            return Ok(Value::Array(values));
        }
        loop {
            values.push(if self.rest.starts_with('{') { self.list(depth + 1)? } else { self.item()? });
            if self.skip('}') {
                return Ok(Value::Array(values));
            }
            if !self.skip(self.delimiter) {
                return Err(ValueError::Malformed { kind: "array" });
            }
        }
    }

    fn item(&mut self) -> Result<Value, ValueError> {
        let quoted = self.skip('"');
        let delimiter = self.delimiter;
        let ends = |c: char| if quoted { c == '"' } else { c == delimiter || c == '}' };
        let mut text = Cow::Borrowed("");
        loop {
            let stop = self.rest.find(|c| c == '\\' || ends(c)).ok_or(ValueError::Malformed { kind: "array" })?;
            let (run, rest) = self.rest.split_at(stop);
            self.rest = rest;
            if text.is_empty() {
                text = Cow::Borrowed(run);
            } else {
                text.to_mut().push_str(run);
            }
            if !self.skip('\\') {
                break;
            }
            let escaped = self.rest.chars().next().ok_or(ValueError::Malformed { kind: "array" })?;
            self.rest = &self.rest[escaped.len_utf8()..];
            text.to_mut().push(escaped);
        }
        match quoted {
            true => self.skip('"'),
            false if text == "NULL" => return Ok(Value::Null),
            false if text.is_empty() => return Err(ValueError::Malformed { kind: "array" }),
            false => true,
        };
        to_json(self.element, &text)
    }

    fn skip(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
}

/// Splits one line of COPY's text format; `None` is NULL. The line's end, if it is there, is not part of the last
/// field. Fields without escapes are borrowed.
pub fn copy_fields(line: &[u8]) -> Result<Vec<Option<Cow<'_, str>>>, ValueError> {
    let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = Vec::new();
    loop {
        let (field, more) = copy_field(rest)?;
        fields.push(field);
        match more {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// The first field, and what follows its tab.
type FieldAndRest<'a> = (Option<Cow<'a, str>>, Option<&'a [u8]>);

fn copy_field(line: &[u8]) -> Result<FieldAndRest<'_>, ValueError> {
    let special = line.iter().position(|&byte| byte == b'\t' || byte == b'\\');
    match special {
        None => Ok((Some(Cow::Borrowed(utf8(line)?)), None)),
        Some(at) if line[at] == b'\t' => Ok((Some(Cow::Borrowed(utf8(&line[..at])?)), Some(&line[at + 1..]))),
        Some(0) if line[1..] == *b"N" => Ok((None, None)),
        Some(0) if line[1..].starts_with(b"N\t") => Ok((None, Some(&line[3..]))),
        Some(at) => unescape(line, at),
    }
}

/// A field with escapes, the first of them at `at`.
fn unescape(line: &[u8], at: usize) -> Result<FieldAndRest<'_>, ValueError> {
    let mut field = line[..at].to_vec();
    let mut rest = &line[at..];
    let more = loop {
        match rest {
            [] => break None,
            [b'\t', more @ ..] => break Some(more),
            [b'\\', b'x', digits @ ..] if number(digits, 16, 2).1 > 0 => {
                let (value, length) = number(digits, 16, 2);
                field.push(value);
                rest = &digits[length..];
            }
            [b'\\', digits @ ..] if number(digits, 8, 3).1 > 0 => {
                let (value, length) = number(digits, 8, 3);
                field.push(value);
                rest = &digits[length..];
            }
            [b'\\', escaped, more @ ..] => {
                field.push(match escaped {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0b,
                    other => *other,
                });
                rest = more;
            }
            [b'\\'] => return Err(ValueError::Malformed { kind: "COPY" }),
            [byte, more @ ..] => {
                field.push(*byte);
                rest = more;
            }
        }
    };
    let field = String::from_utf8(field).map_err(|error| ValueError::Encoding(error.utf8_error()))?;
    Ok((Some(Cow::Owned(field)), more))
}

/// Reads at most `digits_max` digits: the value, its low 8 bits as the server has it, and how many digits there were.
fn number(text: &[u8], radix: u32, digits_max: usize) -> (u8, usize) {
    let digits = text.iter().take(digits_max).map_while(|&byte| char::from(byte).to_digit(radix));
    digits
        .fold((0, 0), |(value, length), digit| (value.wrapping_mul(radix as u8).wrapping_add(digit as u8), length + 1))
}

fn utf8(bytes: &[u8]) -> Result<&str, ValueError> {
    std::str::from_utf8(bytes).map_err(ValueError::Encoding)
}

/// A value that does not have its type's form. Says the type, never the value.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// Not this type's text form.
    #[error("read {kind} value: not in PostgreSQL's text form")]
    Malformed {
        /// The kind of value.
        kind: &'static str,
    },
    /// Not UTF-8, as can be in a database of the encoding SQL_ASCII.
    #[error("read value: not UTF-8")]
    Encoding(#[source] std::str::Utf8Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn array_of(element: ColumnKind) -> ColumnKind {
        ColumnKind::Array { element: Box::new(element), delimiter: ',' }
    }

    #[test]
    fn scalars_become_their_json() {
        use ColumnKind as K;
        for (kind, text, wanted) in [
            (K::Bool, "t", json!(true)),
            (K::Bool, "f", json!(false)),
            (K::Integer, "-32768", json!(-32768)),
            (K::Integer, "9223372036854775807", json!(9_223_372_036_854_775_807i64)),
            (K::Integer, "4294967295", json!(4_294_967_295u32)),
            (K::Float, "0.1", json!(0.1)),
            (K::Float, "1e+300", json!(1e300)),
            (K::Float, "-0", json!(-0.0)),
            (K::Float, "NaN", json!("NaN")),
            (K::Float, "-Infinity", json!("-Infinity")),
            (K::Numeric, "12345678901234567890.10", json!("12345678901234567890.10")),
            (K::Json, r#"{"b": [1, null], "a": "ü"}"#, json!({"b": [1, null], "a": "ü"})),
            (K::Json, "1e400", json!("1e400")),
            (K::Bytea, "\\x", json!("")),
            (K::Bytea, "\\xdeadBEEF00", json!("3q2+7wA=")),
            (K::Date, "2026-01-02", json!("2026-01-02")),
            (K::Time, "13:45:45.5", json!("13:45:45.5")),
            (K::Text, "naïve \\ \"", json!("naïve \\ \"")),
        ] {
            let value = to_json(&kind, text).expect("a value");
            assert_eq!(value.to_string(), wanted.to_string(), "{kind:?} {text}");
        }
    }

    #[test]
    fn times_become_rfc_3339_where_it_has_a_form() {
        use ColumnKind as K;
        for (kind, text, wanted) in [
            (K::TimestampTz, "2026-01-02 13:45:45.078727+00", "2026-01-02T13:45:45.078727Z"),
            (K::TimestampTz, "2026-01-02 13:45:45+05:30", "2026-01-02T13:45:45+05:30"),
            (K::TimestampTz, "2026-01-02 13:45:45-03", "2026-01-02T13:45:45-03:00"),
            (K::TimestampTz, "1850-01-01 00:00:00+00:53:28", "1850-01-01 00:00:00+00:53:28"),
            (K::TimestampTz, "0044-03-15 12:00:00+00 BC", "0044-03-15 12:00:00+00 BC"),
            (K::TimestampTz, "12026-01-02 13:45:45+00", "12026-01-02 13:45:45+00"),
            (K::TimestampTz, "infinity", "infinity"),
            (K::Timestamp, "2026-01-02 13:45:45", "2026-01-02T13:45:45"),
            (K::Timestamp, "2026-01-02 13:45:45.07", "2026-01-02T13:45:45.07"),
            (K::Timestamp, "0044-03-15 12:00:00 BC", "0044-03-15 12:00:00 BC"),
            (K::Timestamp, "-infinity", "-infinity"),
            (K::TimeTz, "13:45:45.5+00", "13:45:45.5Z"),
            (K::TimeTz, "13:45:45-08", "13:45:45-08:00"),
        ] {
            assert_eq!(to_json(&kind, text).expect("a value"), json!(wanted), "{text}");
        }
    }

    #[test]
    fn arrays_become_arrays() {
        use ColumnKind as K;
        for (element, text, wanted) in [
            (K::Integer, "{}", json!([])),
            (K::Integer, "{1,NULL,-3}", json!([1, null, -3])),
            (K::Integer, "{{1,2},{3,4}}", json!([[1, 2], [3, 4]])),
            (K::Integer, "[0:1][5:6]={{1,2},{3,4}}", json!([[1, 2], [3, 4]])),
            (K::Bool, "{t,f}", json!([true, false])),
            (
                K::Text,
                r#"{a,"b c","","NULL","x\"y\\z","{,}",ü}"#,
                json!(["a", "b c", "", "NULL", "x\"y\\z", "{,}", "ü"]),
            ),
            (K::Json, r#"{"{\"a\": [1, \"x\"]}",NULL,3}"#, json!([{"a": [1, "x"]}, null, 3])),
            (K::TimestampTz, r#"{"2026-01-02 13:45:45+00"}"#, json!(["2026-01-02T13:45:45Z"])),
            (K::Bytea, r#"{"\\xff"}"#, json!(["/w=="])),
            (K::Text, r#"{"\\","\"\\"}"#, json!(["\\", "\"\\"])),
        ] {
            assert_eq!(to_json(&array_of(element), text).expect("an array"), wanted, "{text}");
        }
        let boxes = K::Array { element: Box::new(K::Text), delimiter: ';' };
        assert_eq!(to_json(&boxes, "{(1,1),(0,0);(2,2),(1,1)}").expect("boxes"), json!(["(1,1),(0,0)", "(2,2),(1,1)"]));
    }

    #[test]
    fn malformed_values_are_errors_that_do_not_repeat_them() {
        use ColumnKind as K;
        for (kind, text) in [
            (K::Bool, "secret"),
            (K::Integer, "secret"),
            (K::Integer, "9223372036854775808"),
            (K::Float, "secret"),
            (K::Float, "1e999"),
            (K::Bytea, "secret"),
            (K::Bytea, "\\xabc"),
            (K::Bytea, "\\xzz"),
            (array_of(K::Text), "secret"),
            (array_of(K::Text), ""),
            (array_of(K::Text), "[1:2]"),
            (array_of(K::Text), "{a"),
            (array_of(K::Text), "{a,}"),
            (array_of(K::Text), "{,a}"),
            (array_of(K::Text), "{\"a}"),
            (array_of(K::Text), "{\"a\"b}"),
            (array_of(K::Text), "{a}b"),
            (array_of(K::Text), "{a\\"),
            (array_of(K::Integer), "{x}"),
            (array_of(K::Text), "{{{{{{{a}}}}}}}"),
        ] {
            let error = to_json(&kind, text).expect_err(text).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    fn check_copy(line: &[u8], wanted: &[Option<&str>]) {
        let fields = copy_fields(line).expect("fields");
        let fields: Vec<_> = fields.iter().map(Option::as_deref).collect();
        assert_eq!(fields, wanted, "{line:?}");
    }

    #[test]
    fn copy_lines_become_fields() {
        check_copy(b"1\tone\t\\N\n", &[Some("1"), Some("one"), None]);
        check_copy(b"\\N\t\\N", &[None, None]);
        check_copy(b"", &[Some("")]);
        check_copy(b"\t", &[Some(""), Some("")]);
        check_copy(b"\t\\N\t\n", &[Some(""), None, Some("")]);
        check_copy(br"a\tb\nc\\d\r\b\f\v", &[Some("a\tb\nc\\d\r\u{8}\u{c}\u{b}")]);
        check_copy(br"\101\x42\x4x\1018\q", &[Some("AB\u{4}xA8q")]);
        check_copy(br"\Nx", &[Some("Nx")]);
        check_copy(br"\\N", &[Some("\\N")]);
        check_copy(br"\.", &[Some(".")]);
        check_copy("ü\tö\\\\".as_bytes(), &[Some("ü"), Some("ö\\")]);
        check_copy(b"a\\\tb", &[Some("a\tb")]);
        check_copy(br"\303\274", &[Some("ü")]);
        check_copy(br"\xg", &[Some("xg")]);
    }

    #[test]
    fn copy_lines_that_cannot_be_are_errors() {
        for line in [&b"a\\"[..], b"\xff", b"\\377", b"a\t\xff\\n"] {
            assert!(copy_fields(line).is_err(), "{line:?}");
        }
        assert!(matches!(copy_fields(b"a\n\n").as_deref(), Ok([Some(field)]) if field == "a\n"));
    }
}
