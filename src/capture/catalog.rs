//! Reads what PostgreSQL's catalog says about the table, and refuses a table that cannot be followed. Changes nothing.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::connection::quote_name;
use super::fault::{ServerError, is_transient_sql};
pub use super::publication::{Publication, preflight};
pub use super::slot::{Slot, slot, source_progress};
pub use super::values::ColumnKind;

/// Domains over domains over arrays: deeper than this is no real schema.
const TYPE_DEPTH_MAX: usize = 32;

/// Names of a schema that are looked through for near misses.
const NAMES_MAX: i64 = 10_000;

/// Near misses that are told.
const SUGGESTIONS_MAX: usize = 3;

/// A table as the catalog has it now.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `relkind`: `r` an ordinary table, `p` a partitioned one.
    pub kind: char,
    /// Its columns, in catalog order, without dropped ones.
    pub columns: Vec<Column>,
    /// Its primary key's columns, in catalog order.
    pub key: Vec<String>,
    /// `relreplident`: `d`efault, `f`ull or `i`ndex.
    pub replica_identity: char,
    /// How many rows it has, by the planner's statistics; `None`: it has none of those, and its size alone says nothing.
    pub estimated_rows: Option<u64>,
    /// The role may read all of it, not only columns: then by places, too.
    pub whole: bool,
    /// Its size now, in blocks. A partitioned table's: of all its partitions together.
    pub pages: u32,
}

/// A column as the catalog has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// How its values become JSON.
    pub kind: ColumnKind,
    /// It cannot be NULL.
    pub not_null: bool,
    /// It is generated; logical replication sends it only where the publication names it, from PostgreSQL 18 on.
    pub generated: bool,
    /// Its number, its type, and who wrote them: another form may be another column, or hold values that no event told of.
    pub form: String,
}

impl Table {
    /// What a query reads the rows from that are published under this table's name: not those of tables that inherit.
    pub fn source(&self) -> String {
        let only = if self.kind == 'p' { "" } else { "ONLY " };
        format!("{only}{}.{}", quote_name(&self.schema), quote_name(&self.name))
    }
}

/// Reads the table. It has a primary key, and its replica identity gives that key for updates and deletes.
pub async fn load(client: &Client, schema: &str, table: &str) -> Result<Table, CatalogError> {
    let Some(found) = find(client, schema, table).await? else {
        return Err(missing(client, schema, table).await?);
    };
    let (oid, kind) = (found.get::<_, u32>("oid"), char_of(&found, "kind"));
    let name = TableName { schema: schema.to_owned(), table: table.to_owned() };
    if !matches!(kind, 'r' | 'p') {
        return Err(CatalogError::NotATable { name, kind: kind_name(kind) });
    }
    if char_of(&found, "persistence") != 'p' {
        return Err(CatalogError::NotLogged { name });
    }
    if !found.get::<_, bool>("readable") {
        return Err(CatalogError::NotReadable { name, user: found.get("role") });
    }
    let columns = columns(client, oid).await?;
    let keys = keys(client, oid).await?;
    let replica_identity = char_of(&found, "identity");
    let key = check_keys(&name, replica_identity, keys)?;
    if kind == 'p' {
        check_partitions(client, oid, &key).await?;
    }
    let pages = found.get::<_, i64>("pages").max(0);
    let (known_rows, known_pages) = (found.get::<_, f64>("known_rows"), found.get::<_, i64>("known_pages"));
    Ok(Table {
        oid,
        schema: name.schema,
        name: name.table,
        kind,
        columns,
        key,
        replica_identity,
        estimated_rows: estimate(known_rows, known_pages, pages),
        whole: found.get("whole"),
        pages: u32::try_from(pages).unwrap_or(u32::MAX),
    })
}

