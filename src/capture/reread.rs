//! Reads rows as they are now, for those who follow the table through somebody else's topic. Follows nothing itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::catalog::{self, Table};
use super::publication::Publication;
use super::reselect::{self, ReselectError};
use super::session::key_text;
use super::{CaptureError, ColumnCheck, sql};
use crate::config::Database;
use crate::event::{Row, RowKey};

/// How long a transaction that is not visible yet is waited for.
const VISIBLE_PATIENCE: Duration = Duration::from_secs(30);

/// Reads rows of one table by their keys. Connects when it is used, and anew after a fault. Clones are the same.
#[derive(Clone)]
pub struct Rereader(Arc<Inner>);

struct Inner {
    database: Database,
    schema: String,
    table: String,
    check_columns: ColumnCheck,
    open: Mutex<Option<(sql::Sql, Table)>>,
}

/// What is known of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Present {
    /// It is this.
    Row(Row),
    /// It is gone.
    Gone,
    /// The table has no such key.
    Unknown,
}

impl Rereader {
    /// For this table; `check_columns` is asked whenever its columns have been read.
    pub fn new(database: Database, schema: String, table: String, check_columns: ColumnCheck) -> Rereader {
        Rereader(Arc::new(Inner { database, schema, table, check_columns, open: Mutex::default() }))
    }

    /// Connects, reads the table's columns, and has them checked.
    pub async fn check(&self) -> Result<(), CaptureError> {
        *self.0.open.lock().await = Some(self.0.connect().await?);
        Ok(())
    }

    /// The rows with these keys, in their order, when others see what these transactions have committed.
    pub async fn read(&self, keys: &[RowKey], tx_ids: &[u64]) -> Result<Vec<Present>, CaptureError> {
        let mut open = self.0.open.lock().await;
        let (sql, table) = match open.take() {
            Some(opened) if !opened.0.is_closed() => opened,
            _ => self.0.connect().await?,
        };
        let texts: Vec<Option<Vec<String>>> = keys.iter().map(|key| key_text(&table, key).ok()).collect();
        let wanted: Vec<Vec<String>> = texts.iter().flatten().cloned().collect();
        let reading = async {
            let xids = tx_ids.iter().map(u64::to_string).collect();
            reselect::until_visible(&sql, xids, VISIBLE_PATIENCE).await?;
            Ok::<_, ReselectError>(reselect::rows(&sql, &table, &Publication::default(), &wanted).await?)
        };
        let found = reading.await;
        let mut found: HashMap<RowKey, Row> =
            found.map_err(|source| CaptureError::Reselect { table: self.0.table.clone(), source })?;
        // A connection that failed is not kept.
        *open = Some((sql, table));
        let present = keys.iter().zip(&texts).map(|(key, text)| match (text, found.remove(key)) {
            (None, _) => Present::Unknown,
            (Some(_), Some(row)) => Present::Row(row),
            (Some(_), None) => Present::Gone,
        });
        Ok(present.collect())
    }
}

impl Inner {
    async fn connect(&self) -> Result<(sql::Sql, Table), CaptureError> {
        let sql = sql::connect(&self.database).await?;
        let table = catalog::load(&sql, &self.schema, &self.table).await?;
        let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let problems = (self.check_columns)(&names);
        if !problems.is_empty() {
            return Err(CaptureError::Columns(problems.join("; ")));
        }
        Ok((sql, table))
    }
}
