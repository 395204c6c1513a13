//! What a document is where the pipeline says it by a query: looks at the query, at what is watched and at `affects` against
//! the database, and says all that is wrong with them. Follows nothing; `reader` reads documents by key.

pub mod plan;
pub mod reader;
pub mod trial;

use std::collections::BTreeSet;

use tokio_postgres::Client;
use tokio_postgres::error::{ErrorPosition, SqlState};
use tokio_postgres::types::{Kind, Type};

use super::catalog::{self, CatalogError, Column, Table, TableName, sql_name};
use super::connection::quote_name;
use super::fault::is_transient_sql;
use super::publication::name_of;
use crate::config::{Query, Source, Watch};
use crate::retry::Chain;

pub use reader::{Document, KeyText, Reader};

/// The place of the query in a pipeline file.
pub const QUERY: &str = "source.query";

/// A pipeline's documents, as the database has them now.
#[derive(Clone, Debug, PartialEq)]
pub struct Documents {
    /// The table whose keys are the documents' keys.
    pub main: Table,
    /// A document's columns, in the order of the query.
    pub columns: Vec<Column>,
    /// Where among them those of the key are, in the order of the key.
    pub key_at: Vec<usize>,
    /// The query.
    pub sql: String,
    /// The types of the key's columns in the documents' table.
    pub key_types: Vec<String>,
    /// What else documents are made of.
    pub watched: Vec<Watched>,
}

/// A table that is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// The table. Its key is what `affects` is given, which need not be its primary key.
    pub table: Table,
    /// Gives the documents' keys.
    pub affects: String,
    /// Gives those of them that the documents' table has, as that spells them: 1.0 and 1 are one number.
    pub keys: String,
}

impl Documents {
    /// The names of a document's columns.
    pub fn names(&self) -> Vec<&str> {
        self.columns.iter().map(|column| column.name.as_str()).collect()
    }

    /// The tables that are followed, each once: the documents' own first.
    pub fn tables(&self) -> Vec<&Table> {
        let mut seen = BTreeSet::new();
        let all = std::iter::once(&self.main).chain(self.watched.iter().map(|watched| &watched.table));
        all.filter(|table| seen.insert(table.oid)).collect()
    }

    /// The query, and behind its columns the key as the documents' table spells it, where that has it.
    pub fn document_sql(&self) -> String {
        self.beside("document.*")
    }

    /// The same of the key's columns alone.
    pub fn key_sql(&self) -> String {
        self.beside(&self.key_given().join(", "))
    }

    fn beside(&self, what: &str) -> String {
        let own = own_key(&self.main, &self.key_types, &self.key_given());
        // A comment at the query's end ends with its line.
        format!("SELECT {what}, own.* FROM ({}\n) AS document LEFT JOIN LATERAL {own} ON true", self.sql)
    }

    fn key_given(&self) -> Vec<String> {
        self.main.key.iter().map(|name| format!("document.{}", quote_name(name))).collect()
    }

    /// All that is followed, a table as often as it is named.
    pub fn followed(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.main).chain(self.watched.iter().map(|watched| &watched.table))
    }
}

/// Problems in one line. Some end with SQL.
pub fn in_one(problems: &[String]) -> String {
    problems.iter().map(|what| what.trim_end_matches(';')).collect::<Vec<_>>().join("; ")
}

/// Where the nth watch stands in a pipeline file, with one of its keys.
pub fn place(number: usize, key: &str) -> String {
    format!("source.watch[{number}].{key}")
}

/// Looks a key up in the documents' table, whose own spelling it gets. `given` are the expressions that it is equal to, whatever
/// their types; a fence keeps it from being planned as anything but a look-up.
fn own_key(main: &Table, types: &[String], given: &[String]) -> String {
    let key: Vec<String> = main.key.iter().map(|name| quote_name(name)).collect();
    let named: Vec<String> = key.iter().enumerate().map(|(n, name)| format!("t.{name} AS k{n}")).collect();
    let is = |((name, kind), given): ((&String, &String), &String)| format!("t.{name} = ({given})::{kind}");
    let equal: Vec<String> = key.iter().zip(types).zip(given).map(is).collect();
    let (named, equal) = (named.join(", "), equal.join(" AND "));
    format!("(SELECT {named} FROM {} AS t WHERE {equal} OFFSET 0) AS own", main.source())
}

