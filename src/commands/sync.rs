//! `vecsync sync`: has the running vecsync read the table again and waits for its stores, or counts what that would change.

use std::fmt::Write;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::app::resync::{Arrived, Resynced, SourceStats, StoreStats};
use crate::app::verify::Report;
use crate::app::{self, AppError};
use crate::capture::Wanted;
use crate::client::plain;
use crate::config::Config;
use crate::config::settings::Settings;
use crate::control::{self, ControlError, Request};
use crate::progress_bar::Progress;

/// The table was not read again, or the stores do not have all of it.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The running vecsync did not do it, or there is none.
    #[error("sync")]
    Control(#[from] ControlError),
    /// It answered something else.
    #[error("sync: read the answer of the running vecsync, which may be another version: {0}")]
    Answer(Value),
    /// A store could not be compared or counted, or does not have all yet.
    #[error("sync: {0}")]
    Incomplete(String),
}

/// What to print, and what could not be done.
#[derive(Debug)]
pub struct Said {
    /// For standard output.
    pub text: String,
    /// Why the status is 1.
    pub failed: Option<SyncError>,
}

/// What was done, as `--json` prints it.
#[derive(Debug)]
struct Outcome {
    resynced: Resynced,
    /// Rows of the mirror that came to say something else; texts that were computed and that were known: where known.
    changed: Option<u64>,
    texts: Option<(u64, u64)>,
    /// Stores of this data directory, each with why it does not have all yet; none: they are elsewhere.
    stores: Option<Vec<(String, Option<String>)>>,
    took_ms: u64,
}

/// Brings the index in step with the table, where a vecsync captures on this data directory. `None`: there is none.
pub async fn sync(settings: &Settings, wanted: Wanted, as_json: bool) -> Result<Option<Said>, SyncError> {
    let began = std::time::Instant::now();
    let before = arrive(settings, None).await?;
    let Wanted { force, batch_rows } = wanted;
    let resynced = match ask::<Resynced>(settings, Request::Sync { force, batch_rows }, "rows read").await {
        Err(SyncError::Control(ControlError::NotRunning { .. })) => return Ok(None),
        resynced => resynced?,
    };
    let after = arrive(settings, Some(resynced.as_of_ms)).await?;
    if before.is_some() && after.is_none() {
        let what = "the log has all of it; vecsync ended before the stores had, and goes on when it is started";
        return Err(SyncError::Incomplete(what.to_owned()));
    }
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let outcome = outcome(resynced, before, after, took_ms);
    let text = if as_json { format!("{:#}\n", document(&outcome)) } else { sentence(&outcome) };
    Ok(Some(Said { text, failed: late(&outcome).map(SyncError::Incomplete) }))
}

/// As `sync`, where none runs: the next one that does will.
pub async fn prepare(config: Config, wanted: Wanted, as_json: bool) -> Result<String, AppError> {
    app::prepare_resync(config, wanted).await?;
    if as_json {
        return Ok(format!("{:#}\n", json!({"prepared": true})));
    }
    Ok("No vecsync runs on this data directory; the resync will be made when `vecsync run` starts.\n".to_owned())
}

/// Counts what a resync would change in each store, and changes nothing.
pub async fn dry_run(settings: &Settings, as_json: bool) -> Result<Said, SyncError> {
    let report: Report = ask(settings, Request::Verify { repair: false }, "keys compared").await?;
    let text = if as_json { format!("{:#}\n", counts(&report)) } else { count_lines(&report) };
    let faults = report.faults();
    let failed = (!faults.is_empty()).then(|| SyncError::Incomplete(faults.join("; ")));
    Ok(Said { text, failed })
}

/// Counts what is at the source, in the log and in the stores.
pub async fn stats(settings: &Settings, as_json: bool) -> Result<Said, SyncError> {
    let source = absent(ask::<SourceStats>(settings, Request::SourceStats, "").await)?;
    let stores = absent(ask::<Vec<StoreStats>>(settings, Request::StoreStats, "").await);
    let stores = match (&source, stores?) {
        (Err(nobody), Err(_)) => return Err(SyncError::Incomplete(nobody.to_string())),
        (_, stores) => stores.ok(),
    };
    let source = source.ok();
    let faults = source.as_ref().map(|source| source.faults.join("; ")).filter(|faults| !faults.is_empty());
    let text = match as_json {
        true => format!("{:#}\n", json!({"source": source, "stores": stores})),
        false => stats_lines(source.as_ref(), stores.as_deref()),
    };
    Ok(Said { text, failed: faults.map(SyncError::Incomplete) })
}

