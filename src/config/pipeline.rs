//! Reads pipeline files. Knows their keys and rules; asks the caller about templates, and no database about columns.

use std::io::{self, Read};
use std::path::Path;

use super::fields::{Fields, Section};
use super::problems::{Problem, Problems};
use super::qdrant::{COLLECTION_WANTED, is_collection};
use super::{Document, Pipeline, Source, query};

/// Says what is wrong with a document's templates, one `document.text: …` each.
pub type CheckTemplates<'a> = &'a dyn Fn(&Document) -> Vec<String>;

/// What editors complete and underline pipeline files by: a JSON Schema. It cannot say what concerns two keys at once
/// (`index.filters` beside `document.payload`, `overlap_tokens` beside `window_tokens`), nor what a template holds.
pub const SCHEMA: &str = include_str!("../../pipelines/schema.json");

/// A larger pipeline file is a mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// PostgreSQL's limit on names, in bytes (NAMEDATALEN - 1).
const NAME_BYTES_MAX: usize = 63;
/// Kafka's limit on topics' names.
const TOPIC_NAME_MAX: usize = 249;
/// Leaves room in a slot's name for a prefix and a suffix.
const PIPELINE_NAME_MAX: usize = 41;

const TITLE_WEIGHT: f32 = 0.3;
const WINDOW_TOKENS: usize = 256;
const OVERLAP_TOKENS: usize = 32;
/// What all-MiniLM-L6-v2 has positions for; below 16 a window holds no sentence.
const WINDOW_TOKENS_RANGE: std::ops::RangeInclusive<usize> = 16..=512;
/// Fields that a point's payload has of its own.
const RESERVED: &[&str] = &["_vecsync", "passage"];

