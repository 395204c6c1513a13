//! Follows how fresh the mirror is, measures, prunes, shows the initial load. Decides nothing about rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::LOCAL;
use super::serving::Shared;
use crate::clock::now_ms;
use crate::freshness::Freshness;
use crate::metrics::{self, PipelineMetrics};
use crate::progress_bar::Progress;
use crate::shutdown::Shutdown;
use crate::topic::embedded::Log;
use crate::topic::{LogError, Offsets};

/// How often sizes are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How often what nobody needs any more is removed.
const PRUNE_EVERY: Duration = Duration::from_secs(10 * 60);

/// The task's own things.
pub(super) struct Watching {
    pub shared: Arc<Shared>,
    pub log: Log,
    pub revision: String,
    pub stored: watch::Receiver<Offsets>,
    pub data_dir: PathBuf,
    pub metrics: PipelineMetrics,
    pub registry: PrometheusHandle,
}

impl Watching {
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), LogError> {
        let mut status = self.shared.status.clone();
        let mut measure = tokio::time::interval(MEASURE_EVERY);
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        let mut bar: Option<Progress> = None;
        let mut last = self.stored.borrow().clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.raised() => return Ok(()),
                Ok(()) = status.changed() => {
                    let status = status.borrow_and_update().clone();
                    if status.snapshot.needed && !status.snapshot.complete {
                        *self.shared.freshness() = Freshness::default();
                    } else if let Some(current) = status.current {
                        self.shared.freshness().captured(current.as_of_ms, current.ends);
                    }
                }
                Ok(()) = self.stored.changed() => { self.stored.borrow_and_update(); }
                _ = measure.tick() => self.measure().await,
                _ = prune.tick() => {
                    let stored = self.stored.borrow().clone();
                    let removed = self.log.prune(now_ms(), &self.revision, &stored).await?;
                    if removed > 0 {
                        tracing::debug!(removed, "log pruned");
                    }
                }
            }
            let stored = self.stored.borrow().clone();
            if stored.iter().zip(&last).any(|(now, before)| now < before) {
                self.shared.freshness().lost(self.log.changes_ends());
            }
            let progress = self.log.progress(&self.revision, &stored)?;
            self.shared.freshness().advance(&progress);
            last = stored;
            self.show_load(&mut bar);
        }
    }

    fn show_load(&self, bar: &mut Option<Progress>) {
        let loaded = self.shared.freshness().is_loaded();
        let snapshot = self.shared.status.borrow().snapshot.clone();
        match bar {
            Some(progress) => {
                progress.set_total(snapshot.expected);
                progress.set(self.shared.mirror.rows());
                if loaded && let Some(progress) = bar.take() {
                    progress.finish();
                }
            }
            None if !loaded && snapshot.expected > 0 => {
                *bar = Some(Progress::start(snapshot.expected, "rows searchable"));
            }
            None => {}
        }
    }

    async fn measure(&self) {
        self.registry.run_upkeep();
        let (mirror, data_dir) = (self.shared.mirror.clone(), self.data_dir.clone());
        let measured = spawn_blocking(move || (mirror.size_on_disk().unwrap_or(0), free_bytes(&data_dir))).await;
        if let Ok((bytes, free)) = measured {
            self.metrics.store(LOCAL, self.shared.mirror.points(), bytes);
            metrics::data_dir_free(free);
        }
    }
}

fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
}
