//! `vecsync verify`: asks the running vecsync, shows how far it is, and says store by store what it has found.

use std::fmt::Write;

use serde_json::Value;

use super::key;
use crate::app::verify::{Drifted, Report, StoreReport};
use crate::client::{self, plain};
use crate::config::settings::Settings;
use crate::control::{self, ControlError, Request};
use crate::progress_bar::Progress;

/// Nothing was compared, or not all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The running vecsync did not do it, or there is none.
    #[error("verify")]
    Control(#[from] ControlError),
    /// There is none that could do it, and a vecsync says what is wrong.
    #[error("verify: {nobody}; the vecsync at {url} says: {why}")]
    Down {
        /// Who was asked.
        nobody: ControlError,
        /// Who says it.
        url: String,
        /// What is wrong, each with the part that it is wrong with.
        why: String,
    },
    /// It answered something else.
    #[error("verify: read the answer of the running vecsync, which may be another version: {0}")]
    Answer(Value),
    /// A store could not be compared, or rows could not be published.
    #[error("verify: {0}")]
    Incomplete(String),
}

/// What came of it.
#[derive(Debug)]
pub enum Found {
    /// All stores hold what the table has.
    Same,
    /// They do not.
    Drift(String),
    /// Not all could be found out, or done.
    Incomplete(VerifyError),
}

/// Compares, and gives what to print and what came of it.
pub async fn verify(settings: &Settings, repair: bool, as_json: bool) -> Result<(String, Found), VerifyError> {
    let mut bar: Option<Progress> = None;
    let answer = control::call(&settings.data_dir, Request::Verify { repair }, |done, total| {
        let bar = bar.get_or_insert_with(|| Progress::start(total, "keys compared"));
        bar.set_total(total);
        bar.set(done);
    });
    let answer = match answer.await {
        Err(nobody @ ControlError::NotRunning { .. }) => return Err(down(settings, nobody).await),
        answer => answer?,
    };
    drop(bar);
    let Ok(report) = serde_json::from_value::<Report>(answer.clone()) else {
        return Err(VerifyError::Answer(answer));
    };
    let said = if as_json { format!("{answer:#}\n") } else { lines(&report) };
    Ok((said, found(&report, repair)))
}

/// Nobody could be asked: with what the vecsync at the address says of it, if there is one.
async fn down(settings: &Settings, nobody: ControlError) -> VerifyError {
    let url = settings.url.to_string();
    let state = client::document(&url, key(settings), "/status").await.unwrap_or_default();
    let faults = state["faults"].as_array().into_iter().flatten();
    let said =
        faults.filter_map(|fault| Some(format!("{}: {}", fault["component"].as_str()?, fault["error"].as_str()?)));
    let why = said.map(|said| plain(&said)).collect::<Vec<_>>().join("; ");
    if why.is_empty() { nobody.into() } else { VerifyError::Down { nobody, url, why } }
}

fn found(report: &Report, repair: bool) -> Found {
    let (faults, differing) = (report.faults(), report.differing());
    let rows = |count| if count == 1 { "1 row".to_owned() } else { format!("{count} rows") };
    match differing {
        _ if !faults.is_empty() => Found::Incomplete(VerifyError::Incomplete(faults.join("; "))),
        0 => Found::Same,
        differing => {
            let aside = report.put_aside.count.min(differing);
            let drifted = rows(differing);
            let letters = "`vecsync dead-letters list` says why";
            Found::Drift(match (repair, aside) {
                (true, 0) => format!("verify: {drifted} of the stores could not be repaired"),
                (true, _) => format!(
                    "verify: {drifted} of the stores could not be repaired; {aside} of them put aside: {letters}"
                ),
                (_, 0) => format!(
                    "verify: {drifted} of the stores drifted from the table; `vecsync verify --repair` publishes them again"
                ),
                (_, aside) if aside == differing => {
                    format!("verify: {drifted} of the stores differ, all of them put aside: {letters}")
                }
                _ => format!(
                    "verify: {drifted} of the stores differ, {aside} of them put aside: {letters}; `vecsync verify --repair` \
                     publishes the others again"
                ),
            })
        }
    }
}

