//! The table's shape while it is followed: notices another one, takes it up, and has the table read again where rows
//! may have other values than any event told of.

use serde_json::{Value, json};

use super::{PROBE_PATIENCE, START_PATIENCE, Session, Sql, answered, with_feedback};
use crate::capture::catalog::{self, CatalogError, Table};
use crate::capture::documents::{self, Documents};
use crate::capture::publication::{self, Publication, name_of};
use crate::capture::{Capture, CaptureError, Wanted, check};
use crate::config::Source;
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
            let Inspected { table, publication, .. } = inspect(capture, sql).await?;
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

/// What is followed, as the server has it now.
pub(in crate::capture) struct Inspected {
    pub table: Table,
    pub publication: Publication,
    /// What documents are, where the pipeline has a query.
    pub documents: Option<Documents>,
}

impl Inspected {
    /// The tables that are followed.
    pub fn oids(&self) -> Vec<u32> {
        match &self.documents {
            Some(documents) => documents.tables().iter().map(|table| table.oid).collect(),
            None => vec![self.table.oid],
        }
    }

    /// Names what is captured.
    pub fn captured(&self, source: &Source, identity: &str) -> String {
        match &self.documents {
            Some(documents) => captured_by_query(documents, source, identity),
            None => captured(&self.table, &self.publication, identity),
        }
    }
}

/// Reads the table's shape and the publication, and checks the pipeline's columns against both; where the pipeline has a query,
/// that of all its tables, and against what the query gives.
pub(in crate::capture) async fn inspect(capture: &Capture, sql: &Sql) -> Result<Inspected, CaptureError> {
    let source = &capture.source;
    if let Some(query) = &source.query {
        let (documents, mut problems) = documents::look(sql, source, query).await?;
        let Some(documents) = documents else { return Err(CaptureError::Columns(documents::in_one(&problems))) };
        let publication = follow_all(sql, &documents, &source.publication).await?;
        problems.extend((capture.check_columns)(&documents.names()));
        return match problems.is_empty() {
            true => Ok(Inspected { table: documents.main.clone(), publication, documents: Some(documents) }),
            false => Err(CaptureError::Columns(documents::in_one(&problems))),
        };
    }
    let table = catalog::load(sql, &source.schema, &source.table).await?;
    let publication = publication::preflight(sql, &table, &source.publication).await?;
    let problems = check::columns(&capture.check_columns, &table, Some(&publication), &source.publication);
    match problems.is_empty() {
        true => Ok(Inspected { table, publication, documents: None }),
        false => Err(CaptureError::Columns(problems.join("; "))),
    }
}

/// Sees to it that all tables are published, with all their rows.
async fn follow_all(sql: &Sql, documents: &Documents, name: &str) -> Result<Publication, CaptureError> {
    let all = documents.tables();
    // A table that is watched by several of its columns has to send them all.
    for table in documents.followed() {
        let published = publication::preflight_beside(sql, table, &all, name).await?;
        publication::refuse_filter(name, table, &published)?;
    }
    Ok(Publication::default())
}

/// The shapes of these tables, for comparing.
pub(in crate::capture) async fn shapes(sql: &Sql, oids: &[u32]) -> Result<String, CatalogError> {
    let mut shapes = vec![];
    for oid in oids {
        shapes.push(catalog::shape(sql, *oid).await?);
    }
    Ok(shapes.join("; "))
}

/// The publication as it is now for these tables, for comparing.
pub(in crate::capture) async fn identities(sql: &Sql, oids: &[u32], name: &str) -> Result<String, CatalogError> {
    let mut identities = vec![];
    for oid in oids {
        identities.push(publication::identity(sql, *oid, name).await?);
    }
    Ok(identities.join("; "))
}

/// Names what is captured where documents come from a query: what another one gave is not what the log would hold.
fn captured_by_query(documents: &Documents, source: &Source, identity: &str) -> String {
    let form = |table: &Table| {
        let columns: Vec<_> = table.columns.iter().map(|column| format!("{} {}", column.name, column.form)).collect();
        json!({"oid": table.oid, "table": name_of(table).to_string(), "key": table.key, "columns": columns})
    };
    let columns: Vec<_> = documents.columns.iter().map(|column| format!("{} {}", column.name, column.form)).collect();
    let watched: Vec<_> =
        documents.watched.iter().map(|one| json!({"of": form(&one.table), "affects": one.affects})).collect();
    json!({
        "oid": documents.main.oid,
        "table": format!("{}.{}", source.schema, source.table),
        "key": documents.main.key,
        "query": documents.sql,
        "columns": columns,
        "watched": watched,
        "publication": identity,
    })
    .to_string()
}

/// The table with the columns that the stream has.
pub(super) fn published(table: &Table, publication: &Publication) -> Table {
    Table { columns: publication.columns_of(table), ..table.clone() }
}