async fn arrive(settings: &Settings, as_of_ms: Option<i64>) -> Result<Option<Arrived>, SyncError> {
    let arrived = ask::<Arrived>(settings, Request::Arrive { as_of_ms }, "records embedded and stored").await;
    Ok(absent(arrived)?.ok())
}

/// Tells that nobody listens from what has failed.
fn absent<T>(asked: Result<T, SyncError>) -> Result<Result<T, ControlError>, SyncError> {
    match asked {
        Ok(answer) => Ok(Ok(answer)),
        Err(SyncError::Control(nobody @ ControlError::NotRunning { .. })) => Ok(Err(nobody)),
        Err(error) => Err(error),
    }
}

async fn ask<T: DeserializeOwned>(settings: &Settings, request: Request, label: &'static str) -> Result<T, SyncError> {
    let mut bar: Option<Progress> = None;
    let answer = control::call(&settings.data_dir, request, |done, total| {
        let bar = bar.get_or_insert_with(|| Progress::start(total, label));
        bar.set_total(total);
        bar.set(done);
    });
    let answer = answer.await?;
    drop(bar);
    serde_json::from_value(answer.clone()).map_err(|_| SyncError::Answer(answer))
}

/// Puts together what the answers say. What was counted by a process that has started anew meanwhile is not known.
fn outcome(resynced: Resynced, before: Option<Arrived>, after: Option<Arrived>, took_ms: u64) -> Outcome {
    let since = before.zip(after.clone()).and_then(|(before, after)| {
        let (was, is) = (before.done, after.done);
        let computed = is.computed.checked_sub(was.computed)?;
        let (cached, changed) = (is.cached.checked_sub(was.cached)?, is.changed.checked_sub(was.changed)?);
        Some((changed, after.embeds.then_some((computed, cached))))
    });
    Outcome {
        resynced,
        changed: since.map(|(changed, _)| changed),
        texts: since.and_then(|(_, texts)| texts),
        stores: after.map(|after| after.stores),
        took_ms,
    }
}

fn late(outcome: &Outcome) -> Option<String> {
    let stores = outcome.stores.iter().flatten();
    let late: Vec<String> = stores
        .filter_map(|(store, fault)| Some(format!("{store} does not have all yet: {}", fault.as_ref()?)))
        .collect();
    (!late.is_empty()).then(|| format!("{}; the log has all of it, and the rest follows by itself", late.join("; ")))
}

fn document(outcome: &Outcome) -> Value {
    let Outcome { resynced: Resynced { rows, superseded, deleted, .. }, changed, texts, stores, took_ms } = outcome;
    let stores = stores.as_ref().map(|stores| {
        let store = |(store, fault): &(String, Option<String>)| json!({"store": store, "error": fault});
        stores.iter().map(store).collect::<Vec<_>>()
    });
    json!({
        "rows": rows, "superseded": superseded, "changed": changed, "deleted": deleted,
        "embeddings": texts.map(|(computed, cached)| json!({"computed": computed, "cached": cached})),
        "stores": stores, "took_ms": took_ms,
    })
}

fn sentence(outcome: &Outcome) -> String {
    let Outcome { resynced: Resynced { rows, superseded, deleted, .. }, changed, texts, stores, took_ms } = outcome;
    let mut said = format!("Read {rows} rows of the table in {:.1} s: ", *took_ms as f64 / 1000.0);
    if let Some(changed) = changed {
        let _ = write!(said, "{changed} new or changed in the index, ");
    }
    let _ = write!(said, "{deleted} deleted");
    if let Some((computed, cached)) = texts {
        let _ = write!(said, "; {computed} texts embedded, {cached} known");
    }
    said.push_str(".\n");
    if *superseded > 0 {
        let _ = writeln!(said, "{superseded} of the rows changed meanwhile and came as changes.");
    }
    if stores.is_none() {
        said.push_str(
            "All of it is in the log; no vecsync keeps a store on this data directory, those elsewhere follow.\n",
        );
    }
    said
}

fn counts(report: &Report) -> Value {
    let stores: Vec<Value> = report
        .stores
        .iter()
        .map(|store| {
            json!({
                "store": store.store, "inserts": store.missing.count, "updates": store.stale.count,
                "deletes": store.extra.count, "unchanged": store.same, "unsettled": store.unsettled,
                "late": store.late, "error": store.error,
            })
        })
        .collect();
    json!({"table": report.table, "rows": report.rows, "indexed": report.indexed, "stores": stores, "took_ms": report.took_ms})
}