fn lines(report: &Report) -> String {
    let Report { table, rows, indexed, stores, repair, open_dead_letters, put_aside, took_ms } = report;
    let seconds = *took_ms as f64 / 1000.0;
    let mut lines =
        format!("Compared {rows} rows of {table}, of which {indexed} belong into the index, in {seconds:.1} s.\n");
    stores.iter().for_each(|store| store_lines(store, &mut lines));
    if let Some(repair) = repair {
        let _ = writeln!(lines, "Repair: {} rows were published again.", repair.published);
        if repair.removed > 0 {
            let _ = writeln!(lines, "Repair: {} points that were no row's were removed from Qdrant.", repair.removed);
        }
        for (id, reason) in &repair.refused {
            let _ = writeln!(lines, "  {} cannot be: {}", shown(id), plain(reason));
        }
    }
    for (id, letter) in &put_aside.rows {
        let _ = writeln!(
            lines,
            "Row {} was put aside: `vecsync dead-letters show {letter}` says why; when that is mended, `vecsync dead-letters retry {letter}`.",
            shown(id)
        );
    }
    if *open_dead_letters && put_aside.count == 0 {
        lines.push_str("A row that was put aside stays missing or stale: see `vecsync dead-letters list`.\n");
    }
    lines
}

fn store_lines(report: &StoreReport, lines: &mut String) {
    let StoreReport { store, error, same, missing, stale, extra, unsettled, late, left } = report;
    if let Some(error) = error {
        let _ = writeln!(lines, "{store}: not compared to the end: {}", plain(error));
    }
    if error.is_none() || report.found() > 0 {
        let at_least = if error.is_some() { "at least " } else { "" };
        let [missing, stale, extra] = [missing, stale, extra].map(|kind| kind.count);
        let _ = writeln!(
            lines,
            "{store}: {at_least}{same} the same, {missing} missing, {stale} stale, {extra} extra{}",
            left.as_ref().filter(|_| report.found() > 0).map_or_else(String::new, |left| {
                format!("; {} mended, {} left", report.found().saturating_sub(left.count), left.count)
            })
        );
    }
    let kinds = [("missing", Some(missing)), ("stale", Some(stale)), ("extra", Some(extra)), ("left", left.as_ref())];
    for (name, drifted) in kinds {
        if let Some(keys) = drifted.filter(|drifted| drifted.count > 0).map(keys) {
            let _ = writeln!(lines, "  {name}: {keys}");
        }
    }
    if *late {
        let _ = writeln!(
            lines,
            "  the store is late: what differs may be on its way; `vecsync status` says what keeps it, and nothing of it is repaired"
        );
    }
    if *unsettled > 0 {
        let _ = writeln!(lines, "  {unsettled} rows changed each time they were looked at, and are not judged");
    }
}

fn keys(drifted: &Drifted) -> String {
    let named: Vec<String> = drifted.keys.iter().map(shown).collect();
    let more = drifted.count.saturating_sub(named.len() as u64);
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    format!("{}{more}", named.join(", "))
}

