//! The commands that can be asked for over HTTP: their names, their flags as JSON, and which flags do not go together. Does none.

use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::serve::problem::Problem;
use crate::topic::LetterId;
use crate::topic::replay::{Source, Target};

/// Longest name of a backup.
const NAME_CHARS_MAX: usize = 100;

/// What is asked for: the commands of these names, with their flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `vecsync init`.
    Init(Init),
    /// `vecsync sync`.
    Sync(Sync),
    /// `vecsync check`.
    Check(Check),
    /// `vecsync verify`.
    Verify(Verify),
    /// `vecsync replay`.
    Replay(Replay),
    /// `vecsync dead-letters`.
    DeadLetters(DeadLetters),
    /// `vecsync backup`.
    Backup(Backup),
}

/// Flags of `init`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Init {
    /// `--health-check-only`.
    pub health_check_only: bool,
    /// `--validate`.
    pub validate: bool,
    /// `--stats`.
    pub stats: bool,
    /// `--recreate`.
    pub recreate: bool,
    /// `--migrate`.
    pub migrate: bool,
    /// `--local-store-path`, on the machine of the one that is asked.
    pub local_store_path: Option<String>,
}

/// Flags of `sync`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sync {
    /// `--force`.
    pub force: bool,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--batch-size`; none: the program's.
    pub batch_size: Option<u32>,
    /// `--stats-only`.
    pub stats_only: bool,
    /// `--json`.
    pub json: bool,
}

/// Flags of `check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Check {
    /// `--skip-health`.
    pub skip_health: bool,
    /// `--skip-operations`.
    pub skip_operations: bool,
    /// `--drill`, seconds.
    pub drill: Option<u64>,
    /// `--verbose`.
    pub verbose: bool,
}

/// Flags of `verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Verify {
    /// `--repair`.
    pub repair: bool,
    /// `--json`.
    pub json: bool,
}

/// Flags of `replay`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// `--topic`; none: the program's.
    pub topic: Option<Source>,
    /// `--into`; none: the program's.
    pub into: Option<Target>,
    /// `--json`.
    pub json: bool,
}

/// `dead-letters`: nothing of these lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetters {
    /// `show ID`.
    pub show: Option<LetterId>,
    /// `retry ID…`.
    pub retry: Vec<LetterId>,
    /// `retry --all`.
    pub retry_all: bool,
    /// `--json`.
    pub json: bool,
}

/// `backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backup {
    /// The folder's name; it stands in `backups` of the data directory of the one that is asked.
    pub dir: String,
    /// `--json`.
    pub json: bool,
}

const NAMES: [&str; 7] = ["init", "sync", "check", "verify", "replay", "dead-letters", "backup"];

/// The command that a path names.
pub(in crate::serve) fn name(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/control/")?;
    NAMES.contains(&name).then_some(name)
}

impl Command {
    /// Its name, as in its path.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Init(_) => "init",
            Command::Sync(_) => "sync",
            Command::Check(_) => "check",
            Command::Verify(_) => "verify",
            Command::Replay(_) => "replay",
            Command::DeadLetters(_) => "dead-letters",
            Command::Backup(_) => "backup",
        }
    }

    /// Its flags as the body that asks for it: what is not set is left out, so that another version knows what it is asked.
    pub fn body(&self) -> String {
        let flags = match self {
            Command::Init(flags) => serde_json::to_value(flags),
            Command::Sync(flags) => serde_json::to_value(flags),
            Command::Check(flags) => serde_json::to_value(flags),
            Command::Verify(flags) => serde_json::to_value(flags),
            Command::Replay(flags) => serde_json::to_value(flags),
            Command::DeadLetters(flags) => serde_json::to_value(flags),
            Command::Backup(flags) => serde_json::to_value(flags),
        };
        let mut flags = flags.expect("flags have names and plain values");
        if let Some(flags) = flags.as_object_mut() {
            let is_set = |value: &Value| !(value.is_null() || *value == false || *value == Value::Array(vec![]));
            flags.retain(|_, value| is_set(value));
        }
        flags.to_string()
    }
}