pub(super) async fn find(client: &Client, schema: &str, table: &str) -> Result<Option<Row>, CatalogError> {
    // Statistics may be older than the table's size: rows a block from then, blocks from now.
    let sql = "
        SELECT c.oid, c.relkind::text AS kind, c.relreplident::text AS identity, c.relpersistence::text AS persistence,
               has_schema_privilege(n.oid, 'USAGE')
                   AND (has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT')) AS readable,
               has_table_privilege(c.oid, 'SELECT') AS whole, current_user::text AS role,
               size.known_rows, size.known_pages, size.pages
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
        LATERAL (
            SELECT coalesce(sum(leaf.reltuples) FILTER (WHERE leaf.reltuples > 0), 0)::float8 AS known_rows,
                   coalesce(sum(leaf.relpages) FILTER (WHERE leaf.reltuples > 0), 0)::bigint AS known_pages,
                   coalesce(sum(pg_relation_size(leaf.oid)) / current_setting('block_size')::int, 0)::bigint AS pages
            FROM pg_class leaf
            WHERE leaf.relkind = 'r' AND (leaf.oid = c.oid
                OR c.relkind = 'p' AND leaf.oid IN (SELECT relid FROM pg_partition_tree(c.oid)))
        ) size
        WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";
    client.query_opt(sql, &[&schema, &table]).await.map_err(|source| CatalogError::query("read the table", source))
}

fn estimate(known_rows: f64, known_pages: i64, pages: i64) -> Option<u64> {
    match (known_pages, pages) {
        (_, 0) => Some(0),
        (0, _) => None,
        // A float beyond the integer's range becomes its end, NaN becomes 0.
        (known_pages, pages) => Some((known_rows / known_pages as f64 * pages as f64).round() as u64),
    }
}

pub(super) fn char_of(row: &Row, column: &str) -> char {
    row.get::<_, &str>(column).chars().next().unwrap_or(' ')
}

pub(super) fn kind_name(kind: char) -> &'static str {
    match kind {
        'v' => "a view",
        'm' => "a materialized view",
        'f' => "a foreign table",
        _ => "no table",
    }
}

pub(super) async fn columns(client: &Client, oid: u32) -> Result<Vec<Column>, CatalogError> {
    let query = |source| CatalogError::query("read the table's columns", source);
    let sql = "SELECT attname::text AS name, atttypid AS type, attnotnull AS not_null, attgenerated <> '' AS generated,
                      concat_ws(':', attnum, atttypid, atttypmod, xmin) AS form
               FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let rows = client.query(sql, &[&oid]).await.map_err(query)?;
    let types: Vec<u32> = rows.iter().map(|row| row.get("type")).collect();
    let kinds = kinds(client, &types).await?;
    let column = |(row, kind): (&Row, ColumnKind)| Column {
        name: row.get("name"),
        kind,
        not_null: row.get("not_null"),
        generated: row.get("generated"),
        form: row.get("form"),
    };
    Ok(rows.iter().zip(kinds).map(column).collect())
}

/// How values of these types, given by OID, become JSON.
pub(super) async fn kinds(client: &Client, oids: &[u32]) -> Result<Vec<ColumnKind>, CatalogError> {
    // A true array is the one that its element type names; int2vector and its like only look like one.
    let sql = "
        WITH RECURSIVE used AS (
            SELECT unnest($1::oid[]) AS oid
            UNION
            SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END
            FROM used JOIN pg_type t ON t.oid = used.oid WHERE t.typtype = 'd' OR t.typelem <> 0
        )
        SELECT t.oid, CASE WHEN t.typtype = 'd' THEN t.typbasetype END AS base, e.oid AS element,
               e.typdelim::text AS delimiter
        FROM used JOIN pg_type t ON t.oid = used.oid LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid";
    let types = client.query(sql, &[&oids]).await;
    let types = types.map_err(|source| CatalogError::query("read types", source))?;
    let types = types.iter().map(|row| {
        let element = row.get::<_, Option<u32>>("element");
        let shape = match (row.get::<_, Option<u32>>("base"), element) {
            (Some(base), _) => TypeShape::Domain(base),
            (None, Some(element)) => TypeShape::Array(element, char_of(row, "delimiter")),
            (None, None) => TypeShape::Base,
        };
        (row.get("oid"), shape)
    });
    let types: HashMap<u32, TypeShape> = types.collect();
    Ok(oids.iter().map(|oid| column_kind(*oid, &types, TYPE_DEPTH_MAX)).collect())
}

