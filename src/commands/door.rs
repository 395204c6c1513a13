//! Commands for who asks over HTTP: the same functions, words and statuses as on a command line.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::verify::Found;
use super::{backup, check, dead_letters, init, migrate, replay, sync, verify};
use crate::app::foreign;
use crate::capture::Wanted;
use crate::config::Config;
use crate::config::settings::Settings;
use crate::control::Request;
use crate::progress_bar;
use crate::remedy;
use crate::retry::Chain;
use crate::serve::control::{
    Backup, Check, Command, ControlFn, DeadLetters, Ended, Init, Replay, Sync as Resync, Verify,
};
use crate::topic::replay::{Source, Target};

/// Rows of a batch where none are named, as on a command line.
const BATCH_ROWS: u32 = 100;
/// Exit statuses, as on a command line.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const MISUSED: u8 = 2;
const UNHEALTHY: u8 = 3;
/// Where backups go that are asked for from elsewhere: a folder in the data directory, which nobody names any other way.
const BACKUPS: &str = "backups";
/// What to do where the one that was asked cannot do it alone.
const NO_CAPTURE: &str =
    "no vecsync captures on the data directory of the one that was asked: set VECSYNC_URL to one that does";

/// Does what is asked, with the settings of the vecsync that is asked. `is_one`: it has no other pipeline.
pub fn door(config: Config, settings: Settings, is_one: bool) -> Arc<ControlFn> {
    let of_this = Arc::new((config, settings));
    Arc::new(move |command, teller| {
        let of_this = Arc::clone(&of_this);
        Box::pin(async move {
            let (config, settings) = &*of_this;
            let name = &config.pipeline.name;
            let told = |text: String| if is_one { text } else { remedy::named(&text, name).into_owned() };
            let listening = teller.clone();
            let listener: progress_bar::Listener =
                Arc::new(move |label: &str, done, total| listening.passed(label, done, total));
            let tell = |line| teller.says(told(line));
            // A letter is shown as it is.
            let is_text_ours = !matches!(command, Command::DeadLetters(_));
            let ended = progress_bar::told_to(listener, run(config, settings, command, &tell)).await;
            let text = if is_text_ours { told(ended.text) } else { ended.text };
            Ended { text, error: ended.error.map(told), ..ended }
        })
    })
}

async fn run(config: &Config, settings: &Settings, command: Command, tell: &(impl Fn(String) + Sync)) -> Ended {
    match command {
        Command::Init(wanted) => Box::pin(initialise(config, wanted)).await,
        Command::Sync(wanted) => Box::pin(resync(config, settings, wanted)).await,
        Command::Check(wanted) => Box::pin(look(config, settings, wanted, tell)).await,
        Command::Verify(wanted) => Box::pin(compare(settings, wanted)).await,
        Command::Replay(wanted) => Box::pin(replay_again(settings, wanted)).await,
        Command::DeadLetters(wanted) => Box::pin(letters(config, settings, wanted)).await,
        Command::Backup(wanted) => Box::pin(back_up(config, settings, wanted)).await,
    }
}

async fn initialise(config: &Config, wanted: Init) -> Ended {
    let Init { health_check_only, validate, stats, recreate, migrate, local_store_path } = wanted;
    let no_qdrant = || ended(MISUSED, String::new(), Some(format!("QDRANT_HOST {}", init::NO_QDRANT)));
    if migrate {
        let path = match local_store_path.map(|path| within(&config.data_dir, &path)).transpose() {
            Ok(path) => path,
            Err(why) => return ended(MISUSED, String::new(), Some(why)),
        };
        return match migrate::migrate(config, path.as_deref()).await {
            Ok(Some(text)) => ended(DONE, text, None),
            Ok(None) => no_qdrant(),
            Err(error) => failed(&error),
        };
    }
    match init::init(config, init::Wanted { health_check_only, validate, stats, recreate }).await {
        Ok(Some(said)) => ended(if said.unhealthy.is_some() { UNHEALTHY } else { DONE }, said.text, said.unhealthy),
        Ok(None) => no_qdrant(),
        Err(error) => failed(&error),
    }
}

/// The file or folder of this name in the data directory. Who asks from elsewhere chooses among what was put there, and learns
/// nothing of other files.
fn within(data_dir: &Path, path: &str) -> Result<PathBuf, String> {
    let refused = || {
        format!(
            "local_store_path {path:?}: from elsewhere wanted a file or folder in VECSYNC_DATA_DIR of the vecsync that is asked; \
             `vecsync init --migrate` on its machine loads any other"
        )
    };
    let folder = data_dir.canonicalize().map_err(|_| refused())?;
    let found = folder.join(path).canonicalize().map_err(|_| refused())?;
    if found.starts_with(&folder) { Ok(found) } else { Err(refused()) }
}