/// Names what is captured: rows of another table, under other keys, with other columns or of another row filter are
/// not what the log holds.
fn captured(table: &Table, publication: &Publication, identity: &str) -> String {
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

/// What is another thing now, of what two of these name, for people.
pub(super) fn changed(was: &str, is: &str) -> String {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (was, is) = (read(was), read(is));
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut said = vec![];
    if was["table"] != is["table"] {
        said.push(format!("table {} instead of {}", shown(&is["table"]), shown(&was["table"])));
    } else if was["oid"] != is["oid"] {
        said.push(format!("{} is another table of that name", shown(&is["table"])));
    }
    if was["key"] != is["key"] {
        let names = |value: &Value| value.as_array().into_iter().flatten().map(shown).collect::<Vec<_>>().join(", ");
        said.push(format!("primary key {} instead of {}", names(&is["key"]), names(&was["key"])));
    }
    said.extend(columns_changed(&was["columns"], &is["columns"]));
    if was["rows"] != is["rows"] {
        let filter = |value: &Value| value.as_str().map_or_else(|| "none".to_owned(), str::to_owned);
        said.push(format!("row filter {} instead of {}", filter(&is["rows"]), filter(&was["rows"])));
    }
    if was["publication"] != is["publication"] {
        said.push("the publication was made anew or is set otherwise".to_owned());
    }
    if was["query"] != is["query"] {
        said.push(match (&was["query"], &is["query"]) {
            (Value::Null, _) => "documents are what source.query gives".to_owned(),
            (_, Value::Null) => "documents are rows of the table, and no source.query".to_owned(),
            _ => "source.query is another one".to_owned(),
        });
    }
    said.extend(watched_changed(&was["watched"], &is["watched"]));
    match said.is_empty() {
        true => "in a way that this build does not tell".to_owned(),
        false => said.join("; "),
    }
}

/// Watched tables that came, went, or are watched otherwise.
fn watched_changed(was: &Value, is: &Value) -> Vec<String> {
    let name = |watch: &Value| watch["of"]["table"].as_str().unwrap_or_default().to_owned();
    let all = |value: &Value| -> Vec<Value> { value.as_array().cloned().unwrap_or_default() };
    let (was, is) = (all(was), all(is));
    let knows = |all: &[Value], watch: &Value| all.iter().any(|other| name(other) == name(watch));
    let mut said: Vec<String> =
        is.iter().filter(|one| !knows(&was, one)).map(|one| format!("table {} is watched", name(one))).collect();
    said.extend(was.iter().filter(|one| !knows(&is, one)).map(|one| format!("table {} is watched no more", name(one))));
    let other = is.iter().filter(|one| knows(&was, one) && !was.contains(one));
    said.extend(other.map(|one| format!("table {} has other columns or keys, or another affects", name(one))));
    said.sort();
    said.dedup();
    said
}

/// Columns that came, went, or are of another type or written anew.
fn columns_changed(was: &Value, is: &Value) -> Vec<String> {
    // A column's name may have spaces, its form has none.
    let split = |column: &str| {
        let parts = column.rsplit_once(' ').unwrap_or((column, ""));
        (parts.0.to_owned(), parts.1.to_owned())
    };
    let columns = |value: &Value| -> Vec<(String, String)> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(split).collect()
    };
    let (was, is) = (columns(was), columns(is));
    let form = |columns: &[(String, String)], name: &str| {
        columns.iter().find(|(other, _)| other == name).map(|(_, form)| form.clone())
    };
    let came = is.iter().filter(|(name, _)| form(&was, name).is_none()).map(|(name, _)| format!("column {name} came"));
    let went = was.iter().filter(|(name, _)| form(&is, name).is_none()).map(|(name, _)| format!("column {name} went"));
    let other = is.iter().filter(|(name, now)| form(&was, name).is_some_and(|before| before != *now));
    let other = other.map(|(name, _)| format!("column {name} is another one, or of another type"));
    came.chain(went).chain(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_named() {
        let was = json!({"oid": 7, "table": "public.faq", "key": ["id"], "columns": ["id 1:20:-1:5", "my answer 2:25:-1:5"],
            "rows": null, "publication": "1 t"});
        let check = |change: &dyn Fn(&mut Value), wanted: &str| {
            let mut is = was.clone();
            change(&mut is);
            assert_eq!(changed(&was.to_string(), &is.to_string()), wanted);
        };
        check(&|is| is["oid"] = json!(8), "public.faq is another table of that name");
        check(&|is| is["table"] = json!("public.item"), "table public.item instead of public.faq");
        check(&|is| is["key"] = json!(["id", "lang"]), "primary key id, lang instead of id");
        check(
            &|is| is["columns"] = json!(["id 1:20:-1:5", "note 3:25:-1:9"]),
            "column note came; column my answer went",
        );
        check(
            &|is| is["columns"][1] = json!("my answer 2:23:-1:9"),
            "column my answer is another one, or of another type",
        );
        check(&|is| is["rows"] = json!("(id > 3)"), "row filter (id > 3) instead of none");
        check(&|is| is["publication"] = json!("2 t"), "the publication was made anew or is set otherwise");
        check(&|is| is["query"] = json!("SELECT 1"), "documents are what source.query gives");
        let watched = |affects: &str| json!([{"of": {"table": "public.tag"}, "affects": affects}]);
        check(&|is| is["watched"] = watched("SELECT 1"), "table public.tag is watched");
        check(&|_| (), "in a way that this build does not tell");
        let with = |affects: &str| {
            let mut one = was.clone();
            (one["query"], one["watched"]) = (json!("SELECT 1"), watched(affects));
            one
        };
        let mut other = with("SELECT 2");
        other["query"] = json!("SELECT 3");
        assert_eq!(
            changed(&with("SELECT 1").to_string(), &other.to_string()),
            "source.query is another one; table public.tag has other columns or keys, or another affects"
        );
        assert!(changed("", &was.to_string()).starts_with("table public.faq"));
    }
}
