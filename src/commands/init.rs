//! `vecsync init`: makes the collection in Qdrant, says how it is, has it made anew.

use std::fmt::Write;
use std::path::Path;

use crate::app::{self, AppError};
use crate::commands::replay::rebuilt_sentence;
use crate::config::Config;
use crate::control::{self, ControlError, Request};
use crate::index::{Contents, Listed, Look, QdrantError, QdrantGenerations, qdrant};
use crate::progress_bar::Progress;
use crate::retry::Chain;

/// Behind the name of the setting: why there is nothing to do.
pub const NO_QDRANT: &str =
    "names no Qdrant: set it, and RAG_VECTOR_STORE_TYPE not to local; init is about a collection there";

/// What `init` is to do; nothing of this: make what is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only say whether Qdrant answers.
    pub health_check_only: bool,
    /// Only compare what is there with what would be made.
    pub validate: bool,
    /// Say how many rows and points each generation has.
    pub stats: bool,
    /// Have the running vecsync fill a new generation first.
    pub recreate: bool,
}

/// What `init` has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// For standard output.
    pub text: String,
    /// What is wrong, where something is.
    pub unhealthy: Option<String>,
}

/// Nothing was made or found out.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Qdrant is not configured as it could be used.
    #[error(transparent)]
    App(#[from] AppError),
    /// Qdrant did not do it.
    #[error(transparent)]
    Qdrant(#[from] QdrantError),
    /// Qdrant cannot be reached, and its ports tell why.
    #[error("{error}; {remedy}")]
    Way {
        /// What failed.
        error: QdrantError,
        /// What probably mends it.
        remedy: String,
    },
    /// The running vecsync ended before it was done.
    #[error(
        "make the collection in Qdrant anew: the vecsync that did it ended before it was done: the generation that searches ask \
         is as it was, or the new one has just taken its place; what was half filled is removed when this is run once more"
    )]
    Ended(#[source] ControlError),
    /// The running vecsync did not do it, or there is none.
    #[error("make the collection in Qdrant anew")]
    Control(#[source] ControlError),
    /// It answered something else.
    #[error("read the answer of the running vecsync, which may be another version")]
    Answer(#[source] serde_json::Error),
}

/// Does it; `None`: no Qdrant is configured.
pub async fn init(config: &Config, wanted: Wanted) -> Result<Option<Said>, InitError> {
    let Some(generations) = app::qdrant_generations(config)? else { return Ok(None) };
    let made = if wanted.recreate { recreate(&config.data_dir).await? } else { String::new() };
    if wanted.recreate && !wanted.stats {
        return Ok(Some(Said { text: made, unhealthy: None }));
    }
    let said = match look(&generations, wanted).await {
        Ok(said) => said,
        Err(error) => {
            return Err(match qdrant::remedy(&generations.settings().server, &error).await {
                Some(remedy) => InitError::Way { error, remedy },
                None => error.into(),
            });
        }
    };
    Ok(Some(Said { text: made + &said.text, ..said }))
}

/// Makes the first generation and the alias where they are not there, and says how they are.
async fn look(generations: &QdrantGenerations, wanted: Wanted) -> Result<Said, QdrantError> {
    let alias = &generations.settings().collection;
    let mut text = String::new();
    let (version, look) = match answers(generations).await {
        Ok(answers) => answers,
        Err(error) if wanted.health_check_only => {
            let remedy = qdrant::remedy(&generations.settings().server, &error).await;
            let unhealthy = remedy.into_iter().fold(Chain(&error).to_string(), |said, remedy| said + "; " + &remedy);
            return Ok(Said { text, unhealthy: Some(unhealthy) });
        }
        Err(error) => return Err(error),
    };
    let server = &generations.settings().server;
    let took_ms = look.took.as_secs_f64() * 1000.0;
    let _ = writeln!(
        text,
        "Qdrant {version} at {} answers in {took_ms:.1} ms; collections there: {}.",
        server.url(),
        look.collections
    );
    if let Some(remedy) = qdrant::rest_remedy(server).await {
        let _ = writeln!(text, "Its REST cannot be used: {remedy}.");
    }
    if wanted.health_check_only {
        return Ok(Said { text, unhealthy: None });
    }
    let mut unhealthy = None;
    if wanted.validate {
        match generations.differences().await? {
            None => unhealthy = Some(format!("there is no alias {alias}; `vecsync init` makes it")),
            Some(differences) if differences.is_empty() => {
                let _ = writeln!(text, "Collection {alias} is as it would be made now.");
            }
            Some(differences) => {
                unhealthy =
                    Some(format!("collection {alias} is not as it would be made now: {}", differences.join("; ")));
            }
        }
    } else if !wanted.stats {
        let had = look.named;
        match generations.current_or_first().await {
            Ok(generation) => {
                let made = if had.is_some() { "is there already" } else { "is made" };
                let _ = writeln!(text, "Collection {alias} {made}: an alias of {}.", generation.store.collection());
            }
            Err(error @ QdrantError::Outdated { .. }) => {
                let _ = writeln!(
                    text,
                    "{}: it stays; `vecsync run` fills a generation beside it, which takes the alias when it is whole.",
                    Chain(&error)
                );
            }
            Err(error) => return Err(error),
        }
    }
    if wanted.stats {
        let _ = writeln!(text, "Collection {alias}:");
        for listed in generations.inventory().await? {
            let _ = writeln!(text, "  {}", line(&listed));
        }
    }
    Ok(Said { text, unhealthy })
}

fn line(listed: &Listed) -> String {
    let Listed { collection, contents, points, is_named } = listed;
    let asked = if *is_named { ", which searches ask" } else { ", which nothing names" };
    match contents {
        Contents::Generation { revision, rows } => {
            format!("{collection}: {rows} rows, {points} points, revision {revision}{asked}")
        }
        Contents::Lines => format!("{collection}: {points} points of a file that was loaded{asked}"),
        Contents::Adopted => format!("{collection}: {points} points of a collection that was taken over{asked}"),
        Contents::Foreign => format!("{collection}: {points} points, not made by vecsync for this pipeline{asked}"),
    }
}

async fn answers(generations: &QdrantGenerations) -> Result<(String, Look), QdrantError> {
    Ok((generations.version().await?, generations.look().await?))
}

/// Has the running vecsync fill a new generation from the log and remove the others; gives what to print.
async fn recreate(data_dir: &Path) -> Result<String, InitError> {
    let mut bar: Option<Progress> = None;
    let answer = control::call(data_dir, Request::Recreate, |done, total| {
        let bar = bar.get_or_insert_with(|| Progress::start(total, "filled"));
        bar.set_total(total);
        bar.set(done);
    });
    let answer = answer.await.map_err(|error| match error {
        ControlError::Ended { .. } => InitError::Ended(error),
        error => InitError::Control(error),
    });
    let rebuilt = serde_json::from_value(answer?).map_err(InitError::Answer)?;
    Ok(rebuilt_sentence(&rebuilt))
}