/// Names and types of a key's columns.
async fn key_types(client: &Client, main: &Table) -> Result<Vec<String>, CatalogError> {
    // Without a length: what is too long for the column is no key of it. A domain is its type.
    let sql = "SELECT format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, -1)
               FROM unnest($2::text[]) WITH ORDINALITY AS k (name, number)
               JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = k.name JOIN pg_type t ON t.oid = a.atttypid
               ORDER BY k.number";
    let rows = client.query(sql, &[&main.oid, &main.key]).await;
    let rows = rows.map_err(|source| CatalogError::query("read the types of the key", source))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a statement takes and gives.
struct Described {
    parameters: Vec<Type>,
    columns: Vec<(String, Type)>,
}

/// Looks at all of it. Everything that is wrong is told at once, each with its place in the pipeline file; then there are no
/// documents. The error is that the database could not be asked.
pub async fn look(
    client: &Client,
    source: &Source,
    query: &Query,
) -> Result<(Option<Documents>, Vec<String>), CatalogError> {
    let mut problems = vec![];
    let mut tables = Tables { client, problems: &mut problems };
    let main = tables.main(source).await?;
    let mut watched = vec![];
    for (number, watch) in query.watch.iter().enumerate() {
        watched.push(tables.watched(number, watch).await?);
    }
    let document = describe(client, QUERY, &query.sql, main.as_ref(), &mut problems).await?;
    let mut affects = vec![];
    for (number, watch) in query.watch.iter().enumerate() {
        let table = watched.get(number).and_then(Option::as_ref);
        affects.push(describe(client, &place(number, "affects"), &watch.affects, table, &mut problems).await?);
    }
    let Some(main) = main else { return Ok((None, problems)) };
    let columns = match &document {
        Some(described) => columns_of(client, described).await?,
        None => vec![],
    };
    let mut key_at = vec![];
    if let Some(described) = &document {
        check_parameters(QUERY, &described.parameters, &main.key, &name_of(&main), &mut problems);
        key_at = find_key(&main, &columns, described, &mut problems);
    }
    let types = key_types(client, &main).await?;
    let mut complete = vec![];
    for (number, (described, watch)) in affects.into_iter().zip(&query.watch).enumerate() {
        let table = watched.get_mut(number).and_then(Option::take);
        let Some(described) = described else { continue };
        let path = place(number, "affects");
        if let Some(table) = &table {
            check_parameters(&path, &described.parameters, &table.key, &name_of(table), &mut problems);
        }
        let given = columns_of(client, &described).await?;
        let at = find_affected(&path, &main, &given, &described, &mut problems);
        if let (Some(table), Some(at)) = (table, at) {
            let affects = watch.affects.clone();
            let names: Vec<String> = (0..at.len()).map(|place| format!("g{place}")).collect();
            let given: Vec<String> = at.iter().map(|place| format!("given.g{place}")).collect();
            let own = own_key(&main, &types, &given);
            // A comment at its end ends with its line.
            let keys = format!("SELECT own.* FROM ({affects}\n) AS given ({}), LATERAL {own}", names.join(", "));
            complete.push(Watched { table, affects, keys });
        }
    }
    if !problems.is_empty() {
        return Ok((None, problems));
    }
    let sql = query.sql.clone();
    Ok((Some(Documents { main, columns, key_at, sql, key_types: types, watched: complete }), problems))
}

/// Looks at the tables, and collects what is wrong with them.
struct Tables<'a> {
    client: &'a Client,
    problems: &'a mut Vec<String>,
}

