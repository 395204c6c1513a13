//! Sees to it that the server publishes the table: checks `wal_level` and the publication, and makes the publication
//! where there is none. Changes no publication that is there.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::{CatalogError, Column, Table, TableName, sql_name};
use super::connection::quote_name;

/// What the publication sends of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// The columns of its column list, or those and the generated ones that it sends, in catalog order; `None`: all but
    /// generated ones.
    pub columns: Option<Vec<String>>,
    /// Its row filter, an SQL expression over the table's columns; `None`: all rows.
    pub row_filter: Option<String>,
}

impl Publication {
    /// The columns of the table that it sends, in catalog order.
    pub fn columns_of(&self, table: &Table) -> Vec<Column> {
        let published = |column: &&Column| match &self.columns {
            Some(names) => names.contains(&column.name),
            None => !column.generated,
        };
        table.columns.iter().filter(published).cloned().collect()
    }
}

/// Checks that changes of the table can be followed through this publication, which is created if there is none.
pub async fn preflight(client: &Client, table: &Table, publication: &str) -> Result<Publication, CatalogError> {
    preflight_beside(client, table, &[], publication).await
}

/// As `preflight`; one that is created has these other tables, too.
pub(super) async fn preflight_beside(
    client: &Client,
    table: &Table,
    others: &[&Table],
    publication: &str,
) -> Result<Publication, CatalogError> {
    let version = check_server(client).await?;
    let published = match read(client, table, publication, version).await? {
        Some(published) => published,
        None => {
            create(client, &[&[table], others].concat(), publication).await?;
            let published = read(client, table, publication, version).await?;
            published.ok_or_else(|| lacks(publication, "is gone again", "it again"))?
        }
    };
    let published = check(publication, table, published)?;
    check_rights(client, table, &published).await?;
    Ok(published)
}

/// As `preflight`, and makes nothing; `None`: there is no such publication.
pub async fn look(client: &Client, table: &Table, publication: &str) -> Result<Option<Publication>, CatalogError> {
    let version = check_server(client).await?;
    let published = read(client, table, publication, version).await?;
    let published = published.map(|published| check(publication, table, published)).transpose()?;
    if let Some(published) = &published {
        check_rights(client, table, published).await?;
    }
    Ok(published)
}

/// There is no publication of that name.
#[derive(Debug)]
pub enum Absent {
    /// A vecsync that captures as this role makes it; until then this is what is wrong.
    ToBeMade(CatalogError),
    /// Somebody has to make it first, or it cannot be found out who may.
    Fault(CatalogError),
}

impl Absent {
    /// What is wrong for who needs it now.
    pub fn into_fault(self) -> CatalogError {
        match self {
            Absent::ToBeMade(fault) | Absent::Fault(fault) => fault,
        }
    }
}

/// There is no such publication of these tables: whether this role may make it, being the owner of them all with CREATE on the
/// database, is what mends that.
pub async fn absent(client: &Client, tables: &[&Table], publication: &str) -> Absent {
    let sql = "SELECT coalesce(bool_and(pg_has_role(relowner, 'USAGE')), false)
                      AND has_database_privilege(current_database(), 'CREATE')
               FROM pg_class WHERE oid = ANY($1)";
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    match client.query_opt(sql, &[&oids]).await {
        Ok(Some(row)) if row.get(0) => {
            return Absent::ToBeMade(lacks(publication, "is not there", "a vecsync that captures: it makes it"));
        }
        Ok(_) => {}
        Err(source) => return Absent::Fault(CatalogError::query("read who owns the table", source)),
    }
    // What a query reads of several tables nobody knows here.
    let columns = match tables {
        [table] if !table.whole => match readable(client, table).await {
            Ok(columns) => columns,
            Err(fault) => return Absent::Fault(fault),
        },
        _ => vec![],
    };
    let owner = if tables.len() > 1 { "the tables' owner" } else { "the table's owner" };
    let remedy = format!("{} as {owner}, who needs CREATE on the database", create_sql(tables, publication, &columns));
    Absent::Fault(lacks(publication, "is not there", remedy))
}