/// Names the table's shape as it is now, for comparing: its name, columns, key and replica identity. None of a change of
/// it is in the stream before the next row. Cheap enough for every second.
pub async fn shape(client: &Client, oid: u32) -> Result<String, CatalogError> {
    let sql = "
        SELECT concat_ws(' ', n.nspname, c.relname, c.relreplident,
            (SELECT string_agg(concat_ws(':', attnum, attname, xmin), ',' ORDER BY attnum)
             FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
            (SELECT string_agg(concat_ws(':', indexrelid, indisprimary, indkey), ',' ORDER BY indexrelid)
             FROM pg_index WHERE indrelid = c.oid AND (indisprimary OR indisreplident)))
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let row = client.query_opt(sql, &[&oid]).await;
    let row = row.map_err(|source| CatalogError::query("read the table's shape", source))?;
    Ok(row.map_or_else(|| "none".to_owned(), |row| row.get(0)))
}

/// What a type is made of.
#[derive(Clone, Copy, Debug)]
enum TypeShape {
    Base,
    Domain(u32),
    Array(u32, char),
}

fn column_kind(oid: u32, types: &HashMap<u32, TypeShape>, depth: usize) -> ColumnKind {
    match types.get(&oid) {
        _ if depth == 0 => ColumnKind::Text,
        Some(TypeShape::Domain(base)) => column_kind(*base, types, depth - 1),
        Some(TypeShape::Array(element, delimiter)) => {
            let element = Box::new(column_kind(*element, types, depth - 1));
            ColumnKind::Array { element, delimiter: *delimiter }
        }
        Some(TypeShape::Base) | None => ColumnKind::of_base_type(oid),
    }
}

/// A table's indexes that matter here.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) primary: Option<Vec<String>>,
    /// The primary key's constraint is checked at once, not at the end of the transaction.
    pub(super) immediate: bool,
    /// The index of `REPLICA IDENTITY USING INDEX`.
    pub(super) identity: Option<(String, Vec<String>)>,
}

pub(super) async fn keys(client: &Client, oid: u32) -> Result<Keys, CatalogError> {
    let sql = "
        SELECT i.indisprimary AS is_primary, i.indisreplident AS is_identity, i.indimmediate AS immediate,
               i.indexrelid::regclass::text AS name,
               ARRAY(SELECT a.attname::text FROM pg_attribute a
                     WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                     ORDER BY a.attnum) AS columns
        FROM pg_index i WHERE i.indrelid = $1 AND (i.indisprimary OR i.indisreplident)";
    let rows = client.query(sql, &[&oid]).await;
    let rows = rows.map_err(|source| CatalogError::query("read the table's keys", source))?;
    let mut keys = Keys::default();
    for row in &rows {
        if row.get("is_primary") {
            keys.primary = Some(row.get("columns"));
            keys.immediate = row.get("immediate");
        }
        if row.get("is_identity") {
            keys.identity = Some((row.get("name"), row.get("columns")));
        }
    }
    Ok(keys)
}

/// The primary key, if the replica identity carries it.
fn check_keys(name: &TableName, replica_identity: char, keys: Keys) -> Result<Vec<String>, CatalogError> {
    let name = || name.clone();
    let Some(key) = keys.primary else { return Err(CatalogError::NoKey { name: name() }) };
    match replica_identity {
        'n' => Err(CatalogError::NoIdentity { name: name(), why: "is NOTHING", wanted: "DEFAULT" }),
        // PostgreSQL itself refuses updates and deletes of a published table with such a key.
        'd' if !keys.immediate => Err(CatalogError::NoIdentity {
            name: name(),
            why: "is its primary key, which is deferrable and cannot serve",
            wanted: "FULL",
        }),
        'i' => match keys.identity {
            None => Err(CatalogError::NoIdentity { name: name(), why: "is an index that is gone", wanted: "DEFAULT" }),
            Some((_, columns)) if key.iter().all(|column| columns.contains(column)) => Ok(key),
            Some((index, columns)) => {
                Err(CatalogError::IdentityWithoutKey { name: name(), index, columns: columns.join(", ") })
            }
        },
        _ => Ok(key),
    }
}

