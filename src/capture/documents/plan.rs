//! What the server would do for the pipeline's queries, asked before it does: tables that would be read whole, and tables that are
//! read and not watched. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_literal;
use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::reader::arrays;
use super::{Documents, KeyText, QUERY, granted, place};
use crate::capture::catalog::{TableName, server_text};
use crate::capture::publication::name_of;

/// A table of so many rows may be read whole.
const ROWS_MAX: f64 = 10_000.0;
/// Lines of a plan that are told.
const LINES_MAX: usize = 30;

/// What in a plan is a name.
const NAMES: [&str; 7] = ["Node Type", "Schema", "Relation Name", "Alias", "Index Name", "CTE Name", "Subplan Name"];

/// What the plans say.
#[derive(Debug, Default, PartialEq)]
pub struct Outlook {
    /// Each statement that would read a whole table, with its place in the pipeline file and its plan.
    pub problems: Vec<String>,
    /// Tables that the query reads and nobody watches: their changes alone reach no document.
    pub unwatched: Vec<String>,
}

/// Asks for the plans of the query and of every `affects`.
pub async fn look(client: &Client, documents: &Documents) -> Result<Outlook, tokio_postgres::Error> {
    let mut outlook = Outlook::default();
    // Where there is no index for it the server reads the whole table all the same, however small or empty it is now.
    let settings = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off;
        SET default_transaction_read_only = on; SET max_parallel_workers_per_gather = 0";
    client.batch_execute(settings).await?;
    let main = &documents.main;
    if let Some(plan) = explain(client, QUERY, &documents.sql, main.key.len(), &mut outlook).await? {
        let watched: BTreeSet<TableName> = documents.followed().map(name_of).collect();
        let mut unwatched = BTreeSet::new();
        for (schema, table) in tables(&plan) {
            let (name, _) = whole_of(client, &schema, &table).await?;
            unwatched.extend(Some(name).filter(|name| !watched.contains(name)));
        }
        outlook.unwatched = unwatched.iter().map(TableName::to_string).collect();
        refuse(client, QUERY, &plan, &mut outlook).await?;
        if is_limited(&plan[0]["Plan"]) {
            outlook.problems.push(format!(
                "{QUERY}: ends with a LIMIT, so what it gives for a key depends on the other keys in $1; leave it out, or put it \
                 into a LATERAL subquery of each key"
            ));
        }
        check(client, QUERY, &documents.sql, main.key.len(), &plan, documents, &mut outlook).await?;
    }
    for (number, watched) in documents.watched.iter().enumerate() {
        let (place, keys) = (place(number, "affects"), watched.table.key.len());
        if let Some(plan) = explain(client, &place, &watched.affects, keys, &mut outlook).await? {
            refuse(client, &place, &plan, &mut outlook).await?;
            check(client, &place, &watched.affects, keys, &plan, documents, &mut outlook).await?;
        }
    }
    Ok(outlook)
}

/// The plan, as JSON; `None`: the server refuses to run it, which is told.
async fn explain(
    client: &Client,
    place: &str,
    sql: &str,
    keys: usize,
    outlook: &mut Outlook,
) -> Result<Option<Value>, tokio_postgres::Error> {
    match lines(client, "VERBOSE, FORMAT JSON", sql, keys).await {
        Ok(lines) => Ok(serde_json::from_str::<Value>(&lines.join("\n")).ok()),
        Err(error) if error.as_db_error().is_none() => Err(error),
        Err(error) => {
            let mended = granted(client, &error).await?;
            outlook.problems.push(format!("{place}: {}{mended}", server_text(&error)));
            Ok(None)
        }
    }
}

async fn lines(client: &Client, form: &str, sql: &str, keys: usize) -> Result<Vec<String>, tokio_postgres::Error> {
    client.batch_execute(&format!("PREPARE vecsync_plan AS {sql}\n")).await?;
    let none: [KeyText; 0] = [];
    let arguments: Vec<String> = arrays(&none, keys).iter().map(|array| escape_literal(array)).collect();
    let answer = client.simple_query(&format!("EXPLAIN ({form}) EXECUTE vecsync_plan({})", arguments.join(", "))).await;
    client.batch_execute("DEALLOCATE vecsync_plan").await?;
    let line = |message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(answer?.into_iter().filter_map(line).collect())
}