/// The columns that the role may read.
async fn readable(client: &Client, table: &Table) -> Result<Vec<String>, CatalogError> {
    let sql = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
               AND has_column_privilege(attrelid, attnum, 'SELECT') ORDER BY attnum";
    let rows = client.query(sql, &[&table.oid]).await;
    let rows = rows.map_err(|source| CatalogError::query("read which columns may be read", source))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether the role may read every column that is published.
async fn check_rights(client: &Client, table: &Table, publication: &Publication) -> Result<(), CatalogError> {
    if table.whole {
        return Ok(());
    }
    let sql = "SELECT current_user::text, ARRAY(SELECT attname::text FROM pg_attribute
                   WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
                     AND NOT has_column_privilege(attrelid, attnum, 'SELECT') ORDER BY attnum)";
    let row = client.query_one(sql, &[&table.oid]).await;
    let row = row.map_err(|source| CatalogError::query("read the role's rights", source))?;
    let closed: Vec<String> = row.get(1);
    let columns = publication.columns_of(table).into_iter().map(|column| column.name);
    let columns: Vec<String> = columns.filter(|name| closed.contains(name)).map(|name| sql_name(&name)).collect();
    match columns.is_empty() {
        true => Ok(()),
        false => Err(CatalogError::ColumnsNotReadable {
            name: name_of(table),
            user: row.get(0),
            columns: columns.join(", "),
        }),
    }
}

/// Whether the server writes what logical decoding needs. Gives its version, as `server_version_num`.
async fn check_server(client: &Client) -> Result<i32, CatalogError> {
    let query = |source| CatalogError::query("read wal_level", source);
    let row = client.query_one("SELECT current_setting('wal_level'), current_setting('server_version_num')::int", &[]);
    let row = row.await.map_err(query)?;
    match row.get::<_, String>(0) {
        level if level == "logical" => Ok(row.get(1)),
        level => Err(CatalogError::WalLevel(level)),
    }
}

/// Names the publication as it is now for the table of this OID, for comparing: made anew, or with the table taken out and put in again, it is
/// another one, and changes between may not have been sent. Cheap enough for every second.
pub async fn identity(client: &Client, oid: u32, publication: &str) -> Result<String, CatalogError> {
    let sql = "SELECT concat_ws(' ', p.oid, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate,
                   p.pubviaroot, (SELECT r.oid FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = $2),
                   to_jsonb(p) ->> 'pubgencols')
               FROM pg_publication p WHERE p.pubname = $1";
    let row = client.query_opt(sql, &[&publication, &oid]).await;
    let row = row.map_err(|source| CatalogError::query(format!("read publication {publication}"), source))?;
    Ok(row.map_or_else(|| "none".to_owned(), |row| row.get(0)))
}

/// A publication as the catalog has it, seen from one table.
#[derive(Clone, Debug)]
struct Published {
    /// Kinds of change that it does not publish.
    unpublished: Vec<&'static str>,
    via_root: bool,
    has_table: bool,
    columns: Option<Vec<String>>,
    row_filter: Option<String>,
}

