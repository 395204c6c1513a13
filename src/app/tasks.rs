//! Tasks that somebody owns and waits for, each with a name, by which one that panics is called.

use std::collections::HashMap;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};

use super::AppError;
use crate::remedy;
use crate::shutdown::Shutdown;

/// Those of a pipeline, or of the process.
#[derive(Default)]
pub(super) struct Tasks {
    set: JoinSet<Result<(), AppError>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts one.
    pub fn spawn<E: Into<AppError>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let task = remedy::about(remedy::pipeline(), async move { task.await.map_err(Into::into) });
        #[cfg(debug_assertions)]
        let task = provoked::panicking(name, task);
        self.names.insert(self.set.spawn(task).id(), name);
    }

    /// Starts one that does not end by itself.
    pub fn spawn_endless(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
        shutdown: Shutdown,
    ) {
        self.spawn(name, async move {
            tokio::select! {
                () = shutdown.raised() => {}
                () = task => {}
            }
            Ok::<(), AppError>(())
        });
    }

    /// Waits for one to end; none where all have. Cancel-safe.
    pub async fn join_next(&mut self) -> Option<(&'static str, Result<(), AppError>)> {
        let ended = self.set.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let task = self.names.remove(&id).unwrap_or("of nobody");
        let result = ended.map_or_else(|error| Err(AppError::Task { task, fault: fault(error) }), |(_, result)| result);
        Some((task, result))
    }

    /// Ends all at their next wait.
    pub fn abort_all(&mut self) {
        self.set.abort_all();
    }

    /// Those that are left.
    pub fn names(&self) -> Vec<&'static str> {
        self.names.values().copied().collect()
    }
}

/// What becomes of the process or the pipeline when a task has ended by itself.
pub(super) fn too_early(task: &'static str, result: Result<(), AppError>) -> AppError {
    result.err().unwrap_or_else(|| AppError::Task { task, fault: "it ended without being told to".into() })
}

/// What is known of a task that has no result. The log has said where a panic was.
pub(super) fn fault(error: JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "it was given up".into() };
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", said.unwrap_or("no message"))
}

/// Panics that tests ask for. A release is built without debug assertions, and has nothing of this.
#[cfg(debug_assertions)]
mod provoked {
    use std::future::{Future, pending};

    use tokio::signal::unix::{SignalKind, signal};

    /// Names the task that SIGUSR2 makes panic.
    const TASK: &str = "VECSYNC_TEST_PANIC";

    pub async fn panicking<T>(name: &'static str, task: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            () = asked_for(name) => panic!("a test asked for it"),
            ended = task => ended,
        }
    }

    async fn asked_for(name: &'static str) {
        if std::env::var_os(TASK).is_none_or(|task| task != name) {
            return pending().await;
        }
        if let Ok(mut asked) = signal(SignalKind::user_defined2()) {
            asked.recv().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::CaptureError;

    #[tokio::test]
    async fn a_task_that_panics_is_an_error_that_names_it() {
        let mut tasks = Tasks::default();
        tasks.spawn("good", async { Ok::<(), CaptureError>(()) });
        tasks.spawn("bad", async { panic!("a {}", "defect") as Result<(), CaptureError> });
        let mut ended = vec![];
        while let Some((task, result)) = tasks.join_next().await {
            ended.push((task, result.map_err(|error| error.to_string())));
        }
        ended.sort_by_key(|(task, _)| *task);
        let bad = "the task bad ended abnormally: it panicked: a defect".to_owned();
        assert_eq!(ended, [("bad", Err(bad)), ("good", Ok(()))]);
        assert!(tasks.names().is_empty());
    }

    #[test]
    fn a_task_that_ends_by_itself_is_an_error_that_names_it() {
        let said = too_early("capture", Ok(())).to_string();
        assert_eq!(said, "the task capture ended abnormally: it ended without being told to");
    }
}
