//! The one retry path: exponential backoff with jitter, counted, logged, stopped by shutdown.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

use crate::metrics;
use crate::shutdown::Shutdown;

/// How long to wait between attempts at one target.
#[derive(Debug)]
pub struct Retry {
    target: &'static str,
    backoff: ExponentialBackoff,
}

impl Retry {
    /// Starts at 100 ms, doubles up to 10 s, each wait moved by up to half at random; never gives up.
    /// `target` is the value of the metrics label.
    pub fn new(target: &'static str) -> Self {
        Retry::paced(target, Duration::from_millis(100), Duration::from_secs(10))
    }

    /// The same with another first and another longest wait.
    pub fn paced(target: &'static str, first: Duration, longest: Duration) -> Self {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_interval(longest)
            .with_max_elapsed_time(None)
            .build();
        metrics::retries_of(target);
        Retry { target, backoff }
    }

    /// The attempts succeed again: the next fault starts with the shortest wait.
    pub fn reset(&mut self) {
        self.backoff.reset();
    }

    /// Logs the fault, counts it and waits. Says `false` when shutdown came first.
    pub fn wait<'a>(
        &'a mut self,
        fault: &dyn fmt::Display,
        shutdown: &'a Shutdown,
    ) -> impl Future<Output = bool> + Send + 'a {
        let wait = self.backoff.next_backoff().expect("no limit on elapsed time is set");
        tracing::warn!(target_name = self.target, "trying again in {} ms: {fault}", wait.as_millis());
        metrics::retried(self.target);
        async move {
            tokio::select! {
                biased;
                () = shutdown.raised() => false,
                () = tokio::time::sleep(wait) => true,
            }
        }
    }
}

/// An error and what caused it, on one line.
pub struct Chain<'a, E: Error + ?Sized>(pub &'a E);

impl<E: Error + ?Sized> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their cause in their own message.
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}
