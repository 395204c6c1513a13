//! `vecsync init --migrate`: shows how far it is, and says what is where now.

use std::path::Path;

use crate::app::migrate::{self, MigrateError, Migrated};
use crate::config::Config;
use crate::index::{Adopted, Settled};
use crate::progress_bar::Progress;

/// Migrates, and gives what to print; `None`: no Qdrant is configured.
pub async fn migrate(config: &Config, path: Option<&Path>) -> Result<Option<String>, MigrateError> {
    let mut bar: Option<Progress> = None;
    let told = |done, total| {
        let bar =
            bar.get_or_insert_with(|| Progress::start(total, if path.is_some() { "loaded" } else { "taken over" }));
        bar.set_total(total);
        bar.set(done);
    };
    let migrated = migrate::migrate(config, path, told).await?;
    drop(bar);
    let alias = config.qdrant.as_ref().map_or("", |server| &server.collection);
    Ok(migrated.map(|migrated| said(alias, path, &migrated)))
}

fn said(alias: &str, path: Option<&Path>, migrated: &Migrated) -> String {
    let path = path.unwrap_or(Path::new("")).display();
    match migrated {
        Migrated::Nothing { named: Some(named) } => {
            format!("Nothing to migrate: {alias} is an alias of {named} already.\n")
        }
        Migrated::Nothing { named: None } => {
            format!("Nothing to migrate: there is no {alias}; `vecsync init` or `vecsync run` makes it.\n")
        }
        Migrated::Adopted(Adopted { collection, points, hash }) => format!(
            "Took over {alias}: its {points} points are in {collection}, compared one by one (hash {hash}), and {alias} is an \
             alias of that now. `vecsync run` fills a generation beside it, which takes the alias when it is whole; \
             {collection} is kept.\n"
        ),
        Migrated::There { collection, rows } => {
            format!("Nothing to migrate: {collection}, which searches ask, has the {rows} rows of {path} already.\n")
        }
        Migrated::Loaded { settled, is_log_known, took } => {
            loaded(alias, &path.to_string(), settled, *is_log_known, took.as_secs_f64())
        }
    }
}

fn loaded(alias: &str, path: &str, settled: &Settled, is_log_known: bool, seconds: f64) -> String {
    let Settled { collection, rows, points, hash } = settled;
    let begins = |what: &str| {
        format!(
            "Loaded {path} into {collection} in {seconds:.1} s: {what}, each read back and found the same (hash {hash}); \
             {alias} is an alias of it now. "
        )
    };
    match rows {
        None => {
            begins(&format!("{points} points"))
                + "Nothing keeps it in step with a table: when `vecsync run` has filled a generation beside it, that takes the \
                   alias, and this one is kept.\n"
        }
        Some(rows) => {
            let goes_on = match is_log_known {
                true => "`vecsync run` goes on from where the mirror was.\n",
                false => {
                    "It is not known which log the mirror was filled from, so `vecsync run` fills another generation beside it, \
                     without embedding what it has embedded.\n"
                }
            };
            begins(&format!("{rows} rows ({points} points)")) + goes_on
        }
    }
}
