//! The table's shape while it is followed: notices another one, takes it up, and has the table read again where rows
//! may have other values than any event told of.

use serde_json::json;

use super::{PROBE_PATIENCE, START_PATIENCE, Session, Sql, answered, with_feedback};
use crate::capture::catalog::{self, Table};
use crate::capture::publication::{self, Publication};
use crate::capture::{Capture, CaptureError, Wanted, check};
use crate::topic::CaptureState;

impl Session<'_> {
    /// Takes up the table as the catalog has it now. That the pipeline can no longer be followed is an error: the stream
    /// stays where it is until somebody mends the one or the other.
    pub(super) async fn take_shape(&mut self) -> Result<(), CaptureError> {
        // What was collected so far has the old shape.
        self.append().await?;
        self.give_up_republish("the table has another shape now; try again");
        let (capture, sql, oid) = (self.capture, &self.sql, self.table.oid);
        let look = async {
            // Asked first: what changes after it is noticed next time.
            let shape = catalog::shape(sql, oid).await?;
            // Reading the table's size waits for whoever alters it.
            let (table, publication) = inspect(capture, sql).await?;
            Ok::<_, CaptureError>((shape, table, publication))
        };
        let looked = answered(START_PATIENCE, look);
        let looked = with_feedback(&mut self.stream, &mut self.feedback, self.state.confirm, looked).await?;
        let (shape, table, publication) = looked;
        self.sequencer.set_table(published(&table, &publication));
        let rewritten = has_other_values(&self.table, &table, &publication);
        // Rewriting a table is visible to snapshots from before it: they see no row of it any more.
        let again = rewritten || (self.snapshot.is_some() && shape != self.shape);
        (self.table, self.publication, self.shape) = (table, publication, shape);
        if again {
            tracing::warn!("the table's rows may have been rewritten: it is read again");
            let captured = captured(&self.table, &self.publication, &self.identity);
            self.state = CaptureState { captured, ..self.state.clone() };
            self.abandon_snapshot().await;
            self.resync(Wanted { force: false, batch_rows: self.state.resync.batch_rows }).await?;
        }
        Ok(())
    }

    /// Whether the table has another shape than was taken up.
    pub(super) async fn has_other_shape(&self) -> Result<bool, CaptureError> {
        Ok(answered(PROBE_PATIENCE, catalog::shape(&self.sql, self.table.oid)).await? != self.shape)
    }
}

/// Whether rows that were followed may have come to hold other values, or other keys, without an event.
fn has_other_values(was: &Table, is: &Table, publication: &Publication) -> bool {
    let form = |name: &str| was.columns.iter().find(|column| column.name == name).map(|column| &column.form);
    let differs = |name: &str, is: &String| form(name).is_some_and(|was| was != is);
    let columns = publication.columns_of(is);
    was.oid != is.oid || was.key != is.key || columns.iter().any(|column| differs(&column.name, &column.form))
}

/// Reads the table's shape and the publication, and checks the pipeline's columns against both.
pub(super) async fn inspect(capture: &Capture, sql: &Sql) -> Result<(Table, Publication), CaptureError> {
    let source = &capture.source;
    let table = catalog::load(sql, &source.schema, &source.table).await?;
    let publication = publication::preflight(sql, &table, &source.publication).await?;
    let problems = check::columns(&capture.check_columns, &table, Some(&publication), &source.publication);
    if problems.is_empty() { Ok((table, publication)) } else { Err(CaptureError::Columns(problems.join("; "))) }
}

/// The table with the columns that the stream has.
pub(super) fn published(table: &Table, publication: &Publication) -> Table {
    Table { columns: publication.columns_of(table), ..table.clone() }
}

/// Names what is captured: rows of another table, under other keys, with other columns or of another row filter are
/// not what the log holds.
pub(super) fn captured(table: &Table, publication: &Publication, identity: &str) -> String {
    let columns = publication.columns_of(table);
    let columns: Vec<_> = columns.iter().map(|column| format!("{} {}", column.name, column.form)).collect();
    json!({
        "oid": table.oid,
        "table": format!("{}.{}", table.schema, table.name),
        "key": table.key,
        "columns": columns,
        "rows": publication.row_filter,
        "publication": identity,
    })
    .to_string()
}
