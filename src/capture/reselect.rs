//! Reads rows by key, in batches: the columns that an update did not send because they did not change, and whole rows
//! that are to be published again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::catalog::{Column, Table};
use super::publication::Publication;
use super::sequencer::{Pending, json};
use crate::event::{ChangeEvent, Row, RowKey};

/// Keys of one query: bounds its text.
const KEYS_PER_QUERY: usize = 500;

/// How often the server is asked whether a transaction is visible, and for how long by the stream, which cannot go on
/// without it.
const VISIBLE_POLL: Duration = Duration::from_millis(1);
const VISIBLE_PATIENCE: Duration = Duration::from_secs(30);

/// How long the rows of one query may take: large ones, or a table that somebody has locked. Then the connection counts
/// as broken, and the transaction is sent again.
const ROWS_PATIENCE: Duration = Duration::from_secs(60);

/// Columns could not be completed. Nothing was published: the transaction is sent again.
#[derive(Debug, thiserror::Error)]
pub enum ReselectError {
    /// A query failed.
    #[error("read the rows by key")]
    Query(#[from] tokio_postgres::Error),
    /// The stream was faster than the server's own visibility, for too long.
    #[error(
        "a transaction is not visible to others after {} s: it waits for a synchronous standby, or is open since before vecsync connected",
        .0.as_secs()
    )]
    NotVisible(Duration),
    /// The connection is dead, or the table is locked.
    #[error("read the rows by key: no answer for {} s; is the table locked?", .0.as_secs())]
    Silent(Duration),
}

/// Makes every event ready, in order. An update whose row is gone by now is left out: its delete follows in
/// the stream, and a NULL or a placeholder must never stand for the value.
///
/// A re-selected column reads the present, not the past: a later change of it follows in the stream too.
pub async fn complete(client: &Client, table: &Table, events: Vec<Pending>) -> Result<Vec<ChangeEvent>, ReselectError> {
    let mut xids: Vec<String> = vec![];
    let mut wanted: Vec<&[String]> = vec![];
    let mut columns: Vec<&Column> = vec![];
    for event in &events {
        if let Pending::Incomplete { key_text, missing, change, .. } = event {
            xids.extend(change.source.tx_id.map(|xid| xid.to_string()));
            wanted.push(key_text);
            let unseen = |column: &&Column| !columns.iter().any(|seen| seen.name == column.name);
            let more: Vec<_> =
                table.columns.iter().filter(|column| missing.contains(&column.name)).filter(unseen).collect();
            columns.extend(more);
        }
    }
    if wanted.is_empty() {
        return Ok(events.into_iter().filter_map(|event| completed(event, &HashMap::new())).collect());
    }
    wanted.sort_unstable();
    wanted.dedup();
    until_visible(client, xids, VISIBLE_PATIENCE).await?;
    let mut found = HashMap::new();
    for keys in wanted.chunks(KEYS_PER_QUERY) {
        let read = tokio::time::timeout(ROWS_PATIENCE, select(client, table, &columns, None, keys)).await;
        found.extend(read.map_err(|_| ReselectError::Silent(ROWS_PATIENCE))??);
    }
    Ok(events.into_iter().filter_map(|event| completed(event, &found)).collect())
}

/// The rows with these keys, given as PostgreSQL's texts, that the publication would send, with its columns.
pub async fn rows(
    client: &Client,
    table: &Table,
    publication: &Publication,
    keys: &[Vec<String>],
) -> Result<HashMap<RowKey, Row>, tokio_postgres::Error> {
    let columns = publication.columns_of(table);
    let columns: Vec<&Column> = columns.iter().collect();
    let keys: Vec<&[String]> = keys.iter().map(Vec::as_slice).collect();
    let mut found = HashMap::new();
    for keys in keys.chunks(KEYS_PER_QUERY) {
        found.extend(select(client, table, &columns, publication.row_filter.as_deref(), keys).await?);
    }
    Ok(found)
}