/// Names what a reader may not do, whether there are rows to do it with or not.
async fn refuse(
    client: &Client,
    place: &str,
    plan: &Value,
    outlook: &mut Outlook,
) -> Result<(), tokio_postgres::Error> {
    let (mut kinds, mut called) = (BTreeSet::new(), BTreeSet::new());
    visit(plan, &mut |node| {
        kinds.extend(node["Node Type"].as_str().map(str::to_owned));
        let parts = node.as_object().into_iter().flatten().filter(|(key, _)| !NAMES.contains(&key.as_str()));
        for (_, part) in parts {
            let lines = part.as_array().into_iter().flatten().chain([part]);
            lines.filter_map(Value::as_str).for_each(|text| calls(text, &mut called));
        }
    });
    if kinds.contains("LockRows") {
        outlook
            .problems
            .push(format!("{place}: locks rows, which who reads may not; leave out FOR UPDATE or FOR SHARE"));
    }
    if kinds.contains("ModifyTable") {
        outlook.problems.push(format!("{place}: writes; wanted a SELECT that only reads"));
    }
    // PostgreSQL's own, and of that name none that is otherwise. What somebody has made is volatile where nobody has said what it
    // is, and large objects and XML are read by functions that are called so.
    let sql = "SELECT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
               WHERE p.proname = ANY ($1) AND p.proname !~ '^(lo|ts)_|^lo(read|write)$|xml' GROUP BY p.proname
               HAVING bool_and(p.provolatile = 'v') AND bool_or(n.nspname = 'pg_catalog') ORDER BY 1";
    let called: Vec<String> = called.into_iter().collect();
    let volatile: Vec<String> = client.query(sql, &[&called]).await?.iter().map(|row| row.get(0)).collect();
    if !volatile.is_empty() {
        outlook.problems.push(format!(
            "{place}: calls {}, which gives something else each time (it is volatile) or writes; leave that out",
            volatile.join(" and ")
        ));
    }
    Ok(())
}

/// The functions that an expression calls by a name without a schema. PostgreSQL writes them so where they are its own.
fn calls(text: &str, called: &mut BTreeSet<String>) {
    let (mut word, mut is_qualified, mut quote) = (String::new(), false, None);
    for character in text.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => (quote, is_qualified) = (None, open == '"'),
            (Some(_), _) => {}
            (None, '"' | '\'') => {
                quote = Some(character);
                word.clear();
            }
            (None, '(') if !word.is_empty() && !is_qualified => {
                called.insert(std::mem::take(&mut word));
            }
            (None, '.') => {
                word.clear();
                is_qualified = true;
            }
            (None, _) if character.is_alphanumeric() || character == '_' || character == '$' => word.push(character),
            (None, _) => {
                word.clear();
                is_qualified = false;
            }
        }
    }
}

/// Whether the rows that come out at the top were counted.
fn is_limited(node: &Value) -> bool {
    match node["Node Type"].as_str() {
        Some("Limit") => true,
        Some("Result" | "Subquery Scan" | "LockRows") if node.get("Filter").is_none() => {
            let below = node["Plans"].as_array();
            below.is_some_and(|below| below.len() == 1 && is_limited(&below[0]))
        }
        _ => false,
    }
}

/// Names what would be read whole, however it is planned.
async fn check(
    client: &Client,
    place: &str,
    sql: &str,
    keys: usize,
    plan: &Value,
    documents: &Documents,
    outlook: &mut Outlook,
) -> Result<(), tokio_postgres::Error> {
    if large(client, plan, documents).await?.is_empty() {
        return Ok(());
    }
    // Of two tables one is hashed whole where little is known of the other; whether an index serves is seen without that.
    client.batch_execute("SET enable_hashjoin = off; SET enable_mergejoin = off").await?;
    let judged = match explain(client, place, sql, keys, outlook).await? {
        Some(plan) => large(client, &plan, documents).await?,
        None => vec![],
    };
    if !judged.is_empty() {
        let plan = lines(client, "COSTS OFF", sql, keys).await?;
        let shown = plan.iter().take(LINES_MAX).map(|line| format!("\n    {line}")).collect::<String>();
        let tables = judged.join(" and ");
        outlook.problems.push(format!(
            "{place}: reads all of {tables} for each change; make an index on what it is looked up by, or write it so that one \
             serves. Its plan, where an index is taken as soon as one serves:{shown}"
        ));
    }
    client.batch_execute("RESET enable_hashjoin; RESET enable_mergejoin").await
}

