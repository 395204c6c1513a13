//! Reads the whole table as of one point of the stream: a temporary slot's exported snapshot, parallel COPY by
//! ranges of ctid. Does not decide which rows are still current; the sequencer does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, pin_mut};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::catalog::{Column, Table};
use super::connection::{CommandError, ConnectError, ExportSnapshot, ReplicationConnection};
use super::publication::Publication;
use super::sequencer::{SnapshotRow, json};
use super::slot;
use super::values;
use crate::clock::now_ms;
use crate::config::Database;
use crate::event::{Lsn, Row, RowKey};

/// Connections that read at the same time: more does not help, the model is the limit.
const READERS: usize = 2;
/// Pages of one COPY, 4 MiB: small enough that the readers end together.
const PAGES_PER_RANGE: u32 = 512;
/// Rows of one piece: bounds what waits in the channel.
const ROWS_PER_PIECE: usize = 256;
/// Bytes of one piece, for wide rows.
const BYTES_PER_PIECE: usize = 1 << 20;
/// Rows of a reader's first piece, so that the first rows are searchable at once.
const ROWS_OF_FIRST_PIECE: usize = 16;
/// A table of at most this many pages, 512 MiB, is counted; a larger one's estimate must do.
const PAGES_COUNTED_MAX: u32 = 65_536;

/// What to read.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where.
    pub database: Database,
    /// The table.
    pub table: Table,
    /// The publication's column list and row filter.
    pub publication: Publication,
    /// The main slot's name; the temporary slot's is derived from it.
    pub slot: String,
    /// Rows of one piece; 0: nobody has said.
    pub batch_rows: u32,
}

/// A part of the snapshot.
#[derive(Debug)]
pub enum Piece {
    /// The snapshot is taken: it shows exactly what was committed before this point.
    Point {
        /// The consistent point.
        point: Lsn,
        /// When, milliseconds since the Unix epoch.
        taken_ms: i64,
    },
    /// How many rows there are, counted; comes late or, for a large table, not at all.
    Expected(u64),
    /// Some rows.
    Rows(Vec<SnapshotRow>),
    /// There are no more rows.
    Done,
}

