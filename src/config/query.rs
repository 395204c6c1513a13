//! Reads `source.query` and `[[source.watch]]`: documents out of several tables. Knows their rules; no SQL is tried here.

use super::fields::{Fields, Section};
use super::pipeline::table_name;
use super::{Query, Watch};

/// What a query takes: an array for each column of a key.
const PARAMETER: &str = "$1";

/// The query with what it watches; `None`: there is none, or something is wrong.
pub(super) fn query<'t>(fields: &mut Fields<'t>, section: &Section<'_, 't>) -> Option<Query> {
    if section.has("topic") {
        for key in ["query", "watch"].into_iter().filter(|key| section.has(key)) {
            let what = "reads PostgreSQL while it is captured, and source.topic is read instead: leave one of them out";
            fields.refuse(section, key, what);
        }
    } else if section.has("watch") && !section.has("query") {
        fields.refuse(section, "watch", "is about source.query, and there is none");
    }
    let wanted = "wanted a query with $1 in it, an array of the table's keys, as in WHERE f.id = ANY($1)";
    let sql = statement(fields, section, "query", wanted);
    let mut watch = vec![];
    let mut all_good = true;
    for section in fields.list(section, "watch", &["table", "keys", "affects"]) {
        match one(fields, &section) {
            Some(good) => watch.push(good),
            None => all_good = false,
        }
    }
    let sql = sql?;
    all_good.then_some(Query { sql, watch })
}

fn one<'t>(fields: &mut Fields<'t>, section: &Section<'_, 't>) -> Option<Watch> {
    fields.require(section, "table", r#"table = "public.faq_category""#);
    let table = fields.text(section, "table").and_then(|text| match table_name(text) {
        Ok(names) => Some(names),
        Err(what) => {
            fields.refuse(section, "table", what);
            None
        }
    });
    let keys = fields.texts(section, "keys");
    let names_none = keys.as_ref().is_some_and(Vec::is_empty);
    if names_none {
        fields.refuse(section, "keys", "names no column; leave it out for the primary key");
    }
    let example = r#"affects = "SELECT id FROM faq_faq WHERE category_id = ANY($1)""#;
    fields.require(section, "affects", example);
    let wanted = "wanted a query with $1 in it, an array of values of keys, as in WHERE category_id = ANY($1)";
    let affects = statement(fields, section, "affects", wanted);
    if names_none || (section.has("keys") && keys.is_none()) {
        return None;
    }
    let (schema, table) = table?;
    Some(Watch { schema, table, keys, affects: affects? })
}

/// A text of SQL that has the parameter, without what ends a statement.
fn statement<'t>(fields: &mut Fields<'t>, section: &Section<'_, 't>, key: &str, wanted: &str) -> Option<String> {
    let text = fields.text(section, key)?;
    if !text.contains(PARAMETER) {
        fields.refuse(section, key, wanted);
        return None;
    }
    Some(text.trim().trim_end_matches(';').trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::pipeline::parse;

    const GOOD: &str = r#"
name = "faq"
[source]
table = "faq"
query = """
  SELECT f.id, c.name FROM faq f JOIN category c ON c.id = f.category_id WHERE f.id = ANY($1);
"""
[[source.watch]]
table = "help.\"Category\""
affects = "SELECT id FROM faq WHERE category_id = ANY($1)"
[[source.watch]]
table = "faq_tags"
keys = ["faq_id", "tag_id"]
affects = "SELECT unnest($1::bigint[])"
[document]
text = "{{ name }}"
payload = ["id"]
"#;

    #[track_caller]
    fn check(text: &str, wanted: &[&str]) {
        let problems = parse("p.toml", text, &|_| vec![]).expect_err("it is wrong").to_string();
        for want in wanted {
            assert!(problems.contains(want), "{want:?} is not in:\n{problems}");
        }
        assert_eq!(problems.lines().count(), wanted.len(), "{problems}");
    }

    #[test]
    fn a_query_and_what_it_watches_are_read() {
        let source = parse("p.toml", GOOD, &|_| vec![]).unwrap_or_else(|problems| panic!("{problems}")).source;
        let query = source.query.expect("there is one");
        assert!(query.sql.starts_with("SELECT f.id") && query.sql.ends_with("ANY($1)"), "{}", query.sql);
        let [category, tags] = &query.watch[..] else { panic!("{:?}", query.watch) };
        assert_eq!((category.schema.as_str(), category.table.as_str()), ("help", "Category"));
        assert_eq!((&category.keys, tags.keys.as_ref().map(Vec::len)), (&None, Some(2)));
        let alone = GOOD.split("[[").next().unwrap_or_default().to_owned() + "[document]\ntext = \"x\"\npayload = []";
        let source = parse("p.toml", &alone, &|_| vec![]).unwrap_or_else(|problems| panic!("{problems}")).source;
        assert_eq!(source.query.map(|query| query.watch), Some(vec![]));
    }

    #[test]
    fn each_problem_is_named_with_its_place() {
        check(&GOOD.replace("WHERE f.id = ANY($1)", ""), &["p.toml:5: source.query = "]);
        check(
            &GOOD.replace("keys = [\"faq_id\", \"tag_id\"]", "keys = []"),
            &["p.toml:13: source.watch[1].keys = []: names no"],
        );
        check(
            &GOOD.replace("keys = [\"faq_id\", \"tag_id\"]", "keys = \"faq_id\""),
            &["source.watch[1].keys = \"faq_id\": wanted a list"],
        );
        check(&GOOD.replace("unnest($1::bigint[])", "id"), &["p.toml:14: source.watch[1].affects = "]);
        check(
            &GOOD.replace("table = \"faq_tags\"", "tabel = \"faq_tags\""),
            &[
                "source.watch[1].tabel: unknown key; did you mean source.watch[1].table?",
                "source.watch[1].table: is missing",
            ],
        );
        check(
            &GOOD.replace("affects = \"SELECT id", "effects = \"SELECT id"),
            &["effects: unknown", "affects: is missing"],
        );
        check(&GOOD.replace("[[source.watch]]", "[[source.watches]]"), &["source.watches: unknown key"]);
        let with = |line: &str| {
            GOOD.split("[[").next().unwrap_or_default().to_owned() + line + "\n[document]\ntext = \"x\"\npayload = []"
        };
        check(&with("watch = 7"), &["source.watch = 7: wanted tables, each below a line [[source.watch]]"]);
        check(&with("watch = [7]"), &["source.watch[0] = 7: wanted tables"]);
        check(&with("topic = \"a.b.c\""), &["source.query = "]);
        check(
            &with("watch = []").replace("query", "slot"),
            &["source.slot", "source.watch = []: is about source.query"],
        );
    }
}
