//! Looks at the source as a start of capture would, and changes nothing.

use tokio_postgres::Client;

use super::catalog::{self, CatalogError, Column, Table, sql_name};
use super::connection::ReplicationConnection;
use super::publication::{self, Publication};
use super::{ColumnCheck, slot, sql};
use crate::config::{Database, Source};
use crate::retry::Chain;

/// The slot that is kept, and the one that a snapshot has while it is taken.
const SLOTS_WANTED: i64 = 2;
const SLOTS: &str = "SELECT current_setting('max_replication_slots')::bigint, count(*) FROM pg_replication_slots";

/// Looks at connection, table, columns, publication, slot and the right to stream, in this order; what cannot be looked at
/// because of a fault before it is left out. `tell` gets each as it is found: what, and how it is, or what is wrong with it
/// and what mends that.
pub async fn check(
    database: &Database,
    source: &Source,
    check_columns: &ColumnCheck,
    mut tell: impl FnMut(&'static str, Result<String, String>),
) {
    let sql = match sql::connect(database).await {
        Ok(sql) => sql,
        Err(error) => return tell("database", Err(Chain(&error).to_string())),
    };
    tell("database", version(&sql).await);
    match catalog::load(&sql, &source.schema, &source.table).await {
        Ok(table) => {
            let published = publication::look(&sql, &table, &source.publication).await;
            let known = published.as_ref().ok().and_then(Option::as_ref);
            let problems = columns(check_columns, &table, known, &source.publication);
            tell("table", if problems.is_empty() { Ok(described(&table)) } else { Err(problems.join("; ")) });
            tell("publication", said_of(&sql, &table, &source.publication, published).await);
        }
        Err(error) => tell("table", Err(Chain(&error).to_string())),
    }
    tell("slot", slot_of(&sql, &source.slot).await);
    tell("replication", streams(database).await);
}

async fn version(sql: &Client) -> Result<String, String> {
    let row = sql.query_one("SELECT current_setting('server_version'), current_database()::text", &[]).await;
    let row = row.map_err(|error| Chain(&error).to_string())?;
    Ok(format!("PostgreSQL {}, database {}", row.get::<_, String>(0), row.get::<_, String>(1)))
}

/// What is wrong with a pipeline that finds these columns, and of a publication those that it sends.
pub(super) fn columns(
    check: &ColumnCheck,
    table: &Table,
    publication: Option<&Publication>,
    name: &str,
) -> Vec<String> {
    let list = publication.and_then(|publication| publication.columns.as_ref());
    let sends = |name| list.is_some_and(|list| list.contains(name));
    let (sent, unsent): (Vec<_>, Vec<_>) =
        table.columns.iter().partition(|column| !column.generated || sends(&column.name));
    let mut problems = check(&names(&sent));
    let generated = unsent.iter().filter(|column| {
        let with = [names(&sent), vec![column.name.as_str()]].concat();
        check(&with).len() < problems.len()
    });
    let generated: Vec<String> = generated.map(|column| sql_name(&column.name)).collect();
    if let (true, Some(publication), Some(list)) = (problems.is_empty(), publication, list) {
        problems.extend(left_out(check, table, publication, list, name));
    }
    if !generated.is_empty() {
        problems.push(format!(
            "{} is generated, and publication {name} does not send it: PostgreSQL sends no virtual columns, and stored ones \
             from version 18 on, after ALTER PUBLICATION {} SET (publish_generated_columns = stored); a template of the \
             pipeline file can do the same as the expression",
            generated.join(" and "),
            sql_name(name)
        ));
    }
    problems
}

/// What the pipeline needs and a publication's column list leaves out, if anything.
fn left_out(
    check: &ColumnCheck,
    table: &Table,
    publication: &Publication,
    list: &[String],
    name: &str,
) -> Option<String> {
    let listed: Vec<&str> = list.iter().map(String::as_str).collect();
    let faults = check(&listed).len();
    if faults == 0 {
        return None;
    }
    let needed = |column: &&Column| check(&[&listed[..], &[column.name.as_str()]].concat()).len() < faults;
    let needed: Vec<String> = table.columns.iter().filter(needed).map(|column| column.name.clone()).collect();
    let remedy = publication::list_sql(name, table, list.iter().chain(&needed), publication.row_filter.as_deref());
    let needed: Vec<String> = needed.iter().map(|column| sql_name(column)).collect();
    Some(format!(
        "publication {name}: its column list leaves out {}, which the pipeline file uses; run {remedy}",
        needed.join(" and ")
    ))
}

fn names<'a>(columns: &[&'a Column]) -> Vec<&'a str> {
    columns.iter().map(|column| column.name.as_str()).collect()
}