fn count_lines(report: &Report) -> String {
    let mut lines = format!(
        "A resync would read {} rows of {}, of which {} belong into the index. Nothing was written.\n",
        report.rows, report.table, report.indexed
    );
    for store in &report.stores {
        if let Some(error) = &store.error {
            let _ = writeln!(lines, "{}: not compared to the end: {}", store.store, plain(error));
            continue;
        }
        let (inserts, updates, deletes) = (store.missing.count, store.stale.count, store.extra.count);
        let _ = writeln!(
            lines,
            "{}: {inserts} inserts, {updates} updates, {deletes} deletes, {} unchanged",
            store.store, store.same
        );
        if store.late {
            lines.push_str("  the store is late: what differs may be on its way\n");
        }
        if store.unsettled > 0 {
            let _ = writeln!(
                lines,
                "  {} rows changed each time they were looked at, and are not counted",
                store.unsettled
            );
        }
    }
    lines
}

fn stats_lines(source: Option<&SourceStats>, stores: Option<&[StoreStats]>) -> String {
    let shown = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let mut lines = String::new();
    match source {
        Some(source) => {
            let SourceStats { table, rows, lag_bytes, log_rows, log_lag_records, faults } = source;
            let lag = match lag_bytes {
                Some(lag) => format!("{lag} bytes of WAL not confirmed"),
                None if faults.is_empty() => "no replication slot".to_owned(),
                None => "replication slot not known".to_owned(),
            };
            let _ = writeln!(lines, "source  {:>10} rows    {}, {lag}", shown(*rows), plain(table));
            let lag = log_lag_records.map_or_else(String::new, |lag| format!("    {lag} records not embedded"));
            let _ = writeln!(lines, "log     {:>10} rows{lag}", shown(*log_rows));
        }
        None => lines.push_str("source and log: no vecsync captures on this data directory\n"),
    }
    let Some(stores) = stores else {
        lines.push_str("stores: no vecsync keeps one on this data directory\n");
        return lines;
    };
    for StoreStats { store, rows, points, lag_records, staleness_ms, error } in stores {
        let _ = write!(lines, "{store:<7} {:>10} rows    {} points", shown(*rows), shown(*points));
        if let Some(lag) = lag_records {
            let _ = write!(lines, ", lacks {lag} records");
        }
        if let Some(staleness_ms) = staleness_ms {
            let _ = write!(lines, ", at most {:.1} s old", *staleness_ms as f64 / 1000.0);
        }
        if let Some(error) = error {
            let _ = write!(lines, ": {}", plain(error));
        }
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Done;

    const RESYNCED: Resynced = Resynced { rows: 7, superseded: 0, deleted: 2, as_of_ms: 5 };

    fn arrived(computed: u64, fault: Option<&str>) -> Option<Arrived> {
        let done = Done { computed, cached: 10 + computed, changed: computed / 2 };
        let stores = vec![("qdrant".to_owned(), fault.map(str::to_owned)), ("local".to_owned(), None)];
        Some(Arrived { stores, done, embeds: true })
    }

    #[track_caller]
    fn check(before: Option<Arrived>, after: Option<Arrived>, expected: &str, late_of: Option<&str>) {
        let outcome = outcome(RESYNCED, before, after, 1250);
        assert_eq!(sentence(&outcome), expected);
        let late = late(&outcome);
        assert_eq!(late.is_some(), late_of.is_some(), "{late:?}");
        assert!(late.unwrap_or_default().contains(late_of.unwrap_or_default()));
    }

    #[test]
    fn it_says_what_it_did_as_far_as_that_is_known() {
        let all =
            "Read 7 rows of the table in 1.2 s: 2 new or changed in the index, 2 deleted; 4 texts embedded, 4 known.\n";
        check(arrived(1, None), arrived(5, None), all, None);
        check(arrived(1, None), arrived(5, Some("no answer")), all, Some("qdrant does not have all yet: no answer"));
        let unknown = "Read 7 rows of the table in 1.2 s: 2 deleted.\n";
        check(arrived(5, None), arrived(1, None), unknown, None);
        let elsewhere =
            "All of it is in the log; no vecsync keeps a store on this data directory, those elsewhere follow.\n";
        check(None, None, &format!("{unknown}{elsewhere}"), None);
    }

    #[test]
    fn counts_that_nobody_knows_are_shown_as_such() {
        let source = SourceStats {
            table: "public.faq".into(),
            rows: Some(7),
            lag_bytes: None,
            log_rows: None,
            log_lag_records: Some(3),
            faults: vec![],
        };
        let store = StoreStats {
            store: "local".into(),
            rows: Some(6),
            points: Some(8),
            lag_records: Some(0),
            staleness_ms: Some(1250),
            error: None,
        };
        let lines = stats_lines(Some(&source), Some(&[store]));
        let expected = "source           7 rows    public.faq, no replication slot\n\
                        log              ? rows    3 records not embedded\n\
                        local            6 rows    8 points, lacks 0 records, at most 1.2 s old\n";
        assert_eq!(lines, expected);
    }
}