/// Updates and deletes carry what the replica identity of the partition says that the row is in.
async fn check_partitions(client: &Client, oid: u32, key: &[String]) -> Result<(), CatalogError> {
    let sql = "SELECT c.oid, c.relname::text AS name, n.nspname::text AS schema, c.relreplident::text AS identity
               FROM pg_partition_tree($1::oid::regclass) t JOIN pg_class c ON c.oid = t.relid
                    JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE t.isleaf AND c.relkind = 'r' AND c.relreplident IN ('n', 'i') ORDER BY 2";
    let rows = client.query(sql, &[&oid]).await;
    for row in rows.map_err(|source| CatalogError::query("read the table's partitions", source))? {
        let name = TableName { schema: row.get("schema"), table: row.get("name") };
        let keys = Keys { primary: Some(key.to_vec()), immediate: true, ..keys(client, row.get("oid")).await? };
        check_keys(&name, char_of(&row, "identity"), keys)?;
    }
    Ok(())
}

pub(super) async fn missing(client: &Client, schema: &str, table: &str) -> Result<CatalogError, CatalogError> {
    let sql = "SELECT n.nspname::text AS schema, c.relname::text AS name
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p') AND (n.nspname = $1 OR c.relname = $2)
                 AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
               ORDER BY c.relname = $2 DESC, 1, 2 LIMIT $3";
    let rows = client.query(sql, &[&schema, &table, &NAMES_MAX]).await;
    let rows = rows.map_err(|source| CatalogError::query("look for the table", source))?;
    let candidates = rows.iter().map(|row| TableName { schema: row.get("schema"), table: row.get("name") }).collect();
    let name = TableName { schema: schema.to_owned(), table: table.to_owned() };
    Ok(CatalogError::NoTable { suggestions: near_misses(&name, candidates), name })
}

/// The candidates that somebody may have meant, likeliest first, as ` (is it …?)`.
fn near_misses(name: &TableName, candidates: Vec<TableName>) -> String {
    let limit = (name.table.chars().count() / 3).max(2);
    let far = |candidate: &TableName| match candidate.table == name.table {
        true => 0,
        false => 1 + strsim::levenshtein(&candidate.table.to_lowercase(), &name.table.to_lowercase()),
    };
    // Django writes app_model; people write model.
    let ends = |candidate: &TableName| candidate.table.ends_with(&format!("_{}", name.table));
    let mut near: Vec<(usize, TableName)> = candidates
        .into_iter()
        .map(|candidate| (if ends(&candidate) { 1 } else { far(&candidate) }, candidate))
        .filter(|(distance, _)| *distance <= 1 + limit)
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    let near: Vec<String> = near.into_iter().take(SUGGESTIONS_MAX).map(|(_, name)| name.to_string()).collect();
    if near.is_empty() { String::new() } else { format!("; is it {}?", near.join(" or ")) }
}

/// A table's name; written as SQL has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", sql_name(&self.schema), sql_name(&self.table))
    }
}

/// Quoted only where it must be.
pub(super) fn sql_name(name: &str) -> String {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let plain = starts && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { quote_name(name) }
}