fn described(table: &Table) -> String {
    let identity = match table.replica_identity {
        'f' => "FULL",
        'i' => "USING INDEX",
        _ => "DEFAULT",
    };
    let (schema, name, key, rows) = (&table.schema, &table.name, table.key.join(", "), table.estimated_rows);
    format!("{schema}.{name}, key {key}, replica identity {identity}, about {rows} rows")
}

async fn said_of(
    sql: &Client,
    table: &Table,
    name: &str,
    published: Result<Option<Publication>, CatalogError>,
) -> Result<String, String> {
    match published {
        Ok(Some(publication)) => {
            let columns = match &publication.columns {
                Some(columns) => format!("columns {}", columns.join(", ")),
                None => "all columns".to_owned(),
            };
            let rows = publication.row_filter.map_or("all rows".to_owned(), |filter| format!("rows where {filter}"));
            Ok(format!("{name}: {columns}, {rows}"))
        }
        Ok(None) => match publication::may_create(sql, table).await {
            Ok(true) => Ok(format!("there is no {name} yet; capture makes it when it starts")),
            Ok(false) => Err(Chain(&publication::absent(table, name, false)).to_string()),
            Err(error) => Err(Chain(&error).to_string()),
        },
        Err(error) => Err(Chain(&error).to_string()),
    }
}

async fn slot_of(sql: &Client, name: &str) -> Result<String, String> {
    let found = slot::slot(sql, name).await.map_err(|error| Chain(&error).to_string())?;
    let Some(slot) = found else {
        let row = sql.query_one(SLOTS, &[]).await.map_err(|error| Chain(&error).to_string())?;
        let (limit, taken) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        return match limit - taken {
            ..SLOTS_WANTED => Err(format!(
                "there is no {name} yet, and {taken} of {limit} slots are taken: the first load needs {SLOTS_WANTED}; drop \
                 one that nobody reads (SELECT slot_name FROM pg_replication_slots WHERE NOT active; SELECT \
                 pg_drop_replication_slot('…')), or raise max_replication_slots and restart PostgreSQL"
            )),
            _ => Ok(format!("there is no {name} yet; capture makes it when it starts")),
        };
    };
    if slot.plugin != "pgoutput" {
        return Err(format!(
            "{name} is not for pgoutput but for {}; set source.slot of the pipeline file to another name",
            if slot.plugin.is_empty() { "physical replication" } else { &slot.plugin }
        ));
    }
    if slot.wal_status.as_deref() == Some("lost") {
        return Err(format!(
            "{name} has lost WAL that it needs; run `vecsync sync`, which makes another and reads the table"
        ));
    }
    let user = slot
        .active_pid
        .map_or("nobody streams from it".to_owned(), |pid| format!("server process {pid} streams from it"));
    Ok(format!("{name}: {user}, it keeps {:.1} MB of WAL", slot.retained_bytes as f64 / 1e6))
}

/// Whether this role may stream. Takes one connection of the walsenders for a moment.
async fn streams(database: &Database) -> Result<String, String> {
    let mut connection = ReplicationConnection::connect(database).await.map_err(|error| Chain(&error).to_string())?;
    let identity = connection.identify_system().await.map_err(|error| Chain(&error).to_string())?;
    Ok(format!("the role may stream; system {}, timeline {}", identity.system_id, identity.timeline))
}