/// Tables that this plan reads whole and that are too large for that.
async fn large(client: &Client, plan: &Value, documents: &Documents) -> Result<Vec<String>, tokio_postgres::Error> {
    let mut whole = BTreeSet::new();
    visit(plan, &mut |node| {
        if let Some(table) = read_whole(node) {
            whole.insert(table);
        }
    });
    let main = name_of(&documents.main);
    let mut rows_of: BTreeMap<TableName, f64> = BTreeMap::new();
    for (schema, table) in whole {
        let (name, rows) = whole_of(client, &schema, &table).await?;
        *rows_of.entry(name).or_default() += rows;
    }
    let is_large = |(name, rows): &(TableName, f64)| *name == main || *rows > ROWS_MAX;
    Ok(rows_of.into_iter().filter(is_large).map(|(name, _)| name.to_string()).collect())
}

/// The table that this is a partition of, or itself, and how many rows it has by the planner's statistics.
async fn whole_of(client: &Client, schema: &str, table: &str) -> Result<(TableName, f64), tokio_postgres::Error> {
    // What was never analysed is judged by its size: rows of a hundred bytes.
    let sql = "SELECT rn.nspname::text, r.relname::text,
                      CASE WHEN c.relpages = 0 AND c.reltuples <= 0 THEN pg_relation_size(c.oid) / 100.0
                           ELSE c.reltuples END::float8
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid)
               JOIN pg_namespace rn ON rn.oid = r.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
    let found = client.query_opt(sql, &[&schema, &table]).await?;
    let itself = TableName { schema: schema.to_owned(), table: table.to_owned() };
    Ok(found.map_or((itself, 0.0), |row| (TableName { schema: row.get(0), table: row.get(1) }, row.get(2))))
}

/// The table that a node of a plan reads without a condition on an index.
fn read_whole(node: &Value) -> Option<(String, String)> {
    let is_whole = match node["Node Type"].as_str()? {
        "Seq Scan" | "Sample Scan" => true,
        "Index Scan" | "Index Only Scan" => node.get("Index Cond").is_none(),
        _ => false,
    };
    let text = |key: &str| node[key].as_str().map(str::to_owned);
    is_whole.then(|| Some((text("Schema")?, text("Relation Name")?))).flatten()
}

/// The tables that a plan reads, with their schemas.
fn tables(plan: &Value) -> Vec<(String, String)> {
    let mut found = BTreeSet::new();
    visit(plan, &mut |node| {
        if let (Some(schema), Some(table)) = (node["Schema"].as_str(), node["Relation Name"].as_str()) {
            found.insert((schema.to_owned(), table.to_owned()));
        }
    });
    found.into_iter().collect()
}

fn visit(plan: &Value, to: &mut impl FnMut(&Value)) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| visit(part, to)),
        Value::Object(node) => {
            if node.contains_key("Node Type") {
                to(plan);
            }
            node.values().filter(|value| value.is_array() || value.is_object()).for_each(|value| visit(value, to));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn calls_are_found_in_expressions_and_not_in_texts() {
        let mut found = BTreeSet::new();
        calls(
            r#"((t.body || 'now(it''s)') || (random())::text) "odd(" x.own(1) nextval('s'::regclass), "a"(1)"#,
            &mut found,
        );
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["nextval", "random"]);
    }

    #[test]
    fn a_scan_without_a_condition_reads_all_wherever_it_stands_in_a_plan() {
        let plan = json!([{"Plan": {"Node Type": "Hash Join", "Plans": [
            {"Node Type": "Seq Scan", "Schema": "a", "Relation Name": "b", "Filter": "(id = ANY ($1))"},
            {"Node Type": "Hash", "Plans": [
                {"Node Type": "Index Scan", "Schema": "a", "Relation Name": "c"},
                {"Node Type": "Index Only Scan", "Schema": "a", "Relation Name": "d", "Index Cond": "(id = 1)"}]}]}}]);
        let mut whole = vec![];
        visit(&plan, &mut |node| whole.extend(read_whole(node)));
        assert_eq!(whole, [("a".into(), "b".into()), ("a".into(), "c".into())]);
        assert_eq!(tables(&plan), [("a".into(), "b".into()), ("a".into(), "c".into()), ("a".into(), "d".into())]);
    }
}
