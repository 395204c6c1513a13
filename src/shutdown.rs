//! The one way to stop: a signal every task listens to, and the signals of the operating system that raise it.

use tokio_util::sync::CancellationToken;

/// Tells tasks to stop taking in work and to drain. Clones are the same signal.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A signal that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the signal. Raising it twice is the same as once.
    pub fn raise(&self) {
        self.0.cancel();
    }

    /// Whether the signal is raised.
    pub fn is_raised(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the signal is raised.
    pub async fn raised(&self) {
        self.0.cancelled().await;
    }

    /// A signal that is raised with this one, and can be raised alone.
    pub fn child(&self) -> Shutdown {
        Shutdown(self.0.child_token())
    }
}

/// Waits for SIGINT or SIGTERM and gives its name.
pub async fn signal() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
    }
}
