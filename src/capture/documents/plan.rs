//! What the server would do for the pipeline's queries, asked before it does: tables that would be read whole, and tables that are
//! read and not watched. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_literal;
use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::reader::arrays;
use super::{Documents, KeyText, QUERY, place};
use crate::capture::catalog::TableName;
use crate::capture::publication::name_of;

/// A table of so many rows may be read whole.
const ROWS_MAX: f64 = 10_000.0;
/// Lines of a plan that are told.
const LINES_MAX: usize = 30;

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
        check(client, QUERY, &documents.sql, main.key.len(), &plan, documents, &mut outlook).await?;
    }
    for (number, watched) in documents.watched.iter().enumerate() {
        let (place, keys) = (place(number, "affects"), watched.table.key.len());
        if let Some(plan) = explain(client, &place, &watched.affects, keys, &mut outlook).await? {
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
            outlook.problems.push(format!("{place}: {}", crate::capture::catalog::server_text(&error)));
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

/// Names what would be read whole.
async fn check(
    client: &Client,
    place: &str,
    sql: &str,
    keys: usize,
    plan: &Value,
    documents: &Documents,
    outlook: &mut Outlook,
) -> Result<(), tokio_postgres::Error> {
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
    let large: Vec<String> = rows_of.into_iter().filter(is_large).map(|(name, _)| name.to_string()).collect();
    if !large.is_empty() {
        client.batch_execute("RESET enable_seqscan").await?;
        let plan = lines(client, "COSTS OFF", sql, keys).await?;
        client.batch_execute("SET enable_seqscan = off").await?;
        let shown = plan.iter().take(LINES_MAX).map(|line| format!("\n    {line}")).collect::<String>();
        let tables = large.join(" and ");
        outlook.problems.push(format!(
            "{place}: reads all of {tables} for each change; make an index on what it is looked up by, or write it so that one \
             serves. Its plan:{shown}"
        ));
    }
    Ok(())
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
