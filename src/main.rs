//! The program: arguments → settings → command → exit code. Decides nothing else.

mod cli;

use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use cli::{Check, Cli, Command, DeadLetters, Init, Pipeline, Sync};
use serde_json::Value;
use vecsync::capture::Wanted;
use vecsync::client::Query;
use vecsync::commands::dead_letters as letters;
use vecsync::commands::sync;
use vecsync::commands::verify::Found;
use vecsync::config::environment::Environment;
use vecsync::config::problems::{Problem, Problems};
use vecsync::config::settings::Settings;
use vecsync::config::{Config, Document, Log, Role, listing, pipeline};
use vecsync::control::Request;
use vecsync::embed::DocumentError;
use vecsync::retry::Chain;
use vecsync::{app, commands, embed, logging};

/// It was tried and failed.
const FAILED: u8 = 1;
/// The arguments or the settings are wrong and nothing was tried. clap exits with the same.
const MISUSED: u8 = 2;
/// A check found something that is not as it should be.
const UNHEALTHY: u8 = 3;

/// Why a command did not do what it was asked.
enum Failure {
    /// Found before anything was connected to.
    Problems(Problems),
    /// Printed once, with all its causes.
    Error(Box<dyn Error>),
    /// What a check found.
    Unhealthy(String),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure::Problems(problems)
    }
}

impl From<Box<dyn Error>> for Failure {
    fn from(error: Box<dyn Error>) -> Self {
        Failure::Error(error)
    }
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Problems(problems)) => {
            let many = if problems.len() == 1 { "problem" } else { "problems" };
            complain(&format!("vecsync: {} {many} in settings and pipeline files\n{problems}", problems.len()));
            ExitCode::from(MISUSED)
        }
        Err(Failure::Error(error)) => {
            complain(&format!("vecsync: {}", Chain(error.as_ref())));
            ExitCode::from(FAILED)
        }
        Err(Failure::Unhealthy(what)) => {
            complain(&format!("vecsync: {what}"));
            ExitCode::from(UNHEALTHY)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    let environment = Environment::of_process();
    match command {
        Command::Run { role } => run(&environment, &role),
        Command::Init(wanted) => init(&environment, wanted),
        Command::Check(wanted) => check(&environment, wanted),
        Command::Search(search) => {
            let settings = Settings::read(&environment)?;
            let query = Query {
                text: search.text,
                limit: Some(search.limit as usize),
                min_score: None,
                filter: search.filters,
            };
            print(&to_end(&settings.log, commands::search(&settings, &query, search.json))?)
        }
        Command::Sync(wanted) => resync(&environment, wanted),
        Command::Status { watch: true, .. } => {
            let settings = Settings::read(&environment)?;
            to_end(&settings.log, commands::watch::watch(&settings))
        }
        Command::Status { json, .. } => {
            let settings = Settings::read(&environment)?;
            print(&to_end(&settings.log, commands::status(&settings, json))?)
        }
        Command::Replay { topic, into, json } => {
            let settings = Settings::read(&environment)?;
            print(&to_end(&settings.log, commands::replay::replay(&settings, topic, into, json))?)
        }
        Command::Verify { repair, json } => {
            let settings = Settings::read(&environment)?;
            let (said, found) = to_end(&settings.log, commands::verify::verify(&settings, repair, json))?;
            print(&said)?;
            match found {
                Found::Same => Ok(()),
                Found::Drift(what) => Err(Failure::Unhealthy(what)),
                Found::Incomplete(error) => Err(Failure::Error(Box::new(error))),
            }
        }
        Command::Backup { dir, json } => {
            let settings = Settings::read(&environment)?;
            let said = match to_end(&settings.log, commands::backup::backup(&settings, &dir, json))? {
                Some(said) => said,
                None => {
                    let config = Config::load(&environment, &[], &check_templates)?;
                    block_on(commands::backup::backup_alone(config, dir, json))?
                }
            };
            print(&said)
        }
        Command::Restore { dir, only, json } => {
            let config = Config::load(&environment, &[], &check_templates)?;
            print(&to_end(&config.log, commands::backup::restore(&config, &dir, only, json))?)
        }
        Command::DeadLetters(command) => dead_letters(&environment, command),
        Command::Pipeline(Pipeline::Check { files }) => check_pipelines(&files),
        Command::Pipeline(Pipeline::Schema) => print(pipeline::SCHEMA),
        Command::Healthcheck => {
            let settings = Settings::read(&environment)?;
            match to_end(&settings.log, commands::healthcheck(&settings))? {
                None => print("ready\n"),
                Some(why) => Err(Failure::Unhealthy(why)),
            }
        }
        Command::Config => {
            let (listing, problems) = listing::listing(&environment);
            print(&listing.to_string())?;
            Ok(problems.or(Some(()))?)
        }
    }
}

fn run(environment: &Environment, roles: &[Role]) -> Result<(), Failure> {
    let config = Config::load(environment, roles, &check_templates)?;
    to_end(&config.log.clone(), app::run(config))
}

