//! Reads documents by key as the pipeline's query gives them now, and the keys that `affects` gives. Follows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::OnceLock;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::{Documents, QUERY, Watched, texts};
use crate::capture::catalog::{Table, server_text};
use crate::capture::fault::ConnectError;
use crate::capture::sequencer::json;
use crate::capture::sql::{self, Sql};
use crate::config::Database;
use crate::event::{FAULT_COLUMN, Row, RowKey};

/// PostgreSQL's text of each column of a key, in the key's order. `None` is NULL.
pub type KeyText = Vec<Option<String>>;

/// Keys of one query: bounds its text and what is held of its rows.
pub const KEYS_PER_QUERY: usize = 500;

/// The query, prepared.
const DOCUMENT: &str = "vecsync_document";
/// The same, and of its columns only the key's.
const DOCUMENT_KEY: &str = "vecsync_document_key";
/// A cursor that is open for a moment.
const CURSOR: &str = "vecsync_affects";
/// What a transaction goes back to when a query fails in it.
const SAVEPOINT: &str = "vecsync_before";

/// Settings of a connection that documents are read over. A generic plan does not know how many keys there are; compiling takes
/// longer than a batch; and nobody's query writes.
const SETTINGS: &str = "SET plan_cache_mode = force_custom_plan; SET jit = off; SET default_transaction_read_only = on;
    SET lock_timeout = '10s'";

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its key.
    pub key: RowKey,
    /// Its columns; where the query fails for it those of the key and [`FAULT_COLUMN`].
    pub columns: Row,
    /// Bytes of its text form.
    pub bytes: usize,
}

/// What the query gave for some keys.
pub struct Given<T> {
    /// What was asked for.
    pub asked: Vec<T>,
    /// Keys of rows that nobody asked for, each once.
    pub others: BTreeSet<RowKey>,
}

/// A connection that documents are read over.
pub struct Reader {
    sql: Sql,
    documents: Documents,
    is_prepared: bool,
    /// It reads in a transaction that has to outlive a query that fails.
    in_transaction: bool,
    /// The query gave documents that nobody asked for: told once.
    others: OnceLock<String>,
    /// It gave several for one key: told once.
    several: OnceLock<()>,
}

impl Deref for Reader {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.sql
    }
}

impl Reader {
    /// Connects. The query is prepared by [`Reader::prepare`].
    pub async fn connect(database: &Database, documents: Documents) -> Result<Reader, ConnectError> {
        let sql = sql::connect(database).await?;
        let (others, several) = (OnceLock::new(), OnceLock::new());
        Ok(Reader { sql, documents, is_prepared: false, in_transaction: false, others, several })
    }

    /// Prepares the query of these documents for the first time, or anew.
    pub async fn prepare(&mut self, documents: Documents) -> Result<(), tokio_postgres::Error> {
        self.documents = documents;
        (self.others, self.several) = (OnceLock::new(), OnceLock::new());
        self.sql.batch_execute(SETTINGS).await?;
        if self.is_prepared {
            self.sql.batch_execute(&format!("DEALLOCATE {DOCUMENT}; DEALLOCATE {DOCUMENT_KEY}")).await?;
        }
        let (document, key) = (self.documents.document_sql(), self.documents.key_sql());
        self.sql.batch_execute(&format!("PREPARE {DOCUMENT} AS {document}")).await?;
        self.sql.batch_execute(&format!("PREPARE {DOCUMENT_KEY} AS {key}")).await?;
        self.is_prepared = true;
        Ok(())
    }

