//! `vecsync check`: prints what was found, line by line, and says whether all is well.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::drill::drill;
use crate::app::AppError;
use crate::app::check::{self, Finding};
use crate::client::{self, Query};
use crate::config::settings::Settings;
use crate::config::{Config, Secret};
use crate::retry::Chain;

/// What is to be looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Not the running vecsync.
    pub skip_health: bool,
    /// No embedding, no point in Qdrant, no search.
    pub skip_operations: bool,
    /// Let the running vecsync answer without Qdrant for so long.
    pub drill: Option<Duration>,
    /// Also say how long each took.
    pub verbose: bool,
}

/// Looks at everything; `told` is given a line for each finding as it comes. Gives how many are wrong.
pub async fn check(
    config: &Config,
    settings: &Settings,
    wanted: Wanted,
    mut told: impl FnMut(String),
) -> Result<usize, AppError> {
    let mut wrong = 0;
    let mut tell = |finding: Finding| {
        wrong += usize::from(finding.result.is_err());
        told(line(&finding, wanted.verbose));
    };
    check::check(config, !wanted.skip_operations, &mut tell).await?;
    if !wanted.skip_health {
        let since = Instant::now();
        let result = running(config, settings, !wanted.skip_operations).await;
        tell(Finding { name: "server", result, took: since.elapsed() });
    }
    if let Some(length) = wanted.drill {
        let since = Instant::now();
        let result = drill(settings, length).await;
        tell(Finding { name: "drill", result, took: since.elapsed() });
    }
    Ok(wrong)
}

/// What a check that found so many things wrong says of that; nothing, if it found none.
pub fn verdict(wrong: usize) -> Option<String> {
    match wrong {
        0 => None,
        1 => Some("one thing is not as it should be".to_owned()),
        wrong => Some(format!("{wrong} things are not as they should be")),
    }
}

async fn running(config: &Config, settings: &Settings, operations: bool) -> Result<String, String> {
    let (url, key) = (settings.url.to_string(), settings.server.api_keys.to_search());
    let report = match client::document(&url, key, "/health/detailed/").await {
        Ok(report) => report,
        Err(error) => return Err(Chain(&error).to_string() + &in_the_way(config).await),
    };
    let status = report["status"].as_str().unwrap_or("without a status").to_owned();
    let mut said = format!("vecsync at {url} is {status}");
    if status != "healthy" {
        let unwell = report["components"].as_object().into_iter().flatten();
        let unwell = unwell.filter(|(_, part)| !part["error"].is_null());
        let unwell: Vec<String> = unwell.map(|(name, part)| format!("{name}: {}", text(&part["error"]))).collect();
        return Err(format!("{said}: {}", unwell.join("; ")));
    }
    if operations {
        said += &searched(&url, key).await?;
    }
    Ok(said)
}

/// What keeps a vecsync from being where it is looked for, behind a semicolon; nothing, if nothing does.
async fn in_the_way(config: &Config) -> String {
    let folder = config.data_dir.display();
    match (check::listening(config).await, check::is_in_use(config)) {
        // It listens there, and does not answer; or none runs.
        (Some(_), true) | (None, false) => String::new(),
        (Some(why), false) => format!("; {why}"),
        (None, true) => format!(
            "; a vecsync runs on VECSYNC_DATA_DIR {folder} and listens elsewhere: set VECSYNC_URL, or give this one a data \
             directory of its own"
        ),
    }
}

async fn searched(url: &str, key: Option<&Secret>) -> Result<String, String> {
    let query = Query { text: "Does it work?".to_owned(), limit: Some(1), ..Query::default() };
    let answer = client::search(url, key, &query).await.map_err(|error| Chain(&error).to_string())?;
    Ok(format!("; a search was answered by {} in {:.0} ms", answer.served_by, answer.took_ms))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn line(finding: &Finding, verbose: bool) -> String {
    let (mark, said) = match &finding.result {
        Ok(said) => ("ok", said),
        Err(said) => ("failed", said),
    };
    let took = if verbose { format!(" ({})", shown(finding.took)) } else { String::new() };
    format!("{mark:<7} {:<12} {said}{took}\n", finding.name)
}

fn shown(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_how() {
        let finding = |result| Finding { name: "slot", result, took: Duration::from_micros(1500) };
        assert_eq!(line(&finding(Ok("there".into())), false), "ok      slot         there\n");
        assert_eq!(line(&finding(Err("lost".into())), true), "failed  slot         lost (1.5 ms)\n");
    }
}