fn resync(environment: &Environment, wanted: Sync) -> Result<(), Failure> {
    let Sync { force, dry_run, batch_size, stats_only, json } = wanted;
    let settings = Settings::read(environment)?;
    let wanted = Wanted { force, batch_rows: batch_size };
    let said = to_end(&settings.log, async {
        match (dry_run, stats_only) {
            (true, _) => sync::dry_run(&settings, json).await.map(Some),
            (_, true) => sync::stats(&settings, json).await.map(Some),
            _ => sync::sync(&settings, wanted, json).await,
        }
    })?;
    let Some(said) = said else {
        let config = Config::load(environment, &[], &check_templates)?;
        return print(&block_on(sync::prepare(config, wanted, json))?);
    };
    print(&said.text)?;
    said.failed.map_or(Ok(()), |failed| Err(Failure::Error(Box::new(failed))))
}

fn check(environment: &Environment, wanted: Check) -> Result<(), Failure> {
    let Check { skip_health, skip_operations, drill, verbose } = wanted;
    let drill = drill.map(Duration::from_secs);
    let config = Config::load(environment, &[], &check_templates)?;
    let settings = Settings::read(environment)?;
    let wanted = commands::check::Wanted { skip_health, skip_operations, drill, verbose };
    match to_end(&config.log, commands::check::check(&config, &settings, wanted))? {
        0 => Ok(()),
        1 => Err(Failure::Unhealthy("one thing is not as it should be".to_owned())),
        wrong => Err(Failure::Unhealthy(format!("{wrong} things are not as they should be"))),
    }
}

fn init(environment: &Environment, wanted: Init) -> Result<(), Failure> {
    let Init { health_check_only, validate, stats, recreate, migrate, local_store_path } = wanted;
    let config = Config::load(environment, &[], &check_templates)?;
    let no_qdrant = || {
        let mut problems = Problems::new();
        problems.push(Problem::new(
            "QDRANT_HOST",
            "names no Qdrant: set it, and RAG_VECTOR_STORE_TYPE not to local; init is about a collection there",
        ));
        Failure::from(problems)
    };
    if migrate {
        let migrated = to_end(&config.log, commands::migrate::migrate(&config, local_store_path.as_deref()))?;
        return print(&migrated.ok_or_else(no_qdrant)?);
    }
    let wanted = commands::init::Wanted { health_check_only, validate, stats, recreate };
    let said = to_end(&config.log, commands::init::init(&config, wanted))?.ok_or_else(no_qdrant)?;
    print(&said.text)?;
    said.unhealthy.map_or(Ok(()), |what| Err(Failure::Unhealthy(what)))
}

fn dead_letters(environment: &Environment, command: DeadLetters) -> Result<(), Failure> {
    let settings = Settings::read(environment)?;
    let (request, as_json, lines): (_, _, fn(&Value) -> String) = match command {
        DeadLetters::Retry { ids, all: _ } => {
            let retried = to_end(&settings.log, letters::retry(&settings, ids));
            let is_foreign = |config: Config| config.pipeline.source.topic.is_some();
            if retried.is_err() && Config::load(environment, &[], &check_templates).is_ok_and(is_foreign) {
                return Err(Failure::Error(app::foreign::NO_RETRY.into()));
            }
            let (said, failed) = retried?;
            print(&said)?;
            return failed.map_or(Ok(()), |failed| Err(Failure::Error(Box::new(failed))));
        }
        DeadLetters::List { json } => (Request::DeadLetters, json, letters::list_lines),
        DeadLetters::Show { id, json } => (Request::DeadLetter { id }, json, letters::letter_lines),
    };
    let answer = match to_end(&settings.log, letters::ask(&settings, request.clone()))? {
        Some(answer) => answer,
        None => {
            let config = Config::load(environment, &[], &check_templates)?;
            block_on(letters::read(config, request))?
        }
    };
    print(&if as_json { format!("{answer:#}\n") } else { lines(&answer) })
}

fn check_pipelines(files: &[PathBuf]) -> Result<(), Failure> {
    let mut problems = Problems::new();
    for (file, result) in files.iter().zip(pipeline::read_files(files, &check_templates)) {
        if let Some(pipeline) = problems.take(result) {
            let source = &pipeline.source;
            let line = format!("{}: ok: {} from {}.{}\n", file.display(), pipeline.name, source.schema, source.table);
            print(&line)?;
        }
    }
    Ok(problems.or(Some(()))?)
}

/// What is wrong with a document's templates, each with its path in front (`document.text: …`).
fn check_templates(document: &Document) -> Vec<String> {
    match embed::Document::compile(document) {
        Err(DocumentError::Templates(problems)) => problems,
        Err(other) => vec![other.to_string()],
        Ok(_) => vec![],
    }
}

/// Starts logging and runs a command to its end.
fn to_end<T, E: Error + 'static>(log: &Log, command: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    logging::start(log).map_err(Box::<dyn Error>::from)?;
    block_on(command)
}

/// Runs a command on as many threads as there are cores.
fn block_on<T, E: Error + 'static>(command: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .thread_name("vecsync")
        .enable_all()
        .build()
        .map_err(Box::<dyn Error>::from)?;
    runtime.block_on(command).map_err(|error| Failure::Error(Box::new(error)))
}

/// Writes to standard output. Nobody reading on (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Error(Box::new(error))),
        _ => Ok(()),
    }
}

/// Writes to standard error, where there may be nobody.
fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
