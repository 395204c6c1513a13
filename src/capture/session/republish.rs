//! Publishes rows again that somebody names by their keys: reads them as they are now, and appends them in the one order.
//!
//! **Why it converges, and no row goes back in time.** The row that is read at a moment T is appended at a later one,
//! by the task that appends the stream's events, and only if nothing contradicts it:
//!
//! 1. Before it is read, the sequencer begins to note which of the keys live events touch, and every transaction that the
//!    stream has brought until then is visible to the query. So what is read is not older than what the log has.
//! 2. It is held back until the stream has passed an LSN that every commit which the query could see stands before. So
//!    no event that the row already shows can be appended after it.
//! 3. A key that a live event has touched in between is left to that event: it came after what the log had, and it, or one
//!    behind it, is at least as new as what was read.
//!
//! Check and append are one step: no frame of the stream is taken between them. What changes after T follows in the stream.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::super::catalog::Table;
use super::super::fault::is_of_the_values;
use super::super::publication::Publication;
use super::super::reselect::ReselectError;
use super::super::sequencer::SnapshotRow;
use super::super::{CaptureError, Republished, reselect, values};
use super::{BYTES_PER_APPEND, Session, with_feedback};
use crate::clock::now_ms;
use crate::event::{Lsn, Row, RowKey};
use crate::retry::Chain;

/// How long reading may hold the stream up; it is given up then.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for transactions that others do not see yet, which mostly takes no time at all.
const VISIBLE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the server is asked how much of its WAL is flushed.
const FLUSH_POLL: Duration = Duration::from_millis(10);
/// How long the stream may take to the moment of reading.
const STREAM_PATIENCE: Duration = Duration::from_secs(20);

/// Answers who asked.
type Done = oneshot::Sender<Result<Vec<(RowKey, Republished)>, String>>;

/// Rows that wait for the stream.
pub(super) struct Republish {
    keys: BTreeSet<RowKey>,
    found: HashMap<RowKey, Row>,
    refused: Vec<(RowKey, Republished)>,
    /// All that was read was committed before this.
    point: Lsn,
    read_ms: i64,
    since: Instant,
    done: Done,
}

impl Session<'_> {
    /// Reads the rows of these keys.
    pub(super) async fn begin_republish(&mut self, keys: Vec<RowKey>, done: Done) -> Result<(), CaptureError> {
        let (mut texts, mut refused) = (BTreeMap::new(), vec![]);
        for key in keys {
            match key_text(&self.table, &key) {
                Ok(text) => drop(texts.insert(key, text)),
                Err(why) => refused.push((key, Republished::Refused(why))),
            }
        }
        self.sequencer.watch_keys(texts.keys().cloned());
        let read_ms = now_ms();
        let xids = self.sequencer.unseen().iter().map(u32::to_string).collect();
        let (sql, table, publication) = (&self.sql, &self.table, &self.publication);
        let reading = async {
            let read = async {
                reselect::until_visible(sql, xids, VISIBLE_PATIENCE).await?;
                let read = read(sql, table, publication, texts).await?;
                Ok::<_, ReselectError>((read, point_of(sql).await?))
            };
            Ok(tokio::time::timeout(READ_PATIENCE, read).await)
        };
        let read = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, reading).await?;
        let fault = match read {
            Ok(Ok((Read { keys, found, refused: unreadable }, point))) => {
                // The stream has brought nothing meanwhile.
                self.sequencer.keep_unseen(&HashSet::new());
                refused.extend(unreadable);
                let since = Instant::now();
                self.republish = Some(Republish { keys, found, refused, point, read_ms, since, done });
                // The server answers with how far it has sent, so an idle table need not wait for a keepalive.
                return Ok(self.stream.send_status(self.state.confirm, true).await?);
            }
            Ok(Err(error)) => Chain(&error).to_string(),
            Err(_) => format!("no answer for {} s; is {} locked?", READ_PATIENCE.as_secs(), self.table.name),
        };
        self.sequencer.forget_keys();
        // Who asked may have given up, here and below.
        let _ = done.send(Err(format!("read the rows by key: {fault}")));
        Ok(())
    }

    /// The LSN that the stream is waited for.
    pub(super) fn awaited(&self) -> Lsn {
        self.republish.as_ref().map_or(Lsn(0), |waiting| waiting.point)
    }

    /// Appends the rows, once the stream has passed the moment of reading.
    pub(super) async fn finish_republish(&mut self) -> Result<(), CaptureError> {
        let Some(waiting) = &self.republish else { return Ok(()) };
        if self.sequencer.received() < waiting.point {
            if waiting.since.elapsed() > STREAM_PATIENCE {
                self.give_up_republish("changes of the table come too late to see their order now; try again");
            }
            return Ok(());
        }
        let Some(Republish { keys, mut found, refused: mut outcomes, point, read_ms, done, .. }) =
            self.republish.take()
        else {
            return Ok(());
        };
        for key in keys {
            let row = found.remove(&key).map(|columns| {
                let bytes = columns.values().map(|value| value.as_str().map_or(8, str::len)).sum();
                SnapshotRow { key: key.clone(), columns, bytes }
            });
            let outcome = if row.is_some() { Republished::Row } else { Republished::Gone };
            let taken = self.sequencer.offer_again(key.clone(), row, point, read_ms, now_ms());
            outcomes.push((key, if taken { outcome } else { Republished::Changed }));
            if self.sequencer.waiting().0 >= BYTES_PER_APPEND {
                self.append().await?;
            }
        }
        self.append().await?;
        self.sequencer.forget_keys();
        let _ = done.send(Ok(outcomes));
        Ok(())
    }

    /// Publishes nothing of what waits.
    pub(super) fn give_up_republish(&mut self, why: &str) {
        if let Some(waiting) = self.republish.take() {
            self.sequencer.forget_keys();
            let _ = waiting.done.send(Err(why.to_owned()));
        }
    }
}