impl Tables<'_> {
    async fn main(&mut self, source: &Source) -> Result<Option<Table>, CatalogError> {
        let loaded = catalog::load(self.client, &source.schema, &source.table).await;
        // Which columns may be read, the query's own trial tells.
        Ok(self.noted("source.table", loaded)?.map(|table| Table { whole: true, ..table }))
    }

    async fn watched(&mut self, number: usize, watch: &Watch) -> Result<Option<Table>, CatalogError> {
        let loaded = load_watched(self.client, number, watch).await;
        self.noted(&place(number, "table"), loaded)
    }

    fn noted<T>(&mut self, place: &str, loaded: Result<T, CatalogError>) -> Result<Option<T>, CatalogError> {
        match loaded {
            Ok(loaded) => Ok(Some(loaded)),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.problems.push(format!("{place}: {}", Chain(&error)));
                Ok(None)
            }
        }
    }
}

/// Reads a table that is watched: the columns that `affects` is given are in its replica identity.
async fn load_watched(client: &Client, number: usize, watch: &Watch) -> Result<Table, CatalogError> {
    let name = TableName { schema: watch.schema.clone(), table: watch.table.clone() };
    let Some(found) = catalog::find(client, &watch.schema, &watch.table).await? else {
        return Err(catalog::missing(client, &watch.schema, &watch.table).await?);
    };
    let (oid, kind) = (found.get::<_, u32>("oid"), catalog::char_of(&found, "kind"));
    if !matches!(kind, 'r' | 'p') {
        return Err(CatalogError::NotATable { name, kind: catalog::kind_name(kind) });
    }
    if catalog::char_of(&found, "persistence") != 'p' {
        return Err(CatalogError::NotLogged { name });
    }
    let columns = catalog::columns(client, oid).await?;
    let keys = catalog::keys(client, oid).await?;
    let key = match (&watch.keys, keys.primary) {
        (Some(named), _) => named.clone(),
        (None, Some(primary)) => primary,
        (None, None) => return Err(CatalogError::NoKey { name }),
    };
    let known = |wanted: &&String| !columns.iter().any(|column| column.name == **wanted);
    if let Some(column) = key.iter().find(known) {
        let known = columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(CatalogError::NoColumn { name, named: format!("{} names {column}", place(number, "keys")), known });
    }
    check_identity(client, oid, &name, number, &key).await?;
    Ok(Table {
        oid,
        schema: name.schema,
        name: name.table,
        kind,
        columns,
        key,
        replica_identity: catalog::char_of(&found, "identity"),
        estimated_rows: None,
        whole: true,
        pages: 0,
    })
}

/// Old rows carry what the replica identity names, of a partitioned table that of the partition they are in.
async fn check_identity(
    client: &Client,
    oid: u32,
    name: &TableName,
    number: usize,
    key: &[String],
) -> Result<(), CatalogError> {
    // What an update or a delete carries of the old row; of FULL all. A suitable unique index mends it at less cost than FULL.
    let sql = "
        SELECT c.relname::text AS name, n.nspname::text AS schema, c.relreplident::text AS identity,
               ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
                         AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                     WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                         WHEN 'i' THEN i.indisreplident ELSE false END) AS columns,
               (SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indisvalid
                  AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) k LEFT JOIN pg_attribute a
                                  ON a.attrelid = i.indrelid AND a.attnum = k WHERE a.attnotnull IS NOT TRUE)
                  AND $2::text[] <@ ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid
                      AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                ORDER BY i.indisprimary DESC, i.indnkeyatts, 1 LIMIT 1) AS suitable
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND (c.oid = $1 OR c.oid IN (SELECT relid FROM pg_partition_tree($1::oid::regclass)))
        ORDER BY 1";
    let rows = client.query(sql, &[&oid, &key]).await;
    for row in rows.map_err(|source| CatalogError::query(format!("read the replica identity of {name}"), source))? {
        let carried: Vec<String> = row.get("columns");
        let lacking: Vec<String> = key.iter().filter(|column| !carried.contains(column)).map(|c| sql_name(c)).collect();
        if catalog::char_of(&row, "identity") == 'f' || lacking.is_empty() {
            continue;
        }
        let of = TableName { schema: row.get("schema"), table: row.get("name") };
        let remedy = match row.get::<_, Option<String>>("suitable") {
            Some(index) => format!("ALTER TABLE {of} REPLICA IDENTITY USING INDEX {};", sql_name(&index)),
            None => format!("ALTER TABLE {of} REPLICA IDENTITY FULL;"),
        };
        let lacking = format!("{} of {}", lacking.join(" and "), place(number, "keys"));
        return Err(CatalogError::IdentityWithoutColumns { name: of, lacking, remedy });
    }
    Ok(())
}