/// The source cannot be followed as it is, or could not be asked. Each text says what mends it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The server did not answer.
    #[error("{operation}: {}", server_text(source))]
    Query {
        /// What was being done.
        operation: String,
        /// What the driver said.
        source: tokio_postgres::Error,
    },
    /// There is no such table.
    #[error(
        "find table {name}, which source.table or source.watch of the pipeline file names: there is none{suggestions}; correct \
         the name there, or make the table (in Django: manage.py migrate), and see that DATABASE_URL has the right database"
    )]
    NoTable {
        /// What was looked for.
        name: TableName,
        /// What may have been meant.
        suggestions: String,
    },
    /// It is something else.
    #[error("follow table {name}: it is {kind}, which logical replication does not send; name the table beneath it")]
    NotATable {
        /// Its name.
        name: TableName,
        /// What it is.
        kind: &'static str,
    },
    /// It is not in WAL.
    #[error("follow table {name}: it is unlogged or temporary; run ALTER TABLE {name} SET LOGGED;")]
    NotLogged {
        /// Its name.
        name: TableName,
    },
    /// The role may not read it.
    #[error(
        "read table {name}: role {user} may not; run GRANT USAGE ON SCHEMA {schema} TO {role}; \
         GRANT SELECT ON {name} TO {role};",
        schema = sql_name(&name.schema), role = sql_name(user)
    )]
    NotReadable {
        /// Its name.
        name: TableName,
        /// The role.
        user: String,
    },
    /// The role may not read columns that are published.
    #[error(
        "read table {name}: role {user} may not read {columns}; run GRANT SELECT ({columns}) ON {name} TO {role};",
        role = sql_name(user)
    )]
    ColumnsNotReadable {
        /// Its name.
        name: TableName,
        /// The role.
        user: String,
        /// The columns, as SQL has them.
        columns: String,
    },
    /// It has no primary key.
    #[error("follow table {name}: it has no primary key; run ALTER TABLE {name} ADD PRIMARY KEY (…);")]
    NoKey {
        /// Its name.
        name: TableName,
    },
    /// Its replica identity gives no key.
    #[error("follow table {name}: its replica identity {why}; run ALTER TABLE {name} REPLICA IDENTITY {wanted};")]
    NoIdentity {
        /// Its name.
        name: TableName,
        /// What is wrong with it.
        why: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// Its replica identity is an index without the primary key.
    #[error(
        "follow table {name}: its replica identity is index {index} ({columns}), which lacks the primary key; \
         run ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
    )]
    IdentityWithoutKey {
        /// Its name.
        name: TableName,
        /// The index.
        index: String,
        /// Its columns.
        columns: String,
    },
    /// Deletes and changes of rows would not tell which documents they concern.
    #[error(
        "follow table {name}: {lacking} is not in its replica identity, so its deletes could not be followed; run {remedy}"
    )]
    IdentityWithoutColumns {
        /// Its name.
        name: TableName,
        /// The columns, and what names them.
        lacking: String,
        /// SQL that mends it.
        remedy: String,
    },
    /// It has no such column.
    #[error("follow table {name}: {named}, and it has no such column; it has {known}")]
    NoColumn {
        /// Its name.
        name: TableName,
        /// What names which column.
        named: String,
        /// Those that there are.
        known: String,
    },
    /// The server does not write what logical decoding needs.
    #[error(
        "follow changes: wal_level is {0}; run ALTER SYSTEM SET wal_level = logical; and restart PostgreSQL \
         (a managed one has a setting for it)"
    )]
    WalLevel(String),
    /// The publication does not do what is needed.
    #[error("use publication {publication}: it {lacks}; run {remedy}")]
    Publication {
        /// Its name.
        publication: String,
        /// What it lacks.
        lacks: String,
        /// SQL that mends it.
        remedy: String,
    },
    /// The publication is not there and the role may not make it.
    #[error(
        "create publication {publication}: {}; as the table's owner or a superuser, run {remedy}",
        server_text(source)
    )]
    NotCreated {
        /// Its name.
        publication: String,
        /// SQL that makes it.
        remedy: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
}

impl CatalogError {
    pub(super) fn query(operation: impl Into<String>, source: tokio_postgres::Error) -> Self {
        CatalogError::Query { operation: operation.into(), source }
    }

    /// Whether a query was answered, with an error.
    pub fn is_answer(&self) -> bool {
        matches!(self, CatalogError::Query { source, .. } if source.as_db_error().is_some())
    }