/// An id as JSON, so that a text is told from a number.
fn shown(id: &Value) -> String {
    plain(&id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::verify::{PutAside, Repair};
    use serde_json::json;

    fn store(name: &str) -> StoreReport {
        StoreReport {
            store: name.to_owned(),
            error: None,
            same: 5,
            missing: Drifted::default(),
            stale: Drifted::default(),
            extra: Drifted::default(),
            unsettled: 0,
            late: false,
            left: None,
        }
    }

    fn report(stores: Vec<StoreReport>) -> Report {
        let table = "public.faq".to_owned();
        Report {
            table,
            rows: 7,
            indexed: 5,
            stores,
            repair: None,
            open_dead_letters: false,
            put_aside: PutAside::default(),
            took_ms: 1250,
        }
    }

    fn drifted(keys: &[Value]) -> Drifted {
        Drifted { count: keys.len() as u64, keys: keys.to_vec() }
    }

    #[track_caller]
    fn check(report: &Report, repair: bool, expected: &str, status: &str) {
        let begins = "Compared 7 rows of public.faq, of which 5 belong into the index, in 1.2 s.\n";
        assert_eq!(lines(report), format!("{begins}{expected}"));
        let found = match found(report, repair) {
            Found::Same => "same".to_owned(),
            Found::Drift(what) => what,
            Found::Incomplete(error) => format!("error {error}"),
        };
        assert!(found.contains(status), "{found}");
    }

    #[test]
    fn each_store_says_what_differs() {
        let same = "local: 5 the same, 0 missing, 0 stale, 0 extra\n";
        check(&report(vec![store("local")]), false, same, "same");
        let qdrant = StoreReport {
            missing: drifted(&[json!(7)]),
            extra: Drifted { count: 3, keys: vec![json!("a\u{1b}b"), json!({"a": 1, "b": "x"})] },
            late: true,
            unsettled: 2,
            ..store("qdrant")
        };
        let expected = format!(
            "{same}qdrant: 5 the same, 1 missing, 0 stale, 3 extra\n  missing: 7\n  extra: {}\n{}\n{}\n",
            r#""a\u001bb", {"a":1,"b":"x"}, and 1 more"#,
            "  the store is late: what differs may be on its way; `vecsync status` says what keeps it, and nothing of it is repaired",
            "  2 rows changed each time they were looked at, and are not judged",
        );
        check(&report(vec![store("local"), qdrant]), false, &expected, "4 rows of the stores drifted");
    }

    #[test]
    fn a_repair_says_what_is_mended_and_what_is_left() {
        let (missing, stale) = (drifted(&[json!(1)]), drifted(&[json!(2)]));
        let mended = StoreReport { missing, stale, left: Some(Drifted::default()), ..store("local") };
        let repair = Repair { published: 2, ..Repair::default() };
        let begins = "local: 5 the same, 1 missing, 1 stale, 0 extra; ";
        let keys = "  missing: 1\n  stale: 2\n";
        let done = "Repair: 2 rows were published again.\n";
        let all = Report { repair: Some(repair.clone()), ..report(vec![mended.clone()]) };
        check(&all, true, &format!("{begins}2 mended, 0 left\n{keys}{done}"), "same");

        let left = StoreReport { left: Some(drifted(&[json!(2)])), ..mended };
        let refused = Repair { refused: vec![(json!(2), "no key of the table".to_owned())], ..repair };
        let some = Report { repair: Some(refused), open_dead_letters: true, ..report(vec![left]) };
        let more = "  2 cannot be: no key of the table\nA row that was put aside stays missing or stale: see `vecsync dead-letters list`.\n";
        let expected = format!("{begins}1 mended, 1 left\n{keys}  left: 2\n{done}{more}");
        check(&some, true, &expected, "1 row of the stores could not be repaired");
    }

    #[test]
    fn rows_that_were_put_aside_are_not_offered_a_repair() {
        let differs = StoreReport { missing: drifted(&[json!(7)]), ..store("local") };
        let put_aside = PutAside { count: 1, rows: vec![(json!(7), "3-1027".to_owned())] };
        let all = Report { open_dead_letters: true, put_aside, ..report(vec![differs]) };
        let expected = "local: 5 the same, 1 missing, 0 stale, 0 extra\n  missing: 7\nRow 7 was put aside: \
                        `vecsync dead-letters show 3-1027` says why; when that is mended, `vecsync dead-letters retry 3-1027`.\n";
        check(&all, false, expected, "1 row of the stores differ, all of them put aside: `vecsync dead-letters list`");
        let differs = StoreReport { missing: drifted(&[json!(7), json!(8)]), ..store("local") };
        let some = Report { stores: vec![differs], ..all };
        let expected = expected.replace("1 missing", "2 missing").replace("missing: 7", "missing: 7, 8");
        check(&some, false, &expected, "publishes the others again");
        check(&some, true, &expected, "could not be repaired; 1 of them put aside");
    }

    #[test]
    fn a_store_that_cannot_be_asked_is_named_and_the_other_told() {
        let away = StoreReport { error: Some("no answer".into()), same: 0, ..store("qdrant") };
        let both = report(vec![store("local"), away]);
        let expected = "local: 5 the same, 0 missing, 0 stale, 0 extra\nqdrant: not compared to the end: no answer\n";
        check(&both, false, expected, "error verify: qdrant: no answer");
    }
}
