//! Commands that texts tell a person to run: where there are several pipelines each names its own, so that it works as it is
//! pasted. No I/O.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use serde_json::Value;
use tracing::Instrument;

/// What stands in front of a command in a text, and behind it.
const FRONT: &str = "`vecsync ";
const BACK: char = '`';
/// Names the pipeline that a command is about.
const OPTION: &str = "--pipeline";
/// Commands that are about one pipeline.
const COMMANDS: &[&str] = &[
    "backup",
    "check",
    "dead-letters",
    "healthcheck",
    "init",
    "replay",
    "restore",
    "search",
    "status",
    "sync",
    "verify",
];

tokio::task_local! {
    static PIPELINE: Arc<str>;
}

/// The text, with the pipeline's name in each command that takes one.
pub fn named<'t>(text: &'t str, pipeline: &str) -> Cow<'t, str> {
    let mut said = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once(FRONT) {
        let Some((command, after)) = from.split_once(BACK) else { break };
        said.push_str(before);
        said.push_str(FRONT);
        said.push_str(command);
        let mut words = command.split(' ');
        if words.next().is_some_and(|word| COMMANDS.contains(&word)) && !words.any(|word| word == OPTION) {
            said.extend([" ", OPTION, " ", pipeline]);
        }
        said.push(BACK);
        rest = after;
    }
    if said.is_empty() {
        return Cow::Borrowed(text);
    }
    said.push_str(rest);
    Cow::Owned(said)
}

/// The same of all texts in a value.
pub fn named_in(value: &mut Value, pipeline: &str) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(said) = named(text, pipeline) {
                *text = said;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| named_in(value, pipeline)),
        Value::Object(values) => values.values_mut().for_each(|value| named_in(value, pipeline)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Runs this for one pipeline of several: what it logs is marked with the name, and so are the commands in it.
pub async fn about<F: Future>(pipeline: Option<Arc<str>>, work: F) -> F::Output {
    match pipeline {
        Some(name) => {
            let span = tracing::error_span!("pipeline", pipeline = &*name);
            PIPELINE.scope(name, work).instrument(span).await
        }
        None => work.await,
    }
}

/// The pipeline of several that is at work here.
pub fn pipeline() -> Option<Arc<str>> {
    PIPELINE.try_with(Arc::clone).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_command_names_its_pipeline_once() {
        let check = |text: &str, wanted: &str| {
            assert_eq!(named(text, "faq"), wanted);
            assert_eq!(named(wanted, "faq"), wanted);
        };
        check("run `vecsync sync`, please", "run `vecsync sync --pipeline faq`, please");
        check(
            "`vecsync dead-letters show 3-1` says why; `vecsync run`, `vecsync config`, then `vecsync verify --repair`.",
            "`vecsync dead-letters show 3-1 --pipeline faq` says why; `vecsync run`, `vecsync config`, then \
             `vecsync verify --repair --pipeline faq`.",
        );
        check("vecsync sync, `other`, `vecsync synchronise`", "vecsync sync, `other`, `vecsync synchronise`");
        check("an open end `vecsync sync", "an open end `vecsync sync");
        check("", "");
    }

    #[test]
    fn it_is_named_wherever_it_stands_in_a_value() {
        let mut value = json!({"a": ["`vecsync sync`", 1], "b": null});
        named_in(&mut value, "faq");
        assert_eq!(value, json!({"a": ["`vecsync sync --pipeline faq`", 1], "b": null}));
    }

    #[tokio::test]
    async fn who_works_for_none_of_several_is_told_so() {
        assert_eq!(pipeline(), None);
        assert_eq!(about(Some("faq".into()), async { pipeline() }).await.as_deref(), Some("faq"));
        assert_eq!(about(None, async { pipeline() }).await, None);
    }
}