/// Reads one pipeline file.
pub fn read(path: &Path, check_templates: CheckTemplates<'_>) -> Result<Pipeline, Problems> {
    let name = path.display().to_string();
    let text = read_text(path).map_err(|error| Problem::new(&name, format!("cannot be read: {error}")))?;
    parse(&name, &text, check_templates)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Reads the text of a pipeline file; `file` names it in problems.
pub fn parse(file: &str, text: &str, check_templates: CheckTemplates<'_>) -> Result<Pipeline, Problems> {
    let (mut fields, table) = Fields::parse(file, text)?;
    let root = fields.root(table.get_ref(), &["name", "default", "source", "document", "index"]);
    let is_default = fields.truth(&root, "default").unwrap_or(false);
    let name = name(&mut fields, &root);
    let source = source(&mut fields, &root, name.as_deref().unwrap_or_default());
    let document = document(&mut fields, &root);
    let index = index(&mut fields, &root, document.as_ref());
    if let Some(document) = &document {
        for problem in check_templates(document) {
            fields.refuse_elsewhere(&root, &problem);
        }
    }
    let pipeline = match (name, source, document, index) {
        (Some(name), Some(source), Some(document), Some((filters, collection))) => {
            Some(Pipeline { name, is_default, source, document, filters, collection })
        }
        _ => None,
    };
    fields.problems.or(pipeline)
}

fn name<'t>(fields: &mut Fields<'t>, root: &Section<'_, 't>) -> Option<String> {
    let name = fields.required_text(root, "name", r#"name = "faq""#)?;
    let fits = name.len() <= PIPELINE_NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(is_lower_digit_or_underscore);
    if !fits {
        let what =
            format!("wanted at most {PIPELINE_NAME_MAX} lower-case letters, digits and underscores, a letter in front");
        fields.refuse(root, "name", &what);
        return None;
    }
    Some(name.to_owned())
}

fn source<'t>(fields: &mut Fields<'t>, root: &Section<'_, 't>, name: &str) -> Option<Source> {
    let section = fields.section(root, "source", &["table", "publication", "slot", "topic", "query", "watch"]);
    let topic = fields.text(&section, "topic");
    if topic.is_some_and(|topic| !is_topic(topic)) {
        fields.refuse(
            &section,
            "topic",
            "wanted a topic's name: at most 249 letters, digits, dots, dashes and underscores",
        );
    }
    if section.has("topic") {
        for key in ["publication", "slot"].into_iter().filter(|key| section.has(key)) {
            fields.refuse(&section, key, "is for capturing, and source.topic is read instead: leave one of them out");
        }
    }
    let of_topic = topic.and_then(table_of_topic);
    if of_topic.is_none() || section.has("query") {
        fields.require(&section, "table", r#"table = "public.faq_faq""#);
    }
    let table = fields.text(&section, "table").and_then(|text| match table_name(text) {
        Ok(names) => Some(names),
        Err(what) => {
            fields.refuse(&section, "table", what);
            None
        }
    });
    let default = format!("vecsync_{name}");
    let publication = fields.text(&section, "publication");
    if publication.is_some_and(|name| name.len() > NAME_BYTES_MAX || name.contains(char::is_control)) {
        fields.refuse(&section, "publication", "wanted a publication's name, at most 63 bytes");
    }
    let slot = fields.text(&section, "slot");
    if slot.is_some_and(|slot| slot.len() > NAME_BYTES_MAX || !slot.chars().all(is_lower_digit_or_underscore)) {
        fields.refuse(&section, "slot", "wanted at most 63 lower-case letters, digits and underscores");
    }
    let query = query::query(fields, &section);
    // A table that is written and wrong is no reason to take another.
    let (schema, table) = if section.has("table") { table? } else { of_topic? };
    Some(Source {
        schema,
        table,
        publication: publication.unwrap_or(&default).to_owned(),
        slot: slot.unwrap_or(&default).to_owned(),
        topic: topic.map(str::to_owned),
        query: if section.has("query") { Some(query?) } else { None },
    })
}

fn is_topic(name: &str) -> bool {
    name.len() <= TOPIC_NAME_MAX && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// The table that Debezium names a topic after: `<prefix>.<schema>.<table>`.
fn table_of_topic(topic: &str) -> Option<(String, String)> {
    let (rest, table) = topic.rsplit_once('.')?;
    let (_, schema) = rest.rsplit_once('.')?;
    let both = !schema.is_empty() && !table.is_empty();
    both.then(|| (schema.to_owned(), table.to_owned()))
}

fn document<'t>(fields: &mut Fields<'t>, root: &Section<'_, 't>) -> Option<Document> {
    let keys = ["title", "text", "payload", "when", "title_weight", "window_tokens", "overlap_tokens"];
    let section = fields.section(root, "document", &keys);
    let title = fields.text(&section, "title").map(str::to_owned);
    let text = fields.required_text(&section, "text", r#"text = "{{ answer }}""#).map(str::to_owned);
    fields.require(&section, "payload", r#"payload = ["id", "question"]"#);
    let payload = fields.texts(&section, "payload");
    for column in payload.iter().flatten().filter(|column| RESERVED.contains(&column.as_str())) {
        let what = format!("{column} is vecsync's own field of the payload; leave it out");
        fields.refuse(&section, "payload", &what);
    }
    let when = fields.text(&section, "when").map(str::to_owned);

    let title_weight = fields.share(&section, "title_weight");
    if title_weight.is_some_and(|weight| weight > 0.0) && !section.has("title") {
        fields.refuse(&section, "title_weight", "is the share of a title's vector, and there is no document.title");
    }
    // No title, no mix, whatever the default.
    let default_weight = if title.is_some() { TITLE_WEIGHT } else { 0.0 };

    let window = fields.whole(&section, "window_tokens", WINDOW_TOKENS_RANGE);
    let window_tokens = window.unwrap_or(WINDOW_TOKENS);
    let overlap = fields.whole(&section, "overlap_tokens", 0..=*WINDOW_TOKENS_RANGE.end());
    // Of a window that cannot be, the nearest that can is what the overlap is held against.
    let written = fields.written(&section, "window_tokens");
    let held_against = match (window, section.has("window_tokens"), written) {
        (None, true, Some(written)) => written.clamp(*WINDOW_TOKENS_RANGE.start(), *WINDOW_TOKENS_RANGE.end()),
        (None, true, None) => *WINDOW_TOKENS_RANGE.end(),
        _ => window_tokens,
    };
    if overlap.is_some_and(|overlap| overlap * 2 >= held_against) {
        let which = if window.is_some() || !section.has("window_tokens") { "which is" } else { "which can be" };
        let what = format!("wanted less than half of document.window_tokens, {which} {held_against}");
        fields.refuse(&section, "overlap_tokens", &what);
    }
    Some(Document {
        title,
        text: text?,
        payload: payload?,
        when,
        title_weight: title_weight.unwrap_or(default_weight),
        window_tokens,
        // A short window gets a short overlap.
        overlap_tokens: overlap.unwrap_or(OVERLAP_TOKENS.min(window_tokens / 8)),
    })
}

/// Fields that searches may filter by, and the collection, if one is named.
fn index<'t>(
    fields: &mut Fields<'t>,
    root: &Section<'_, 't>,
    document: Option<&Document>,
) -> Option<(Vec<String>, Option<String>)> {
    let section = fields.section(root, "index", &["filters", "collection"]);
    let collection = match section.has("collection") {
        true => {
            let name = fields.text(&section, "collection")?;
            if !is_collection(name) {
                fields.refuse(&section, "collection", COLLECTION_WANTED);
            }
            Some(name.to_owned())
        }
        false => None,
    };
    if !section.has("filters") {
        return Some((vec![], collection));
    }
    let filters = fields.texts(&section, "filters")?;
    for filter in document.iter().flat_map(|document| filters.iter().filter(|name| !document.payload.contains(name))) {
        let what = format!("{filter:?} is not in document.payload; searches filter by what is in the payload");
        fields.refuse(&section, "filters", &what);
    }
    Some((filters, collection))
}

fn is_lower_digit_or_underscore(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// `schema.table` or `table`, either in double quotes when it is not plain lower case, as SQL writes names.
pub(super) fn table_name(text: &str) -> Result<(String, String), &'static str> {
    let (first, rest) = identifier(text)?;
    let Some(rest) = rest.strip_prefix('.') else {
        return if rest.is_empty() { Ok(("public".to_owned(), first)) } else { Err(TABLE) };
    };
    match identifier(rest)? {
        (table, "") => Ok((first, table)),
        _ => Err(TABLE),
    }
}

const TABLE: &str = "wanted a table's name, or schema.table";

fn identifier(text: &str) -> Result<(String, &str), &'static str> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => {
            let mut name = String::new();
            let mut rest = quoted;
            loop {
                let (piece, after) = rest.split_once('"').ok_or("has a double quote that is not closed")?;
                name.push_str(piece);
                match after.strip_prefix('"') {
                    // Two quotes inside are one.
                    Some(after) => {
                        name.push('"');
                        rest = after;
                    }
                    None => break (name, after),
                }
            }
        }
        None => {
            let end = text.find('.').unwrap_or(text.len());
            let name = &text[..end];
            if name.contains(char::is_uppercase) {
                // SQL would fold them; who writes them means a table that has them.
                return Err("has upper-case letters outside double quotes; write them as in public.\"MyTable\"");
            }
            let fits = name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
                && !name.starts_with(|c: char| c.is_ascii_digit() || c == '$');
            if !fits {
                return Err("has a character that needs double quotes around the name, as in public.\"my-table\"");
            }
            (name.to_owned(), &text[end..])
        }
    };
    if name.is_empty() || name.contains(char::is_control) {
        return Err(TABLE);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err("has a name of more than 63 bytes, which PostgreSQL does not have");
    }
    Ok((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "faq"
[source]
table = "public.faq_faq"
[document]
title = "{{ question }}"
text = "{{ answer }}"
payload = ["id", "category"]
when = "is_active"
[index]
filters = ["category"]
"#;

    fn check(text: &str, wanted: &[&str]) {
        match parse("p.toml", text, &|_| Vec::new()) {
            Ok(pipeline) => assert!(wanted.is_empty(), "accepted {text}: {pipeline:?}"),
            Err(problems) => {
                let problems = problems.to_string();
                for want in wanted {
                    assert!(problems.contains(want), "{want:?} is not in:\n{problems}");
                }
                assert_eq!(problems.lines().count(), wanted.len(), "{problems}");
            }
        }
    }

    #[test]
    fn a_good_file_is_read_with_its_defaults() {
        let pipeline = parse("p.toml", GOOD, &|_| Vec::new()).expect("good");
        assert_eq!(
            pipeline,
            Pipeline {
                name: "faq".into(),
                is_default: false,
                source: Source {
                    schema: "public".into(),
                    table: "faq_faq".into(),
                    publication: "vecsync_faq".into(),
                    slot: "vecsync_faq".into(),
                    topic: None,
                    query: None,
                },
                document: Document {
                    title: Some("{{ question }}".into()),
                    text: "{{ answer }}".into(),
                    payload: vec!["id".into(), "category".into()],
                    when: Some("is_active".into()),
                    title_weight: 0.3,
                    window_tokens: 256,
                    overlap_tokens: 32,
                },
                filters: vec!["category".into()],
                collection: None,
            }
        );
    }

    #[test]
    fn a_collection_has_a_name_that_an_alias_can_have() {
        let with = |name: &str| GOOD.replace("[index]", &format!("[index]\ncollection = {name}"));
        let pipeline = parse("p.toml", &with("\"questions\""), &|_| vec![]).expect("it is good");
        assert_eq!(pipeline.collection.as_deref(), Some("questions"));
        check(&with("\"a__2\""), &["index.collection = \"a__2\": wanted a name"]);
        check(&with("7"), &["index.collection = 7: wanted text in quotes"]);
    }

    #[test]
    fn the_file_that_is_shipped_is_good() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/faq.toml");
        let shipped = read(&file, &|_| Vec::new()).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!((shipped.name.as_str(), shipped.document.window_tokens), ("faq", 256));
    }

    #[test]
    fn every_problem_is_named_at_once_with_line_path_and_value() {
        check(
            r#"
name = "Faq"
nmae = 1
[source]
table = "a.b.c"
slot = "Slot"
publication = 7
[document]
title = ""
payload = ["id", "id", 3, "_vecsync"]
title_weight = 1.5
window_tokens = 8
overlap_tokens = -1
[index]
filters = "category"
[other]
"#,
            &[
                r#"p.toml:2: name = "Faq": wanted at most 41"#,
                "p.toml:3: nmae: unknown key; did you mean name?",
                r#"p.toml:5: source.table = "a.b.c": wanted"#,
                r#"p.toml:6: source.slot = "Slot": wanted"#,
                "p.toml:7: source.publication = 7: wanted text in quotes, found integer",
                r#"p.toml:9: document.title = "": is empty"#,
                "p.toml: document.text: is missing",
                r#"p.toml:10: document.payload[1] = "id": stands in the list twice"#,
                "p.toml:10: document.payload[2] = 3: wanted text",
                "p.toml:11: document.title_weight = 1.5: wanted a number from 0 to 1",
                "p.toml:12: document.window_tokens = 8: wanted a whole number from 16 to 512",
                "p.toml:13: document.overlap_tokens = -1: wanted a whole number from 0",
                r#"p.toml:15: index.filters = "category": wanted a list"#,
                "p.toml:16: other: unknown key; known are",
            ],
        );
    }

    #[test]
    fn contradictions_are_named() {
        check(&GOOD.replace("title = \"{{ question }}\"", "title_weight = 0.3"), &["there is no document.title"]);
        check(&GOOD.replace("title = \"{{ question }}\"", "title_weight = 0"), &[]);
        check(
            &GOOD.replace("when", "overlap_tokens = 128\nwhen"),
            &["document.overlap_tokens = 128: wanted less than half"],
        );
        check(&GOOD.replace("when", "overlap_tokens = 127\nwhen"), &[]);
        check(
            &GOOD.replace("\"category\"]\nwhen", "\"_vecsync\", \"passage\"]\nwhen"),
            &["_vecsync is", "passage is", "category"],
        );
        check(
            &GOOD.replace("filters = [\"category\"]", "filters = [\"color\"]"),
            &["\"color\" is not in document.payload"],
        );
    }

    #[test]
    fn a_topic_of_debeziums_takes_the_place_of_capturing() {
        let with = |source: &str| GOOD.replace("table = \"public.faq_faq\"", source);
        let pipeline = parse("p.toml", &with("topic = \"site.help.faq\""), &|_| Vec::new()).expect("good").source;
        assert_eq!((pipeline.schema.as_str(), pipeline.table.as_str()), ("help", "faq"));
        assert_eq!(pipeline.topic.as_deref(), Some("site.help.faq"));
        let pipeline =
            parse("p.toml", &with("topic = \"faq\"\ntable = \"help.faq\""), &|_| Vec::new()).expect("good").source;
        assert_eq!((pipeline.schema.as_str(), pipeline.table.as_str()), ("help", "faq"));
        check(&with("topic = \"faq\""), &["source.table: is missing"]);
        check(&with("topic = \"a b\""), &["source.topic = \"a b\": wanted a topic's name", "source.table: is missing"]);
        check(&with("topic = \"site.help.faq\"\nslot = \"s\""), &["source.slot = \"s\": is for capturing"]);
    }

    #[test]
    fn broken_toml_is_named_by_line_and_column() {
        check("name = \"faq\"\nx = = 1\n", &["p.toml:2:5: not TOML"]);
        check("name = \"a\"\nname = \"b\"\n", &["p.toml:2:1: not TOML: duplicate key"]);
        check(
            "source = 1",
            &[
                "source = 1: wanted a table",
                "name: is missing",
                "table: is missing",
                "text: is missing",
                "payload: is missing",
            ],
        );
        assert!(parse("p.toml", &"[".repeat(100_000), &|_| Vec::new()).is_err());
    }

    #[test]
    fn a_default_fits_what_it_stands_beside() {
        let parse = |text: String| parse("p.toml", &text, &|_| Vec::new()).expect("good").document;
        let document = parse(GOOD.replace("when", "window_tokens = 0x40\nwhen"));
        assert_eq!((document.window_tokens, document.overlap_tokens), (64, 8));
        assert_eq!(parse(GOOD.replace("title = \"{{ question }}\"", "")).title_weight, 0.0);
    }

    #[test]
    fn one_of_several_may_be_marked_as_the_default() {
        let with = |value: &str| GOOD.replace("[source]", &format!("default = {value}\n[source]"));
        assert!(parse("p.toml", &with("true"), &|_| vec![]).expect("good").is_default);
        assert!(!parse("p.toml", &with("false"), &|_| vec![]).expect("good").is_default);
        check(&with("1"), &["p.toml:3: default = 1: wanted true or false"]);
    }

    #[test]
    fn templates_are_asked_about() {
        let check = |text: &str, problem: &str, wanted: &str| {
            let problems = parse("p.toml", text, &|_| vec![problem.to_owned()]);
            assert_eq!(problems.expect_err("bad").to_string(), wanted, "{text}");
        };
        check(GOOD, "document.text: it is bad", r#"p.toml:7: document.text = "{{ answer }}": it is bad"#);
        check(GOOD, "no path: it is bad", "p.toml: no path: it is bad");
        // In a text of several lines the fault's own line is named and shown.
        let long = GOOD.replace(r#""{{ answer }}""#, "\"\"\"\nFirst\n{{ answer }\n\"\"\"");
        check(&long, "document.text, line 2: it is bad", "p.toml:9: document.text = {{ answer }: it is bad");
        let long = long.replace("\"\"\"\nFirst", "\"\"\"First");
        check(&long, "document.text, line 2: it is bad", "p.toml:8: document.text = {{ answer }: it is bad");
        let escaped = GOOD.replace("{{ answer }}", r"a\n{{ answer }");
        check(&escaped, "document.text, line 2: it is bad", r#"p.toml:7: document.text = "a\n{{ answer }": it is bad"#);
    }

    #[test]
    fn table_names_are_read_as_sql_writes_them() {
        fn check(text: &str, wanted: Result<(&str, &str), &str>) {
            match (table_name(text), wanted) {
                (Ok((schema, table)), Ok(wanted)) => assert_eq!((schema.as_str(), table.as_str()), wanted, "{text}"),
                (Err(what), Err(wanted)) => assert!(what.contains(wanted), "{text}: {what}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        check("faq", Ok(("public", "faq")));
        check("s_1.t$é", Ok(("s_1", "t$é")));
        check(r#""My.Schema"."a ""b""""#, Ok(("My.Schema", "a \"b\"")));
        check("Faq", Err("upper-case"));
        check("a-b", Err("needs double quotes"));
        check("1a", Err("needs double quotes"));
        check("a.b.c", Err("wanted a table"));
        check("a.", Err("wanted a table"));
        check(".a", Err("wanted a table"));
        check(r#""""#, Err("wanted a table"));
        check(r#""a"#, Err("not closed"));
        check(r#""a"b"#, Err("wanted a table"));
        check(&"x".repeat(64), Err("63 bytes"));
    }
}
