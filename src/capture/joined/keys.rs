//! Reads keys of documents page by page: those that `affects` gives, or all of the table. Ahead of who takes them by a bounded
//! number of pages, whatever there is.

use std::collections::VecDeque;

use postgres_protocol::escape::escape_identifier;
use tokio::sync::mpsc;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use tokio_util::task::AbortOnDropHandle;

use super::affected::leave_out;
use super::of_query;
use crate::capture::catalog::{CatalogError, Table};
use crate::capture::documents::reader::{arrays, declare, is_of_the_rows, rows_of};
use crate::capture::documents::{KeyText, Watched, place, texts};
use crate::capture::snapshot::SnapshotError;
use crate::capture::{CaptureError, sql};
use crate::config::Database;

/// Keys of one page.
const KEYS_PER_PAGE: usize = 500;
/// Pages that wait: so that the next one is there when the one before is done.
const PAGES_WAITING: usize = 2;
const CURSOR: &str = "vecsync_keys";

/// A part of them.
type Page = Result<Next, CaptureError>;

enum Next {
    /// So many will come.
    Counted(u64),
    Some(Vec<KeyText>),
    /// That was all.
    End,
}

/// Keys that come page by page. Dropping it closes its connection.
pub struct Keys {
    pages: mpsc::Receiver<Page>,
    /// What has come and is not taken.
    here: VecDeque<KeyText>,
    ended: bool,
    counted: Option<u64>,
    _reader: AbortOnDropHandle<()>,
}

impl Keys {
    /// The keys that rows with these values affect, of the watched table with this number.
    pub fn affected(database: &Database, number: usize, watched: &Watched, values: Vec<KeyText>) -> Keys {
        let (statement, columns) = (watched.keys.clone(), watched.table.key.len());
        Keys::read(database.clone(), Question { statement, of: Some(number), values, columns })
    }

    /// All keys of a table.
    pub fn all(database: &Database, main: &Table) -> Keys {
        let names = main.key.iter().map(|name| escape_identifier(name)).collect::<Vec<_>>().join(", ");
        let statement = format!("SELECT {names} FROM {}", main.source());
        Keys::read(database.clone(), Question { statement, of: None, values: vec![], columns: 0 })
    }

    fn read(database: Database, question: Question) -> Keys {
        let (sender, pages) = mpsc::channel(PAGES_WAITING);
        let reading = async move {
            if let Err(error) = read(&database, question, &sender).await {
                // Who has dropped it wants to know nothing any more.
                let _ = sender.send(Err(error)).await;
            }
        };
        let reader = AbortOnDropHandle::new(tokio::spawn(reading));
        Keys { pages, here: VecDeque::new(), ended: false, counted: None, _reader: reader }
    }

    /// Waits until there are some, or no more. If the future is dropped, nothing is lost.
    pub async fn ready(&mut self) -> Result<(), CaptureError> {
        while self.here.is_empty() && !self.ended {
            match self.pages.recv().await {
                Some(Ok(Next::Counted(count))) => self.counted = Some(count),
                Some(Ok(Next::Some(keys))) => self.here.extend(keys),
                Some(Ok(Next::End)) => self.ended = true,
                Some(Err(error)) => return Err(error),
                None => return Err(CaptureError::Snapshot(SnapshotError::Abandoned)),
            }
        }
        Ok(())
    }

    /// How many there are in all, where that is known: of a table's, as soon as the first are here.
    pub fn counted(&self) -> Option<u64> {
        self.counted
    }

    /// Some of those that are here; none: that was all, if they were waited for.
    pub fn take(&mut self, count: usize) -> Vec<KeyText> {
        self.here.drain(..count.min(self.here.len())).collect()
    }
}

/// What is asked for.
struct Question {
    statement: String,
    /// The number of the watched table whose `affects` it is.
    of: Option<usize>,
    /// What it is given, in an array for each of so many columns.
    values: Vec<KeyText>,
    columns: usize,
}

async fn read(database: &Database, question: Question, pages: &mpsc::Sender<Page>) -> Result<(), CaptureError> {
    let Question { statement, of, values, columns } = question;
    let failed = |source: tokio_postgres::Error| match of {
        Some(number) => of_query(&place(number, "affects"), source.into()),
        None => CatalogError::query("list the keys of documents", source).into(),
    };
    let sql = sql::connect(database).await?;
    sql.batch_execute("SET default_transaction_read_only = on; SET lock_timeout = '10s'").await.map_err(failed)?;
    let mut waiting: Vec<&[KeyText]> = vec![&values];
    while let Some(some) = waiting.pop() {
        // The server keeps what it holds, and the transaction ends at once: who takes minutes over it holds up no VACUUM.
        let kind = if of.is_some() { "NO SCROLL CURSOR WITH HOLD" } else { "SCROLL CURSOR WITH HOLD" };
        let declared = declare(&sql, CURSOR, kind, &statement, &arrays(some, columns)).await;
        match (declared, of) {
            (Ok(()), _) => {}
            (Err(error), Some(number)) if is_of_the_rows(&error) && !some.is_empty() => {
                let (front, back) = some.split_at(some.len() / 2);
                match front {
                    [] => leave_out(number, back, &error),
                    _ => waiting.extend([front, back]),
                }
                continue;
            }
            (Err(error), _) => return Err(failed(error)),
        }
        if of.is_none() {
            // The server holds them all already.
            let passed = sql.simple_query(&format!("MOVE FORWARD ALL FROM {CURSOR}")).await.map_err(failed)?;
            let count = passed.iter().find_map(|message| match message {
                SimpleQueryMessage::CommandComplete(count) => Some(*count),
                _ => None,
            });
            sql.batch_execute(&format!("MOVE ABSOLUTE 0 FROM {CURSOR}")).await.map_err(failed)?;
            if pages.send(Ok(Next::Counted(count.unwrap_or(0)))).await.is_err() {
                return Ok(());
            }
        }
        loop {
            let fetched = sql.simple_query(&format!("FETCH FORWARD {KEYS_PER_PAGE} FROM {CURSOR}")).await;
            let rows = rows_of(fetched.map_err(failed)?);
            let is_last = rows.len() < KEYS_PER_PAGE;
            let text = |row: &SimpleQueryRow| texts(row, &(0..row.len()).collect::<Vec<_>>());
            let keys = rows.iter().map(text).filter(|key| key.iter().all(Option::is_some)).collect();
            if pages.send(Ok(Next::Some(keys))).await.is_err() {
                return Ok(());
            }
            if is_last {
                break;
            }
        }
        sql.batch_execute(&format!("CLOSE {CURSOR}")).await.map_err(failed)?;
    }
    let _ = pages.send(Ok(Next::End)).await;
    Ok(())
}