async fn resync(config: &Config, settings: &Settings, wanted: Resync) -> Ended {
    let Resync { force, dry_run, batch_size, stats_only, json } = wanted;
    let wanted = Wanted { force, batch_rows: batch_size.unwrap_or(BATCH_ROWS) };
    let said = match (dry_run, stats_only) {
        (true, _) => sync::dry_run(settings, json).await.map(Some),
        (_, true) => sync::stats(settings, json).await.map(Some),
        _ => sync::sync(settings, wanted, json).await,
    };
    match said {
        Ok(Some(said)) => match said.failed {
            None => ended(DONE, said.text, None),
            Some(error) => ended(FAILED, said.text, Some(Chain(&error).to_string())),
        },
        Ok(None) if config.pipeline.source.topic.is_some() => {
            ended(FAILED, String::new(), Some(foreign::NO_SYNC.to_owned()))
        }
        Ok(None) => ended(FAILED, String::new(), Some(NO_CAPTURE.to_owned())),
        Err(error) => failed(&error),
    }
}

async fn look(config: &Config, settings: &Settings, wanted: Check, tell: &(impl Fn(String) + Sync)) -> Ended {
    let Check { skip_health, skip_operations, drill, verbose } = wanted;
    let drill = drill.map(Duration::from_secs);
    let wanted = check::Wanted { skip_health, skip_operations, drill, verbose };
    match check::check(config, settings, wanted, tell).await {
        Ok(wrong) => {
            let verdict = check::verdict(wrong);
            ended(if verdict.is_some() { UNHEALTHY } else { DONE }, String::new(), verdict)
        }
        Err(error) => failed(&error),
    }
}

async fn compare(settings: &Settings, wanted: Verify) -> Ended {
    match verify::verify(settings, wanted.repair, wanted.json).await {
        Ok((text, Found::Same)) => ended(DONE, text, None),
        Ok((text, Found::Drift(what))) => ended(UNHEALTHY, text, Some(what)),
        Ok((text, Found::Incomplete(error))) => ended(FAILED, text, Some(Chain(&error).to_string())),
        Err(error) => failed(&error),
    }
}

async fn replay_again(settings: &Settings, wanted: Replay) -> Ended {
    let Replay { topic, into, json } = wanted;
    let (topic, into) = (topic.unwrap_or(Source::Vectors), into.unwrap_or(Target::New));
    match replay::replay(settings, topic, into, json).await {
        Ok(text) => ended(DONE, text, None),
        Err(error) => failed(&error),
    }
}

async fn letters(config: &Config, settings: &Settings, wanted: DeadLetters) -> Ended {
    let DeadLetters { show, retry, retry_all, json } = wanted;
    if retry_all || !retry.is_empty() {
        return match dead_letters::retry(settings, retry).await {
            Ok((text, None)) => ended(DONE, text, None),
            Ok((text, Some(error))) => ended(FAILED, text, Some(Chain(&error).to_string())),
            Err(_) if config.pipeline.source.topic.is_some() => {
                ended(FAILED, String::new(), Some(foreign::NO_RETRY.to_owned()))
            }
            Err(error) => failed(&error),
        };
    }
    let request = show.map_or(Request::DeadLetters, |id| Request::DeadLetter { id });
    let answer = match dead_letters::ask(settings, request.clone()).await {
        Ok(Some(answer)) => Ok(answer),
        // One that has not this role reads the log, as a command does where none runs; the embedded log is its own.
        Ok(None) => dead_letters::read(config.clone(), request).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if json => ended(DONE, format!("{answer:#}\n"), None),
        Ok(answer) if show.is_some() => ended(DONE, dead_letters::letter_lines(&answer), None),
        Ok(answer) => ended(DONE, dead_letters::list_lines(&answer), None),
        Err(error) => failed(&error),
    }
}

async fn back_up(config: &Config, settings: &Settings, wanted: Backup) -> Ended {
    let folder = config.data_dir.join(BACKUPS);
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(&folder) {
        return ended(FAILED, String::new(), Some(format!("backup: make the folder {}: {error}", folder.display())));
    }
    match backup::backup(settings, &folder.join(&wanted.dir), wanted.json).await {
        Ok(Some(text)) => ended(DONE, text, None),
        Ok(None) => {
            let error = "no vecsync keeps a store on the data directory of the one that was asked: set VECSYNC_URL to one that does";
            ended(FAILED, String::new(), Some(error.to_owned()))
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Ended {
    ended(FAILED, String::new(), Some(Chain(error).to_string()))
}

fn ended(status: u8, text: String, error: Option<String>) -> Ended {
    Ended { status, text, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_elsewhere_only_the_data_directory_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir_all(data.join("mirror")).expect("made");
        std::fs::write(folder.path().join("secret"), "x").expect("written");
        std::os::unix::fs::symlink(folder.path().join("secret"), data.join("link")).expect("made");
        let real = data.canonicalize().expect("there");
        assert_eq!(within(&data, "mirror"), Ok(real.join("mirror")));
        assert_eq!(within(&data, real.join("mirror").to_str().expect("text")), Ok(real.join("mirror")));
        let outside = folder.path().join("secret").display().to_string();
        for path in ["../secret", "link", "missing", &outside, "/etc/passwd"] {
            assert!(within(&data, path).is_err_and(|why| why.contains("VECSYNC_DATA_DIR")), "{path}");
        }
    }
}
