//! `vecsync pipeline check`: which files are meant, and where documents come from queries, what the database says is wrong with them.
//! Changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use crate::capture::check::{self, Queries};
use crate::capture::{CaptureError, ColumnCheck};
use crate::config::problems::Problems;
use crate::config::{Database, Pipeline, folder};
use crate::embed::Document;

/// Files as they are named, and of a folder its pipeline files. What cannot be listed is a problem.
pub fn files(paths: &[PathBuf], problems: &mut Problems) -> Vec<PathBuf> {
    let mut files = vec![];
    for path in paths {
        match path.is_dir() {
            true => files.extend(problems.take(folder::files(path, "")).into_iter().flatten()),
            // What is wrong with a file is said when it is read.
            false => files.push(path.clone()),
        }
    }
    files
}

/// What documents are, in a line, and all that is wrong. The error is that the database could not be asked.
pub async fn check_queries(database: &Database, pipeline: &Pipeline) -> Result<(String, Vec<String>), CaptureError> {
    let Some(query) = &pipeline.source.query else { return Ok((String::new(), vec![])) };
    // Templates that do not compile were told by the parser.
    let document = Document::compile(&pipeline.document).ok();
    let filters = pipeline.filters.clone();
    let check_columns: ColumnCheck = Arc::new(move |columns: &[&str]| {
        document.as_ref().map(|document| document.check_columns(columns, &filters)).unwrap_or_default()
    });
    let found = match check::queries(database, &pipeline.source, query, &check_columns).await {
        // It could be asked, and refused.
        Err(CaptureError::Catalog(error)) if error.is_answer() => return Ok((String::new(), vec![error.to_string()])),
        found => found?,
    };
    let Queries { documents, mut problems, publication, unwatched } = found;
    problems.extend(publication.into_iter().filter_map(Result::err).map(|what| format!("source.publication: {what}")));
    let said = documents.map(|documents| check::said_of_documents(&documents, &unwatched)).unwrap_or_default();
    Ok((said, problems))
}
