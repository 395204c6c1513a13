//! Looks at the source as a start of capture would, and changes nothing.

use tokio_postgres::Client;

use super::catalog::{self, CatalogError, Column, Table, sql_name};
use super::connection::ReplicationConnection;
use super::documents::{self, Documents, QUERY, in_one, plan, trial};
use super::progress::{self, Server, SlotFacts, Start};
use super::publication::{self, Absent, Publication, name_of};
use super::{CaptureError, ColumnCheck, slot, sql};
use crate::config::{Database, Query, Source};
use crate::retry::Chain;
use crate::topic::CaptureState;

/// The slot that is kept, and the one that a snapshot has while it is taken.
const SLOTS_WANTED: i64 = 2;
const SLOTS: &str = "SELECT current_setting('max_replication_slots')::bigint, count(*) FROM pg_replication_slots";

/// Looks at connection, table, columns, publication, slot and the right to stream, in this order; what cannot be looked at
/// because of a fault before it is left out. `tell` gets each as it is found: what, and how it is, or what is wrong with it
/// and what mends that. `record` is what the log says of an earlier capture, where that is known and nobody captures now.
pub async fn check(
    database: &Database,
    source: &Source,
    check_columns: &ColumnCheck,
    record: Option<&CaptureState>,
    mut tell: impl FnMut(&'static str, Result<String, String>),
) {
    let sql = match sql::connect(database).await {
        Ok(sql) => sql,
        Err(error) => return tell("database", Err(Chain(&error).to_string())),
    };
    tell("database", version(&sql).await);
    match &source.query {
        Some(query) => check_documents(database, source, query, check_columns, &mut tell).await,
        None => check_table(&sql, source, check_columns, &mut tell).await,
    }
    let identified = identify(database).await;
    let slot = match refused(&sql, &source.slot, record, identified.as_ref().ok()).await {
        Some(refusal) => Err(refusal),
        None => slot_of(&sql, &source.slot).await,
    };
    tell("slot", slot);
    let said =
        |server: Server| format!("the role may stream; system {}, timeline {}", server.system_id, server.timeline);
    tell("replication", identified.map(said));
}

/// Why a start of capture would refuse to go on from where the log stands; `None`: it would not, or that is not known.
async fn refused(sql: &Client, name: &str, record: Option<&CaptureState>, server: Option<&Server>) -> Option<String> {
    let (record, server) = (record?, server?);
    let facts = slot::slot(sql, name).await.ok()?.map(SlotFacts::from);
    match progress::decide(Some(record), *server, name, facts.as_ref()) {
        Start::Refuse(refusal) => Some(format!("{refusal}{}", refusal.remedy())),
        Start::Stream(_) | Start::CreateSlot | Start::ReplaceSlot | Start::Standby { .. } => None,
    }
}

async fn check_table(
    sql: &Client,
    source: &Source,
    check_columns: &ColumnCheck,
    tell: &mut impl FnMut(&'static str, Result<String, String>),
) {
    match catalog::load(sql, &source.schema, &source.table).await {
        Ok(table) => {
            let published = publication::look(sql, &table, &source.publication).await;
            let known = published.as_ref().ok().and_then(Option::as_ref);
            let problems = columns(check_columns, &table, known, &source.publication);
            tell("table", if problems.is_empty() { Ok(described(&table)) } else { Err(problems.join("; ")) });
            tell("publication", said_of(sql, &table, &source.publication, published).await);
        }
        Err(error) => tell("table", Err(Chain(&error).to_string())),
    }
}

async fn check_documents(
    database: &Database,
    source: &Source,
    query: &Query,
    check_columns: &ColumnCheck,
    tell: &mut impl FnMut(&'static str, Result<String, String>),
) {
    match queries(database, source, query, check_columns).await {
        Ok(Queries { documents, problems, publication, unwatched }) => {
            if let Some(documents) = &documents {
                tell("table", Ok(described(&documents.main)));
            }
            let said = documents.map(|documents| said_of_documents(&documents, &unwatched)).unwrap_or_default();
            tell("documents", if problems.is_empty() { Ok(said) } else { Err(in_one(&problems)) });
            if !publication.is_empty() {
                let faults: Vec<String> = publication.iter().filter_map(|said| said.clone().err()).collect();
                let said: Vec<String> = publication.into_iter().filter_map(Result::ok).collect();
                tell("publication", if faults.is_empty() { Ok(said.join("; ")) } else { Err(in_one(&faults)) });
            }
        }
        Err(error) => tell("documents", Err(Chain(&error).to_string())),
    }
}

/// What was found out about a pipeline's queries.
#[derive(Debug)]
pub struct Queries {
    /// What its documents are; `None`: something is wrong with that.
    pub documents: Option<Documents>,
    /// Everything that is wrong, each with its place in the pipeline file.
    pub problems: Vec<String>,
    /// How the publication sends each table, or what is wrong with that.
    pub publication: Vec<Result<String, String>>,
    /// Tables that the query reads and nobody watches.
    pub unwatched: Vec<String>,
}

/// Tries a pipeline's queries against the database, and changes nothing. The error is that it could not be asked.
pub async fn queries(
    database: &Database,
    source: &Source,
    query: &Query,
    check_columns: &ColumnCheck,
) -> Result<Queries, CaptureError> {
    let sql = sql::connect(database).await?;
    let (documents, mut problems) = documents::look(&sql, source, query).await?;
    let Some(found) = &documents else {
        return Ok(Queries { documents, problems, publication: vec![], unwatched: vec![] });
    };
    problems.extend(check_columns(&found.names()));
    let publication = published_all(&sql, found, &source.publication).await?;
    let asked = sql::connect(database).await?;
    let outlook = match plan::look(&asked, found).await {
        Ok(outlook) => outlook,
        // Which of them it is, the plan itself would have told.
        Err(error) if error.as_db_error().is_some() => {
            let problems = vec![format!("{QUERY}: ask for its plan: {}", catalog::server_text(&error))];
            plan::Outlook { problems, unwatched: vec![] }
        }
        Err(source) => return Err(CatalogError::query("ask for the plans of the queries", source).into()),
    };
    if outlook.problems.is_empty() {
        problems.extend(trial::run(database, found).await?);
    }
    problems.extend(outlook.problems);
    Ok(Queries { documents, problems, publication, unwatched: outlook.unwatched })
}

/// How the publication sends each of the tables.
async fn published_all(
    sql: &Client,
    documents: &Documents,
    name: &str,
) -> Result<Vec<Result<String, String>>, CaptureError> {
    let all = documents.tables();
    let mut said = vec![];
    for table in documents.followed() {
        let of = name_of(table);
        said.push(match publication::look(sql, table, name).await {
            Ok(Some(published)) => match publication::refuse_filter(name, table, &published) {
                Ok(()) => Ok(format!("{name} sends {of}")),
                Err(error) => Err(Chain(&error).to_string()),
            },
            Ok(None) => {
                let absent = publication::absent(sql, &all, name).await;
                return match absent {
                    Absent::Fault(fault) if fault.is_transient() => Err(fault.into()),
                    absent => Ok(vec![to_be_made(absent, name)]),
                };
            }
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => Err(Chain(&error).to_string()),
        });
    }
    said.dedup();
    Ok(said)
}

/// Documents in a line.
pub fn said_of_documents(documents: &Documents, unwatched: &[String]) -> String {
    let mut said = format!("{} columns by source.query", documents.columns.len());
    let watched: Vec<String> = documents
        .watched
        .iter()
        .map(|one| format!("{} by {}", name_of(&one.table), one.table.key.join(", ")))
        .collect();
    if !watched.is_empty() {
        said.push_str(&format!(", watches {}", watched.join(", ")));
    }
    if !unwatched.is_empty() {
        let (all, verb) = (unwatched.join(" and "), if unwatched.len() == 1 { "is" } else { "are" });
        said.push_str(&format!("; {all} {verb} read and not watched: changes there alone reach no document"));
    }
    said
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
    let (schema, name, key) = (&table.schema, &table.name, table.key.join(", "));
    let rows = match table.estimated_rows {
        Some(rows) => format!("about {rows} rows"),
        None => "how many rows nobody has counted (ANALYZE would)".to_owned(),
    };
    format!("{schema}.{name}, key {key}, replica identity {identity}, {rows}")
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
        Ok(None) => to_be_made(publication::absent(sql, &[table], name).await, name),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

/// How it is that there is no such publication.
fn to_be_made(absent: Absent, name: &str) -> Result<String, String> {
    match absent {
        Absent::ToBeMade(_) => Ok(format!("there is no {name} yet; capture makes it when it starts")),
        Absent::Fault(fault) => Err(Chain(&fault).to_string()),
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

/// The server, if this role may stream from it. Takes one connection of the walsenders for a moment.
async fn identify(database: &Database) -> Result<Server, String> {
    let mut connection = ReplicationConnection::connect(database).await.map_err(|error| Chain(&error).to_string())?;
    let identity = connection.identify_system().await.map_err(|error| Chain(&error).to_string())?;
    Ok(Server { system_id: identity.system_id, timeline: identity.timeline, flushed: identity.flushed })
}
