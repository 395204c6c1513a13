//! Reads the table for comparing it with the stores: all rows as of one moment, in pages, and single rows by key as they
//! are now; as capture would publish them. Follows nothing and publishes nothing.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::Fuse;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::CopyOutStream;

use super::catalog::{self, CatalogError, Table};
use super::documents::reader::rows_of;
use super::documents::{self, Documents, KeyText, Reader as DocumentReader, texts};
use super::fault::is_of_the_values;
use super::publication::{self, Publication};
use super::session::key_text;
use super::snapshot::{self, Reader};
use super::sql::{self, Sql};
use super::{CaptureError, ColumnCheck, reselect, slot};
use crate::config::{Database, Source};
use crate::event::{Row, RowKey};

/// Rows of one page.
pub const ROWS_PER_PAGE: usize = 1_000;
/// Documents of one page.
const KEYS_PER_PAGE: usize = 500;
/// Bytes of one page, for wide rows.
const BYTES_PER_PAGE: usize = 4 << 20;

/// The cursor over the keys of documents.
const CURSOR: &str = "vecsync_survey";

/// The table, open for reading.
pub struct Survey {
    database: Database,
    table: Table,
    publication: Publication,
    now: Sql,
    /// Where the pipeline has a query: what it gives counts as the table's rows.
    documents: Option<DocumentReader>,
}

/// All rows as of the moment of the first page.
pub enum Pages {
    /// The table's.
    Rows {
        /// Where they come from.
        reader: Box<Reader>,
        /// The rest of them.
        rows: Pin<Box<Fuse<CopyOutStream>>>,
    },
    /// Documents of a query.
    Documents(Box<DocumentReader>),
}

impl Survey {
    /// Connects, and looks at table and publication. Of a topic that somebody else fills, all rows and columns are read.
    pub async fn open(database: &Database, source: &Source, check: &ColumnCheck) -> Result<Survey, CaptureError> {
        let now = sql::connect(database).await?;
        if let Some(query) = &source.query {
            let (found, problems) = documents::look(&now, source, query).await?;
            let problems = match &found {
                Some(documents) => check(&documents.names()),
                None => problems,
            };
            let Some(found) = found.filter(|_| problems.is_empty()) else {
                return Err(CaptureError::Columns(documents::in_one(&problems)));
            };
            let table = found.main.clone();
            let documents = Some(reader_of(database, found).await?);
            let publication = Publication::default();
            return Ok(Survey { database: database.clone(), table, publication, now, documents });
        }
        let table = catalog::load(&now, &source.schema, &source.table).await?;
        let publication = match source.topic {
            None => match publication::look(&now, &table, &source.publication).await? {
                Some(publication) => publication,
                None => {
                    let absent = publication::absent(&now, &[&table], &source.publication).await;
                    return Err(absent.into_fault().into());
                }
            },
            Some(_) => Publication::default(),
        };
        let columns = publication.columns_of(&table);
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let problems = check(&names);
        if !problems.is_empty() {
            return Err(CaptureError::Columns(problems.join("; ")));
        }
        Ok(Survey { database: database.clone(), table, publication, now, documents: None })
    }

    /// How many rows the table has, by the planner's statistics, where there are any.
    pub fn rows_estimated(&self) -> Option<u64> {
        self.table.estimated_rows
    }

    /// How many rows it has now, counted.
    pub async fn count(&self) -> Result<u64, CaptureError> {
        if let Some(reader) = &self.documents {
            let mut reader = reader_of(&self.database, reader.documents().clone()).await?;
            let mut count = 0;
            begin(&mut reader).await?;
            loop {
                let keys = fetch(&reader).await?;
                if keys.is_empty() {
                    return Ok(count);
                }
                count += reader.present(&keys).await.map_err(|source| self.failed(source))?.len() as u64;
            }
        }
        let filter = self.publication.row_filter.as_deref();
        Ok(snapshot::count(&self.now, &self.table, filter).await?)
    }

    /// How many bytes of WAL are not confirmed to this slot; `None`: there is none.
    pub async fn lag_bytes(&self, slot: &str) -> Result<Option<u64>, CaptureError> {
        let (flushed, slot) = slot::source_progress(&self.now, slot).await?;
        let confirmed = slot.and_then(|slot| slot.confirmed_flush);
        Ok(confirmed.map(|confirmed| flushed.0.saturating_sub(confirmed.0)))
    }

    /// Begins to read all rows.
    pub async fn pages(&self) -> Result<Pages, CaptureError> {
        if let Some(reader) = &self.documents {
            let mut reader = reader_of(&self.database, reader.documents().clone()).await?;
            begin(&mut reader).await?;
            return Ok(Pages::Documents(Box::new(reader)));
        }
        let reader = Reader::of_now(&self.database, &self.table, &self.publication).await?;
        let rows = Box::pin(reader.copy("true").await?.fuse());
        Ok(Pages::Rows { reader: Box::new(reader), rows })
    }