/// Has the server read a statement, and take it for one alone.
async fn describe(
    client: &Client,
    place: &str,
    sql: &str,
    given: Option<&Table>,
    problems: &mut Vec<String>,
) -> Result<Option<Described>, CatalogError> {
    match client.prepare(sql).await {
        Ok(statement) => {
            let column = |column: &tokio_postgres::Column| (column.name().to_owned(), column.type_().clone());
            let columns: Vec<_> = statement.columns().iter().map(column).collect();
            if columns.is_empty() {
                problems.push(format!("{place}: gives no rows; wanted a SELECT"));
                return Ok(None);
            }
            Ok(Some(Described { parameters: statement.params().to_vec(), columns }))
        }
        Err(error) if error.as_db_error().is_none() || is_transient_sql(&error) => {
            Err(CatalogError::query(format!("prepare {place}"), error))
        }
        Err(error) => {
            let mended = match error.code() {
                Some(code) if [SqlState::AMBIGUOUS_FUNCTION, SqlState::INDETERMINATE_DATATYPE].contains(code) => {
                    typed(client, given).await?
                }
                Some(_) | None => granted(client, &error)
                    .await
                    .map_err(|source| CatalogError::query("look for what may not be read", source))?,
            };
            problems.push(format!("{place}: {}{mended}", said(&error, sql)));
            Ok(None)
        }
    }
}

/// How a parameter is written whose type the server cannot tell.
async fn typed(client: &Client, given: Option<&Table>) -> Result<String, CatalogError> {
    let types = match given {
        Some(table) => key_types(client, table).await?,
        None => vec![],
    };
    let typed: Vec<String> = (1..).zip(types).map(|(number, kind)| format!("${number}::{kind}[]")).collect();
    Ok(match typed.is_empty() {
        true => String::new(),
        false => format!("; write which type it is given: {}", typed.join(", ")),
    })
}

/// The SQL that gives a right that lacks, where what it is for can be known: the server names it, without its schema.
pub(super) async fn granted(client: &Client, error: &tokio_postgres::Error) -> Result<String, tokio_postgres::Error> {
    // Names stand at the end of what it says. The longest that fits; of several tables the one that is meant without a schema.
    let sql = "SELECT sql, visible, length(name) AS long FROM (
            SELECT c.relname::text AS name, pg_table_is_visible(c.oid) AS visible,
                   format('GRANT SELECT ON %I.%I TO %I;', n.nspname, c.relname, current_user) AS sql
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT has_table_privilege(c.oid, 'SELECT')
            UNION ALL
            SELECT n.nspname::text, true, format('GRANT USAGE ON SCHEMA %I TO %I;', n.nspname, current_user)
            FROM pg_namespace n WHERE NOT has_schema_privilege(n.oid, 'USAGE')) lacking
        WHERE right(rtrim($1, '\".»”'), length(name)) = name ORDER BY length(name) DESC, visible DESC LIMIT 2";
    let Some(server) = error.as_db_error().filter(|server| *server.code() == SqlState::INSUFFICIENT_PRIVILEGE) else {
        return Ok(String::new());
    };
    let rows = client.query(sql, &[&server.message()]).await?;
    let of = |row: &tokio_postgres::Row| (row.get::<_, bool>("visible"), row.get::<_, i32>("long"));
    Ok(match rows.as_slice() {
        // Which one is meant is not known.
        [first, second] if of(first) == of(second) => String::new(),
        [first, ..] => format!("; run {}", first.get::<_, String>("sql")),
        [] => String::new(),
    })
}

/// What the server says of a statement, and where in it.
fn said(error: &tokio_postgres::Error, sql: &str) -> String {
    let text = catalog::server_text(error);
    let position = error.as_db_error().and_then(|server| server.position());
    let Some(ErrorPosition::Original(place)) = position else { return text };
    let before: String = sql.chars().take((*place as usize).saturating_sub(1)).collect();
    let (line, column) =
        (1 + before.matches('\n').count(), 1 + before.rsplit('\n').next().unwrap_or("").chars().count());
    format!("{text}, in its line {line} at character {column}")
}