/// Reads what a body asks of the command of this name.
pub(in crate::serve) fn parse(name: &str, body: &[u8]) -> Result<Command, Problem> {
    let command = match name {
        "init" => Command::Init(flags(body)?),
        "sync" => Command::Sync(flags(body)?),
        "verify" => Command::Verify(flags(body)?),
        "replay" => Command::Replay(flags(body)?),
        "dead-letters" => Command::DeadLetters(flags(body)?),
        "backup" => Command::Backup(flags(body)?),
        _ => Command::Check(flags(body)?),
    };
    match excluded(&command) {
        None => Ok(command),
        Some(detail) => Err(Problem::new(StatusCode::BAD_REQUEST, detail)),
    }
}

fn flags<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the body is not a JSON object of flags"));
    }
    serde_json::from_value(value).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Why these flags do not go together: as on a command line.
fn excluded(command: &Command) -> Option<&'static str> {
    match command {
        Command::Init(Init { health_check_only, validate, stats, recreate, migrate, local_store_path }) => {
            if *migrate && (*health_check_only || *validate || *stats || *recreate) {
                Some("migrate: wanted without other flags of init")
            } else if local_store_path.is_some() && !migrate {
                Some("local_store_path: wanted with migrate")
            } else if *health_check_only && (*validate || *stats || *recreate) {
                Some("health_check_only: wanted without validate, stats and recreate")
            } else if *validate && *recreate {
                Some("validate: wanted without recreate")
            } else {
                None
            }
        }
        Command::Sync(Sync { force, dry_run, batch_size, stats_only, json: _ }) => {
            if *stats_only && (*force || *dry_run) {
                Some("stats_only: wanted without force and dry_run")
            } else if batch_size.is_some_and(|rows| !(1..=10_000).contains(&rows)) {
                Some("batch_size: wanted a whole number from 1 to 10000")
            } else {
                None
            }
        }
        Command::Check(Check { skip_health, skip_operations, drill, verbose: _ }) => match drill {
            Some(_) if *skip_health || *skip_operations => {
                Some("drill: wanted without skip_health and skip_operations")
            }
            Some(0 | 3601..) => Some("drill: wanted a whole number of seconds from 1 to 3600"),
            _ => None,
        },
        Command::DeadLetters(DeadLetters { show, retry, retry_all, json }) => {
            if show.is_some() && (!retry.is_empty() || *retry_all) {
                Some("show: wanted without retry and retry_all")
            } else if !retry.is_empty() && *retry_all {
                Some("retry: wanted without retry_all")
            } else if *json && (!retry.is_empty() || *retry_all) {
                Some("json: wanted without retry and retry_all")
            } else {
                None
            }
        }
        Command::Backup(Backup { dir, json: _ }) if !is_name(dir) => Some(
            "dir: from elsewhere wanted a name of 1 to 100 letters, digits, dots, dashes and underscores that begins with a letter or \
             digit; the folder is made in VECSYNC_DATA_DIR/backups of the vecsync that is asked",
        ),
        Command::Verify(_) | Command::Replay(_) | Command::Backup(_) => None,
    }
}

