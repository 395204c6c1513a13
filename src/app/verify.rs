//! `vecsync verify`: compares the table with the stores, waits until what differs is settled, and has rows that have
//! drifted published again. Decides nothing about drift itself.
//!
//! Memory does not grow with the table: pages of rows, and a bounded number of keys that differ.

mod kept;
mod report;
mod side;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;

use self::kept::Kept;
pub use self::report::{Drifted, PutAside, Repair, Report, StoreReport};
use self::side::Side;
use super::serving::Shared;
use super::{LOCAL, foreign, letters};
use crate::capture::survey::{Pages, ROWS_PER_PAGE, Survey};
use crate::capture::{self, CaptureError, ColumnCheck, REPUBLISH_KEYS_MAX, Republished};
use crate::clock::now_ms;
use crate::config::{Database, Source};
use crate::control::{self, ControlError, Passed, Request};
use crate::embed::{Expectation, Expected};
use crate::event::{Row, RowKey};
use crate::index::primary::STORE;
use crate::index::{Cursor, Holder, Wanted};
use crate::metrics::PipelineMetrics;
use crate::retry::Chain;
use crate::topic::{Letters, Log};

/// Rounds in which a row that differs is looked at again. A row that changes in every one of them is left unsettled.
const ROUNDS_MAX: usize = 10;
/// Attempts to publish some rows again: under load the stream can come too late for one.
const REPUBLISH_TRIES: usize = 3;
/// What the clock of another process that captures may differ by from ours, milliseconds.
const CLOCKS_APART_MS: i64 = 1_000;

/// Compares the table with the stores of this process. Clones are the same.
#[derive(Clone)]
pub(super) struct Verifier(Arc<Parts>);

/// What it takes.
pub(super) struct Parts {
    /// Where the table is; `None`: nobody has said.
    pub database: Option<Database>,
    pub source: Source,
    pub data_dir: PathBuf,
    pub expectation: Arc<Expectation>,
    pub check_columns: ColumnCheck,
    pub shared: Arc<Shared>,
    pub log: Log,
    pub metrics: PipelineMetrics,
    /// The way to capture, where it is in this process.
    pub captures: Option<mpsc::Sender<capture::Request>>,
    /// Held by the one that runs.
    pub busy: Mutex<()>,
}

/// A row's key, and what a store should hold of it.
type Page = Vec<(RowKey, Wanted)>;

/// How much is done, for who waits.
struct Progress {
    passed: Passed,
    total: u64,
}

impl Progress {
    fn add(&self, more: usize) {
        self.passed.send_modify(|(done, total)| {
            *done += more as u64;
            *total = self.total.max(*done);
        });
    }
}

impl Verifier {
    /// Tells what the last one found that ran on the data directory.
    pub fn new(parts: Parts) -> Verifier {
        match Kept::read(&parts.data_dir) {
            Ok(kept) => kept.tell(&parts.metrics, parts.shared.qdrant.is_some()),
            Err(error) => tracing::warn!("read what the last verify found: {error}"),
        }
        Verifier(Arc::new(parts))
    }

    /// Compares, and repairs if that is asked for. The error says why the table cannot be compared with anything; a store
    /// that cannot be asked is named in the report.
    pub async fn verify(&self, repair: bool, passed: Passed) -> Result<Report, String> {
        let parts = &self.0;
        let Ok(_busy) = parts.busy.try_lock() else {
            return Err("another verify is at work; try again when it is done".to_owned());
        };
        let Some(database) = &parts.database else {
            return Err("it reads the table: set DATABASE_URL for the vecsync that keeps the store".to_owned());
        };
        if repair {
            parts.check_repair().await?;
        }
        let began = Instant::now();
        let mut sides = parts.sides();
        if sides.is_empty() {
            return Err("this process keeps no store".to_owned());
        }
        let done = Box::pin(parts.compare(database, &mut sides, repair, passed)).await;
        let (rows, indexed, repair) = done.map_err(|error| Chain(&error).to_string())?;
        let letters = if sides.iter().any(Side::has_drifted) { parts.dead_letters().await } else { Letters::default() };
        let keys = letters.newest.iter().filter_map(|letter| Some((letter.row_key()?, letter.id)));
        let report = Report {
            table: format!("{}.{}", parts.source.schema, parts.source.table),
            rows,
            indexed,
            stores: sides.iter().map(Side::report).collect(),
            repair,
            open_dead_letters: !letters.newest.is_empty(),
            put_aside: PutAside::of(sides.iter().flat_map(Side::drifted), &keys.collect()),
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        parts.count(&sides);
        Ok(report)
    }
}

impl Parts {
    /// The stores of this process; those that cannot be asked carry the reason.
    fn sides(&self) -> Vec<Side> {
        let mut sides = vec![];
        sides.extend(self.shared.mirror().map(|mirror| Side::new(LOCAL, Ok(Holder::Local(mirror)))));
        if let Some(qdrant) = &self.shared.qdrant {
            let state = qdrant.primary.state();
            let holder = match (state.fault, state.searchable, state.sink_fault) {
                (Some(fault), ..) => Err(fault),
                (None, Some(generation), _) => Ok(Holder::Qdrant(generation.store)),
                (None, None, Some(fault)) => Err(fault),
                (None, None, None) => Err("no generation of this revision is there yet".to_owned()),
            };
            sides.push(Side::new(STORE, holder));
        }
        sides
    }

