//! What the commands beside `run` do: ask a running vecsync, and say what it answers.

pub mod backup;
pub mod check;
pub mod dead_letters;
pub mod door;
mod drill;
pub mod elsewhere;
pub mod init;
pub mod migrate;
pub mod pipeline;
pub mod replay;
pub mod sync;
pub mod verify;
pub mod watch;

use std::io::IsTerminal;

use crate::client::{self, ClientError, Query, plain};
use crate::config::Secret;
use crate::config::settings::Settings;

/// Of an answer that is not vecsync's, so many characters are shown.
const FOUND_MAX: usize = 120;

/// `vecsync search`: what to print.
pub async fn search(settings: &Settings, query: &Query, as_json: bool) -> Result<String, ClientError> {
    let answer = client::search(&settings.url.to_string(), key(settings), query).await?;
    if as_json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(&answer).expect("an answer has string keys only")));
    }
    Ok(client::render(&answer, std::io::stdout().is_terminal()))
}

/// `vecsync status`: what to print. The document is the health's, which wants no key. `is_named`: the address is of one pipeline.
pub async fn status(settings: &Settings, as_json: bool, is_named: bool) -> Result<String, ClientError> {
    if as_json {
        let report = client::document(&settings.url.to_string(), key(settings), "/health/detailed/").await?;
        return Ok(format!("{report:#}\n"));
    }
    watch::once(settings, is_named).await
}

/// `vecsync healthcheck`: why the running vecsync is not ready; `None`: it is. It needs no key.
pub async fn healthcheck(settings: &Settings) -> Result<Option<String>, ClientError> {
    let url = settings.url.to_string();
    let report = client::document(&url, None, "/health/ready/").await?;
    if report["ready"] == true {
        return Ok(None);
    }
    let Some(waits_for) = report["waits_for"].as_str() else {
        // Somebody else's answer, whatever its status: a 404 is no vecsync that is not ready.
        let found = plain(&report.to_string());
        return Err(ClientError::Foreign {
            url,
            path: "/health/ready/",
            found: found.chars().take(FOUND_MAX).collect(),
        });
    };
    Ok(Some(format!("{url} is not ready: it waits for {waits_for}")))
}

fn key(settings: &Settings) -> Option<&Secret> {
    settings.server.api_keys.to_search()
}