    /// Begins a transaction in which everything is read as of one moment from now on.
    pub async fn begin(&mut self) -> Result<(), tokio_postgres::Error> {
        self.in_transaction = true;
        self.sql.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    /// The documents that are read.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The key with this text, in its one spelling.
    pub fn key(&self, text: &KeyText) -> RowKey {
        key_of(&self.documents.main, text)
    }

    /// The documents of these keys as they are now, each once, in the order of their keys. A key without one is not there.
    pub async fn read(&self, keys: &[KeyText]) -> Result<Vec<Document>, tokio_postgres::Error> {
        let mut found = BTreeMap::new();
        let mut waiting: Vec<&[KeyText]> = keys.chunks(KEYS_PER_QUERY).collect();
        while let Some(some) = waiting.pop() {
            match self.gives(some).await {
                Ok(given) => {
                    self.tell_others(some.len(), &given.others);
                    given.asked.into_iter().for_each(|document| self.note(&mut found, document));
                }
                Err(error) if !is_of_the_rows(&error) => return Err(error),
                // One row that the query cannot do with holds up no other.
                Err(error) if some.len() == 1 => {
                    let key = self.key(&some[0]);
                    if !self.is_key(&some[0]).await? {
                        continue;
                    }
                    let fault = format!("{QUERY} fails for {}: {}", key.as_str(), server_text(&error));
                    tracing::warn!("{fault}");
                    let bytes = fault.len();
                    let mut columns = key.columns();
                    columns.insert(FAULT_COLUMN.to_owned(), Value::String(fault));
                    found.insert(key.clone(), Document { key, columns, bytes });
                }
                Err(_) => {
                    let (first, second) = some.split_at(some.len() / 2);
                    waiting.extend([first, second]);
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// Those of these keys that have a document now.
    pub async fn present(&self, keys: &[KeyText]) -> Result<Vec<RowKey>, tokio_postgres::Error> {
        let mut found = vec![];
        let mut waiting: Vec<&[KeyText]> = keys.chunks(KEYS_PER_QUERY).collect();
        let (given, own): (Vec<usize>, usize) =
            ((0..self.documents.main.key.len()).collect(), self.documents.main.key.len());
        while let Some(some) = waiting.pop() {
            let rows = match self.execute(DOCUMENT_KEY, some).await {
                Ok(rows) => {
                    let keys = rows.iter().map(|row| self.key_in(row, &given, own));
                    self.sort_out(some, keys.map(|text| (self.key(&text), text)).collect()).await
                }
                Err(error) => Err(error),
            };
            match rows {
                Ok(given) => {
                    self.tell_others(some.len(), &given.others);
                    found.extend(given.asked);
                }
                Err(error) if !is_of_the_rows(&error) => return Err(error),
                Err(_) if some.len() == 1 => {
                    if self.is_key(&some[0]).await? {
                        found.push(self.key(&some[0]));
                    }
                }
                Err(_) => {
                    let (first, second) = some.split_at(some.len() / 2);
                    waiting.extend([first, second]);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The keys of documents that rows of a watched table are part of; `None`: there are more than `limit`.
    pub async fn affected(
        &self,
        watched: &Watched,
        keys: &[KeyText],
        limit: usize,
    ) -> Result<Option<Vec<KeyText>>, tokio_postgres::Error> {
        let literals = arrays(keys, watched.table.key.len());
        self.sql.batch_execute("BEGIN READ ONLY").await?;
        let declared = declare(&self.sql, CURSOR, "NO SCROLL CURSOR", &watched.keys, &literals).await;
        let fetched = match declared {
            Ok(()) => self.sql.simple_query(&format!("FETCH FORWARD {} FROM {CURSOR}", limit + 1)).await,
            Err(error) => Err(error),
        };
        let rows = match fetched {
            Ok(messages) => rows_of(messages),
            Err(error) => {
                // Where the connection is gone, that is what is told.
                let _ = self.sql.batch_execute("ROLLBACK").await;
                return Err(error);
            }
        };
        self.sql.batch_execute("ROLLBACK").await?;
        let at: Vec<usize> = (0..self.documents.main.key.len()).collect();
        Ok((rows.len() <= limit).then(|| rows.iter().map(|row| texts(row, &at)).collect()))
    }

    /// What the query gives for these keys, row by row.
    pub async fn gives(&self, keys: &[KeyText]) -> Result<Given<Document>, tokio_postgres::Error> {
        let rows = self.execute(DOCUMENT, keys).await?;
        self.sort_out(keys, rows.iter().map(|row| self.document(row)).collect()).await
    }

    /// Why the query is not one of documents by key, if it has shown that.
    pub fn gives_others(&self) -> Option<&str> {
        self.others.get().map(String::as_str)
    }

    fn tell_others(&self, asked: usize, others: &BTreeSet<RowKey>) {
        let Some(first) = others.first().filter(|_| self.others.get().is_none()) else { return };
        let what = format!(
            "{QUERY} was asked for {asked} documents and gave {} that nobody asked for, as {}: they are not taken, and what was asked \
             for and not given is deleted; have it give the documents of the keys in $1 alone, under these keys",
            others.len(),
            first.as_str()
        );
        tracing::warn!("{what}");
        // Whoever was first has told it.
        let _ = self.others.set(what);
    }

    /// Tells what was asked for from what was not. A key may be spelled otherwise than it was asked for.
    async fn sort_out<T: Keyed>(
        &self,
        asked: &[KeyText],
        given: Vec<(T, KeyText)>,
    ) -> Result<Given<T>, tokio_postgres::Error> {
        let known: BTreeSet<RowKey> = asked.iter().map(|text| self.key(text)).collect();
        let mut others: BTreeMap<RowKey, KeyText> = BTreeMap::new();
        for (one, text) in given.iter().filter(|(one, _)| !known.contains(one.key())) {
            others.entry(one.key().clone()).or_insert_with(|| text.clone());
        }
        if !others.is_empty() {
            let texts: Vec<KeyText> = others.values().cloned().collect();
            let mut equal = self.equal(asked, &texts).await?.into_iter();
            others.retain(|_, _| !equal.next().unwrap_or(false));
        }
        let asked = given.into_iter().map(|(one, _)| one).filter(|one| !others.contains_key(one.key())).collect();
        Ok(Given { asked, others: others.into_keys().collect() })
    }

    /// Of each of these keys, whether PostgreSQL takes it for one that was asked for, by its type or by the collation of the column.
    async fn equal(&self, asked: &[KeyText], keys: &[KeyText]) -> Result<Vec<bool>, tokio_postgres::Error> {
        let main = &self.documents.main;
        let unnested = |keys: &[KeyText]| {
            let array = |(array, kind): (String, &String)| format!("{}::{kind}[]", escape_literal(&array));
            let arrays = arrays(keys, main.key.len()).into_iter().zip(&self.documents.key_types);
            format!("unnest({})", arrays.map(array).collect::<Vec<_>>().join(", "))
        };
        let numbered: Vec<String> = (0..main.key.len()).map(|place| format!("k{place}")).collect();
        let columns = numbered.join(", ");
        let all = |is: &dyn Fn((&String, &String)) -> String| {
            main.key.iter().zip(&numbered).map(is).collect::<Vec<_>>().join(" AND ")
        };
        let same = all(&|(_, k)| format!("a.{k} = g.{k}"));
        let same_there = all(&|(name, k)| {
            let name = escape_identifier(name);
            format!("t.{name} = g.{k} AND t.{name} = a.{k}")
        });
        let asked = unnested(asked);
        let ask = async |some: &[KeyText]| {
            let sql = format!(
                "SELECT EXISTS (SELECT FROM {asked} AS a ({columns}) WHERE {same})
                    OR EXISTS (SELECT FROM {} AS t, {asked} AS a ({columns}) WHERE {same_there})
                 FROM {} WITH ORDINALITY AS g ({columns}, number) ORDER BY g.number",
                main.source(),
                unnested(some)
            );
            let rows = self.ask(&sql).await?;
            Ok::<_, tokio_postgres::Error>(rows.iter().map(|row| row.get(0) == Some("t")).collect::<Vec<_>>())
        };
        match ask(keys).await {
            Err(error) if is_of_the_rows(&error) => {}
            answer => return answer,
        }
        let mut found = vec![];
        for key in keys {
            match ask(std::slice::from_ref(key)).await {
                Ok(is) => found.extend(is),
                // No key of this type is like it.
                Err(error) if is_of_the_rows(&error) => found.push(false),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn execute(&self, statement: &str, keys: &[KeyText]) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
        let literals = arrays(keys, self.documents.main.key.len());
        let literals: Vec<String> = literals.iter().map(|array| escape_literal(array)).collect();
        self.ask(&format!("EXECUTE {statement}({})", literals.join(", "))).await
    }

    /// Rows of a query that may fail for some of them.
    async fn ask(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
        if !self.in_transaction {
            return Ok(rows_of(self.sql.simple_query(sql).await?));
        }
        let asked = format!("SAVEPOINT {SAVEPOINT}; {sql}; RELEASE SAVEPOINT {SAVEPOINT}");
        let answer = self.sql.simple_query(&asked).await;
        if answer.as_ref().is_err_and(|error| error.as_db_error().is_some()) {
            let back = format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}");
            // Where that fails, the connection is gone, and the next query says so.
            let _ = self.sql.batch_execute(&back).await;
        }
        Ok(rows_of(answer?))
    }

    /// Whether the table has a row with this key; of one that it cannot have, it has none.
    async fn is_key(&self, key: &KeyText) -> Result<bool, tokio_postgres::Error> {
        let main = &self.documents.main;
        let is = |(name, text): (&String, &Option<String>)| {
            format!("{} = {}", escape_identifier(name), escape_literal(text.as_deref().unwrap_or_default()))
        };
        let conditions: Vec<String> = main.key.iter().zip(key).map(is).collect();
        let sql = format!("SELECT FROM {} WHERE {}", main.source(), conditions.join(" AND "));
        match self.ask(&sql).await {
            Ok(rows) => Ok(!rows.is_empty()),
            Err(error) if is_of_the_rows(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The key of a row, as the documents' table spells it; that begins at `own`. Of one that this lacks, as the query does.
    fn key_in(&self, row: &SimpleQueryRow, given: &[usize], own: usize) -> KeyText {
        let places: Vec<usize> = (own..own + given.len()).collect();
        let text = texts(row, &places);
        if text.iter().all(Option::is_some) { text } else { texts(row, given) }
    }

    /// A row of the query, and the text of its key.
    fn document(&self, row: &SimpleQueryRow) -> (Document, KeyText) {
        let mut bytes = 0;
        let mut columns = Row::with_capacity(self.documents.columns.len());
        for (place, column) in self.documents.columns.iter().enumerate() {
            let value = row.get(place).map_or(Value::Null, |text| {
                bytes += text.len();
                json(Some(column), text)
            });
            columns.insert(column.name.clone(), value);
        }
        let text = self.key_in(row, &self.documents.key_at, self.documents.columns.len());
        (Document { key: self.key(&text), columns, bytes }, text)
    }

    /// Takes a document. Of several with one key that counts which comes first as a text: whoever reads them, takes the same.
    fn note(&self, found: &mut BTreeMap<RowKey, Document>, document: Document) {
        let text = |document: &Document| Value::Object(document.columns.clone()).to_string();
        match found.get(&document.key) {
            None => drop(found.insert(document.key.clone(), document)),
            Some(known) if *known == document => {}
            Some(known) => {
                if self.several.set(()).is_ok() {
                    let key = document.key.as_str();
                    tracing::warn!(
                        "{QUERY} gives several documents for {key}, of which one is taken; have it give one row for a key"
                    );
                }
                if text(&document) < text(known) {
                    found.insert(document.key.clone(), document);
                }
            }
        }
    }
}

/// What has a document's key.
trait Keyed {
    fn key(&self) -> &RowKey;
}

impl Keyed for Document {
    fn key(&self) -> &RowKey {
        &self.key
    }
}

impl Keyed for RowKey {
    fn key(&self) -> &RowKey {
        self
    }
}

/// Opens a cursor, with arrays for the parameters.
pub async fn declare(
    client: &Client,
    name: &str,
    kind: &str,
    statement: &str,
    literals: &[String],
) -> Result<(), tokio_postgres::Error> {
    let parameters: Vec<TextValue<'_>> = literals.iter().map(|literal| TextValue(literal)).collect();
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        parameters.iter().map(|value| value as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    client.execute(&format!("DECLARE {name} {kind} FOR {statement}"), &parameters).await.map(drop)
}

/// A key in its one spelling, from PostgreSQL's texts.
pub fn key_of(main: &Table, text: &KeyText) -> RowKey {
    let value = |(name, text): (&String, &Option<String>)| {
        let column = main.columns.iter().find(|column| column.name == *name);
        (name.clone(), text.as_ref().map_or(Value::Null, |text| json(column, text)))
    };
    RowKey::from_columns(main.key.iter().zip(text).map(value).collect())
}

/// An array of each column of these keys, as PostgreSQL writes arrays.
pub fn arrays(keys: &[KeyText], columns: usize) -> Vec<String> {
    let array = |place: usize| {
        let mut text = String::from("{");
        for (number, key) in keys.iter().enumerate() {
            if number > 0 {
                text.push(',');
            }
            match key.get(place).and_then(Option::as_ref) {
                None => text.push_str("NULL"),
                Some(value) => {
                    text.push('"');
                    for character in value.chars() {
                        if matches!(character, '"' | '\\') {
                            text.push('\\');
                        }
                        text.push(character);
                    }
                    text.push('"');
                }
            }
        }
        text + "}"
    };
    (0..columns).map(array).collect()
}

/// The rows of an answer.
pub fn rows_of(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
    messages.into_iter().filter_map(row).collect()
}

/// Whether a query failed because of what is in some rows: data exceptions, a subquery that gives several rows, what a function raises.
pub fn is_of_the_rows(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| ["22", "21", "P0", "38"].iter().any(|class| code.code().starts_with(class)))
}

/// A parameter that is sent as text, whatever its type.
#[derive(Debug)]
struct TextValue<'a>(&'a str);

impl tokio_postgres::types::ToSql for TextValue<'_> {
    fn to_sql(
        &self,
        _: &tokio_postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(_: &tokio_postgres::types::Type) -> bool {
        true
    }

    fn encode_format(&self, _: &tokio_postgres::types::Type) -> tokio_postgres::types::Format {
        tokio_postgres::types::Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_arrays_that_postgresql_reads_whatever_is_in_them() {
        let key = |texts: &[Option<&str>]| texts.iter().map(|text| text.map(str::to_owned)).collect::<KeyText>();
        let keys = [key(&[Some("1"), Some("a,b")]), key(&[Some("-2"), Some("\"\\{}")]), key(&[None, Some("NULL")])];
        assert_eq!(arrays(&keys, 2), [r#"{"1","-2",NULL}"#, r#"{"a,b","\"\\{}","NULL"}"#]);
        assert_eq!(arrays(&[], 1), ["{}"]);
    }
}
