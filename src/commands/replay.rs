//! `vecsync replay`: asks the running vecsync, shows how far it is, and says in a sentence what came of it.

use serde_json::Value;

use crate::config::settings::Settings;
use crate::control::{self, ControlError, Request};
use crate::index::{Rebuilt, Replayed};
use crate::progress_bar::Progress;
use crate::topic::replay::{Source, Target};

/// Nothing was replayed, or not all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The running vecsync did not do it, or there is none.
    #[error("replay")]
    Control(#[from] ControlError),
    /// It answered something else.
    #[error("replay: read the answer of the running vecsync, which may be another version: {0}")]
    Answer(Value),
}

/// Replays, and gives what to print.
pub async fn replay(settings: &Settings, topic: Source, into: Target, as_json: bool) -> Result<String, ReplayError> {
    let mut bar: Option<Progress> = None;
    let answer = control::call(&settings.data_dir, Request::Replay { topic, into }, |done, total| {
        let bar = bar.get_or_insert_with(|| Progress::start(total, "replayed"));
        bar.set_total(total);
        bar.set(done);
    });
    let answer = answer.await?;
    if as_json {
        return Ok(format!("{answer:#}\n"));
    }
    match serde_json::from_value(answer.clone()) {
        Ok(replayed) => Ok(sentence(topic, &replayed) + &in_qdrant(&answer["qdrant"])),
        Err(_) => Err(ReplayError::Answer(answer)),
    }
}

/// What was done in Qdrant; nothing where there is none.
fn in_qdrant(answer: &Value) -> String {
    serde_json::from_value::<Rebuilt>(answer.clone()).map(|rebuilt| rebuilt_sentence(&rebuilt)).unwrap_or_default()
}

/// Says what a generation in Qdrant holds and how it differs from the one before.
pub fn rebuilt_sentence(rebuilt: &Rebuilt) -> String {
    let Rebuilt { collection, difference: d, searches, removed, took_ms } = rebuilt;
    let seconds = *took_ms as f64 / 1000.0;
    let begins = format!(
        "Filled {collection} in Qdrant in {seconds:.1} s: {} rows ({} points), and searches ask it now. ",
        d.rows, d.points
    );
    let compared = match d.different + d.only_old + d.only_new {
        0 => "The same as the one before".to_owned(),
        _ => format!(
            "Against the one before: {} the same, {} different, {} only before, {} only now",
            d.same, d.different, d.only_old, d.only_new
        ),
    };
    let found = match searches.made {
        0 => match d.different + d.only_old + d.only_new {
            0 => String::new(),
            _ => "; since rows differ, searches were not compared (rows that were changed in Qdrant by hand, or that the log \
                  has otherwise, are as the log has them now)"
                .to_owned(),
        },
        made => format!("; {} of {made} searches gave the same", searches.same),
    };
    let others = if removed.is_empty() { String::new() } else { format!(" Removed: {}.", removed.join(", ")) };
    format!("{begins}{compared}{found}.{others}\n")
}

fn sentence(topic: Source, replayed: &Replayed) -> String {
    let Replayed { generation, rows, points, difference, took_ms } = replayed;
    let seconds = *took_ms as f64 / 1000.0;
    let source = match topic {
        Source::Changes => "changes and vectors",
        Source::Vectors => "vectors",
    };
    let begins =
        format!("Replayed {source} in {seconds:.1} s: generation {generation} holds {rows} rows ({points} points)");
    match difference {
        None => format!("{begins}.\n"),
        Some(d) if d.different + d.only_old + d.only_new == 0 => {
            format!("{begins}, the same as the one before, and answers now.\n")
        }
        Some(d) => format!(
            "{begins} and answers now. Against the one before: {} the same, {} different, {} only before, {} only now.\n",
            d.same, d.different, d.only_old, d.only_new
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Difference, SearchesCompared};

    #[test]
    fn the_sentence_says_what_changed() {
        let same = Difference { rows: 5, points: 6, same: 5, ..Difference::default() };
        let replayed = Replayed { generation: 2, rows: 5, points: 6, difference: Some(same), took_ms: 1250 };
        let begins = "Replayed vectors in 1.2 s: generation 2 holds 5 rows (6 points)";
        let check = |difference, expected: &str| {
            let replayed = Replayed { difference, ..replayed.clone() };
            assert_eq!(sentence(Source::Vectors, &replayed), format!("{begins}{expected}\n"));
        };
        check(Some(same), ", the same as the one before, and answers now.");
        check(None, ".");
        let other = Difference { same: 3, different: 1, only_old: 2, only_new: 1, ..same };
        check(
            Some(other),
            " and answers now. Against the one before: 3 the same, 1 different, 2 only before, 1 only now.",
        );
    }

    #[test]
    fn searches_count_only_where_the_rows_are_the_same() {
        let check = |difference, searches, expected: &str| {
            let collection = "faq__2".to_owned();
            let rebuilt = Rebuilt { collection, difference, searches, removed: vec![], took_ms: 1000 };
            let said = rebuilt_sentence(&rebuilt);
            assert!(said.contains(expected), "{said}");
        };
        let same = Difference { rows: 5, points: 6, same: 5, ..Difference::default() };
        check(
            same,
            SearchesCompared { made: 5, same: 5 },
            "The same as the one before; 5 of 5 searches gave the same.",
        );
        check(Difference { rows: 0, same: 0, ..same }, SearchesCompared::default(), "The same as the one before.");
        let other = Difference { same: 4, different: 1, ..same };
        check(
            other,
            SearchesCompared::default(),
            "1 different, 0 only before, 0 only now; since rows differ, searches were",
        );
    }
}
