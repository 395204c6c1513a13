//! How far long work is: a bar on a terminal, a log line every five seconds elsewhere, or told to who asked for it from far.
//! Knows no particular work.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// How often a line is logged where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// All bars of the process, on standard error.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));

/// Told the label, and how much of how much is done.
pub type Listener = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

tokio::task_local! {
    /// Who is told in this task, instead of the terminal and the log of this process.
    static LISTENER: Listener;
}

/// Does something; how far it is, is told to this one.
pub async fn told_to<T>(listener: Listener, work: impl Future<Output = T>) -> T {
    LISTENER.scope(listener, work).await
}

/// Does something that writes to standard error while no bar is drawn there.
pub fn without_bar<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// One piece of long work. Dropped unfinished, its bar goes away without a word.
pub struct Progress {
    label: Cow<'static, str>,
    bar: Option<ProgressBar>,
    listener: Option<Listener>,
    lines: Mutex<Lines>,
}

impl Progress {
    /// Begins. `total` is in the same unit as what [`Progress::set`] is given, and may be 0 when it is not known.
    pub fn start(total: u64, label: impl Into<Cow<'static, str>>) -> Self {
        let label = label.into();
        let listener = LISTENER.try_with(Listener::clone).ok();
        let bar = (listener.is_none() && io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {rate} {eta}");
            let bar = BARS.add(ProgressBar::new(total).with_message(label.clone()));
            let rate = |state: &ProgressState, to: &mut dyn fmt::Write| {
                let _ = write!(to, "{:.0}/s", state.per_sec());
            };
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("rate", rate));
            bar
        });
        let lines = Mutex::new(Lines { total, done: 0, started: Instant::now(), logged: Instant::now() });
        Progress { label, bar, listener, lines }
    }

    /// So much is done, since the start.
    pub fn set(&self, done: u64) {
        if let Some(listener) = &self.listener {
            listener(&self.label, done, self.lines().total);
            return;
        }
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => {
                let line = self.lines().set(done, Instant::now());
                if let Some(line) = line {
                    tracing::info!("{}: {line}", self.label);
                }
            }
        }
    }

    /// There is so much to do after all.
    pub fn set_total(&self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
        self.lines().total = total;
    }

    /// It is done: the bar goes away, a last line is logged, with what is to be said about it, if anything.
    pub fn finish(self, remark: Option<String>) {
        let line = {
            let mut lines = self.lines();
            lines.done = self.bar.as_ref().map_or(lines.done, ProgressBar::position);
            lines.line(Instant::now())
        };
        drop_bar(&self.bar);
        let remark = remark.map(|remark| format!("; {remark}")).unwrap_or_default();
        tracing::info!("{}: done, {line}{remark}", self.label);
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop_bar(&self.bar);
    }
}

fn drop_bar(bar: &Option<ProgressBar>) {
    if let Some(bar) = bar {
        bar.finish_and_clear();
        BARS.remove(bar);
    }
}

/// When a line is due, and what it says. No I/O.
#[derive(Debug)]
struct Lines {
    total: u64,
    done: u64,
    started: Instant,
    logged: Instant,
}

impl Lines {
    fn set(&mut self, done: u64, now: Instant) -> Option<String> {
        self.done = done;
        if now.duration_since(self.logged) < LINE_EVERY {
            return None;
        }
        self.logged = now;
        Some(self.line(now))
    }

    fn line(&self, now: Instant) -> String {
        let seconds = now.duration_since(self.started).as_secs_f64();
        let rate = if seconds > 0.0 { self.done as f64 / seconds } else { 0.0 };
        let of = match self.total {
            0 => String::new(),
            total => format!(" of {total} ({} %)", self.done.min(total) * 100 / total),
        };
        format!("{}{of} in {seconds:.1} s, {rate:.0}/s", self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_every_five_seconds() {
        let start = Instant::now();
        let mut lines = Lines { total: 200, done: 0, started: start, logged: start };
        assert_eq!(lines.set(10, start + Duration::from_millis(4999)), None);
        assert_eq!(lines.set(50, start + Duration::from_secs(5)).as_deref(), Some("50 of 200 (25 %) in 5.0 s, 10/s"));
        assert_eq!(lines.set(60, start + Duration::from_secs(6)), None);
        assert!(lines.set(61, start + Duration::from_secs(10)).is_some());
    }

    #[test]
    fn an_unknown_or_passed_total_is_no_trouble() {
        let start = Instant::now();
        let mut lines = Lines { total: 0, done: 7, started: start, logged: start };
        assert_eq!(lines.line(start), "7 in 0.0 s, 0/s");
        lines.total = 5;
        assert_eq!(lines.line(start), "7 of 5 (100 %) in 0.0 s, 0/s");
    }
}
