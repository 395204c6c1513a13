//! Follows how fresh the mirror is, measures, prunes, shows the initial load. Decides nothing about rows.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::LOCAL;
use super::serving::Shared;
use crate::capture;
use crate::clock::now_ms;
use crate::freshness::Freshness;
use crate::index::primary::STORE;
use crate::index::{Generations, PrimaryState};
use crate::metrics::PipelineMetrics;
use crate::progress_bar::Progress;
use crate::retry::Chain;
use crate::shutdown::Shutdown;
use crate::topic::{Log, LogError, Offsets};

/// How often sizes are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How often what nobody needs any more is removed.
const PRUNE_EVERY: Duration = Duration::from_secs(10 * 60);

/// How often the brokers' topics are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// The task's own things.
pub(super) struct Watching {
    pub shared: Arc<Shared>,
    pub log: Log,
    pub revision: String,
    pub stored: watch::Receiver<Offsets>,
    pub metrics: PipelineMetrics,
}

impl Watching {
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), LogError> {
        // Without capture in this process nothing changes there.
        let (_nobody, silent) = watch::channel(capture::Status::default());
        let mut status = self.shared.status.clone().unwrap_or(silent);
        let mut measure = tokio::time::interval(MEASURE_EVERY);
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        let mut check = tokio::time::interval(CHECK_EVERY);
        let mut bar: Option<Progress> = None;
        let mut last = self.held();
        let (mut feeds, mut is_whole) = (true, false);
        // Where there is no Qdrant nothing changes there either.
        let mut primary = self.shared.qdrant.as_ref().map(|qdrant| qdrant.primary.subscribe());
        loop {
            tokio::select! {
                biased;
                () = shutdown.raised() => return Ok(()),
                Ok(()) = status.changed() => self.note(&status.borrow_and_update()),
                changed = self.stored.changed(), if feeds => feeds = changed.is_ok(),
                Some(Ok(())) = changed(&mut primary) => {}
                _ = measure.tick() => self.measure().await,
                _ = prune.tick() => self.prune().await?,
                _ = check.tick() => self.check_log().await,
            }
            let stored = self.stored.borrow_and_update().clone();
            let held = self.held();
            // One that has taken the place of another says nothing of what that one had.
            let went_back = held.0 == last.0 && held.1.iter().zip(&last.1).any(|(now, before)| now < before);
            last = held;
            if went_back {
                is_whole = false;
                self.note_emptied().await;
            }
            self.follow(&stored, went_back)?;
            if let Some(qdrant) = &self.shared.qdrant {
                let is_local_loaded = self.shared.freshness().is_loaded();
                qdrant.follow(&self.log, &self.revision, is_local_loaded, &last.1)?;
            }
            if let Some(stand_in) = self.shared.stand_in() {
                stand_in.follow(&self.log)?;
            }
            if !is_whole && self.shared.freshness().is_loaded() {
                is_whole = self.take_over().await;
            }
            self.show_load(&status.borrow(), &mut bar);
        }
    }

    /// Lets the mirror, which is whole, answer in the place of an earlier one, and notes that it is. `false`: not yet.
    async fn take_over(&self) -> bool {
        let (Some(generations), stand_in) = (&self.shared.generations, self.shared.stand_in()) else { return true };
        if let Some(stand_in) = &stand_in {
            if !stand_in.is_done(&self.shared) {
                return false;
            }
            self.shared.dismiss_stand_in();
            let rows = self.shared.mirror().map_or(0, |mirror| mirror.rows());
            tracing::info!(rows, before = stand_in.earlier.mirror.rows(), "revision {} answers", self.revision);
        }
        match generations.note_whole().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("{}", Chain(&error));
                false
            }
        }
    }

    fn note(&self, status: &capture::Status) {
        if self.log.has_heartbeats() {
            return;
        }
        if let Some(qdrant) = &self.shared.qdrant {
            let current = status.current.as_ref().map(|current| (current.as_of_ms, current.ends.clone()));
            qdrant.captured(!status.snapshot.needed || status.snapshot.complete, current);
        }
        if status.snapshot.needed && !status.snapshot.complete {
            *self.shared.freshness() = Freshness::default();
        } else if let Some(current) = &status.current {
            self.shared.freshness().captured(current.as_of_ms, current.ends.clone());
            if let Some(stand_in) = self.shared.stand_in() {
                stand_in.captured(current.as_of_ms, current.ends.clone());
            }
        }
    }

    async fn note_emptied(&self) {
        if let Some(generations) = &self.shared.generations
            && let Err(error) = generations.note_emptied().await
        {
            tracing::warn!("{}", Chain(&error));
        }
    }

    /// The mirror's generation, and how far that is.
    fn held(&self) -> (u32, Offsets) {
        let current = self.shared.generations.as_ref().map(Generations::current);
        current.map_or((0, vec![]), |current| (current.number, current.mirror.positions()))
    }

    /// Brings the freshness up to what the store has. Where that is less than before, it is filled again.
    fn follow(&self, stored: &Offsets, went_back: bool) -> Result<(), LogError> {
        match (&self.log, self.shared.mirror()) {
            (Log::Embedded(log), _) => {
                if went_back {
                    self.shared.freshness().lost(log.changes_ends());
                }
                let progress = log.progress(&self.revision, stored)?;
                self.shared.freshness().advance(&progress);
            }
            (Log::Kafka(_), Some(mirror)) => {
                let mut freshness = self.shared.freshness();
                if went_back {
                    freshness.fills(now_ms());
                }
                freshness.heard(mirror.as_of_ms());
            }
            (Log::Kafka(_), None) => {}
        }
        Ok(())
    }

    /// Removes from the log on this machine what nobody needs any more; brokers do that by themselves.
    async fn prune(&self) -> Result<(), LogError> {
        if let Log::Embedded(log) = &self.log {
            let stored = self.stored.borrow().clone();
            let removed = log.prune(now_ms(), &self.revision, &stored).await?;
            if removed > 0 {
                tracing::debug!(removed, "log pruned");
            }
        }
        Ok(())
    }

    async fn check_log(&self) {
        let Log::Kafka(log) = &self.log else { return };
        let fault = log.check_partitions(&self.revision).await.err().map(|error| Chain(&error).to_string());
        let mut known = self.shared.log_fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(fault), true) = (&fault, *known != fault) {
            tracing::warn!("{fault}");
        }
        *known = fault;
    }

    fn show_load(&self, status: &capture::Status, bar: &mut Option<Progress>) {
        let Some(mirror) = self.shared.mirror() else { return };
        let loaded = self.shared.freshness().is_loaded();
        // Where the rows are embedded anew out of the log, there are as many as before.
        let before = || self.shared.stand_in().map_or(0, |stand_in| stand_in.earlier.mirror.rows());
        let expected = status.snapshot.expected.filter(|expected| *expected > 0).unwrap_or_else(before);
        match bar {
            Some(progress) => {
                if expected > 0 {
                    progress.set_total(expected);
                }
                progress.set(mirror.rows());
                if loaded && let Some(progress) = bar.take() {
                    // What was expected is an estimate; what was read is not.
                    let (read, rows) = (status.snapshot.rows, mirror.rows());
                    progress.set_total(rows);
                    let left = read.saturating_sub(rows);
                    progress.finish((left > 0).then(|| nothing_to_index(left, read)));
                }
            }
            None if !loaded && expected > 0 => {
                *bar = Some(Progress::start(expected, "rows searchable"));
            }
            None => {}
        }
    }

    async fn measure(&self) {
        let mirror = self.shared.mirror();
        let size = move || mirror.map(|mirror| (mirror.points(), mirror.size_on_disk().unwrap_or(0)));
        if let Ok(Some((points, bytes))) = spawn_blocking(size).await {
            self.metrics.store_points(LOCAL, Some(points));
            self.metrics.store_bytes(LOCAL, bytes);
        }
        if let Some(qdrant) = &self.shared.qdrant {
            self.metrics.store_points(STORE, qdrant.primary.state().points_now());
        }
    }
}

/// Why there are fewer rows in the index than in the table.
fn nothing_to_index(left: u64, read: u64) -> String {
    let (rows, have) = if left == 1 { ("row", "has") } else { ("rows", "have") };
    format!(
        "{left} {rows} of the {read} that were read {have} nothing to index: document.when is false, no text, or put aside"
    )
}

/// Waits for a change; for ever where there is nothing that could change.
async fn changed(primary: &mut Option<watch::Receiver<PrimaryState>>) -> Option<Result<(), watch::error::RecvError>> {
    match primary {
        Some(primary) => Some(primary.changed().await),
        None => std::future::pending().await,
    }
}

/// Free space of a file system, in bytes.
pub(super) fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
}