    /// Rows of the table, those of them that belong into the index, and what a repair did.
    async fn compare(
        &self,
        database: &Database,
        sides: &mut [Side],
        repair: bool,
        passed: Passed,
    ) -> Result<(u64, u64, Option<Repair>), CaptureError> {
        let survey = Survey::open(database, &self.source, &self.check_columns).await?;
        let (mut total, mut largest) = (0, 0);
        for side in sides.iter_mut() {
            let rows = side.rows().await;
            (total, largest) = (total + rows, rows.max(largest));
        }
        let total = total + survey.rows_estimated().unwrap_or(largest);
        let progress = Progress { passed, total };
        let (rows, indexed) = self.compare_rows(&survey, sides, &progress).await?;
        try_join_all(sides.iter_mut().map(|side| look_for_extra(&survey, side, &progress))).await?;
        self.settle(&survey, sides).await?;
        for side in sides.iter_mut() {
            side.settle_strays().await;
        }
        let repaired = if repair { Some(self.repair(&survey, sides).await?) } else { None };
        Ok((rows, indexed, repaired))
    }

    /// Compares every row of the table with what the stores hold. While they are asked for one page, the next is read.
    async fn compare_rows(
        &self,
        survey: &Survey,
        sides: &mut [Side],
        progress: &Progress,
    ) -> Result<(u64, u64), CaptureError> {
        let (mut rows, mut indexed) = (0, 0);
        let mut pages = survey.pages().await?;
        let mut page = self.next_page(&mut pages).await?;
        while !page.is_empty() {
            let comparing = join_all(sides.iter_mut().map(|side| side.compare(&page)));
            let (next, _) = tokio::join!(self.next_page(&mut pages), comparing);
            rows += page.len() as u64;
            indexed += page.iter().filter(|(_, wanted)| *wanted != Wanted::Nothing).count() as u64;
            progress.add(page.len());
            page = next?;
        }
        Ok((rows, indexed))
    }

    async fn next_page(&self, pages: &mut Pages) -> Result<Page, CaptureError> {
        let rows = pages.next().await?;
        Ok(self.rendered(rows.into_iter().map(|(key, row)| (key, Some(row))).collect()).await)
    }

    /// What stores should hold of these rows.
    async fn rendered(&self, rows: Vec<(RowKey, Option<Row>)>) -> Page {
        let (expectation, embedder) = (Arc::clone(&self.expectation), self.shared.embedder.clone());
        let render = move || {
            let tokens = embedder.as_ref().map(|embedder| embedder.tokens());
            let wanted = |row: Option<Row>| match row.map(|row| expectation.of(&row, tokens)) {
                Some(Expected::Row(hash)) => Wanted::Row(hash),
                Some(Expected::Unfit) => Wanted::Unfit,
                Some(Expected::Nothing) | None => Wanted::Nothing,
            };
            rows.into_iter().map(|(key, row)| (key, wanted(row))).collect()
        };
        match spawn_blocking(render).await {
            Ok(page) => page,
            Err(fault) => std::panic::resume_unwind(fault.into_panic()),
        }
    }

    /// Looks at every suspect until it is settled, or has changed too often.
    async fn settle(&self, survey: &Survey, sides: &mut [Side]) -> Result<(), CaptureError> {
        for _ in 0..ROUNDS_MAX {
            let keys: BTreeSet<RowKey> = sides.iter().flat_map(Side::open).cloned().collect();
            if keys.is_empty() {
                break;
            }
            let keys: Vec<RowKey> = keys.into_iter().collect();
            let mut wanted = HashMap::with_capacity(keys.len());
            for some in keys.chunks(ROWS_PER_PAGE) {
                let mut rows = survey.rows(some).await?;
                let page = some.iter().map(|key| (key.clone(), rows.remove(key))).collect();
                wanted.extend(self.rendered(page).await);
            }
            // All that the rows showed was committed before this moment.
            let read_ms = now_ms() + if self.captures.is_some() { 0 } else { CLOCKS_APART_MS };
            let as_of_ms = |store: &str| self.shared.standing(store).as_of_ms;
            let refuses = |status: &tokio::sync::watch::Receiver<capture::Status>| {
                matches!(status.borrow().phase, capture::Phase::Refused(_))
            };
            let is_cut_off = || self.shared.status.as_ref().is_some_and(refuses);
            join_all(sides.iter_mut().map(|side| side.settle(&wanted, read_ms, as_of_ms, is_cut_off))).await;
        }
        Ok(())
    }

