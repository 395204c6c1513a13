//! What the commands beside `run` do: ask a running vecsync, and say what it answers.

pub mod backup;
pub mod check;
pub mod dead_letters;
pub mod door;
mod drill;
pub mod init;
pub mod migrate;
pub mod pipeline;
pub mod replay;
pub mod sync;
pub mod verify;
pub mod watch;

use std::fmt::Write;
use std::io::IsTerminal;

use serde_json::Value;

use crate::client::{self, ClientError, Query};
use crate::config::Secret;
use crate::config::settings::Settings;

/// `vecsync search`: what to print.
pub async fn search(settings: &Settings, query: &Query, as_json: bool) -> Result<String, ClientError> {
    let answer = client::search(&settings.url.to_string(), key(settings), query).await?;
    if as_json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(&answer).expect("an answer has string keys only")));
    }
    Ok(client::render(&answer, std::io::stdout().is_terminal()))
}

/// `vecsync status`: what to print.
pub async fn status(settings: &Settings, as_json: bool) -> Result<String, ClientError> {
    let report = client::document(&settings.url.to_string(), key(settings), "/health/detailed/").await?;
    if as_json {
        return Ok(format!("{report:#}\n"));
    }
    let mut lines = format!("vecsync at {} is {}\n", settings.url, text(&report["status"]));
    match report["pipelines"].as_object() {
        None => component_lines(&report["components"], &mut lines),
        Some(pipelines) => {
            for (name, pipeline) in pipelines {
                let _ = writeln!(lines, "pipeline {name} is {}", text(&pipeline["status"]));
                component_lines(&pipeline["components"], &mut lines);
            }
        }
    }
    Ok(lines)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn component_lines(components: &Value, lines: &mut String) {
    for (name, component) in components.as_object().into_iter().flatten() {
        let mut line = format!("  {name:<8} {:<10}", text(&component["status"]));
        for (field, value) in component.as_object().into_iter().flatten() {
            if field != "status" && !value.is_null() {
                let _ = write!(line, " {field}={}", text(value));
            }
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
}

/// `vecsync healthcheck`: why the running vecsync is not ready; `None`: it is. It needs no key.
pub async fn healthcheck(settings: &Settings) -> Result<Option<String>, ClientError> {
    let url = settings.url.to_string();
    let report = client::document(&url, None, "/health/ready/").await?;
    let waits_for = report["waits_for"].as_str().unwrap_or("something that it does not name");
    Ok((report["ready"] != true).then(|| format!("{url} is not ready: it waits for {waits_for}")))
}

fn key(settings: &Settings) -> Option<&Secret> {
    settings.server.api_keys.first()
}