async fn read(
    client: &Client,
    table: &Table,
    publication: &str,
    version: i32,
) -> Result<Option<Published>, CatalogError> {
    // Column lists and row filters came with PostgreSQL 15. The view gives a column list even where none was set, so
    // whether one was is asked of the catalog; a publication of the whole schema or database has none in effect. From
    // PostgreSQL 18 on stored generated columns may be published, and then the view's list is the one that counts.
    let limits = match version >= 150_000 {
        true => {
            "t.rowfilter::text AS row_filter,
             CASE WHEN to_jsonb(p) ->> 'pubgencols' = 's' THEN t.attnames::text[] ELSE
             (SELECT t.attnames::text[] FROM pg_publication_rel r
              WHERE r.prpubid = p.oid AND r.prrelid = $2 AND r.prattrs IS NOT NULL AND NOT p.puballtables
                AND NOT EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_class c ON c.relnamespace = s.pnnspid
                                WHERE s.pnpubid = p.oid AND c.oid = $2)) END AS columns"
        }
        false => "NULL::text AS row_filter, NULL::text[] AS columns",
    };
    let sql = format!(
        "SELECT p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot AS via_root,
                t.tablename IS NOT NULL AS has_table, {limits}
         FROM pg_publication p LEFT JOIN pg_publication_tables t
             ON t.pubname = p.pubname AND (t.schemaname, t.tablename) =
                (SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.oid = $2)
         WHERE p.pubname = $1"
    );
    let row = client.query_opt(&sql, &[&publication, &table.oid]).await;
    let row = row.map_err(|source| CatalogError::query(format!("read publication {publication}"), source))?;
    let changes =
        [("insert", "pubinsert"), ("update", "pubupdate"), ("delete", "pubdelete"), ("truncate", "pubtruncate")];
    Ok(row.map(|row| Published {
        unpublished: changes.iter().filter(|(_, flag)| !row.get::<_, bool>(flag)).map(|(name, _)| *name).collect(),
        via_root: row.get("via_root"),
        has_table: row.get("has_table"),
        columns: row.get("columns"),
        row_filter: row.get("row_filter"),
    }))
}

async fn create(client: &Client, tables: &[&Table], publication: &str) -> Result<(), CatalogError> {
    let sql = create_sql(tables, publication, &[]);
    match client.batch_execute(&sql).await {
        Ok(()) => {
            tracing::info!(publication, table = names_of(tables), "publication created");
            Ok(())
        }
        // Somebody was faster: what they made is checked like any other. In the same moment, the catalog's own index says so.
        Err(error) if [&SqlState::DUPLICATE_OBJECT, &SqlState::UNIQUE_VIOLATION].map(Some).contains(&error.code()) => {
            Ok(())
        }
        Err(source) => Err(CatalogError::NotCreated { publication: publication.to_owned(), remedy: sql, source }),
    }
}

/// `columns` are those that the role may read of a single table, where it may not read all: it could follow no others. None: all.
fn create_sql(tables: &[&Table], publication: &str, columns: &[String]) -> String {
    // The changes of a partitioned table come under its own name only so.
    let is_root = tables.iter().any(|table| table.kind == 'p');
    let root = if is_root { " WITH (publish_via_partition_root = true)" } else { "" };
    let list: Vec<String> = columns.iter().map(|column| sql_name(column)).collect();
    let list = if list.is_empty() { String::new() } else { format!(" ({})", list.join(", ")) };
    format!("CREATE PUBLICATION {} FOR TABLE {}{list}{root};", quote_name(publication), names_of(tables))
}