/// What the server says of some keys.
struct Read {
    keys: BTreeSet<RowKey>,
    found: HashMap<RowKey, Row>,
    refused: Vec<(RowKey, Republished)>,
}

/// Reads the rows of these keys, given with their texts. A text that the server does not take for its column's type makes
/// the query of all fail: then each is asked for alone.
async fn read(
    client: &Client,
    table: &Table,
    publication: &Publication,
    texts: BTreeMap<RowKey, Vec<String>>,
) -> Result<Read, tokio_postgres::Error> {
    let all: Vec<Vec<String>> = texts.values().cloned().collect();
    let mut read = Read { keys: BTreeSet::new(), found: HashMap::new(), refused: vec![] };
    match reselect::rows(client, table, publication, &all).await {
        Ok(found) => {
            read.keys = texts.into_keys().collect();
            read.found = found;
            return Ok(read);
        }
        Err(error) if is_of_the_values(&error) => {}
        Err(error) => return Err(error),
    }
    for (key, text) in texts {
        match reselect::rows(client, table, publication, &[text]).await {
            Ok(found) => {
                read.keys.insert(key);
                read.found.extend(found);
            }
            Err(error) if is_of_the_values(&error) => {
                let why = format!("read the row by its key: {}", Chain(&error));
                read.refused.push((key, Republished::Refused(why)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// PostgreSQL's text of each column of a key, in catalog order; or why it is no key of the table.
pub(in crate::capture) fn key_text(table: &Table, key: &RowKey) -> Result<Vec<String>, String> {
    let columns = key.columns();
    let is_key = columns.len() == table.key.len() && table.key.iter().all(|name| columns.contains_key(name));
    if !is_key {
        let names: Vec<&str> = columns.keys().map(String::as_str).collect();
        return Err(format!("its key has {}, the table's has {}", names.join(", "), table.key.join(", ")));
    }
    let text = |name: &String| {
        let column = table.columns.iter().find(|column| column.name == *name);
        let text = column.and_then(|column| values::to_text(&column.kind, columns.get(name)?));
        text.ok_or_else(|| format!("its key's {name} is not of a kind that a row can be asked for by"))
    };
    table.key.iter().map(text).collect()
}

/// An LSN that stands behind every commit that was visible before it was asked for, and that the stream reaches even if
/// nothing more is written.
async fn point_of(client: &Client) -> Result<Lsn, tokio_postgres::Error> {
    let sql = "SELECT CASE WHEN recovers THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END,
                      CASE WHEN recovers THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,
                      current_setting('wal_block_size')::bigint, pg_size_bytes(current_setting('wal_segment_size')),
                      (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_writer_delay')
               FROM pg_is_in_recovery() recovers";
    let lsn = |row: &tokio_postgres::Row, column: usize| Lsn(row.get::<_, PgLsn>(column).into());
    let number = |row: &tokio_postgres::Row, column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or(1);
    let row = client.query_one(sql, &[]).await?;
    let (inserted, mut flushed) = (last_end(lsn(&row, 0), number(&row, 2), number(&row, 3)), lsn(&row, 1));
    // An asynchronous commit is visible before it is flushed, and flushed after three rounds of the WAL writer at the
    // latest. What is not flushed then is of no commit that was visible, and may stay so for long.
    let last = Instant::now() + Duration::from_millis(3 * number(&row, 4)) + FLUSH_POLL;
    while flushed < inserted && Instant::now() < last {
        tokio::time::sleep(FLUSH_POLL).await;
        flushed = lsn(&client.query_one(sql, &[]).await?, 1);
    }
    Ok(inserted.min(flushed))
}

/// The end of the last record before an insert position. Where a page is full, the position stands behind the header of
/// the next, and no record ends inside of that: the stream stops at the page's beginning.
fn last_end(inserted: Lsn, block: u64, segment: u64) -> Lsn {
    // SizeOfXLogShortPHD and SizeOfXLogLongPHD of access/xlog_internal.h.
    const HEADER: u64 = 24;
    const HEADER_OF_SEGMENT: u64 = 40;
    let (block, segment) = (block.max(1), segment.max(1));
    let in_page = inserted.0 % block;
    let begins_segment = (inserted.0 - in_page).is_multiple_of(segment);
    let header = if begins_segment { HEADER_OF_SEGMENT } else { HEADER };
    if in_page == header { Lsn(inserted.0 - in_page) } else { inserted }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::catalog::{Column, ColumnKind};
    use super::*;

    #[test]
    fn an_insert_position_behind_a_page_header_is_the_page() {
        let check = |inserted: u64, wanted: u64| {
            assert_eq!(last_end(Lsn(inserted), 8192, 16 << 20), Lsn(wanted), "{inserted:X}");
        };
        check(0x0300_2000, 0x0300_2000);
        check(0x0300_2018, 0x0300_2000);
        check(0x0300_2028, 0x0300_2028);
        check(0x0300_0028, 0x0300_0000);
        check(0x0300_0018, 0x0300_0018);
        check(0x0300_2020, 0x0300_2020);
    }

    #[test]
    fn a_key_becomes_the_texts_that_postgresql_reads() {
        let kinds = [
            ("id", ColumnKind::Integer),
            ("slug", ColumnKind::Text),
            ("raw", ColumnKind::Bytea),
            ("on", ColumnKind::Bool),
            ("at", ColumnKind::TimestampTz),
            ("list", ColumnKind::Array { element: Box::new(ColumnKind::Integer), delimiter: ',' }),
        ];
        let table = |key: &[&str]| Table {
            oid: 1,
            schema: "public".into(),
            name: "faq".into(),
            kind: 'r',
            columns: kinds
                .iter()
                .map(|(name, kind)| Column {
                    name: (*name).into(),
                    kind: kind.clone(),
                    not_null: true,
                    generated: false,
                    form: String::new(),
                })
                .collect(),
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            replica_identity: 'd',
            estimated_rows: Some(0),
            whole: true,
            pages: 0,
        };
        let check = |key: &[&str], value: serde_json::Value, wanted: Result<&[&str], &str>| {
            let row_key = RowKey::from_bytes(value.to_string().as_bytes()).expect("a key");
            match (key_text(&table(key), &row_key), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(found), Err(wanted)) => assert!(found.contains(wanted), "{found}"),
                (found, wanted) => panic!("{found:?}, wanted {wanted:?}"),
            }
        };
        check(&["id"], json!({"id": -7}), Ok(&["-7"]));
        check(&["slug", "id"], json!({"id": 7, "slug": "it's \\"}), Ok(&["it's \\", "7"]));
        check(&["raw"], json!({"raw": "3q2+7wA="}), Ok(&["\\xdeadbeef00"]));
        check(&["on"], json!({"on": true}), Ok(&["true"]));
        check(&["at"], json!({"at": "2026-01-02T13:45:45Z"}), Ok(&["2026-01-02T13:45:45Z"]));
        check(&["id"], json!({"slug": "a"}), Err("its key has slug, the table's has id"));
        check(&["id"], json!({"id": 7, "slug": "a"}), Err("its key has id, slug"));
        check(&["id"], json!({"id": null}), Err("id"));
        check(&["raw"], json!({"raw": "%"}), Err("raw"));
        check(&["list"], json!({"list": [1]}), Err("list"));
    }
}