/// Those of these keys, given as PostgreSQL's texts, that the publication has a row of.
pub async fn keys(
    client: &Client,
    table: &Table,
    publication: &Publication,
    keys: &[Vec<String>],
) -> Result<Vec<RowKey>, tokio_postgres::Error> {
    let keys: Vec<&[String]> = keys.iter().map(Vec::as_slice).collect();
    let mut found = vec![];
    for keys in keys.chunks(KEYS_PER_QUERY) {
        let rows = select(client, table, &[], publication.row_filter.as_deref(), keys).await?;
        found.extend(rows.into_iter().map(|(key, _)| key));
    }
    Ok(found)
}

/// Waits until others see what these transactions have committed.
///
/// A transaction is streamed when its commit is in the WAL, which is a moment before others see it, and longer where a
/// synchronous standby is waited for. It holds the lock on its own id until then.
pub async fn until_visible(client: &Client, mut xids: Vec<String>, patience: Duration) -> Result<(), ReselectError> {
    xids.sort_unstable();
    xids.dedup();
    let sql = "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND transactionid::text = ANY($1) LIMIT 1";
    let gone = async {
        while client.query_opt(sql, &[&xids]).await?.is_some() {
            tokio::time::sleep(VISIBLE_POLL).await;
        }
        Ok(())
    };
    let waited = tokio::time::timeout(patience, gone).await;
    waited.map_err(|_| ReselectError::NotVisible(patience))?
}

/// The writing transactions of this database that others do not see yet.
pub async fn running(client: &Client) -> Result<HashSet<u32>, tokio_postgres::Error> {
    // A prepared transaction belongs to no session.
    let sql = "SELECT l.transactionid::text FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
               WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
               AND (a.pid IS NULL OR a.datname = current_database())";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().filter_map(|row| row.get::<_, String>(0).parse().ok()).collect())
}

fn completed(event: Pending, found: &HashMap<RowKey, Row>) -> Option<ChangeEvent> {
    match event {
        Pending::Ready(event) => Some(event),
        Pending::Incomplete { key, missing, mut change, .. } => {
            let present = found.get(&key)?;
            let after = change.after.as_mut()?;
            for name in missing {
                match present.get(&name) {
                    Some(value) => after.insert(name, value.clone()),
                    // Not a column of the table any more. Only a row that is gone may leave its event out.
                    None => after.shift_remove(&name),
                };
            }
            Some(ChangeEvent::Row { key, change })
        }
    }
}

/// The simple query protocol gives every value in the text form that the stream has, and takes each literal as
/// its column's type, so that the primary key's index is used whatever the type is.
async fn select(
    client: &Client,
    table: &Table,
    columns: &[&Column],
    filter: Option<&str>,
    keys: &[&[String]],
) -> Result<Vec<(RowKey, Row)>, tokio_postgres::Error> {
    let names = |names: &mut dyn Iterator<Item = &String>| -> String {
        names.map(|name| escape_identifier(name)).collect::<Vec<_>>().join(", ")
    };
    let key_names = names(&mut table.key.iter());
    let all_names = names(&mut table.key.iter().chain(columns.iter().map(|column| &column.name)));
    let tuple = |key: &&[String]| {
        let values: Vec<_> = key.iter().map(|text| escape_literal(text)).collect();
        format!("({})", values.join(", "))
    };
    let sql = format!(
        "SELECT {all_names} FROM {} WHERE ({key_names}) IN ({}) AND ({})",
        table.source(),
        keys.iter().map(tuple).collect::<Vec<_>>().join(", "),
        filter.unwrap_or("true"),
    );
    let column = |name: &str| table.columns.iter().find(|column| column.name == name);
    let mut rows = vec![];
    for message in client.simple_query(&sql).await? {
        let SimpleQueryMessage::Row(values) = message else { continue };
        let value = |index: usize, column: Option<&Column>| {
            values.get(index).map_or(serde_json::Value::Null, |text| json(column, text))
        };
        let key: Row = table.key.iter().enumerate().map(|(i, name)| (name.clone(), value(i, column(name)))).collect();
        let row = columns
            .iter()
            .enumerate()
            .map(|(i, column)| (column.name.clone(), value(table.key.len() + i, Some(column))))
            .collect();
        rows.push((RowKey::from_columns(key), row));
    }
    Ok(rows)
}