/// The snapshot could not be read. Nothing is lost: it is run again from the start.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The temporary slot could not be made.
    #[error(transparent)]
    Slot(#[from] CommandError),
    /// A query failed.
    #[error("{operation} for the snapshot of {table}")]
    Query {
        /// What was being done.
        operation: &'static str,
        /// The table.
        table: String,
        /// What the server said.
        source: tokio_postgres::Error,
    },
    /// A row of COPY does not have the columns that were asked for.
    #[error("copy {table}: a row of {found} fields, {wanted} were asked for")]
    Fields {
        /// The table.
        table: String,
        /// Columns asked for.
        wanted: usize,
        /// Fields in the row.
        found: usize,
    },
    /// A row of COPY is not text.
    #[error("copy {table}")]
    Text {
        /// The table.
        table: String,
        /// What is wrong with it.
        source: values::ValueError,
    },
    /// It was truncated or rewritten between the snapshot's point and the first look at it.
    #[error("read {0} for the snapshot: it was truncated or rewritten a moment ago; it is read again from the start")]
    Rewritten(String),
    /// The exported snapshot has no name.
    #[error("create the snapshot's temporary slot: the server exported no snapshot")]
    NotExported,
    /// Capture has ended.
    #[error("snapshot: capture has ended")]
    Abandoned,
    /// A reader ended abnormally.
    #[error("snapshot: a reader ended abnormally")]
    Reader(#[source] tokio::task::JoinError),
}

/// Reads the table and sends it in pieces: one [`Piece::Point`], then rows, then [`Piece::Done`].
pub async fn run(plan: Plan, pieces: mpsc::Sender<Piece>) -> Result<(), SnapshotError> {
    let mut replication = ReplicationConnection::connect(&plan.database).await?;
    let watcher = super::sql::connect(&plan.database).await?;
    let name = temporary_slot_name(&plan.slot);
    let taken_ms = now_ms();
    let created = slot::create(&mut replication, &watcher, &name, true, ExportSnapshot::Export).await?;
    let point = created.consistent_point;
    let snapshot = created.snapshot.ok_or(SnapshotError::NotExported)?;
    send(&pieces, Piece::Point { point, taken_ms }).await?;

    let pages = pages(&watcher, &plan.table).await?;
    let ranges = Arc::new(Ranges::new(pages, &plan.table));
    let mut readers = JoinSet::new();
    for _ in 0..ranges.readers() {
        // The exported snapshot lives as long as the connection that made the slot: every reader adopts it first.
        let reader = Reader::start(&plan, &snapshot).await?;
        let rows_max = if plan.batch_rows == 0 { ROWS_PER_PIECE } else { plan.batch_rows as usize };
        readers.spawn(reader.run(Arc::clone(&ranges), rows_max, pieces.clone()));
    }
    // Readers hold the snapshot themselves now; the temporary slot would only hold WAL.
    drop(replication);
    if pages <= PAGES_COUNTED_MAX {
        // Beside the readers: the first rows do not wait for it.
        let expected = count(&watcher, &plan.table, plan.publication.row_filter.as_deref()).await?;
        send(&pieces, Piece::Expected(expected)).await?;
    }
    while let Some(ended) = readers.join_next().await {
        ended.map_err(SnapshotError::Reader)??;
    }
    send(&pieces, Piece::Done).await
}

/// Ranges of pages, handed out to readers.
struct Ranges {
    next: AtomicU32,
    count: u32,
    by_ctid: bool,
}

impl Ranges {
    fn new(pages: u32, table: &Table) -> Self {
        // Only an ordinary table has one sequence of pages, and ctid is a column that a right to some columns leaves out:
        // any other is read in one piece.
        let by_ctid = table.kind == 'r' && table.whole;
        let count = if by_ctid { pages.div_ceil(PAGES_PER_RANGE).max(1) } else { 1 };
        Ranges { next: AtomicU32::new(0), count, by_ctid }
    }

    fn readers(&self) -> usize {
        READERS.min(self.count as usize)
    }

    /// The WHERE condition of the next range. The last one is open: the table may have grown since it was measured.
    fn next(&self) -> Option<String> {
        let range = self.next.fetch_add(1, Ordering::Relaxed);
        if range >= self.count {
            return None;
        }
        if !self.by_ctid {
            return Some("true".to_owned());
        }
        let start = range * PAGES_PER_RANGE;
        let mut condition = format!("ctid >= '({start},0)'");
        if range + 1 < self.count {
            condition.push_str(&format!(" AND ctid < '({},0)'", start + PAGES_PER_RANGE));
        }
        Some(condition)
    }
}

/// A connection with a transaction that sees one moment.
pub struct Reader {
    sql: super::sql::Sql,
    table: Table,
    columns: Vec<Column>,
    row_filter: Option<String>,
}

impl Reader {
    async fn start(plan: &Plan, snapshot: &str) -> Result<Self, SnapshotError> {
        let sql = super::sql::connect(&plan.database).await?;
        let adopt = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            escape_literal(snapshot)
        );
        let failed = |source| SnapshotError::Query {
            operation: "adopt the exported snapshot",
            table: plan.table.name.clone(),
            source,
        };
        sql.batch_execute(&adopt).await.map_err(failed)?;
        let columns = plan.publication.columns_of(&plan.table);
        let reader =
            Reader { sql, table: plan.table.clone(), columns, row_filter: plan.publication.row_filter.clone() };
        reader.hold().await?;
        Ok(reader)
    }

    /// Keeps the table from being truncated or rewritten until all is read, and looks whether it was since the snapshot's
    /// point: its files are new then, and to a snapshot from before they seem to hold no row.
    async fn hold(&self) -> Result<(), SnapshotError> {
        // LOCK TABLE wants the right to the whole table; what is read is locked as well.
        let lock = match self.table.whole {
            true => format!("LOCK TABLE {} IN ACCESS SHARE MODE", self.table.source()),
            false => format!("SELECT FROM {} LIMIT 0", self.table.source()),
        };
        self.sql.batch_execute(&lock).await.map_err(|source| self.failed("lock the table", source))?;
        // The catalog's rows are the snapshot's, the function looks at what is now.
        let moved = "
            SELECT count(*) FROM pg_class c
            WHERE c.oid IN (SELECT $1::oid UNION ALL SELECT relid::oid FROM pg_partition_tree($1::oid::regclass))
                  AND c.relfilenode <> coalesce(pg_relation_filenode(c.oid), 0)";
        let row = self.sql.query_one(moved, &[&self.table.oid]).await;
        match row.map_err(|source| self.failed("look at the files of the table", source))?.get::<_, i64>(0) {
            0 => Ok(()),
            _ => Err(SnapshotError::Rewritten(self.table.name.clone())),
        }
    }

    /// Sees what is committed now.
    pub(super) async fn of_now(
        database: &Database,
        table: &Table,
        publication: &Publication,
    ) -> Result<Self, SnapshotError> {
        let sql = super::sql::connect(database).await?;
        let columns = publication.columns_of(table);
        let reader = Reader { sql, table: table.clone(), columns, row_filter: publication.row_filter.clone() };
        let begun = reader.sql.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await;
        begun.map_err(|source| reader.failed("begin a transaction", source))?;
        Ok(reader)
    }

    async fn run(self, ranges: Arc<Ranges>, rows_max: usize, pieces: mpsc::Sender<Piece>) -> Result<(), SnapshotError> {
        let mut piece = Vec::with_capacity(ROWS_OF_FIRST_PIECE);
        let (mut bytes, mut limit) = (0, ROWS_OF_FIRST_PIECE.min(rows_max));
        while let Some(range) = ranges.next() {
            let rows = self.copy(&range).await?;
            pin_mut!(rows);
            while let Some(line) = rows.next().await {
                let line = line.map_err(|source| self.failed("copy the table", source))?;
                let row = self.row(&line)?;
                bytes += row.bytes;
                piece.push(row);
                if piece.len() >= limit || bytes >= BYTES_PER_PIECE {
                    limit = rows_max;
                    bytes = 0;
                    send(&pieces, Piece::Rows(std::mem::take(&mut piece))).await?;
                }
            }
        }
        if !piece.is_empty() {
            send(&pieces, Piece::Rows(piece)).await?;
        }
        Ok(())
    }

    /// Begins to read the rows that this condition holds for.
    pub(super) async fn copy(&self, range: &str) -> Result<tokio_postgres::CopyOutStream, SnapshotError> {
        let columns: Vec<_> = self.columns.iter().map(|column| escape_identifier(&column.name)).collect();
        let filter = self.row_filter.as_ref().map(|filter| format!(" AND ({filter})")).unwrap_or_default();
        let sql = format!(
            "COPY (SELECT {} FROM {} WHERE {range}{filter}) TO STDOUT",
            columns.join(", "),
            self.table.source(),
        );
        self.sql.copy_out(&sql).await.map_err(|source| self.failed("copy the table", source))
    }

    /// Reads a line of them.
    pub(super) fn row(&self, line: &Bytes) -> Result<SnapshotRow, SnapshotError> {
        let table = || self.table.name.clone();
        let fields = values::copy_fields(line).map_err(|source| SnapshotError::Text { table: table(), source })?;
        if fields.len() != self.columns.len() {
            let (wanted, found) = (self.columns.len(), fields.len());
            return Err(SnapshotError::Fields { table: table(), wanted, found });
        }
        let mut columns = Row::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter().zip(fields) {
            let value = field.map_or(serde_json::Value::Null, |text| json(Some(column), &text));
            columns.insert(column.name.clone(), value);
        }
        let key_columns = self.table.key.iter().filter_map(|name| Some((name.clone(), columns.get(name)?.clone())));
        let key = RowKey::from_columns(key_columns.collect());
        Ok(SnapshotRow { key, columns, bytes: line.len() })
    }

    pub(super) fn failed(&self, operation: &'static str, source: tokio_postgres::Error) -> SnapshotError {
        SnapshotError::Query { operation, table: self.table.name.clone(), source }
    }
}

async fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) -> Result<(), SnapshotError> {
    pieces.send(piece).await.map_err(|_| SnapshotError::Abandoned)
}

async fn pages(client: &Client, table: &Table) -> Result<u32, SnapshotError> {
    let sql = "SELECT pg_relation_size($1::oid::regclass) / current_setting('block_size')::bigint";
    let row = client.query_one(sql, &[&table.oid]).await;
    let row = row.map_err(|source| SnapshotError::Query {
        operation: "measure the table",
        table: table.name.clone(),
        source,
    })?;
    Ok(u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX))
}

/// How many rows the table has now, of those that pass the filter.
pub(super) async fn count(client: &Client, table: &Table, filter: Option<&str>) -> Result<u64, SnapshotError> {
    let filter = filter.unwrap_or("true");
    let row = client.query_one(&format!("SELECT count(*) FROM {} WHERE {filter}", table.source()), &[]).await;
    let row =
        row.map_err(|source| SnapshotError::Query { operation: "count the rows", table: table.name.clone(), source })?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

fn temporary_slot_name(slot: &str) -> String {
    // The one of an attempt that was given up may still wait for its turn on the server.
    static ATTEMPTS: AtomicU32 = AtomicU32::new(0);
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    // PostgreSQL's limit is 63 bytes; slot names are ASCII.
    let stem: String = slot.chars().take(30).collect();
    format!("{stem}_snapshot_{}_{attempt}", std::process::id())
}
