//! `vecsync check --drill`: has the running vecsync answer without Qdrant for a while, and looks whether searches notice.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::client::{self, Answer, ClientError, Query};
use crate::config::settings::Settings;
use crate::control::{self, ControlError, Request};
use crate::retry::Chain;

/// What is asked, in turn. What it finds does not matter, only that it is found as before.
const QUESTIONS: [&str; 4] =
    ["How do I begin?", "Something does not work", "Where can I change that?", "What does it cost?"];
/// Between two searches.
const PAUSE: Duration = Duration::from_millis(50);
/// How long Qdrant may take to be asked again: it is probed, once a second.
const RETURN_MAX: Duration = Duration::from_secs(30);
/// Stores as answers name them.
const QDRANT: &str = "qdrant";
const LOCAL: &str = "local";

/// Makes the drill. Says how it went, or what went wrong.
pub async fn drill(settings: &Settings, length: Duration) -> Result<String, String> {
    let mut before = vec![];
    for question in QUESTIONS {
        let answer = ask(settings, question).await?;
        if answer.served_by != QDRANT {
            return Err(format!(
                "there is nothing to try: searches are answered by {} already; `vecsync status` says why",
                answer.served_by
            ));
        }
        before.push(answer);
    }
    let held = hold(settings, length).await?;
    let (count, same, slowest) = without(settings, &before, length).await?;
    drop(held);
    let returned = returns(settings).await?;
    let (seconds, slowest) = (length.as_secs(), slowest.as_secs_f64() * 1000.0);
    Ok(format!(
        "for {seconds} s {count} searches were answered by the mirror, the slowest in {slowest:.1} ms, {same} with the rows \
         that Qdrant gives; Qdrant was asked again {:.1} s later",
        returned.as_secs_f64()
    ))
}

/// What holds the breaker open.
type Held = AbortOnDropHandle<Result<Value, ControlError>>;

/// Has the breaker held open; returns when it is. It is let go when what is returned is dropped, and when this process ends,
/// whatever ends it: who asked for a drill and goes away ends it.
async fn hold(settings: &Settings, length: Duration) -> Result<Held, String> {
    let (data_dir, request) = (settings.data_dir.clone(), Request::Drill { seconds: length.as_secs() });
    let (began, begun) = oneshot::channel();
    let mut began = Some(began);
    let told = move |_, _| {
        // Who waits for it may have gone.
        began.take().map(|began| began.send(())).unwrap_or(Ok(())).unwrap_or_default();
    };
    let held = AbortOnDropHandle::new(tokio::spawn(async move { control::call(&data_dir, request, told).await }));
    match begun.await {
        Ok(()) => Ok(held),
        // It ended without having begun.
        Err(_) => match held.await {
            Ok(Err(error)) => Err(Chain(&error).to_string()),
            Ok(Ok(_)) | Err(_) => Err("the drill ended before it began".to_owned()),
        },
    }
}

/// Searches while Qdrant is not asked. How many were made, how many gave the same rows as before, and the slowest.
async fn without(settings: &Settings, before: &[Answer], length: Duration) -> Result<(u32, u32, Duration), String> {
    let (since, mut count, mut same, mut slowest) = (Instant::now(), 0, 0, Duration::ZERO);
    for before in before.iter().cycle() {
        let asked = Instant::now();
        let found = ask(settings, &before.query).await;
        // What was asked at the very end may have been answered after it.
        if since.elapsed() >= length {
            break;
        }
        let found = found.map_err(|error| format!("search {count} of the drill had no answer: {error}"))?;
        let ids = |answer: &Answer| answer.results.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>();
        match (&*found.served_by, found.degraded) {
            (LOCAL, true) => {}
            (LOCAL, false) => return Err("the mirror answered, and did not call its answer degraded".to_owned()),
            (store, _) => return Err(format!("the breaker was held open, and {store} answered")),
        }
        if found.results.is_empty() && !before.results.is_empty() {
            let (query, rows) = (&found.query, before.results.len());
            return Err(format!("the mirror found nothing for {query:?}, where Qdrant found {rows} rows"));
        }
        (count, same) = (count + 1, same + u32::from(ids(&found) == ids(before)));
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    Ok((count, same, slowest))
}

/// Waits until Qdrant answers again. Says how long that took.
async fn returns(settings: &Settings) -> Result<Duration, String> {
    let since = Instant::now();
    loop {
        let answer = ask(settings, QUESTIONS[0]).await?;
        match since.elapsed() {
            after if answer.served_by == QDRANT => return Ok(after),
            after if after >= RETURN_MAX => {
                return Err(format!(
                    "searches are not answered by Qdrant again {:.0} s after the drill; `vecsync status` says why",
                    after.as_secs_f64()
                ));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn ask(settings: &Settings, question: &str) -> Result<Answer, String> {
    let (query, url) = (Query { text: question.to_owned(), ..Query::default() }, settings.url.to_string());
    let asked = client::search(&url, settings.server.api_keys.to_search(), &query);
    asked.await.map_err(|error: ClientError| Chain(&error).to_string())
}