/// An array for each column of the key, and no more.
fn check_parameters(place: &str, found: &[Type], key: &[String], of: &TableName, problems: &mut Vec<String>) {
    let wanted = match key {
        [one] => format!("$1, an array of {one} of {of}"),
        several => format!("$1 to ${}, an array each for {} of {of}", several.len(), several.join(", ")),
    };
    if found.len() != key.len() {
        problems.push(format!("{place}: has {} parameters, wanted {wanted}", found.len()));
    }
    for (number, kind) in (1..).zip(found) {
        if !matches!(kind.kind(), Kind::Array(_)) {
            let hint = "as in = ANY($1), or say its type, as in unnest($1::bigint[])";
            problems.push(format!("{place}: ${number} is of type {kind}, wanted an array ({hint})"));
        }
    }
}

async fn columns_of(client: &Client, described: &Described) -> Result<Vec<Column>, CatalogError> {
    let oids: Vec<u32> = described.columns.iter().map(|(_, kind)| kind.oid()).collect();
    let kinds = catalog::kinds(client, &oids).await?;
    let column = |((name, of), kind): (&(String, Type), _)| Column {
        name: name.clone(),
        kind,
        not_null: false,
        generated: false,
        form: of.oid().to_string(),
    };
    Ok(described.columns.iter().zip(kinds).map(column).collect())
}

/// Where the query's output has the key.
fn find_key(main: &Table, columns: &[Column], described: &Described, problems: &mut Vec<String>) -> Vec<usize> {
    let mut names = BTreeSet::new();
    for (name, _) in described.columns.iter().filter(|(name, _)| !names.insert(name)) {
        problems.push(format!("{QUERY}: gives two columns {}; name one of them otherwise with AS", sql_name(name)));
    }
    let mut at = vec![];
    for name in &main.key {
        match columns.iter().position(|column| column.name == *name) {
            None => problems.push(format!(
                "{QUERY}: does not give {}, the key of {}; it gives {}",
                sql_name(name),
                name_of(main),
                names_of(columns)
            )),
            Some(place) => {
                check_kind(QUERY, main, name, &columns[place], &described.columns[place].1, problems);
                at.push(place);
            }
        }
    }
    at
}

/// Where the output of an `affects` has the documents' key: one column is it, of several each has its name.
fn find_affected(
    place: &str,
    main: &Table,
    given: &[Column],
    described: &Described,
    problems: &mut Vec<String>,
) -> Option<Vec<usize>> {
    let by_name: Vec<usize> =
        main.key.iter().filter_map(|name| given.iter().position(|column| column.name == *name)).collect();
    let at = match given.len() {
        1 if main.key.len() == 1 => vec![0],
        found if found == main.key.len() && by_name.len() == found => by_name,
        _ => {
            let (key, of) = (main.key.join(", "), name_of(main));
            problems.push(format!("{place}: gives {}, wanted the key of {of}: {key}", names_of(given)));
            return None;
        }
    };
    for (name, place_of) in main.key.iter().zip(&at) {
        check_kind(place, main, name, &given[*place_of], &described.columns[*place_of].1, problems);
    }
    Some(at)
}

/// A key is the same text wherever it comes from.
fn check_kind(place: &str, main: &Table, name: &str, given: &Column, as_type: &Type, problems: &mut Vec<String>) {
    let own = main.columns.iter().find(|column| column.name == *name);
    if own.is_some_and(|own| own.kind != given.kind) {
        let (column, of) = (sql_name(&given.name), name_of(main));
        problems.push(format!(
            "{place}: gives {column} as {as_type}, which is not how {} of {of} is written",
            sql_name(name)
        ));
    }
}

fn names_of(columns: &[Column]) -> String {
    columns.iter().map(|column| sql_name(&column.name)).collect::<Vec<_>>().join(", ")
}

/// The texts of a row of keys, as far as there are any.
pub(super) fn texts(row: &tokio_postgres::SimpleQueryRow, at: &[usize]) -> KeyText {
    at.iter().map(|place| row.get(*place).map(str::to_owned)).collect()
}