    /// Whether trying again can succeed without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            CatalogError::Query { source, .. } | CatalogError::NotCreated { source, .. } => is_transient_sql(source),
            CatalogError::NoTable { .. }
            | CatalogError::NotATable { .. }
            | CatalogError::NotLogged { .. }
            | CatalogError::NotReadable { .. }
            | CatalogError::ColumnsNotReadable { .. }
            | CatalogError::NoKey { .. }
            | CatalogError::NoIdentity { .. }
            | CatalogError::IdentityWithoutKey { .. }
            | CatalogError::IdentityWithoutColumns { .. }
            | CatalogError::NoColumn { .. }
            | CatalogError::WalLevel(_)
            | CatalogError::Publication { .. } => false,
        }
    }
}

/// The driver's own text for an error of the server is "db error".
pub(super) fn server_text(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |server| ServerError::from(server).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, table: &str) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    #[test]
    fn types_resolve_through_domains_and_arrays() {
        use TypeShape::{Array, Base, Domain};
        let types = HashMap::from([
            (23, Base),
            (1007, Array(23, ',')),
            (90001, Domain(23)),
            (90002, Domain(90001)),
            (90003, Array(90002, ';')),
            (90004, Domain(90003)),
            (90005, Domain(90005)),
        ]);
        let array = |delimiter| ColumnKind::Array { element: Box::new(ColumnKind::Integer), delimiter };
        for (oid, wanted) in [
            (23, ColumnKind::Integer),
            (1007, array(',')),
            (90002, ColumnKind::Integer),
            (90004, array(';')),
            (90005, ColumnKind::Text),
            (22, ColumnKind::Text),
        ] {
            assert_eq!(column_kind(oid, &types, TYPE_DEPTH_MAX), wanted, "{oid}");
        }
    }

    #[test]
    fn replica_identity_must_carry_the_key() {
        let keys = |primary: &[&str], immediate, identity: Option<&[&str]>| {
            let owned = |columns: &[&str]| columns.iter().map(|&column| column.to_owned()).collect::<Vec<_>>();
            Keys {
                primary: (!primary.is_empty()).then(|| owned(primary)),
                immediate,
                identity: identity.map(|columns| ("i".to_owned(), owned(columns))),
            }
        };
        let check = |identity, keys| match check_keys(&name("public", "Faq"), identity, keys) {
            Ok(key) => key.join(","),
            Err(error) => error.to_string(),
        };
        assert_eq!(check('d', keys(&["a", "b"], true, None)), "a,b");
        assert_eq!(check('f', keys(&["a"], false, None)), "a");
        assert_eq!(check('i', keys(&["a"], true, Some(&["a", "b"]))), "a");
        for (said, wanted) in [
            (check('d', keys(&[], true, None)), "ALTER TABLE public.\"Faq\" ADD PRIMARY KEY"),
            (check('n', keys(&["a"], true, None)), "REPLICA IDENTITY DEFAULT;"),
            (check('d', keys(&["a"], false, None)), "REPLICA IDENTITY FULL;"),
            (check('i', keys(&["a"], true, None)), "REPLICA IDENTITY DEFAULT;"),
            (check('i', keys(&["a", "b"], true, Some(&["a"]))), "lacks the primary key"),
        ] {
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn near_misses_are_told() {
        let candidates =
            || ["faq_faq", "auth_user", "faq_fax", "Faq_Faqs"].map(|table| name("public", table)).into_iter().collect();
        let check = |table: &str| near_misses(&name("public", table), candidates());
        assert_eq!(check("faq_fqa"), "; is it public.faq_faq or public.faq_fax or public.\"Faq_Faqs\"?");
        assert_eq!(check("faq"), "; is it public.faq_faq?");
        assert_eq!(check("FAQ_FAQS"), "; is it public.\"Faq_Faqs\" or public.faq_faq or public.faq_fax?");
        assert_eq!(check("orders"), "");
        let elsewhere = vec![name("app", "faq_faq")];
        assert_eq!(near_misses(&name("public", "faq_faq"), elsewhere), "; is it app.faq_faq?");
    }

    #[test]
    fn rows_are_estimated_from_the_size_now() {
        assert_eq!(estimate(1000.0, 10, 20), Some(2000));
        assert_eq!(estimate(0.0, 0, 0), Some(0));
        assert_eq!(estimate(0.0, 0, 1), None);
    }
}