/// Each once, as a list.
fn names_of(tables: &[&Table]) -> String {
    let mut names: Vec<String> = vec![];
    for name in tables.iter().map(|table| name_of(table).to_string()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// Refuses a row filter: what it keeps back are changes of rows that documents are made of.
pub(super) fn refuse_filter(publication: &str, table: &Table, published: &Publication) -> Result<(), CatalogError> {
    let Some(filter) = &published.row_filter else { return Ok(()) };
    let (name, alter) = (name_of(table), format!("ALTER PUBLICATION {}", sql_name(publication)));
    let columns = published.columns.iter().flatten().map(|column| sql_name(column)).collect::<Vec<_>>();
    let list = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    Err(lacks(
        publication,
        format!(
            "sends of {name} only rows where {filter}, and documents of source.query are made of any; such a condition \
             belongs into the query"
        ),
        format!("{alter} DROP TABLE {name}; {alter} ADD TABLE {name}{list};"),
    ))
}

pub(super) fn name_of(table: &Table) -> TableName {
    TableName { schema: table.schema.clone(), table: table.name.clone() }
}

/// SQL that gives the table this column list in the publication, and leaves its row filter as it is.
pub(super) fn list_sql<'a>(
    publication: &str,
    table: &Table,
    columns: impl IntoIterator<Item = &'a String>,
    row_filter: Option<&str>,
) -> String {
    let (name, alter) = (name_of(table), format!("ALTER PUBLICATION {}", sql_name(publication)));
    let mut list: Vec<String> = vec![];
    for column in columns.into_iter().map(|column| sql_name(column)) {
        if !list.contains(&column) {
            list.push(column);
        }
    }
    let filter = row_filter.map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
    // SET TABLE replaces the whole list of tables: one that is dropped and added touches no other.
    format!("{alter} DROP TABLE {name}; {alter} ADD TABLE {name} ({}){filter};", list.join(", "))
}

fn check(publication: &str, table: &Table, published: Published) -> Result<Publication, CatalogError> {
    let name = name_of(table);
    let alter = format!("ALTER PUBLICATION {}", sql_name(publication));
    if !published.unpublished.is_empty() {
        let missing = format!("does not publish {}", published.unpublished.join(" and "));
        let remedy = format!("{alter} SET (publish = 'insert, update, delete, truncate');");
        return Err(lacks(publication, missing, remedy));
    }
    if table.kind == 'p' && !published.via_root {
        let missing = "publishes partitions under their own names";
        return Err(lacks(publication, missing, format!("{alter} SET (publish_via_partition_root = true);")));
    }
    if !published.has_table {
        return Err(lacks(publication, format!("does not have table {name}"), format!("{alter} ADD TABLE {name};")));
    }
    if let Some(columns) = &published.columns
        && let Some(missing) = table.key.iter().find(|column| !columns.contains(column))
    {
        let all = table.key.iter().chain(columns);
        let remedy = list_sql(publication, table, all, published.row_filter.as_deref());
        return Err(lacks(publication, format!("leaves out {missing}, which is of the key"), remedy));
    }
    Ok(Publication { columns: published.columns, row_filter: published.row_filter })
}

fn lacks(publication: &str, lacks: impl Into<String>, remedy: impl Into<String>) -> CatalogError {
    CatalogError::Publication { publication: publication.to_owned(), lacks: lacks.into(), remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_that_leaves_something_out_is_refused_with_its_remedy() {
        let table = |kind| Table {
            oid: 1,
            schema: "public".into(),
            name: "faq".into(),
            kind,
            columns: vec![],
            key: vec!["id".into(), "Lang".into()],
            replica_identity: 'd',
            estimated_rows: Some(0),
            whole: true,
            pages: 0,
        };
        let whole =
            Published { unpublished: vec![], via_root: false, has_table: true, columns: None, row_filter: None };
        let columns = |columns: &[&str]| Some(columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>());
        let filtered =
            Published { columns: columns(&["id", "Lang", "q"]), row_filter: Some("is_active".into()), ..whole.clone() };
        assert_eq!(check("p", &table('r'), whole.clone()).expect("good"), Publication::default());
        let good = check("p", &table('r'), filtered).expect("good");
        assert_eq!(
            (good.columns.map(|columns| columns.len()), good.row_filter.as_deref()),
            (Some(3), Some("is_active"))
        );
        let keyless =
            Published { columns: columns(&["q", "id"]), row_filter: Some("(id > 1)".into()), ..whole.clone() };
        for (kind, published, wanted) in [
            (
                'r',
                Published { unpublished: vec!["delete", "truncate"], ..whole.clone() },
                "publish delete and truncate",
            ),
            ('r', Published { has_table: false, ..whole.clone() }, "ALTER PUBLICATION p ADD TABLE public.faq;"),
            ('p', whole.clone(), "SET (publish_via_partition_root = true);"),
            ('r', keyless, "ADD TABLE public.faq (id, \"Lang\", q) WHERE ((id > 1));"),
        ] {
            let error = check("p", &table(kind), published).expect_err("refused").to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let readable = ["id".to_owned(), "Lang".to_owned()];
        let made = create_sql(&[&table('p')], "p", &readable);
        assert_eq!(
            made,
            "CREATE PUBLICATION \"p\" FOR TABLE public.faq (id, \"Lang\") WITH (publish_via_partition_root = true);"
        );
        assert_eq!(create_sql(&[&table('r')], "p", &[]), "CREATE PUBLICATION \"p\" FOR TABLE public.faq;");
    }
}
