//! `vecsync backup` and `vecsync restore`: have it done, show how far it is, and say part by part what was.

use std::fmt::Write;
use std::future::Future;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::app::backup::{self, BackupError, Only, Report};
use crate::config::Config;
use crate::config::settings::Settings;
use crate::control::{self, ControlError, Passed, Request};
use crate::progress_bar::Progress;

const BACKING_UP: &str = "bytes backed up";
const RESTORING: &str = "bytes restored";

/// It was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The running vecsync did not do it.
    #[error("backup")]
    Control(#[from] ControlError),
    /// It answered something else.
    #[error("backup: read the answer of the running vecsync, which may be another version: {0}")]
    Answer(Value),
    /// The folder's path has no meaning.
    #[error("backup: use the folder {0}")]
    Folder(PathBuf, #[source] std::io::Error),
    /// This process did not do it.
    #[error("{0}")]
    Backup(&'static str, #[source] BackupError),
}

/// Has the running vecsync make a backup, and gives what to print. `None`: none runs on the data directory.
pub async fn backup(settings: &Settings, dir: &Path, as_json: bool) -> Result<Option<String>, CommandError> {
    let mut bar: Option<Progress> = None;
    let answer = control::call(&settings.data_dir, Request::Backup { dir: absolute(dir)? }, |done, total| {
        let bar = bar.get_or_insert_with(|| Progress::start(total, BACKING_UP));
        bar.set_total(total);
        bar.set(done);
    });
    let answer = match answer.await {
        Err(ControlError::NotRunning { .. }) => return Ok(None),
        answer => answer?,
    };
    drop(bar);
    match serde_json::from_value::<Report>(answer.clone()) {
        Ok(report) => Ok(Some(said(&report, as_json, &backed_up(&report)))),
        Err(_) => Err(CommandError::Answer(answer)),
    }
}

/// Makes a backup where none runs, and gives what to print.
pub async fn backup_alone(config: Config, dir: PathBuf, as_json: bool) -> Result<String, CommandError> {
    let dir = absolute(&dir)?;
    let made = with_bar(BACKING_UP, |passed| Box::pin(backup::backup_alone(config, &dir, passed))).await;
    let report = made.map_err(|error| CommandError::Backup("backup", error))?;
    Ok(said(&report, as_json, &backed_up(&report)))
}

/// Restores a backup, and gives what to print.
pub async fn restore(config: &Config, dir: &Path, only: Option<Only>, as_json: bool) -> Result<String, CommandError> {
    let dir = absolute(dir)?;
    let done = with_bar(RESTORING, |passed| Box::pin(backup::restore(config, &dir, only, passed))).await;
    let report = done.map_err(|error| CommandError::Backup("restore", error))?;
    let end = format!(
        "Restored {} in {}. Start `vecsync run`: it answers searches from this and catches up with the table.\n",
        report.dir.display(),
        seconds(report.took_ms)
    );
    Ok(said(&report, as_json, &end))
}

fn backed_up(report: &Report) -> String {
    let (dir, took) = (report.dir.display(), seconds(report.took_ms));
    format!(
        "Backed up to {dir} in {took}; `vecsync restore {dir}` puts it back. Not in it: settings, pipeline file, model, and the \
         embedding cache.\n"
    )
}

fn said(report: &Report, as_json: bool, end: &str) -> String {
    if as_json {
        return format!("{:#}\n", json!(report));
    }
    let mut lines = String::new();
    for part in &report.parts {
        let (bytes, took) = (HumanBytes(part.bytes), seconds(part.took_ms));
        let _ = writeln!(lines, "{}: {}, {bytes} in {took}", part.part, part.what);
    }
    for note in &report.notes {
        let _ = writeln!(lines, "{note}");
    }
    lines + end
}

fn seconds(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

fn absolute(dir: &Path) -> Result<PathBuf, CommandError> {
    std::path::absolute(dir).map_err(|error| CommandError::Folder(dir.to_owned(), error))
}

/// Shows how far something is while it is done.
async fn with_bar<T, F: Future<Output = T> + Unpin>(label: &'static str, work: impl FnOnce(Passed) -> F) -> T {
    let (passed, mut told) = watch::channel((0, 0));
    let mut work = work(passed);
    let bar = Progress::start(0, label);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            Ok(()) = told.changed() => {
                let (done, total) = *told.borrow_and_update();
                bar.set_total(total);
                bar.set(done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::backup::PartReport;

    #[test]
    fn each_part_has_a_line_and_the_end_says_how_to_go_on() {
        let part = |part: &str, what: &str, bytes| PartReport {
            part: part.to_owned(),
            what: what.to_owned(),
            rows: None,
            bytes,
            took_ms: 1250,
        };
        let parts =
            vec![part("qdrant", "faq__1, about 5 rows (6 points)", 3 << 20), part("mirror", "5 rows (6 points)", 9)];
        let report = Report { dir: "/b".into(), parts, notes: vec!["A note.".to_owned()], took_ms: 2000 };
        let expected = "qdrant: faq__1, about 5 rows (6 points), 3.00 MiB in 1.2 s\nmirror: 5 rows (6 points), 9 B in 1.2 s\n\
                        A note.\nBacked up to /b in 2.0 s; `vecsync restore /b` puts it back. Not in it: settings, pipeline file, \
                        model, and the embedding cache.\n";
        assert_eq!(said(&report, false, &backed_up(&report)), expected);
    }
}