/// Names nothing but a folder in the one that it stands in.
fn is_name(text: &str) -> bool {
    text.len() <= NAME_CHARS_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_commands() {
        for (path, wanted) in [
            ("/control/sync", Some("sync")),
            ("/control/init", Some("init")),
            ("/control/check", Some("check")),
            ("/control/dead-letters", Some("dead-letters")),
            ("/control/backup", Some("backup")),
            ("/control/restore", None),
            ("/control/run", None),
            ("/control/", None),
            ("/control", None),
            ("/control/sync//", None),
        ] {
            assert_eq!(name(path), wanted, "{path}");
        }
    }

    #[track_caller]
    fn check(name: &str, body: &str, wanted: Result<Command, &str>) {
        match (parse(name, body.as_bytes()), wanted) {
            (Ok(command), Ok(wanted)) => assert_eq!(command, wanted),
            (Err(problem), Err(wanted)) => {
                let said = format!("{problem:?}");
                assert!(problem.status == StatusCode::BAD_REQUEST && said.contains(wanted), "{body}: {said}");
            }
            (found, wanted) => panic!("{body}: {found:?}, wanted {wanted:?}"),
        }
    }

    #[test]
    fn flags_are_those_of_the_command_line() {
        check("sync", "{}", Ok(Command::Sync(Sync::default())));
        let wanted = Sync { force: true, batch_size: Some(7), ..Sync::default() };
        check("sync", r#"{"force": true, "batch_size": 7}"#, Ok(Command::Sync(wanted)));
        check("sync", r#"{"batch_size": 0}"#, Err("batch_size"));
        check("sync", r#"{"batch_size": 10001}"#, Err("batch_size"));
        check("sync", r#"{"force": "yes"}"#, Err("boolean"));
        check("sync", r#"{"stats_only": true, "force": true}"#, Err("stats_only"));
        check("sync", r#"{"recreate": true}"#, Err("recreate"));
        check("sync", "[]", Err("object"));
        check("sync", "", Err("not JSON"));
        check("init", r#"{"validate": true, "recreate": true}"#, Err("validate"));
        check("init", r#"{"health_check_only": true, "stats": true}"#, Err("health_check_only"));
        check("init", r#"{"local_store_path": "/x"}"#, Err("local_store_path"));
        check("init", r#"{"migrate": true, "stats": true}"#, Err("migrate"));
        check("check", r#"{"drill": 0}"#, Err("drill"));
        check("check", r#"{"drill": 3601}"#, Err("drill"));
        check("check", r#"{"drill": 5, "skip_health": true}"#, Err("drill"));
        let wanted = Check { drill: Some(5), verbose: true, ..Check::default() };
        check("check", r#"{"drill": 5, "verbose": true}"#, Ok(Command::Check(wanted)));
        check("verify", r#"{"repair": true}"#, Ok(Command::Verify(Verify { repair: true, json: false })));
        check("replay", r#"{"topic": "dead-letter"}"#, Err("`changes` or `vectors`"));
        check("replay", r#"{"into": "old"}"#, Err("`new` or `current`"));
        check("dead-letters", r#"{"show": "seven"}"#, Err("PARTITION-OFFSET"));
        check("dead-letters", r#"{"show": "1-2", "retry_all": true}"#, Err("show"));
        check("dead-letters", r#"{"retry": ["1-2"], "retry_all": true}"#, Err("retry"));
        check("dead-letters", r#"{"retry_all": true, "json": true}"#, Err("json"));
        for dir in ["", "..", "/tmp/x", "a/b", "../a", ".hidden", "a b", "a\\u0000", &"a".repeat(101)] {
            check("backup", &format!(r#"{{"dir": "{dir}"}}"#), Err("VECSYNC_DATA_DIR/backups"));
        }
        let wanted = Backup { dir: "2026-11-23.night_1".to_owned(), json: false };
        check("backup", r#"{"dir": "2026-11-23.night_1"}"#, Ok(Command::Backup(wanted)));
    }

    #[test]
    fn what_is_asked_is_what_is_understood() {
        let id = || "3-7".parse().expect("an id");
        for command in [
            Command::Init(Init { migrate: true, local_store_path: Some("x".to_owned()), ..Init::default() }),
            Command::Sync(Sync { batch_size: Some(100), dry_run: true, ..Sync::default() }),
            Command::Check(Check { drill: Some(3), ..Check::default() }),
            Command::Verify(Verify { repair: true, json: true }),
            Command::Replay(Replay { topic: Some(Source::Changes), into: Some(Target::Current), json: false }),
            Command::DeadLetters(DeadLetters { retry: vec![id(), id()], ..DeadLetters::default() }),
            Command::DeadLetters(DeadLetters { show: Some(id()), json: true, ..DeadLetters::default() }),
            Command::Backup(Backup { dir: "b".to_owned(), json: false }),
        ] {
            assert_eq!(name(&format!("/control/{}", command.name())), Some(command.name()));
            let body = command.body();
            check(command.name(), &body, Ok(command));
            assert!(!body.contains("false") && !body.contains("null") && !body.contains("[]"), "{body}");
        }
    }
}
