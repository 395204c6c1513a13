//! Tries the pipeline's queries with keys that there are: what fails, and what a document by its key may not depend on. Changes
//! nothing.

use std::collections::BTreeSet;

use super::reader::{Document, KeyText, Reader, is_of_the_rows, rows_of};
use super::{Documents, QUERY, granted, place, texts};
use crate::capture::CaptureError;
use crate::capture::catalog::{CatalogError, Table, server_text};
use crate::capture::connection::quote_name;
use crate::config::Database;

/// Keys that are tried.
const KEYS: usize = 20;
/// Keys that an `affects` is asked for at most: it is seen to run.
const AFFECTED: usize = 100;

/// All that is wrong, each with its place in the pipeline file. What the database says of a query is wrong with that; the error is
/// that nobody could be asked.
pub async fn run(database: &Database, documents: &Documents) -> Result<Vec<String>, CaptureError> {
    let mut problems = vec![];
    let mut reader = Reader::connect(database, documents.clone()).await?;
    if let Err(error) = reader.prepare(documents.clone()).await {
        return Ok(vec![told(&reader, QUERY, error).await?]);
    }
    let main = &documents.main;
    match keys(&reader, main).await {
        Ok(keys) => {
            // One moment: nobody writes in between.
            reader.begin().await.map_err(failed)?;
            if let Err(error) = query(&reader, &keys, &mut problems).await {
                problems.push(told(&reader, QUERY, error).await?);
            }
            reader.batch_execute("ROLLBACK").await.map_err(failed)?;
        }
        Err(error) => problems.push(told(&reader, "source.table", error).await?),
    }
    for (number, watched) in documents.watched.iter().enumerate() {
        // Who may read the table is not who may read its changes: those the stream brings.
        let Ok(keys) = keys(&reader, &watched.table).await else { continue };
        match reader.affected(watched, &keys, AFFECTED).await {
            Err(error) if !is_of_the_rows(&error) => {
                problems.push(told(&reader, &place(number, "affects"), error).await?)
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(problems)
}

fn failed(source: tokio_postgres::Error) -> CatalogError {
    CatalogError::query(format!("try {QUERY}"), source)
}

/// What the database says; the error is that it said nothing.
async fn told(reader: &Reader, place: &str, error: tokio_postgres::Error) -> Result<String, CatalogError> {
    match error.as_db_error() {
        Some(_) => {
            let mended = granted(reader, &error).await.map_err(failed)?;
            Ok(format!("{place}: {}{mended}", server_text(&error)))
        }
        None => Err(failed(error)),
    }
}

/// Some keys of a table.
async fn keys(reader: &Reader, table: &Table) -> Result<Vec<KeyText>, tokio_postgres::Error> {
    let names: Vec<String> = table.key.iter().map(|name| quote_name(name)).collect();
    let sql = format!("SELECT {} FROM {} LIMIT {KEYS}", names.join(", "), table.source());
    let at: Vec<usize> = (0..names.len()).collect();
    let rows = reader.simple_query(&sql).await.map(rows_of)?;
    let mut keys: Vec<KeyText> = rows.iter().map(|row| texts(row, &at)).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}

/// Asks for each key alone and for all together: the same comes.
async fn query(reader: &Reader, keys: &[KeyText], problems: &mut Vec<String>) -> Result<(), tokio_postgres::Error> {
    let (mut alone, mut asked) = (vec![], vec![]);
    for key in keys {
        let given = match reader.gives(std::slice::from_ref(key)).await {
            Ok(given) => given,
            // A dead letter, and no fault of the query's.
            Err(error) if is_of_the_rows(&error) => continue,
            Err(error) => return Err(error),
        };
        let wanted = reader.key(key);
        if let Some(other) = given.others.first() {
            problems.push(format!(
                "{QUERY}: was asked for {} and gave {}; it has to give the documents of the keys in $1 alone, under these keys",
                wanted.as_str(),
                other.as_str()
            ));
            return Ok(());
        }
        if given.asked.len() > 1 {
            let (count, key) = (given.asked.len(), wanted.as_str());
            problems.push(format!("{QUERY}: gives {count} rows for {key}; wanted one for a key"));
            return Ok(());
        }
        alone.extend(given.asked);
        asked.push(key.clone());
    }
    let together = match reader.gives(&asked).await {
        Ok(given) => given.asked,
        Err(error) if is_of_the_rows(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for key in asked {
        let wanted = reader.key(&key);
        let of = |all: &[Document]| all.iter().filter(|one| one.key == wanted).cloned().collect::<Vec<_>>();
        let (first, second) = (of(&alone), of(&together));
        if first == second {
            continue;
        }
        let again = reader.gives(std::slice::from_ref(&key)).await?.asked;
        let (key, what) = (wanted.as_str(), differing(&first, if again == first { &second } else { &again }));
        problems.push(match again == first {
            true => format!(
                "{QUERY}: gives {what} for {key} when it is asked for {} keys at once and otherwise alone; what it gives for a key may \
                 not depend on the other keys in $1 (a window over all rows, a LIMIT, an aggregate of all or without ORDER BY)",
                alone.len()
            ),
            false => format!("{QUERY}: gives {what} for {key} each time; leave out what is volatile, as random()"),
        });
        return Ok(());
    }
    Ok(())
}

/// What is not the same, by names alone.
fn differing(first: &[Document], second: &[Document]) -> String {
    match (first, second) {
        ([one], [other]) => {
            let columns = one.columns.iter().filter(|(name, value)| other.columns.get(*name) != Some(*value));
            let names: BTreeSet<&str> = columns.map(|(name, _)| name.as_str()).collect();
            format!("another {}", names.into_iter().collect::<Vec<_>>().join(" and another "))
        }
        (_, []) => "no document".to_owned(),
        (_, [_]) => "a document".to_owned(),
        (_, several) => format!("{} rows", several.len()),
    }
}