    /// The rows with these keys, as they are now. Those that the table lacks, or cannot have, are left out.
    pub async fn rows(&self, keys: &[RowKey]) -> Result<HashMap<RowKey, Row>, CaptureError> {
        if let Some(reader) = &self.documents {
            let read = reader.read(&self.key_texts(keys)).await.map_err(|source| self.failed(source))?;
            return Ok(read.into_iter().map(|document| (document.key, document.columns)).collect());
        }
        let mut found = HashMap::with_capacity(keys.len());
        let mut waiting = vec![self.texts(keys)];
        while let Some(texts) = waiting.pop() {
            match reselect::rows(&self.now, &self.table, &self.publication, &texts).await {
                Ok(rows) => found.extend(rows),
                Err(error) => waiting.extend(self.halves(texts, error)?),
            }
        }
        Ok(found)
    }

    /// Those of the keys that the table has now.
    pub async fn present(&self, keys: &[RowKey]) -> Result<HashSet<RowKey>, CaptureError> {
        if let Some(reader) = &self.documents {
            let present = reader.present(&self.key_texts(keys)).await;
            return Ok(present.map_err(|source| self.failed(source))?.into_iter().collect());
        }
        let mut found = HashSet::with_capacity(keys.len());
        let mut waiting = vec![self.texts(keys)];
        while let Some(texts) = waiting.pop() {
            match reselect::keys(&self.now, &self.table, &self.publication, &texts).await {
                Ok(keys) => found.extend(keys),
                Err(error) => waiting.extend(self.halves(texts, error)?),
            }
        }
        Ok(found)
    }

    /// The keys as the server reads them. What is no key of this table has no row.
    fn texts(&self, keys: &[RowKey]) -> Vec<Vec<String>> {
        keys.iter().filter_map(|key| key_text(&self.table, key).ok()).collect()
    }

    fn key_texts(&self, keys: &[RowKey]) -> Vec<KeyText> {
        self.texts(keys).into_iter().map(|text| text.into_iter().map(Some).collect()).collect()
    }

    fn failed(&self, source: tokio_postgres::Error) -> CaptureError {
        CaptureError::Run { place: documents::QUERY.to_owned(), source: source.into() }
    }

    /// What to ask for after an error: a text that the server does not take for its column's type makes the query of all
    /// fail. Alone it has no row.
    fn halves(
        &self,
        mut texts: Vec<Vec<String>>,
        error: tokio_postgres::Error,
    ) -> Result<Vec<Vec<Vec<String>>>, CaptureError> {
        if !is_of_the_values(&error) {
            return Err(CaptureError::Reselect { table: self.table.name.clone(), source: error.into() });
        }
        match texts.len() {
            0 | 1 => Ok(vec![]),
            many => {
                let rest = texts.split_off(many / 2);
                Ok(vec![texts, rest])
            }
        }
    }
}

impl Pages {
    /// The next rows; none: there are no more.
    pub async fn next(&mut self) -> Result<Vec<(RowKey, Row)>, CaptureError> {
        match self {
            Pages::Rows { reader, rows } => {
                let (mut page, mut bytes) = (vec![], 0);
                while page.len() < ROWS_PER_PAGE && bytes < BYTES_PER_PAGE {
                    let Some(line) = rows.next().await else { break };
                    let row = reader.row(&line.map_err(|source| reader.failed("copy the table", source))?)?;
                    bytes += row.bytes;
                    page.push((row.key, row.columns));
                }
                Ok(page)
            }
            Pages::Documents(reader) => loop {
                let keys = fetch(reader).await?;
                if keys.is_empty() {
                    return Ok(vec![]);
                }
                let read = reader.read(&keys).await;
                let read = read.map_err(|source| CatalogError::query("read the documents", source))?;
                // None of these keys has a document; others may.
                if !read.is_empty() {
                    return Ok(read.into_iter().map(|document| (document.key, document.columns)).collect());
                }
            },
        }
    }
}

async fn reader_of(database: &Database, documents: Documents) -> Result<DocumentReader, CaptureError> {
    let mut reader = DocumentReader::connect(database, documents.clone()).await?;
    let prepared = reader.prepare(documents).await;
    prepared.map_err(|source| CatalogError::query("prepare source.query", source))?;
    Ok(reader)
}

/// Opens a cursor over the keys of the documents' table, in a transaction that sees one moment.
async fn begin(reader: &mut DocumentReader) -> Result<(), CaptureError> {
    let failed = |source| CatalogError::query("list the keys of documents", source);
    reader.begin().await.map_err(failed)?;
    let main = &reader.documents().main;
    let names = main.key.iter().map(|name| escape_identifier(name)).collect::<Vec<_>>().join(", ");
    let sql = format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR SELECT {names} FROM {}", main.source());
    Ok(reader.batch_execute(&sql).await.map_err(failed)?)
}

/// The next of them; none: there are no more.
async fn fetch(reader: &DocumentReader) -> Result<Vec<KeyText>, CaptureError> {
    let fetched = reader.simple_query(&format!("FETCH FORWARD {KEYS_PER_PAGE} FROM {CURSOR}")).await;
    let rows = rows_of(fetched.map_err(|source| CatalogError::query("list the keys of documents", source))?);
    let at: Vec<usize> = (0..reader.documents().main.key.len()).collect();
    Ok(rows.iter().map(|row| texts(row, &at)).collect())
}
