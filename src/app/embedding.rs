//! Embed beside those who serve: a fault of the log that only a person can mend does not end the searches.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::serving::Shared;
use crate::embed::{Worker, WorkerError};
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{EmbedLog, Log};

/// A worker that has lasted this long has met its fault no more: joining a group and asking for positions takes seconds.
const LASTED: Duration = Duration::from_secs(20);

/// Runs until shutdown or a fault. Where rows can be searched over a log on Kafka, the fault is shown in health and the log is
/// opened again, which finds what somebody has mended.
pub(super) async fn run(
    worker: Worker,
    mut embed_log: EmbedLog,
    log: Log,
    revision: String,
    shared: Arc<Shared>,
    shutdown: Shutdown,
) -> Result<(), WorkerError> {
    let mut retry = Retry::new("embed");
    let show = |fault: Option<String>| *shared.embed_fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    loop {
        let mut running = std::pin::pin!(worker.run(embed_log, shutdown.clone()));
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = tokio::time::sleep(LASTED) => {
                retry.reset();
                show(None);
                running.await
            }
        };
        let is_filled = shared.mirror().is_some_and(|mirror| mirror.rows() > 0);
        let searchable = is_filled || shared.stand_in().is_some();
        let (fault, log) = match (ended, &log) {
            (Err(WorkerError::Log(fault)), Log::Kafka(log)) if searchable => (Chain(&fault).to_string(), log),
            (ended, _) => return ended,
        };
        show(Some(fault.clone()));
        if !retry.wait(&fault, &shutdown).await {
            return Ok(());
        }
        embed_log = EmbedLog::Kafka(Box::new(log.embedder(&revision)));
    }
}
