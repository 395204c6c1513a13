//! Keeps the mirror of an earlier revision up, as long as somebody still embeds for that one. Counts nothing.

use tokio::task::{JoinError, spawn_blocking};

use super::batch::decode;
use super::generations::Earlier;
use super::mirror::MirrorError;
use crate::retry::{Chain, Retry};
use crate::shutdown::Shutdown;
use crate::topic::{Log, LogError};

/// Records taken from the log at once, and their bytes: there is time.
const BATCH_RECORDS_MAX: usize = 500;
const BATCH_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("decode records of vectors")]
    Task(#[from] JoinError),
}

/// Follows `vectors` of its revision until shutdown, or until the mirror is closed, or where the log has nothing for it any more.
pub async fn follow(earlier: Earlier, log: Log, shutdown: Shutdown) {
    let mut retry = Retry::new("earlier mirror");
    loop {
        let fault = tokio::select! {
            () = shutdown.raised() => return,
            ended = take(&earlier, &log, &mut retry) => match ended {
                Ok(never) => match never {},
                Err(fault) => fault,
            },
            // A search found damage.
            fault = earlier.mirror.faulted() => fault.into(),
        };
        let said = Chain(&fault).to_string();
        match fault {
            // It goes on answering as it is.
            Fault::Log(LogError::Ahead { .. } | LogError::Expired { .. }) => {
                return tracing::info!("the mirror of revision {} is followed no more: {said}", earlier.revision);
            }
            Fault::Mirror(MirrorError::Closed { .. }) => return,
            _ => {}
        }
        if !retry.wait(&said, &shutdown).await {
            return;
        }
        if let Err(error) = earlier.mirror.recover().await {
            tracing::warn!("{}", Chain(&error));
        }
        if earlier.mirror.is_open() && earlier.mirror.rows() == 0 {
            return tracing::warn!(
                "the mirror of revision {} was damaged and answers no more: {said}",
                earlier.revision
            );
        }
    }
}

async fn take(earlier: &Earlier, log: &Log, retry: &mut Retry) -> Result<std::convert::Infallible, Fault> {
    let mut reader = log.vectors(&earlier.revision)?;
    reader.seek(&earlier.mirror.positions()).await?;
    loop {
        let stored = reader.next(BATCH_RECORDS_MAX, BATCH_BYTES_MAX).await?;
        let mirror = earlier.mirror.clone();
        let ready = move |partition, offset, event| mirror.prepare(partition, offset, event);
        let (events, _) = spawn_blocking(move || decode(stored, None, None, ready)).await?;
        earlier.mirror.apply_upto(events, reader.positions()).await?;
        retry.reset();
    }
}