    /// Publishes the rows again that have drifted, looks at them once more, and removes points that are no row's. What a late store lacks may still be on its
    /// way, and is left.
    async fn repair(&self, survey: &Survey, sides: &mut [Side]) -> Result<Repair, CaptureError> {
        let keys: BTreeSet<RowKey> = sides.iter().flat_map(Side::to_repair).cloned().collect();
        let keys: Vec<RowKey> = keys.into_iter().collect();
        let mut repair = Repair::default();
        for some in keys.chunks(REPUBLISH_KEYS_MAX) {
            match self.republish_stubbornly(some).await {
                Ok(republished) => republished.into_iter().for_each(|(key, became)| repair.note(&key, became)),
                Err(reason) => {
                    repair.error = Some(reason);
                    break;
                }
            }
        }
        sides.iter_mut().for_each(Side::begin_again);
        self.settle(survey, sides).await?;
        for side in sides.iter_mut() {
            repair.removed += side.remove_strays().await;
        }
        Ok(repair)
    }

    async fn republish_stubbornly(&self, keys: &[RowKey]) -> Result<Vec<(RowKey, Republished)>, String> {
        let mut tries = 1;
        loop {
            match self.republish(keys).await {
                Err(reason) if tries < REPUBLISH_TRIES => tracing::warn!("publish rows again: {reason}"),
                done => return done,
            }
            tries += 1;
        }
    }

    /// Through capture in this process, or through the door of another one on the same data directory.
    async fn republish(&self, keys: &[RowKey]) -> Result<Vec<(RowKey, Republished)>, String> {
        if let Some(captures) = &self.captures {
            return letters::republish(captures, keys.to_vec()).await;
        }
        let request = Request::Republish { keys: keys.iter().map(|key| key.as_str().to_owned()).collect() };
        let answer = match control::call(&self.data_dir, request, |_, _| ()).await {
            Ok(answer) => answer,
            Err(error @ ControlError::NotRunning { .. }) => {
                return Err(format!(
                    "repair takes the capture, which publishes rows: {error}; or run `vecsync sync` where it captures"
                ));
            }
            Err(error) => return Err(Chain(&error).to_string()),
        };
        let republished: Vec<(String, Republished)> =
            serde_json::from_value(answer).map_err(|error| format!("read the answer of the capture: {error}"))?;
        let key = |(key, became): (String, Republished)| RowKey::from_bytes(key.as_bytes()).map(|key| (key, became));
        republished.into_iter().map(key).collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    /// Whether rows can be published again: better known before the table is read.
    async fn check_repair(&self) -> Result<(), String> {
        if self.source.topic.is_some() {
            return Err(foreign::NO_REPAIR.to_owned());
        }
        if self.captures.is_none() {
            self.republish(&[]).await?;
        }
        Ok(())
    }

    /// Rows that may be missing because they are put aside. What cannot be found out is no news.
    async fn dead_letters(&self) -> Letters {
        self.log.dead_letters(letters::LETTERS_MAX).await.unwrap_or_default()
    }

    /// Tells what was found, and keeps it. Of a store that could not be asked what was found before still holds.
    fn count(&self, sides: &[Side]) {
        let mut kept = Kept::read(&self.data_dir).unwrap_or_default();
        for side in sides {
            if let Some(counts) = side.counts() {
                kept.note(side.name, counts.into_iter());
            }
        }
        if sides.iter().all(|side| side.fault().is_none()) {
            kept.note_whole(now_ms());
        }
        kept.tell(&self.metrics, self.shared.qdrant.is_some());
        if let Err(error) = kept.write(&self.data_dir) {
            tracing::warn!("keep what verify has found: {error}");
        }
    }
}

/// Suspects the keys that a store has and the table has not.
async fn look_for_extra(survey: &Survey, side: &mut Side, progress: &Progress) -> Result<(), CaptureError> {
    let mut cursor = Cursor::default();
    while !cursor.is_at_end() {
        let Some(keys) = side.keys(&mut cursor).await else { break };
        let present = survey.present(&keys).await?;
        keys.iter().filter(|key| !present.contains(*key)).for_each(|key| side.suspects.suspect_extra(key));
        progress.add(keys.len());
    }
    Ok(())
}
